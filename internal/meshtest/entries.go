package meshtest

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Services are those that [Entries] are about.
func Services() []string { return []string{"a", "b", "c", "d", "e"} }

// Entries makes entries that say how requests for a few services are routed. Each is
// valid by itself; they may contradict each other, mostly they don't. Of a kind and
// name there is one at most. The same seed makes the same.
func Entries(seed uint64) []config.Entry {
	r := rand.New(rand.NewPCG(seed, 1))
	var out []config.Entry
	if likely(r, 92) {
		out = append(out, &config.ProxyDefaults{Kind: config.KindProxyDefaults, Name: config.Global, Config: map[string]any{"protocol": "http"}})
	}
	for _, name := range Services() {
		if likely(r, 5) {
			out = append(out, &config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: name,
				Protocol: oneOf(r, "tcp", "http", "http2", "grpc"), Meta: map[string]string{"owner": name}})
		}
		if likely(r, 80) {
			out = append(out, resolver(r, name))
		}
		if likely(r, 50) {
			out = append(out, splitter(r, name))
		}
		if likely(r, 30) {
			out = append(out, router(r, name))
		}
	}
	out = slices.DeleteFunc(out, func(e config.Entry) bool { e.Normalize(); return e.Validate() != nil })
	r.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

func likely(r *rand.Rand, percent int) bool {
	return r.IntN(100) < percent
}

func oneOf[T any](r *rand.Rand, values ...T) T { return values[r.IntN(len(values))] }

func maybe[T any](r *rand.Rand, percent int, values ...T) (v T) {
	if likely(r, percent) {
		v = oneOf(r, values...)
	}
	return v
}

func resolver(r *rand.Rand, name string) *config.ServiceResolver {
	e := &config.ServiceResolver{Kind: config.KindServiceResolver, Name: name,
		ConnectTimeout: maybe(r, 20, config.Duration(3*time.Second)), RequestTimeout: maybe(r, 20, config.Duration(7*time.Second))}
	if likely(r, 95) {
		e.Subsets = map[string]config.ResolverSubset{"v1": {Filter: `Service.Meta.v == "1"`}, "v2": {Filter: `Service.Meta.v == "2"`, OnlyPassing: true}}
	}
	if len(e.Subsets) > 0 {
		e.DefaultSubset = maybe(r, 20, "v1", "v2")
	}
	if likely(r, 25) {
		e.LoadBalancer = &config.LoadBalancer{Policy: oneOf(r, "random", "round_robin", "least_request", "ring_hash", "maglev")}
	}
	switch {
	case likely(r, 15):
		e.Redirect = &config.ResolverRedirect{Service: maybe(r, 80, Services()...), Datacenter: maybe(r, 15, "dc1", "dc2")}
		if e.Redirect.Service != "" {
			e.Redirect.ServiceSubset = maybe(r, 30, "v1", "v2")
		}
	case likely(r, 40):
		e.Failover = map[string]config.ResolverFailover{}
		for _, of := range []string{"*", "v1"} {
			if likely(r, 60) {
				e.Failover[of] = failover(r)
			}
		}
	}
	return e
}

func failover(r *rand.Rand) (f config.ResolverFailover) {
	if likely(r, 40) {
		for range 1 + r.IntN(3) {
			f.Targets = append(f.Targets, config.FailoverTarget{Service: maybe(r, 70, Services()...), ServiceSubset: maybe(r, 40, "v1", "v2"), Datacenter: maybe(r, 30, "dc1", "dc2")})
		}
		return f
	}
	f.Service, f.ServiceSubset = maybe(r, 70, Services()...), maybe(r, 40, "v1", "v2")
	if likely(r, 40) {
		f.Datacenters = oneOf(r, []string{"dc2"}, []string{"dc2", "dc3"}, []string{"dc1", "dc2"})
	}
	return f
}

func headers(r *rand.Rand) *config.HeaderModifiers {
	if !likely(r, 25) {
		return nil
	}
	h := &config.HeaderModifiers{}
	name := func() string { return oneOf(r, "x-a", "x-b", "x-c") }
	value := func() string { return oneOf(r, "1", "2") }
	if likely(r, 60) {
		h.Add = map[string]string{name(): value()}
	}
	if likely(r, 60) {
		h.Set = map[string]string{name(): value()}
	}
	if likely(r, 40) {
		h.Remove = []string{"x-r" + value()}
	}
	return h
}

func splitter(r *rand.Rand, name string) *config.ServiceSplitter {
	e := &config.ServiceSplitter{Kind: config.KindServiceSplitter, Name: name}
	left := 10_000
	n := 1 + r.IntN(4)
	for i := range n {
		weight := left
		if i < n-1 {
			weight = r.IntN(left + 1)
		}
		left -= weight
		e.Splits = append(e.Splits, config.ServiceSplit{Weight: float64(weight) / 100, Service: maybe(r, 70, Services()...),
			ServiceSubset: maybe(r, 35, "v1", "v2"), RequestHeaders: headers(r), ResponseHeaders: headers(r)})
	}
	return e
}

func router(r *rand.Rand, name string) *config.ServiceRouter {
	e := &config.ServiceRouter{Kind: config.KindServiceRouter, Name: name}
	for range r.IntN(4) {
		route := config.ServiceRoute{Match: &config.RouteMatch{HTTP: &config.HTTPMatch{PathPrefix: oneOf(r, "/x", "/y")}}}
		if likely(r, 80) {
			route.Destination = &config.RouteDestination{Service: maybe(r, 70, Services()...), ServiceSubset: maybe(r, 30, "v1", "v2"),
				PrefixRewrite: maybe(r, 20, "/"), NumRetries: maybe(r, 20, uint32(3))}
		}
		e.Routes = append(e.Routes, route)
	}
	return e
}
