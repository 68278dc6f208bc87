package proxy

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// Place is the address of a legacy way.
type Place struct {
	Address string // an IP or a host name
	Port    int
	// Host is that of requests that go there; empty: as the app sent it.
	Host string
}

// leg is a share of an upstream's requests or connections, on one way.
type leg struct {
	routing.Leg
	way string // of package config
}

// straight reports whether the leg goes to the destination itself, by a cluster of its
// own, and not by what entries say of the way between sidecars.
func (l leg) straight() bool { return l.way != config.WayMTLS }

// id is what callers are divided by.
func (l leg) id() string {
	if l.straight() {
		return l.way
	}
	return l.Target.ID()
}

// straightWays are those besides that with mTLS, in the order in which legs stand.
func straightWays() []string { return []string{config.WayLegacy, config.WayDirect, config.WayPlain} }

// shift is the entry that says by which ways the service's requests for a target go,
// or nil. Ways that end in another datacenter are none of its business.
func (b *builder) shift(t routing.Target) *config.TrafficShift {
	if t.Datacenter != b.in.Datacenter {
		return nil
	}
	for _, k := range config.TrafficShiftKeys(b.service, t.Service) {
		b.read(k)
		if e, ok := b.in.Config.Get(k).(*config.TrafficShift); ok {
			return e
		}
	}
	return nil
}

// shifted reports whether anything goes another way than with mTLS.
func (p *planner) shifted() bool {
	return p.shift != nil && p.shift.Shares.Hundredths(config.WayMTLS) < routing.TotalWeight
}

// revertible reports whether a revert may come, for which clusters of ways without a
// share are kept: one of a strict callee has nothing to go back to.
func (p *planner) revertible() bool {
	return p.shift != nil && p.mode() != config.MutualTLSStrict
}

// mode is the callee's MutualTLSMode.
func (p *planner) mode() string {
	p.read(config.Key{Kind: config.KindServiceDefaults, Name: p.target.Service}, config.Key{Kind: config.KindProxyDefaults, Name: config.Global})
	return p.in.Config.MutualTLSMode(p.target.Service)
}

// open reports whether a straight way leads anywhere.
func (p *planner) open(way string) bool {
	switch way {
	case config.WayLegacy:
		return p.shift.Legacy != nil
	case config.WayPlain:
		return p.mode() == config.MutualTLSPermissive
	}
	return true
}

// routes are those of the chain or, while anything goes by an old way, the last alone:
// what a service-router does to requests, Envoy does before a way is chosen.
func (p *planner) routes() []routing.Route {
	all := p.chain.Routes
	if !p.shifted() {
		return all
	}
	if p.chain.Routed {
		p.problem(p.subject, "service-router/%s has no effect while %s sends anything another way than mtls: its rules are for that one alone", p.chain.Service, config.KeyOf(p.shift))
	}
	return all[len(all)-1:]
}

// ways are the legs of a route on each way: those of the chain share what goes between
// sidecars.
func (p *planner) ways(legs []routing.Leg) []leg {
	var out []leg
	if p.shifted() || p.revertible() {
		out = p.straight(legs)
		legs = routing.Portion(legs, uint32(p.shift.Shares.Hundredths(config.WayMTLS)))
	}
	for _, l := range legs {
		out = append(out, leg{l, config.WayMTLS})
	}
	return out
}

// straight are the legs besides those of a chain, also those without a share.
func (p *planner) straight(legs []routing.Leg) (out []leg) {
	to := routing.Resolver{Target: p.target}
	for _, l := range legs {
		if l.Target.Service == p.target.Service {
			to.ConnectTimeout, to.LoadBalancer = l.ConnectTimeout, l.LoadBalancer
			break
		}
	}
	for _, way := range straightWays() {
		if share := p.shift.Shares.Hundredths(way); share > 0 || p.open(way) {
			out = append(out, leg{routing.Leg{Weight: uint32(share), Resolver: to}, way})
		}
	}
	return out
}

// stickiness is what callers are known by, and the entry that says so. While a
// traffic-shift divides, its word counts before that of the callee's policy.
func (p *planner) stickiness(r routing.Route) (*config.Sticky, config.Key) {
	switch {
	case p.shifted() && p.shift.Sticky != nil:
		return p.shift.Sticky, config.KeyOf(p.shift)
	case r.Policy != nil:
		return r.Policy.Sticky, config.KeyOf(r.Policy)
	}
	return nil, config.Key{}
}

