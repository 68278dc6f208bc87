package routing

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// state is who would answer of a set of instances.
type state int

const (
	alive state = iota
	empty       // nobody is registered
	dead        // who is registered does not listen
	mixed       // some are alive, one is dead
)

// part is a service of the model.
type part struct {
	protocol string
	peers    []string         // services that speak the same, itself too
	versions map[string]state // those not named are empty
}

func (p part) all() state {
	for _, s := range p.versions {
		if s == dead {
			return mixed
		}
	}
	return alive
}

// model makes random changes of entries after each of which somebody can answer.
type model struct {
	*rand.Rand
	t     *testing.T
	parts map[string]part
	set   *config.Set
	// filters, when set, is the entries that say who is in a subset, in place of those
	// that lead there.
	filters *config.Set
}

// change is one write, or deletion.
type change struct {
	put  config.Entry
	drop config.Key
	set  *config.Set // as it is then
}

func (c change) String() string {
	if c.put == nil {
		return "delete " + c.drop.String()
	}
	body, err := config.EncodeEntry(c.put)
	if err != nil {
		return err.Error()
	}
	return string(body)
}

func pick[T any](m *model, of ...T) T { return of[m.IntN(len(of))] }

// odds is true once in n.
func (m *model) odds(n int) bool { return m.IntN(n) == 0 }

