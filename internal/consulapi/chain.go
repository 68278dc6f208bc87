package consulapi

import (
	"cmp"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/identity"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// defaultConnectTimeout is what Consul shows of a target whose resolver names none.
const defaultConnectTimeout = 5 * time.Second

// chainShape is a chain as Consul shows it: nodes and targets by their names.
type chainShape struct {
	ServiceName       string
	Namespace         string
	Partition         string
	Datacenter        string
	CustomizationHash string `json:",omitempty"`
	Default           bool   `json:",omitempty"`
	Protocol          string
	ServiceMeta       map[string]string `json:",omitempty"`
	StartNode         string
	Nodes             map[string]chainNode
	Targets           map[string]chainTarget
	// There are no virtual addresses here.
	AutoVirtualIPs, ManualVirtualIPs []string
}

// chainNode is a router, a splitter or a resolver, by Type.
type chainNode struct {
	Type         string
	Name         string
	Routes       []chainRoute         `json:",omitempty"`
	Splits       []chainSplit         `json:",omitempty"`
	Resolver     *chainResolver       `json:",omitempty"`
	LoadBalancer *config.LoadBalancer `json:",omitempty"`
}

type chainRoute struct {
	Definition any
	NextNode   string
}

type chainSplit struct {
	Definition *config.ServiceSplit
	Weight     float64 `json:",omitempty"`
	NextNode   string
}

type chainResolver struct {
	ConnectTimeout string
	RequestTimeout time.Duration `json:",omitempty"`
	Default        bool          `json:",omitempty"`
	Target         string
	Failover       *chainFailover `json:",omitempty"`
}

type chainFailover struct{ Targets []string }

type chainTarget struct {
	ConnectTimeout string
	ID             string
	Service        string
	ServiceSubset  string `json:",omitempty"`
	Namespace      string
	Partition      string
	Datacenter     string
	MeshGateway    struct{} // none
	Subset         config.ResolverSubset
	// TransparentProxy is not served.
	TransparentProxy struct{}
	SNI              string
	Name             string
}

// chainOverrides are the body of a POST: what a caller's own settings say.
type chainOverrides struct {
	ConnectTimeout time.Duration
	Protocol       string
}

// chainLayout makes Consul's shape of a chain.
type chainLayout struct {
	trustDomain    string
	connectTimeout func(service string) time.Duration // 0: not said
	out            *chainShape
}

// showChain is the shape of a chain that is not broken. entries are at least those
// that it was made from.
func showChain(c routing.Chain, entries *config.Set, trustDomain string, over chainOverrides) *chainShape {
	l := &chainLayout{trustDomain: trustDomain, out: &chainShape{
		ServiceName: c.Service, Namespace: identity.Namespace, Partition: identity.Namespace, Datacenter: c.Datacenter,
		Default: c.IsDefault(), Protocol: c.Protocol, Nodes: map[string]chainNode{}, Targets: map[string]chainTarget{},
	}}
	l.connectTimeout = func(service string) time.Duration {
		if e := entries.Resolver(service); e != nil && over.ConnectTimeout == 0 {
			return e.ConnectTimeout.Std()
		}
		return over.ConnectTimeout
	}
	if e := entries.ServiceDefaults(c.Service); e != nil {
		l.out.ServiceMeta = e.Meta
	}
	if own, _, _ := routing.Protocol(entries, c.Service); over.ConnectTimeout != 0 || own != c.Protocol {
		l.out.CustomizationHash = over.hash(own != c.Protocol)
	}
	if c.Routed {
		l.out.StartNode = l.router(c)
	} else {
		l.out.StartNode = l.next(c.Routes[0])
	}
	return l.out
}

// hash tells chains apart that callers' settings changed in different ways.
func (o chainOverrides) hash(protocol bool) string {
	h := fnv.New32a()
	if !protocol {
		o.Protocol = ""
	}
	fmt.Fprint(h, o.Protocol, " ", o.ConnectTimeout)
	return fmt.Sprintf("%08x", h.Sum32())
}

// nodeName is Consul's name of a service's router or splitter, without its type.
func nodeName(service string) string {
	return service + "." + identity.Namespace + "." + identity.Namespace
}

func (l *chainLayout) router(c routing.Chain) string {
	n := chainNode{Type: "router", Name: nodeName(c.Service)}
	for _, r := range c.Routes {
		route := chainRoute{Definition: r.Rule, NextNode: l.next(r)}
		if r.Rule == nil {
			// The last route, in the words that Consul has for it.
			route.Definition = map[string]any{
				"Match":       config.RouteMatch{HTTP: &config.HTTPMatch{PathPrefix: "/"}},
				"Destination": map[string]string{"Service": c.Service, "Namespace": identity.Namespace, "Partition": identity.Namespace},
			}
		}
		n.Routes = append(n.Routes, route)
	}
	return l.add(n)
}

// next is the node to which a route leads.
func (l *chainLayout) next(r routing.Route) string {
	if r.Splitter == "" {
		return l.resolver(r.Legs[0].Resolver)
	}
	n := chainNode{Type: "splitter", Name: nodeName(r.Splitter)}
	for _, leg := range r.Legs {
		n.Splits = append(n.Splits, chainSplit{Definition: leg.Split, Weight: float64(leg.Weight) * 100 / routing.TotalWeight, NextNode: l.resolver(leg.Resolver)})
		if lb := leg.LoadBalancer; n.LoadBalancer == nil && lb != nil && (lb.Policy == "ring_hash" || lb.Policy == "maglev") {
			n.LoadBalancer = lb // a route has one hash for all its legs
		}
	}
	return l.add(n)
}

func (l *chainLayout) resolver(r routing.Resolver) string {
	n := chainNode{Type: "resolver", Name: l.target(r.Target), LoadBalancer: r.LoadBalancer, Resolver: &chainResolver{
		ConnectTimeout: l.timeout(r.Target.Service), RequestTimeout: r.RequestTimeout, Default: r.Default, Target: r.Target.ID(),
	}}
	if len(r.Failover) > 0 {
		n.Resolver.Failover = &chainFailover{}
		for _, t := range r.Failover {
			n.Resolver.Failover.Targets = append(n.Resolver.Failover.Targets, l.target(t))
		}
	}
	return l.add(n)
}

func (l *chainLayout) add(n chainNode) string {
	name := n.Type + ":" + n.Name
	l.out.Nodes[name] = n
	return name
}

func (l *chainLayout) timeout(service string) string {
	return cmp.Or(l.connectTimeout(service), defaultConnectTimeout).String()
}

func (l *chainLayout) target(t routing.Target) string {
	l.out.Targets[t.ID()] = chainTarget{
		ConnectTimeout: l.timeout(t.Service), ID: t.ID(), Service: t.Service, ServiceSubset: t.Subset, Namespace: identity.Namespace, Partition: identity.Namespace,
		Datacenter: t.Datacenter, Subset: config.ResolverSubset{Filter: t.Filter, OnlyPassing: t.OnlyPassing}, SNI: t.SNI(l.trustDomain), Name: t.SNI(l.trustDomain),
	}
	return t.ID()
}

// getChain answers what becomes of requests for a service. It waits for the entries
// that this is made from alone.
func getChain(c *call) (any, error) { return c.chain(chainOverrides{}) }

// postChain is [getChain] for a caller whose own settings override some of it.
func postChain(c *call) (any, error) {
	raw, err := c.body(maxSmallBody)
	if err != nil {
		return nil, err
	}
	over, err := decodeOverrides(raw)
	if err != nil {
		return nil, badRequest("Request decoding failed: %v", err)
	}
	return c.chain(over)
}

func decodeOverrides(raw []byte) (over chainOverrides, err error) {
	type gateway struct{ Mode string }
	var body struct { // in both of Consul's spellings
		OverrideConnectTimeout config.Duration
		ConnectTimeout         config.Duration `json:"override_connect_timeout"`
		OverrideProtocol       string
		Protocol               string `json:"override_protocol"`
		OverrideMeshGateway    gateway
		MeshGateway            gateway `json:"override_mesh_gateway"`
	}
	if err := json.Unmarshal(raw, &body); err != nil {
		return over, err
	}
	over.ConnectTimeout = cmp.Or(body.OverrideConnectTimeout, body.ConnectTimeout).Std()
	over.Protocol = cmp.Or(body.OverrideProtocol, body.Protocol)
	switch mode := cmp.Or(body.OverrideMeshGateway.Mode, body.MeshGateway.Mode); {
	case over.ConnectTimeout < 0:
		return over, fmt.Errorf("OverrideConnectTimeout: %v: must not be negative", over.ConnectTimeout)
	case over.Protocol != "" && !routing.KnownProtocol(over.Protocol):
		return over, fmt.Errorf("OverrideProtocol: %s", routing.UnknownProtocol(over.Protocol))
	case mode != "" && mode != "none":
		return over, fmt.Errorf("OverrideMeshGateway: %q: mesh gateways are not served", mode)
	}
	return over, nil
}

func (c *call) chain(over chainOverrides) (any, error) {
	service, err := c.need("chain name")
	if err != nil {
		return nil, err
	}
	req := routing.Request{Service: service, Datacenter: cmp.Or(c.query.Get("compile-dc"), c.api.store.Datacenter()), Protocol: over.Protocol}
	var chain routing.Chain
	if err := c.read(func(r *store.Reader) { req.Config, chain = compileFrom(r, req) }); err != nil {
		return nil, err
	}
	if chain.Broken != "" {
		return nil, internal("%s", chain.Broken)
	}
	return struct{ Chain *chainShape }{showChain(chain, req.Config, c.api.TrustDomain, over)}, nil
}

// compileFrom compiles a chain and looks at no entry that it is not made from.
func compileFrom(r *store.Reader, req routing.Request) (*config.Set, routing.Chain) {
	seen := map[config.Key]bool{}
	entries := config.NewSet()
	for {
		req.Config = entries
		chain, _ := routing.Compile(req)
		var found []config.Entry
		more := false
		for _, k := range chain.Reads {
			if seen[k] {
				continue
			}
			seen[k], more = true, true
			if e := r.Entry(k); e != nil {
				found = append(found, e.Entry)
			}
		}
		if !more {
			return entries, chain
		}
		entries = entries.With(found, nil)
	}
}