// ranges divides callers among legs. Where a traffic-shift is, ways without a share
// are named as well: so a caller's place does not depend on how many ways are open.
func (p *planner) ranges(legs []leg) []routing.Range {
	var names []string
	var weights []uint32
	for _, l := range legs {
		names, weights = append(names, l.id()), append(weights, l.Weight)
	}
	if p.shift != nil {
		for _, way := range straightWays() {
			if !slices.Contains(names, way) {
				names, weights = append(names, way), append(weights, 0)
			}
		}
	}
	return routing.Ranges(names, weights)
}

// rewrites reports whether the Host of a request depends on its leg.
func (p *planner) rewrites(legs []leg) bool {
	return slices.ContainsFunc(legs, func(l leg) bool { return l.way == config.WayLegacy }) && p.shift.Legacy.Host != ""
}

// straightCluster is where requests of a way without mTLS go. Between sidecars they share
// connections, as with it.
func (p *planner) straightCluster(l leg) Cluster {
	c := p.cluster(l.Resolver, p.settings, l.way == config.WayPlain)
	c.Name = l.way + "~" + c.SNI
	c.SNI, c.PeerURI = "", ""
	c.Way, c.Protocol = l.way, p.chain.Protocol
	if l.way == config.WayLegacy {
		c.Legacy = p.place()
		c.Target, c.LoadBalancer = routing.Target{}, nil
	}
	return c
}

// place is the address of the legacy way.
func (p *planner) place() Place {
	host, port := p.shift.Legacy.HostPort()
	return Place{Address: host, Port: port, Host: p.shift.Legacy.Host}
}

// share is a cluster whose instances are those of all ways, also of those without a
// share: what a change of shares changes are endpoints alone. They are the source's
// own, or the instance's where it stays on one way.
func (p *planner) share(entry string, route routing.Route) {
	legs := p.ways(route.Legs)
	sticky, from := p.stickiness(route)
	sharers := p.service
	switch {
	case sticky == nil:
	case sticky.Source:
		own := p.own(weighted(legs)).id()
		for i := range legs {
			legs[i].Weight = 0
			if legs[i].id() == own {
				legs[i].Weight, own = routing.TotalWeight, ""
			}
		}
		sharers += fmt.Sprintf("~%016x", routing.Hash(p.proxy.Node+"/"+p.proxy.ID))
	default:
		p.notSticky(from)
	}
	c := p.cluster(route.Legs[0].Resolver, p.settings, false)
	c.Name, c.SNI, c.PeerURI, c.Target, c.Unreachable = entry, "", "", routing.Target{}, ""
	total := uint32(0)
	for _, l := range legs {
		part, reason := p.part(l)
		switch {
		case reason == "":
			c.Split, total = append(c.Split, part), total+part.Weight
		case l.Weight > 0:
			c.Unreachable = reason
		}
		if len(l.Failover) > 0 {
			p.problem(p.subject, "failover of %s has no effect while connections are divided among ways: the other ones stand in", l.Target)
		}
	}
	if total > 0 {
		c.Unreachable = ""
	}
	c.Sharers = sharers
	p.add(c)
}

// part is a leg as one part of a cluster for connections, or why it can be none.
func (p *planner) part(l leg) (Part, string) {
	switch l.way {
	case config.WayDirect, config.WayPlain:
		return Part{Target: l.Target, Weight: l.Weight, Way: l.way}, ""
	case config.WayLegacy:
		at := p.place()
		addr, err := netip.ParseAddr(at.Address)
		if err != nil {
			reason := fmt.Sprintf("legacy address %q is a name, and connections of protocol tcp can only be divided with an IP address", at.Address)
			if l.Weight > 0 {
				p.problem(p.subject, "%s: %s: its share goes to the other ways", config.KeyOf(p.shift), reason)
			}
			return Part{}, reason
		}
		return Part{Weight: l.Weight, Way: l.way, Legacy: netip.AddrPortFrom(addr, uint16(at.Port))}, ""
	}
	if reason := p.unreachable(l.Target); reason != "" {
		return Part{}, reason
	}
	return p.meshed(l.Target, l.Weight), ""
}

// meshed is the sidecars of a target as a part.
func (p *planner) meshed(t routing.Target, weight uint32) Part {
	return Part{Target: t, SNI: t.SNI(p.in.TrustDomain), PeerURI: t.Identity(p.in.TrustDomain).URI(), Weight: weight}
}

// Name tells the part from others of its cluster.
func (p Part) Name() string {
	if p.Way != "" {
		return p.Way
	}
	return p.SNI
}

// sharePrefix begins the names of endpoints that are divided among ways; the source
// follows.
const sharePrefix = "ways~"
