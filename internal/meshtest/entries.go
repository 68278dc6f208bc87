package meshtest

import (
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Services are those that [Entries] are about.
func Services() []string { return []string{"a", "b", "c", "d", "e"} }

// Entries draws entries that say how requests for a few services are routed. Each is
// valid by itself; they may contradict each other, mostly they don't. Of a kind and
// name there is one at most.
func Entries() *rapid.Generator[[]config.Entry] {
	return rapid.Custom(func(t *rapid.T) []config.Entry {
		var out []config.Entry
		if likely(t, 80, "protocol for all") {
			out = append(out, &config.ProxyDefaults{Kind: config.KindProxyDefaults, Name: config.Global, Config: map[string]any{"protocol": "http"}})
		}
		for _, name := range Services() {
			if likely(t, 10, "own protocol") {
				out = append(out, &config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: name,
					Protocol: rapid.SampledFrom([]string{"tcp", "http", "http2", "grpc"}).Draw(t, "protocol"), Meta: map[string]string{"owner": name}})
			}
			if likely(t, 70, "resolver") {
				out = append(out, resolver(t, name))
			}
			if likely(t, 50, "splitter") {
				out = append(out, splitter(t, name))
			}
			if likely(t, 30, "router") {
				out = append(out, router(t, name))
			}
		}
		out = slices.DeleteFunc(out, func(e config.Entry) bool { e.Normalize(); return e.Validate() != nil })
		return rapid.Permutation(out).Draw(t, "order")
	})
}

func likely(t *rapid.T, percent int, what string) bool {
	return rapid.IntRange(1, 100).Draw(t, what) <= percent
}

func maybe[T any](t *rapid.T, percent int, what string, values ...T) (v T) {
	if likely(t, percent, what) {
		v = rapid.SampledFrom(values).Draw(t, what)
	}
	return v
}

func resolver(t *rapid.T, name string) *config.ServiceResolver {
	e := &config.ServiceResolver{Kind: config.KindServiceResolver, Name: name,
		ConnectTimeout: maybe(t, 20, "connect", config.Duration(3*time.Second)), RequestTimeout: maybe(t, 20, "timeout", config.Duration(7*time.Second))}
	if likely(t, 85, "subsets") {
		e.Subsets = map[string]config.ResolverSubset{"v1": {Filter: `Service.Meta.v == "1"`}, "v2": {Filter: `Service.Meta.v == "2"`, OnlyPassing: true}}
	}
	if len(e.Subsets) > 0 {
		e.DefaultSubset = maybe(t, 20, "default subset", "v1", "v2")
	}
	if likely(t, 25, "balancer") {
		e.LoadBalancer = &config.LoadBalancer{Policy: rapid.SampledFrom([]string{"random", "round_robin", "least_request", "ring_hash", "maglev"}).Draw(t, "policy")}
	}
	switch {
	case likely(t, 15, "redirect"):
		e.Redirect = &config.ResolverRedirect{Service: maybe(t, 80, "to", Services()...), Datacenter: maybe(t, 15, "in", "dc1", "dc2")}
		if e.Redirect.Service != "" {
			e.Redirect.ServiceSubset = maybe(t, 30, "to subset", "v1", "v2")
		}
	case likely(t, 40, "failover"):
		e.Failover = map[string]config.ResolverFailover{}
		for _, of := range []string{"*", "v1"} {
			if likely(t, 60, "failover of "+of) {
				e.Failover[of] = failover(t)
			}
		}
	}
	return e
}

func failover(t *rapid.T) (f config.ResolverFailover) {
	if likely(t, 40, "targets") {
		for range rapid.IntRange(1, 3).Draw(t, "number") {
			f.Targets = append(f.Targets, config.FailoverTarget{Service: maybe(t, 70, "service", Services()...), ServiceSubset: maybe(t, 40, "subset", "v1", "v2"), Datacenter: maybe(t, 30, "dc", "dc1", "dc2")})
		}
		return f
	}
	f.Service, f.ServiceSubset = maybe(t, 70, "service", Services()...), maybe(t, 40, "subset", "v1", "v2")
	if likely(t, 40, "datacenters") {
		f.Datacenters = rapid.SampledFrom([][]string{{"dc2"}, {"dc2", "dc3"}, {"dc1", "dc2"}}).Draw(t, "in")
	}
	return f
}

func headers(t *rapid.T) *config.HeaderModifiers {
	if !likely(t, 40, "headers") {
		return nil
	}
	h := &config.HeaderModifiers{}
	name := func() string { return rapid.SampledFrom([]string{"x-a", "x-b", "x-c"}).Draw(t, "header") }
	value := func() string { return rapid.SampledFrom([]string{"1", "2"}).Draw(t, "value") }
	if likely(t, 60, "add") {
		h.Add = map[string]string{name(): value()}
	}
	if likely(t, 60, "set") {
		h.Set = map[string]string{name(): value()}
	}
	if likely(t, 40, "remove") {
		h.Remove = []string{"x-r" + value()}
	}
	return h
}

func splitter(t *rapid.T, name string) *config.ServiceSplitter {
	e := &config.ServiceSplitter{Kind: config.KindServiceSplitter, Name: name}
	left := 10_000
	n := rapid.IntRange(1, 4).Draw(t, "legs")
	for i := range n {
		weight := left
		if i < n-1 {
			weight = rapid.IntRange(0, left).Draw(t, "weight")
		}
		left -= weight
		e.Splits = append(e.Splits, config.ServiceSplit{Weight: float64(weight) / 100, Service: maybe(t, 70, "service", Services()...),
			ServiceSubset: maybe(t, 50, "subset", "v1", "v2"), RequestHeaders: headers(t), ResponseHeaders: headers(t)})
	}
	return e
}

func router(t *rapid.T, name string) *config.ServiceRouter {
	e := &config.ServiceRouter{Kind: config.KindServiceRouter, Name: name}
	for range rapid.IntRange(0, 3).Draw(t, "routes") {
		r := config.ServiceRoute{Match: &config.RouteMatch{HTTP: &config.HTTPMatch{PathPrefix: rapid.SampledFrom([]string{"/x", "/y"}).Draw(t, "prefix")}}}
		if likely(t, 80, "destination") {
			r.Destination = &config.RouteDestination{Service: maybe(t, 70, "service", Services()...), ServiceSubset: maybe(t, 30, "subset", "v1", "v2"),
				PrefixRewrite: maybe(t, 20, "rewrite", "/"), NumRetries: maybe(t, 20, "retries", uint32(3))}
		}
		e.Routes = append(e.Routes, r)
	}
	return e
}