func (m *model) services() []string {
	var out []string
	for name := range m.parts {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// next is a change that leaves everybody answered.
func (m *model) next() change {
	for range 10_000 {
		var c change
		keys := slices.DeleteFunc(m.set.Keys(), func(k config.Key) bool { return k.Kind == config.KindServiceDefaults })
		if len(keys) > 0 && m.odds(6) {
			c.drop = pick(m, keys...)
			c.set = m.set.With(nil, []config.Key{c.drop})
		} else {
			c.put = m.entry()
			c.put.Normalize()
			if c.put.Validate() != nil { // names a subset that it has not got
				continue
			}
			if old := m.set.Get(config.KeyOf(c.put)); old != nil && reflect.DeepEqual(old, c.put) {
				continue
			}
			c.set = m.set.With([]config.Entry{c.put}, nil)
		}
		if m.answered(c.set) && m.between(c.set) {
			m.set = c.set
			return c
		}
	}
	m.t.Fatal("no change is left")
	return change{}
}

func (m *model) entry() config.Entry {
	service := pick(m, m.services()...)
	p := m.parts[service]
	for {
		switch pick(m, config.KindServiceRouter, config.KindServiceRouter, config.KindServiceSplitter, config.KindServiceSplitter, config.KindServiceResolver,
			config.KindServiceResolver, config.KindServiceDefaults, config.KindServiceIntentions, config.KindTrafficPolicy, config.KindProxyDefaults, config.KindMesh) {
		case config.KindServiceRouter:
			if p.protocol != config.TCP {
				return m.router(service, p)
			}
		case config.KindServiceSplitter:
			return m.splitter(service, p)
		case config.KindServiceResolver:
			return m.resolver(service, p)
		case config.KindServiceDefaults:
			if m.odds(2) {
				return m.caller()
			}
			return m.defaults(service, p)
		case config.KindServiceIntentions:
			return m.intentions(service, p)
		case config.KindTrafficPolicy:
			return m.policy(service)
		case config.KindProxyDefaults:
			return &config.ProxyDefaults{Name: config.Global, Config: map[string]any{
				"local_connect_timeout_ms": float64(1000 + m.IntN(5000)), "max_inbound_connections": float64(5000 + m.IntN(5000)),
			}}
		case config.KindMesh: // says what is so anyway, and then something new in its own notes
			yes := true
			return &config.Mesh{Meta: map[string]string{"note": fmt.Sprint(m.IntN(1000))}, HTTP: &config.MeshHTTP{Incoming: &config.MeshIncoming{
				RequestNormalization: &config.RequestNormalization{MergeSlashes: &yes, PathWithEscapedSlashesAction: "REJECT_REQUEST"},
			}}}
		}
	}
}

// subset is a name under which some instances may be found.
func (m *model) subset() string { return pick(m, "", "v1", "v2", "v3", "v4", "v5", "old", "new") }

func (m *model) router(service string, p part) config.Entry {
	if e := m.set.Router(service); e != nil && len(e.Routes) > 1 && m.odds(3) { // another order
		next := *e
		next.Routes = slices.Clone(e.Routes)
		m.Shuffle(len(next.Routes), reflect.Swapper(next.Routes))
		return &next
	}
	e := &config.ServiceRouter{Name: service}
	for range 1 + m.IntN(3) {
		h := &config.HTTPMatch{}
		rewritten := false
		switch m.IntN(5) {
		case 0:
			h.PathPrefix, rewritten = pick(m, "/a", "/api/", "/grpc.health.v1.Health/"), p.protocol == config.HTTP
		case 1:
			h.PathExact = pick(m, "/a", "/b/c")
		case 2:
			h.PathRegex = pick(m, "/a.*", "/[bc]/.*", ".*/Check")
		case 3:
			h.Header = []config.HeaderMatch{pick(m, config.HeaderMatch{Name: "x-user", Prefix: "user-1"}, config.HeaderMatch{Name: "x-user", Present: true, Invert: true},
				config.HeaderMatch{Name: "x-user", Regex: "user-[0-9]*[02468]"})}
		default:
			h.Methods = pick(m, []string{"GET"}, []string{"POST"}, []string{"GET", "HEAD"})
		}
		d := &config.RouteDestination{Service: pick(m, p.peers...), ServiceSubset: m.subset()}
		if rewritten && m.odds(2) {
			d.PrefixRewrite = pick(m, "/", "/other/")
		}
		if m.odds(3) {
			d.NumRetries = uint32(1 + m.IntN(4))
		}
		if m.odds(3) {
			d.RetryOn = []string{pick(m, "5xx", "gateway-error", "reset", "unavailable")}
		}
		if m.odds(3) {
			d.RetryOnStatusCodes = []uint32{503}
		}
		d.RetryOnConnectFailure = m.odds(4)
		if m.odds(4) {
			d.RequestTimeout, d.IdleTimeout = config.Duration(10*time.Minute), config.Duration(5*time.Minute)
		}
		d.RequestHeaders, d.ResponseHeaders = m.headers(), m.headers()
		e.Routes = append(e.Routes, config.ServiceRoute{Match: &config.RouteMatch{HTTP: h}, Destination: d})
	}
	return e
}

func (m *model) headers() *config.HeaderModifiers {
	if !m.odds(4) {
		return nil
	}
	return &config.HeaderModifiers{Set: map[string]string{"x-written": fmt.Sprint(m.IntN(1000))}, Remove: []string{"x-nobody-sends"}}
}

func (m *model) splitter(service string, p part) config.Entry {
	e := &config.ServiceSplitter{Name: service}
	left := 100
	for i, n := 0, 1+m.IntN(3); i < n; i++ {
		s := config.ServiceSplit{Weight: float64(left), Service: pick(m, p.peers...), ServiceSubset: m.subset()}
		if s.Service == service {
			s.Service = ""
		}
		if i < n-1 {
			s.Weight = float64(m.IntN(left + 1))
		}
		left -= int(s.Weight)
		if p.protocol != config.TCP {
			s.RequestHeaders, s.ResponseHeaders = m.headers(), m.headers()
		}
		if at := slices.IndexFunc(e.Splits, func(x config.ServiceSplit) bool { return x.Service == s.Service && x.ServiceSubset == s.ServiceSubset }); at >= 0 {
			e.Splits[at].Weight += s.Weight
			continue
		}
		e.Splits = append(e.Splits, s)
	}
	m.Shuffle(len(e.Splits), reflect.Swapper(e.Splits))
	return e
}

func filter(version string) string { return "Service.Meta.version == " + version }

func (m *model) resolver(service string, p part) config.Entry {
	e := &config.ServiceResolver{Name: service, Subsets: map[string]config.ResolverSubset{}}
	for _, v := range []string{"v1", "v2", "v3", "v4", "v5"} {
		if !m.odds(8) {
			e.Subsets[v] = config.ResolverSubset{Filter: filter(v), OnlyPassing: m.odds(4)}
		}
	}
	// The same instances under other names, which change hands.
	for _, name := range []string{"old", "new"} {
		if !m.odds(4) {
			e.Subsets[name] = config.ResolverSubset{Filter: filter(pick(m, "v1", "v2", "v4"))}
		}
	}
	known := func() string {
		for {
			if s := m.subset(); s == "" || e.Subsets[s].Filter != "" {
				return s
			}
		}
	}
	e.DefaultSubset = known()
	if m.odds(2) {
		e.ConnectTimeout = config.Duration(time.Duration(2+m.IntN(5)) * time.Second)
	}
	if m.odds(5) {
		e.RequestTimeout = config.Duration(10 * time.Minute)
	}
	if p.protocol != config.TCP && m.odds(3) {
		e.LoadBalancer = &config.LoadBalancer{Policy: pick(m, config.PolicyRandom, config.PolicyRoundRobin, config.PolicyLeastRequest, config.PolicyRingHash, config.PolicyMaglev)}
		if l := e.LoadBalancer; l.Policy == config.PolicyRingHash || l.Policy == config.PolicyMaglev {
			l.HashPolicies = []config.HashPolicy{{Field: config.HashHeader, FieldValue: "x-user"}}
		}
	}
	switch others := slices.DeleteFunc(slices.Clone(p.peers), func(s string) bool { return s == service }); {
	case m.odds(6) && len(others) > 0:
		e.Redirect = &config.ResolverRedirect{Service: pick(m, others...), ServiceSubset: m.subset()}
		e.DefaultSubset = ""
	case m.odds(2):
		e.Failover = map[string]config.ResolverFailover{}
		for _, at := range []string{config.Wildcard, known()} {
			if at == "" {
				continue
			}
			if m.odds(2) {
				e.Failover[at] = config.ResolverFailover{Service: pick(m, p.peers...), ServiceSubset: pick(m, "v1", "v2", "v5")}
			} else {
				e.Failover[at] = config.ResolverFailover{Targets: []config.FailoverTarget{{ServiceSubset: "v5"}, {Service: pick(m, p.peers...), ServiceSubset: pick(m, "v1", "v2")}}}
			}
		}
	}
	return e
}

func (m *model) defaults(service string, p part) config.Entry {
	e := &config.ServiceDefaults{Name: service, Protocol: p.protocol}
	if m.odds(2) {
		e.MaxInboundConnections = 5000 + m.IntN(5000)
	}
	if m.odds(2) {
		e.LocalConnectTimeoutMs = 1000 + m.IntN(5000)
	}
	if m.odds(3) {
		e.LocalRequestTimeoutMs = 600_000 + m.IntN(1000)
	}
	return e
}

// caller is what the calling service says of its upstreams.
func (m *model) caller() config.Entry {
	e := &config.ServiceDefaults{Name: "web", Protocol: config.HTTP, UpstreamConfig: &config.UpstreamConfiguration{}}
	if m.odds(2) {
		all := m.settings("")
		e.UpstreamConfig.Defaults = &all
	}
	for _, name := range m.services() {
		if m.odds(3) {
			e.UpstreamConfig.Overrides = append(e.UpstreamConfig.Overrides, m.settings(name))
		}
	}
	return e
}

func (m *model) settings(name string) config.UpstreamSettings {
	many := 5000 + m.IntN(5000)
	u := config.UpstreamSettings{Name: name, ConnectTimeoutMs: 2000 + m.IntN(4000), Limits: &config.UpstreamLimits{MaxConnections: &many, MaxPendingRequests: &many, MaxConcurrentRequests: &many}}
	if m.odds(2) {
		half := uint32(50)
		u.PassiveHealthCheck = &config.PassiveHealthCheck{Interval: config.Duration(time.Second), MaxFailures: uint32(3 + m.IntN(5)), MaxEjectionPercent: &half}
	}
	return u
}

func (m *model) intentions(service string, p part) config.Entry {
	e := &config.ServiceIntentions{Name: service}
	web := &config.SourceIntention{Name: "web", Action: config.Allow}
	if p.protocol != config.TCP && m.odds(2) {
		web.Action = ""
		web.Permissions = pick(m,
			[]*config.Permission{{Action: config.Allow, HTTP: &config.HTTPPermission{PathPrefix: "/"}}},
			[]*config.Permission{{Action: config.Deny, HTTP: &config.HTTPPermission{PathExact: "/never"}}, {Action: config.Allow, HTTP: &config.HTTPPermission{PathPrefix: "/"}}},
			[]*config.Permission{
				{Action: config.Deny, HTTP: &config.HTTPPermission{PathPrefix: "/", Header: []config.HeaderPermission{{Name: "x-never", Present: true}}}},
				{Action: config.Allow, HTTP: &config.HTTPPermission{PathRegex: "/.*"}},
			},
		)
	}
	e.Sources = []*config.SourceIntention{web}
	switch m.IntN(3) {
	case 0:
		e.Sources = append(e.Sources, &config.SourceIntention{Name: config.Wildcard, Action: config.Deny})
	case 1:
		e.Sources = append(e.Sources, &config.SourceIntention{Name: fmt.Sprintf("other-%d", m.IntN(9)), Action: pick(m, config.Allow, config.Deny)})
	}
	return e
}

func (m *model) policy(service string) config.Entry {
	e := &config.TrafficPolicy{Name: pick(m, service, service, config.Wildcard)}
	switch m.IntN(4) {
	case 0:
		e.Sticky = &config.Sticky{Header: "x-user"}
	case 1:
		e.Sticky = &config.Sticky{Cookie: &config.StickyCookie{Name: pick(m, "leg", "side"), TTL: config.Duration(time.Hour)}}
	case 2:
		e.Sticky = &config.Sticky{Source: true}
	}
	if m.odds(3) {
		crossing := m.odds(2)
		e.Crossing = &crossing
	}
	if m.odds(3) {
		e.Audit = &config.Audit{Sources: []string{pick(m, "web", "other-1")}, Default: m.odds(2)}
	}
	return e
}

// answered reports whether every request, and connection, is answered. The entries are
// compiled as the server does; what becomes of attempts is said here once more.
func (m *model) answered(s *config.Set) bool {
	for name, p := range m.parts {
		chain, _ := routing.Compile(routing.Request{Config: s, Service: name, Datacenter: "dc1"})
		if chain.Broken != "" {
			return false
		}
		for _, r := range chain.Routes {
			if p.protocol == config.TCP && !m.connections(r) || p.protocol != config.TCP && !m.requests(r) {
				return false
			}
		}
	}
	return true
}

// between reports whether the routes that are in force find somebody in subsets as they
// will be: who is in one changes before routes do. One that nobody will be in any more is
// as it was until then.
func (m *model) between(next *config.Set) bool {
	m.filters = next
	defer func() { m.filters = nil }()
	return m.answered(m.set)
}

func (m *model) of(t routing.Target) state {
	p := m.parts[t.Service]
	if e := m.filters.Resolver(t.Service); e != nil && t.Subset != "" {
		if s, ok := e.Subsets[t.Subset]; ok {
			if next := p.in(s.Filter); next != empty {
				return next
			}
		}
	}
	return p.in(t.Filter)
}

// in is how those are that a filter finds.
func (p part) in(text string) state {
	if text == "" {
		return p.all()
	}
	for v, s := range p.versions {
		if text == filter(v) {
			return s
		}
	}
	return empty
}

func (m *model) connections(r routing.Route) bool {
	legs := slices.DeleteFunc(slices.Clone(r.Legs), func(l routing.Leg) bool { return l.Weight == 0 })
	if r.Policy != nil && r.Policy.Sticky != nil && r.Policy.Sticky.Source { // who knows which
		return !slices.ContainsFunc(legs, func(l routing.Leg) bool { return m.of(l.Target) != alive })
	}
	for _, l := range legs {
		if m.of(l.Target) == alive {
			return true
		}
	}
	return len(legs) == 1 && slices.ContainsFunc(legs[0].Failover, func(t routing.Target) bool { return m.of(t) == alive })
}

func (m *model) requests(r routing.Route) bool {
	retries, afterSending := 2, false
	if r.Rule != nil && r.Rule.Destination != nil {
		d := r.Rule.Destination
		afterSending = len(d.RetryOn)+len(d.RetryOnStatusCodes) > 0
		if afterSending || d.RetryOnConnectFailure || d.NumRetries > 0 {
			retries = int(max(d.NumRetries, 1))
		}
	}
	crossing := r.Policy == nil || r.Policy.Crossing == nil || *r.Policy.Crossing
	legs := slices.DeleteFunc(slices.Clone(r.Legs), func(l routing.Leg) bool { return l.Weight == 0 })
	// What is tried again is a fifth of the load at most, or 25 at a time: no more
	// than a little may be sent where nobody listens.
	var lost uint32
	for _, l := range legs {
		if m.of(l.Target) == dead {
			lost += l.Weight
		}
	}
	if lost > routing.TotalWeight/10 {
		return false
	}
	for i, l := range legs {
		rest := slices.Clone(l.Failover)
		if crossing {
			for j, other := range legs {
				if j != i {
					rest = append(rest, other.Target)
				}
			}
		}
		copies := []int{retries}
		if afterSending { // what must not be repeated elsewhere stays
			copies = append(copies, retries+1)
		}
		for _, n := range copies {
			if !m.survives(append(slices.Repeat([]routing.Target{l.Target}, n), rest...), retries+1) {
				return false
			}
		}
	}
	return true
}

// survives reports whether one of so many attempts is answered, however it goes.
func (m *model) survives(members []routing.Target, attempts int) bool {
	met := map[routing.Target]bool{}
	for a := range attempts {
		i := a
		for i < len(members) && m.of(members[i]) == empty {
			i++
		}
		if i >= len(members) {
			return false
		}
		switch m.of(members[i]) {
		case alive:
			return true
		case mixed: // the dead one is not tried twice
			if met[members[i]] {
				return true
			}
			met[members[i]] = true
		}
	}
	return false
}
