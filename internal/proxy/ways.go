package proxy

import (
	"fmt"
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
	way    string // of package config
	paired bool   // a traffic-shift has a say in its route
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

// routes are those of the chain. Where one of those that are divided among ways rewrites
// the path, which Envoy does before a way is chosen, only the last has an effect then.
func (p *planner) routes() []routing.Route {
	all := p.chain.Routes
	if p.shifted() && slices.ContainsFunc(all, func(r routing.Route) bool { return routing.Rewrites(p.chain.Service, r.Rule) }) {
		p.problem(p.subject, "service-router/%s has no effect while %s sends anything another way than mtls: it rewrites paths for the callee alone", p.chain.Service, config.KeyOf(p.shift))
		return all[len(all)-1:]
	}
	return all
}

// paired reports whether the entry has a say in a route. It has none in those that a router
// sends to another service.
func (p *planner) paired(r routing.Route) bool {
	return p.shift != nil && routing.Stays(p.chain.Service, r.Rule)
}

// ways are the legs of a route on each way: those of the chain share what goes between
// sidecars with mTLS.
func (p *planner) ways(r routing.Route) []leg {
	var out []leg
	legs, paired := r.Legs, p.paired(r)
	if paired && (p.shifted() || p.revertible()) {
		out = p.straight(legs)
		legs = routing.Portion(legs, uint32(p.shift.Shares.Hundredths(config.WayMTLS)))
	}
	for _, l := range legs {
		out = append(out, leg{l, config.WayMTLS, paired})
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
			out = append(out, leg{routing.Leg{Weight: uint32(share), Resolver: to}, way, true})
		}
	}
	return out
}

// closed names a share that the callee's MutualTLSMode closes the way of. Writes that say
// so are refused; where one could not be, requests go on as the entry says.
func (p *planner) closed() {
	if !p.shifted() {
		return
	}
	switch mode := p.mode(); {
	case mode == config.MutualTLSStrict:
		p.problem(p.subject, "%s: %q is strict, and part of its requests does not go by mtls: have all on mtls", config.KeyOf(p.shift), p.target.Service)
	case mode != config.MutualTLSPermissive && p.shift.Shares.Plain > 0:
		p.problem(p.subject, "%s: the sidecars of %q take no plaintext: the share of plain goes to the other ways", config.KeyOf(p.shift), p.target.Service)
	}
}

// stickiness is what callers are known by, and the entry that says so. While a
// traffic-shift divides, its word counts before that of the callee's policy.
func (p *planner) stickiness(r routing.Route) (*config.Sticky, config.Key) {
	switch {
	case p.shifted() && p.paired(r) && p.shift.Sticky != nil:
		return p.shift.Sticky, config.KeyOf(p.shift)
	case r.Policy != nil:
		return r.Policy.Sticky, config.KeyOf(r.Policy)
	}
	return nil, config.Key{}
}

// ranges divides callers among legs. Where a traffic-shift is, its slots say who is on which
// way; but where the callee itself is split as well, legs are dealt out by their names, among
// them ways without a share: so a caller's place does not depend on how many ways are open.
func (p *planner) ranges(legs []leg) []routing.Range {
	if out, ok := p.slots(legs); ok {
		return out
	}
	var names []string
	var weights []uint32
	for _, l := range legs {
		names, weights = append(names, l.id()), append(weights, l.Weight)
	}
	if legs[0].paired {
		for _, way := range straightWays() {
			if !slices.Contains(names, way) {
				names, weights = append(names, way), append(weights, 0)
			}
		}
	}
	return routing.Ranges(names, weights)
}

// slots are the ranges of a traffic-shift's ways; false where a way has more than one leg.
func (p *planner) slots(legs []leg) (out []routing.Range, ok bool) {
	if !legs[0].paired {
		return nil, false
	}
	at := map[string]int{}
	for i, l := range legs {
		if _, twice := at[l.way]; twice {
			return nil, false
		}
		at[l.way] = i
	}
	weight := func(way string) int {
		if i, open := at[way]; open {
			return int(legs[i].Weight)
		}
		return 0
	}
	for _, s := range p.shift.SlotsFor(weight) {
		out = append(out, routing.Range{Leg: at[s.Way], Weight: uint32(s.Width)})
	}
	return out, true
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
	legs := p.ways(route)
	c := p.cluster(route.Legs[0].Resolver, p.settings, false)
	c.Name, c.SNI, c.PeerURI, c.Target, c.Unreachable = entry, "", "", routing.Target{}, ""
	c.Sharers = p.sharers(route)
	switch sticky, from := p.stickiness(route); {
	case sticky != nil && sticky.Source:
		own := p.own(weighted(legs)).id()
		for i := range legs {
			legs[i].Weight = 0
			if legs[i].id() == own {
				legs[i].Weight, own = routing.TotalWeight, ""
			}
		}
	case sticky != nil:
		p.notSticky(from)
	}
	total := uint32(0)
	add := func(part Part) { c.Split, total = append(c.Split, part), total+part.Weight }
	for _, l := range legs {
		switch part, reason := p.part(l); {
		case reason == "":
			add(part)
		case l.Weight > 0:
			c.Unreachable = reason
		}
		for _, part := range p.standIns(l, len(route.Legs) > 1) {
			add(part)
		}
	}
	if total > 0 {
		c.Unreachable = ""
	}
	p.add(c)
}

// sharers are whose endpoints a shared cluster has. They are the same whatever the shares.
func (p *planner) sharers(route routing.Route) string {
	sticky := p.shift.Sticky
	if sticky == nil && route.Policy != nil {
		sticky = route.Policy.Sticky
	}
	if sticky == nil || !sticky.Source {
		return p.service
	}
	return fmt.Sprintf("%s~%016x", p.service, routing.Hash(p.proxy.Node+"/"+p.proxy.ID))
}

// standIns are the failovers of a leg as parts. They get something only where all goes to
// that leg: otherwise the other ones stand in.
func (p *planner) standIns(l leg, split bool) (out []Part) {
	switch {
	case len(l.Failover) == 0:
		return nil
	case split:
		p.problem(p.subject, "failover of %s has no effect in a split of connections: the other legs stand in", l.Target)
		return nil
	case p.shifted():
		p.problem(p.subject, "failover of %s has no effect while connections are divided among ways: the other ones stand in", l.Target)
	}
	for i, t := range l.Failover {
		if p.unreachable(t) != "" {
			continue
		}
		part := p.meshed(t, routing.TotalWeight)
		part.Priority = uint32(i + 1)
		if p.shifted() {
			part.Weight = 0
		}
		out = append(out, part)
	}
	return out
}

// part is a leg as one part of a cluster for connections, or why it can be none.
func (p *planner) part(l leg) (Part, string) {
	switch l.way {
	case config.WayDirect, config.WayPlain:
		return Part{Target: l.Target, Weight: l.Weight, Way: l.way}, ""
	case config.WayLegacy:
		return Part{Target: l.Target, Weight: l.Weight, Way: l.way, Legacy: p.shift.Legacy.Address}, ""
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
