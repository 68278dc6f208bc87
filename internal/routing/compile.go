package routing

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Request is what [Compile] decides from.
type Request struct {
	Config     *config.Set
	Service    string
	Datacenter string
	// Protocol, when set, is what the caller says the service speaks. A caller that
	// says tcp sees no routes and no splits, as with Consul.
	Protocol string
}

// Compile makes the chain of a service. Entries that contradict each other make a
// chain that is [Chain.Broken], with a problem that says why.
func Compile(req Request) (Chain, []Problem) {
	c := &compiler{req: req, reads: make([]config.Key, 0, 16)}
	protocol, reads, problems := Protocol(req.Config, req.Service)
	c.read(reads...)
	if req.Protocol != "" {
		protocol = req.Protocol
	}
	out := Chain{Service: req.Service, Datacenter: req.Datacenter, Protocol: protocol}
	routes, routed, err := c.routes(protocol)
	if err != nil {
		out.Broken = err.Error()
		problems = append(problems, Problem{Service: req.Service, Subject: "chain of " + req.Service, Reason: out.Broken})
		straight := Resolver{Target: Target{Service: req.Service, Datacenter: req.Datacenter}, Default: true}
		routes, routed = []Route{{Policy: c.policy(req.Service), Legs: []Leg{{Weight: TotalWeight, Resolver: straight}}}}, false
	}
	out.Routes, out.Routed = routes, routed
	slices.SortFunc(c.reads, config.Key.Compare)
	out.Reads = slices.Compact(c.reads)
	return out, problems
}

// compiler holds what the steps of one Compile share.
type compiler struct {
	req   Request
	reads []config.Key // with repetition
}

func (c *compiler) read(keys ...config.Key) {
	c.reads = append(c.reads, keys...)
}

// policy is the service's own traffic-policy, else that of "*".
func (c *compiler) policy(service string) *config.TrafficPolicy {
	for _, name := range []string{service, config.Wildcard} {
		c.read(config.Key{Kind: config.KindTrafficPolicy, Name: name})
		if e := c.req.Config.TrafficPolicy(name); e != nil {
			return e
		}
	}
	return nil
}

func (c *compiler) routes(protocol string) (routes []Route, routed bool, err error) {
	own := Target{Service: c.req.Service, Datacenter: c.req.Datacenter}
	http := config.IsHTTP(protocol)
	var router *config.ServiceRouter
	// A caller that takes an HTTP service for tcp has connections, which are neither
	// routed nor split.
	if http {
		c.read(config.Key{Kind: config.KindServiceRouter, Name: own.Service})
		router = c.req.Config.Router(own.Service)
	} else if c.req.Protocol == "" {
		c.read(config.Key{Kind: config.KindServiceRouter, Name: own.Service})
		if c.req.Config.Router(own.Service) != nil {
			return nil, false, fmt.Errorf("service-router/%s: protocol %s has no requests to route: set the protocol to http, http2 or grpc", own.Service, protocol)
		}
	}
	if router != nil {
		for i := range router.Routes {
			r, err := c.route(own, &router.Routes[i])
			if err != nil {
				return nil, false, fmt.Errorf("service-router/%s: Routes[%d]: %w", own.Service, i, err)
			}
			routes = append(routes, r)
		}
	}
	last, err := c.splitOrResolve(own, http || c.req.Protocol == "")
	if err != nil {
		return nil, false, err
	}
	routes = append(routes, last)
	return routes, router != nil, c.protocols(protocol, routes)
}

func (c *compiler) route(own Target, rule *config.ServiceRoute) (Route, error) {
	target := own
	if d := rule.Destination; d != nil {
		target = rewrite(own, d.Service, d.ServiceSubset, "")
	}
	var out Route
	var err error
	if target.Subset != "" {
		out, err = c.straight(target)
	} else {
		out, err = c.splitOrResolve(target, true)
	}
	out.Rule = rule
	return out, err
}

func (c *compiler) straight(t Target) (Route, error) {
	r, err := c.resolve(t)
	return Route{Policy: c.policy(t.Service), Legs: []Leg{{Weight: TotalWeight, Resolver: r}}}, err
}

func (c *compiler) splitOrResolve(t Target, splits bool) (Route, error) {
	if !splits {
		return c.straight(t)
	}
	legs, err := c.split(t, nil)
	if err != nil || legs != nil {
		return Route{Splitter: t.Service, Policy: c.policy(t.Service), Legs: legs}, err
	}
	return c.straight(t)
}

// split is the legs of a service's splitter, those of splitters below it in their
// place; nil when it has none. path is the services whose splitters led here.
func (c *compiler) split(t Target, path []string) ([]Leg, error) {
	c.read(config.Key{Kind: config.KindServiceSplitter, Name: t.Service})
	e := c.req.Config.Splitter(t.Service)
	if e == nil {
		return nil, nil
	}
	if slices.Contains(path, t.Service) {
		return nil, fmt.Errorf("service-splitter/%s: leads back to itself: %s", t.Service, strings.Join(append(path, t.Service), " -> "))
	}
	path = append(slices.Clone(path), t.Service)
	var out []Leg
	for i := range e.Splits {
		s := &e.Splits[i]
		at := rewrite(t, s.Service, s.ServiceSubset, "")
		weight := hundredths(s.Weight)
		// As with Consul, a leg of the service itself goes to its instances.
		if at.Subset == "" && at.Service != t.Service {
			nested, err := c.split(at, path)
			if err != nil {
				return nil, err
			}
			if nested != nil {
				out = append(out, below(nested, weight, s)...)
				continue
			}
		}
		r, err := c.resolve(at)
		if err != nil {
			return nil, fmt.Errorf("service-splitter/%s: Splits[%d]: %w", t.Service, i, err)
		}
		out = append(out, Leg{Weight: weight, Split: s, Resolver: r})
	}
	if len(out) > maxLegs {
		return nil, fmt.Errorf("service-splitter/%s: %d legs with those of the splitters below are more than the limit of %d", t.Service, len(out), maxLegs)
	}
	return out, nil
}

