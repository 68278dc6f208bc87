package routing

import (
	"slices"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// View is a chain as people look at it: in words, with what each leg was meant to get
// and what it gets now.
type View struct {
	Service    string `json:"service"`
	Datacenter string `json:"datacenter"`
	Protocol   string `json:"protocol"`
	Broken     string `json:"broken,omitempty"` // why the entries make no chain
	// LastGood says that what follows is of the last entries that made one, which are in force.
	LastGood bool        `json:"last_good,omitempty"`
	Routed   bool        `json:"routed"` // by a service-router
	Words    string      `json:"words"`  // [Chain.Describe]
	Routes   []RouteView `json:"routes"` // in the order in which they are tried
	// Pair, when asked for, is by which ways one caller's requests travel.
	Pair *PairView `json:"pair,omitempty"`
}

// PairView is how the requests, or connections, of one caller are divided among ways.
type PairView struct {
	Source string `json:"source"`
	// Entry is the name of the traffic-shift that decides; empty for none.
	Entry string    `json:"entry,omitempty"`
	Ways  []WayView `json:"ways"` // in the order of ways; those that cannot be gone are left out
}

// WayView is one way of a pair. Shares are in percent.
type WayView struct {
	Way       string  `json:"way"`
	Wanted    float64 `json:"wanted"`
	Effective float64 `json:"effective"`
	// To is where the way leads: an address, or what of the destination.
	To      string `json:"to"`
	Healthy *int   `json:"healthy,omitempty"` // instances in service; nil: not known
}

// RouteView is one route of a chain.
type RouteView struct {
	Match    string    `json:"match"`
	Splitter string    `json:"splitter,omitempty"` // service whose service-splitter divides
	Legs     []LegView `json:"legs"`
}

// LegView is one leg of a route. Shares are in percent.
type LegView struct {
	TargetView
	Wanted    float64      `json:"wanted"`
	Effective float64      `json:"effective"`
	Failover  []TargetView `json:"failover,omitempty"` // in the order in which they stand in
}

// TargetView is a target and how many of its instances are in service.
type TargetView struct {
	Target  string `json:"target"`
	Healthy *int   `json:"healthy,omitempty"` // nil: not known
}

// View looks at a chain. healthy is how many instances of a target are in service; nil
// when that is not known, and then every leg gets what it was meant to.
func (c Chain) View(healthy func(Target) int) View {
	out := View{Service: c.Service, Datacenter: c.Datacenter, Protocol: c.Protocol, Broken: c.Broken, Routed: c.Routed, Words: c.Describe()}
	look := func(t Target) TargetView {
		v := TargetView{Target: t.String()}
		if healthy != nil {
			n := healthy(t)
			v.Healthy = &n
		}
		return v
	}
	for _, r := range c.Routes {
		view := RouteView{Match: r.Match(), Splitter: r.Splitter}
		effective := make([]float64, len(r.Legs))
		for i, l := range r.Legs {
			effective[i] = float64(l.Weight)
		}
		if healthy != nil {
			effective = r.Effective(config.IsHTTP(c.Protocol), healthy)
		}
		for i, l := range r.Legs {
			leg := LegView{TargetView: look(l.Target), Wanted: float64(l.Weight) * 100 / TotalWeight, Effective: effective[i] * 100 / TotalWeight}
			for _, t := range l.Failover {
				leg.Failover = append(leg.Failover, look(t))
			}
			view.Legs = append(view.Legs, leg)
		}
		out.Routes = append(out.Routes, view)
	}
	return out
}

// Effective is what each leg gets of TotalWeight, by how many instances of a target
// are in service. A leg that has none, nor failovers that do, gets nothing. Its
// requests go to the first other leg that has some, where they may cross; connections
// are divided among the others by weight, and only when nobody has any left, among
// those that have failovers.
func (r Route) Effective(requests bool, healthy func(Target) int) []float64 {
	own, stood := make([]bool, len(r.Legs)), make([]bool, len(r.Legs))
	for i, l := range r.Legs {
		own[i] = healthy(l.Target) > 0
		stood[i] = own[i] || slices.ContainsFunc(l.Failover, func(t Target) bool { return healthy(t) > 0 })
	}
	if requests {
		return r.crossing(own, stood)
	}
	if out := r.divided(own); out != nil {
		return out
	}
	if out := r.divided(stood); out != nil {
		return out
	}
	return make([]float64, len(r.Legs))
}

// crossing is what legs get of requests.
func (r Route) crossing(own, stood []bool) []float64 {
	out := make([]float64, len(r.Legs))
	may := r.Policy == nil || r.Policy.Crossing == nil || *r.Policy.Crossing
	for i, l := range r.Legs {
		switch to := r.first(own); {
		case stood[i]:
			out[i] += float64(l.Weight)
		case may && to >= 0:
			out[to] += float64(l.Weight)
		}
	}
	return out
}

// first is the first leg that gets anything and can take it, or -1.
func (r Route) first(can []bool) int {
	for i, l := range r.Legs {
		if can[i] && l.Weight > 0 {
			return i
		}
	}
	return -1
}

// divided is what legs get of connections when only some can take any; nil for none.
func (r Route) divided(can []bool) []float64 {
	out := make([]float64, len(r.Legs))
	var living float64
	for i, l := range r.Legs {
		if can[i] {
			out[i] = float64(l.Weight)
			living += out[i]
		}
	}
	if living == 0 {
		return nil
	}
	for i := range out {
		out[i] *= TotalWeight / living
	}
	return out
}

// PairOf looks at a pair: at the ways of an entry, which may be nil, for requests that the
// chain does not send to another service. healthy is how many instances of the destination
// are in service on a way; nil when that is not known. Of a way that has none, and is not an
// address, the others get what it was meant to: requests go to the first of them, where they
// may cross, and connections to all by their shares.
func (c Chain) PairOf(source string, e *config.TrafficShift, healthy func(way string) int) *PairView {
	out := &PairView{Source: source}
	shares := config.Shares{MTLS: 100}
	if e != nil {
		out.Entry, shares = e.EntryName(), e.Shares
	}
	to := map[string]string{config.WayDirect: "instances of " + c.Service, config.WayPlain: "sidecars of " + c.Service + " that take plaintext", config.WayMTLS: "chain of " + c.Service}
	if e != nil && e.Legacy != nil {
		to[config.WayLegacy] = e.Legacy.Address
	}
	// Ways are what legs of a route are, and get what those would.
	ways := Route{Policy: c.Routes[len(c.Routes)-1].Policy}
	for _, way := range []string{config.WayLegacy, config.WayDirect, config.WayPlain, config.WayMTLS} {
		n := shares.Hundredths(way)
		if to[way] == "" || e == nil && way != config.WayMTLS {
			continue
		}
		view := WayView{Way: way, Wanted: float64(n) * 100 / TotalWeight, To: to[way]}
		if healthy != nil && way != config.WayLegacy {
			found := healthy(way)
			view.Healthy = &found
		}
		out.Ways = append(out.Ways, view)
		ways.Legs = append(ways.Legs, Leg{Weight: uint32(n), Resolver: Resolver{Target: Target{Service: way}}})
	}
	effective := ways.Effective(config.IsHTTP(c.Protocol), func(t Target) int {
		for _, w := range out.Ways {
			if w.Way == t.Service && w.Healthy != nil {
				return *w.Healthy
			}
		}
		return 1
	})
	for i := range out.Ways {
		out.Ways[i].Effective = effective[i] * 100 / TotalWeight
	}
	return out
}