// maxLegs of one route: nested splitters multiply.
const maxLegs = 200

// resolve is where instances are and how they are called.
func (c *compiler) resolve(t Target) (Resolver, error) {
	t, e, err := c.follow(t)
	if err != nil || e == nil {
		return Resolver{Target: t, Default: true}, err
	}
	out := Resolver{
		Target: t, ConnectTimeout: time.Duration(e.ConnectTimeout), RequestTimeout: time.Duration(e.RequestTimeout), LoadBalancer: e.LoadBalancer,
		Default: e.ConnectTimeout == 0 && e.RequestTimeout == 0 && e.LoadBalancer == nil && e.Redirect == nil && e.DefaultSubset == "" &&
			len(e.Failover) == 0 && len(e.Subsets) == 0,
	}
	out.Failover, err = c.failover(t, e)
	return out, err
}

// follow goes along redirects and default subsets to where instances are. The entry
// is that of the last service on the way, or nil.
func (c *compiler) follow(t Target) (Target, *config.ServiceResolver, error) {
	var path []Target
	for {
		key := config.Key{Kind: config.KindServiceResolver, Name: t.Service}
		c.read(key)
		e := c.req.Config.Resolver(t.Service)
		if e == nil {
			if t.Subset != "" {
				return t, nil, fmt.Errorf("service %q has no subset %q: there is no %s", t.Service, t.Subset, key)
			}
			return t, nil, nil
		}
		if slices.Contains(path, t) {
			return t, nil, fmt.Errorf("%s: redirects in a circle: %s", key, circle(append(path, t)))
		}
		path = append(path, t)
		if r := e.Redirect; r != nil {
			if next := rewrite(t, r.Service, r.ServiceSubset, r.Datacenter); next != t {
				t = next
				continue
			}
		}
		if t.Subset == "" && e.DefaultSubset != "" {
			t.Subset = e.DefaultSubset
			continue
		}
		if t.Subset != "" {
			subset, ok := e.Subsets[t.Subset]
			if !ok {
				return t, nil, fmt.Errorf("service %q has no subset %q: %s has %s", t.Service, t.Subset, key, subsets(e))
			}
			t.Filter, t.OnlyPassing = subset.Filter, subset.OnlyPassing
		}
		return t, e, nil
	}
}

// failover is who stands in for t. The failovers of those are not followed.
func (c *compiler) failover(t Target, e *config.ServiceResolver) ([]Target, error) {
	f, ok := e.Failover[t.Subset]
	if !ok {
		if f, ok = e.Failover[config.Wildcard]; !ok {
			return nil, nil
		}
	}
	plain := t
	plain.Filter, plain.OnlyPassing = "", false
	var wanted []Target
	switch {
	case len(f.Targets) > 0:
		for _, to := range f.Targets {
			wanted = append(wanted, rewrite(plain, to.Service, to.ServiceSubset, to.Datacenter))
		}
	case len(f.Datacenters) > 0:
		for _, dc := range f.Datacenters {
			wanted = append(wanted, rewrite(plain, f.Service, f.ServiceSubset, dc))
		}
	default:
		wanted = append(wanted, rewrite(plain, f.Service, f.ServiceSubset, ""))
	}
	var out []Target
	for _, to := range wanted {
		if to == plain {
			continue
		}
		r, _, err := c.follow(to)
		if err != nil {
			return nil, fmt.Errorf("service-resolver/%s: failover: %w", e.Name, err)
		}
		if r != t && !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	return out, nil
}

// rewrite is t with what is given in its place. Another service has other subsets.
func rewrite(t Target, service, subset, datacenter string) Target {
	if service != "" && service != t.Service {
		t.Service, t.Subset = service, ""
	}
	if subset != "" {
		t.Subset = subset
	}
	if datacenter != "" {
		t.Datacenter = datacenter
	}
	return t
}

// protocols holds that whoever may answer speaks what the chain speaks.
func (c *compiler) protocols(want string, routes []Route) error {
	if c.req.Protocol != "" {
		return nil // the caller's word is for the whole chain
	}
	for _, t := range (Chain{Routes: routes}).Targets() {
		if t.Service == c.req.Service {
			continue
		}
		got, reads, _ := Protocol(c.req.Config, t.Service)
		c.read(reads...)
		if got != want {
			return fmt.Errorf("service %q speaks %s, and %q, to which its requests may go, speaks %s", c.req.Service, want, t.Service, got)
		}
	}
	return nil
}

func subsets(e *config.ServiceResolver) string {
	if len(e.Subsets) == 0 {
		return "none"
	}
	return strings.Join(slices.Sorted(maps.Keys(e.Subsets)), ", ")
}

func circle(path []Target) string {
	words := make([]string, len(path))
	for i, t := range path {
		words[i] = t.String()
	}
	return strings.Join(words, " -> ")
}
