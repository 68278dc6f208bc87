package proxy

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// outbound is what one upstream adds to a proxy.
type outbound struct {
	entry    string // of tcp: the cluster or group that its connections go to
	clusters []Cluster
	groups   []Group
	route    *Route
}

// planner decides the way of one upstream's requests or connections.
type planner struct {
	*builder
	chain    routing.Chain
	target   routing.Target       // that was declared
	shift    *config.TrafficShift // or nil
	settings config.UpstreamSettings
	subject  string
	out      outbound
}

func (b *builder) outbound(u Upstream, chain routing.Chain, shift *config.TrafficShift, settings config.UpstreamSettings, subject string) outbound {
	p := &planner{builder: b, chain: chain, target: u.Target, shift: shift, settings: settings, subject: subject}
	if config.IsHTTP(chain.Protocol) {
		p.requests(u.Name)
	} else {
		p.connections(u.Target.SNI(b.in.TrustDomain))
	}
	p.budget()
	p.custom()
	p.closed()
	return p.out
}

// budget bounds retries where a rule repeats what may have been seen: at all clusters, whichever the rule leads to now, so
// that shares change routes alone. Groups, to which one kind of rules leads, have it already.
func (p *planner) budget() {
	if p.out.route == nil || !slices.ContainsFunc(p.out.route.Rules, func(r Rule) bool { return r.Retry.afterSending() }) {
		return
	}
	for i := range p.out.clusters {
		p.out.clusters[i].Limits.RetryBudget = true
	}
}

// custom puts the cluster that somebody wrote in place of the only one.
func (p *planner) custom() {
	text := p.hatch(p.subject, config.ClusterHatch, p.settings.EnvoyClusterJSON)
	switch {
	case text == "" || len(p.out.clusters) == 0: // or nobody can be reached anyway
	case !p.chain.IsDefault():
		p.problem(p.subject, "%s has no effect, as with Consul: entries of kind service-router, -splitter or -resolver decide where requests go", config.ClusterHatch)
	case p.shifted():
		p.problem(p.subject, "%s has no effect while %s divides requests among ways", config.ClusterHatch, config.KeyOf(p.shift))
	default:
		p.out.clusters[0].JSON = text
	}
}

// adopt takes in what an upstream needs. What is there already stays, with a budget for retries if either wants one;
// it reports whether that is made otherwise.
func (b *builder) adopt(o outbound) (differs bool) {
	for _, c := range o.clusters {
		prior := b.proxy.cluster(c.Name)
		if prior == nil {
			b.proxy.Clusters = append(b.proxy.Clusters, c)
			continue
		}
		budget := prior.Limits.RetryBudget || c.Limits.RetryBudget
		prior.Limits.RetryBudget, c.Limits.RetryBudget = budget, budget
		differs = differs || !reflect.DeepEqual(*prior, c)
	}
	for _, g := range o.groups {
		if !slices.ContainsFunc(b.proxy.Groups, func(x Group) bool { return x.Name == g.Name }) {
			b.proxy.Groups = append(b.proxy.Groups, g)
		}
	}
	if o.route == nil {
		return differs
	}
	for i := range b.proxy.Routes {
		if b.proxy.Routes[i].Name == o.route.Name {
			return differs
		}
	}
	b.proxy.Routes = append(b.proxy.Routes, *o.route)
	return differs
}

func (p *planner) add(c Cluster) string {
	if !slices.ContainsFunc(p.out.clusters, func(x Cluster) bool { return x.Name == c.Name }) {
		p.out.clusters = append(p.out.clusters, c)
	}
	return c.Name
}

func (p *planner) group(g Group) string {
	if !slices.ContainsFunc(p.out.groups, func(x Group) bool { return x.Name == g.Name }) {
		p.out.groups = append(p.out.groups, g)
	}
	return g.Name
}

// members are the clusters that stand for a leg's target of requests, in order of
// preference: itself, and its failovers under Consul's names.
func (p *planner) members(l leg) []string {
	if l.straight() {
		return []string{p.add(p.straightCluster(l))}
	}
	r := l.Resolver
	c := p.cluster(r, p.settings, true)
	if len(r.Failover) == 0 {
		return []string{p.add(c)}
	}
	c.Name = failoverPrefix + "0~" + c.SNI
	out := []string{p.add(c)}
	for i, t := range r.Failover {
		c := p.cluster(routing.Resolver{Target: t, ConnectTimeout: r.ConnectTimeout, LoadBalancer: r.LoadBalancer}, p.settings, true)
		c.Name = failoverPrefix + strconv.Itoa(i+1) + "~" + c.SNI
		out = append(out, p.add(c))
	}
	return out
}

// connections decides a tcp upstream, whose listener holds the name entry.
func (p *planner) connections(entry string) {
	p.out.entry = entry
	route := p.chain.Routes[0]
	// A cluster that somebody wrote looks for endpoints under the name that these have alone.
	if p.shifted() || p.revertible() && p.settings.EnvoyClusterJSON == "" {
		p.share(entry, route)
		return
	}
	legs := weighted(p.ways(route))
	sticky, from := p.stickiness(route)
	if sticky != nil && !sticky.Source {
		p.notSticky(from)
	}
	if len(legs) > 1 && sticky != nil && sticky.Source {
		legs = []leg{p.own(legs)}
	}
	if len(legs) > 1 || len(legs[0].Failover) > 0 {
		p.split(entry, legs)
		return
	}
	c := p.cluster(legs[0].Resolver, p.settings, false)
	c.Name = entry
	p.add(c)
}

func (p *planner) notSticky(from config.Key) {
	p.problem(p.subject, "%s: connections are not sticky by header or cookie: set Source, or nothing", from)
}

// split is a cluster whose instances are those of several targets: the legs, or a
// single one and those that stand in for it.
func (p *planner) split(entry string, legs []leg) {
	c := p.cluster(legs[0].Resolver, p.settings, false)
	dead := c.Unreachable
	c.Name, c.SNI, c.PeerURI, c.Target, c.Unreachable = entry, "", "", routing.Target{}, ""
	add := func(t routing.Target, weight uint32, priority int) {
		if p.unreachable(t) == "" {
			part := p.meshed(t, weight)
			part.Priority = uint32(priority)
			c.Split = append(c.Split, part)
		}
	}
	for _, l := range legs {
		add(l.Target, l.Weight, 0)
		switch {
		case len(legs) == 1:
			for i, t := range l.Failover {
				add(t, routing.TotalWeight, i+1)
			}
		case len(l.Failover) > 0:
			p.problem(p.subject, "failover of %s has no effect in a split of connections: the other legs stand in", l.Target)
		}
	}
	if c.Split == nil {
		c.Unreachable = dead
	}
	p.add(c)
}

// own is the leg that this sidecar's instance stays on.
func (p *planner) own(legs []leg) leg {
	return legs[routing.Pick(p.ranges(legs), routing.Hash(p.proxy.Node+"/"+p.proxy.ID))]
}

// weighted are the legs that get something.
func weighted(legs []leg) []leg {
	out := slices.DeleteFunc(slices.Clone(legs), func(l leg) bool { return l.Weight == 0 })
	if len(out) == 0 {
		return legs[:1] // not reached: weights add up
	}
	return out
}

// requests decides an HTTP upstream.
func (p *planner) requests(name string) {
	route := &Route{Name: name, Chain: p.chain}
	for _, r := range p.routes() {
		route.Rules = append(route.Rules, p.rules(r)...)
	}
	p.out.route = route
	if p.revertible() {
		for _, l := range p.straight(p.chain.Routes[len(p.chain.Routes)-1].Legs) {
			p.add(p.straightCluster(l))
		}
	}
}

// defaultRetries is for failures after which the callee cannot have seen a request.
const defaultRetries = 2

func (p *planner) rules(r routing.Route) []Rule {
	base := Rule{Retry: Retry{Number: defaultRetries}}
	base.Timeout = timeout(r.Legs)
	if r.Rule != nil {
		rule(&base, *r.Rule)
	}
	legs := weighted(p.ways(r))
	base.Hash = hashPolicies(legs)
	base.RewriteHost = p.rewrites(legs)
	if len(legs) == 1 && p.dead(legs[0]) {
		base.Unreachable = p.unreachable(legs[0].Target)
		return []Rule{base}
	}
	sticky, from := p.stickiness(r)
	if len(legs) == 1 {
		sticky = nil
	}
	if sticky != nil && sticky.Source {
		own := p.own(legs)
		others := slices.DeleteFunc(slices.Clone(legs), func(l leg) bool { return l.id() == own.id() })
		return p.repeat(base, r, append([]leg{own}, others...), 1)
	}
	if sticky == nil {
		return p.repeat(base, r, legs, len(legs))
	}
	if len(base.Hash) > 0 {
		p.problem(p.subject, "%s: what callers are known by also chooses their instance, in place of the load balancer's own policies", from)
	}
	base.Sticky = true
	if sticky.Header != "" {
		base.Hash = []config.HashPolicy{{Field: "header", FieldValue: sticky.Header}}
		return p.repeat(base, r, legs, len(legs))
	}
	known, stranger := base, base
	known.Cookie = sticky.Cookie
	known.Hash = []config.HashPolicy{{Field: "cookie", FieldValue: sticky.Cookie.Name}}
	stranger.NewCookie = sticky.Cookie
	stranger.Hash = []config.HashPolicy{{Field: "header", FieldValue: requestID}}
	return append(p.repeat(known, r, legs, len(legs)), p.repeat(stranger, r, legs, len(legs))...)
}

// requestID is a header that every request has. It becomes the value of a sticky cookie.
const requestID = "x-request-id"

// repeat completes a rule with the clusters of its legs, of which the first so many
// divide the requests and the others only stand in. Where an answer may be repeated
// and another leg or failover could give it, requests that must not be repeated
// there get a rule of their own.
func (p *planner) repeat(base Rule, r routing.Route, legs []leg, divide int) []Rule {
	crossing := r.Policy == nil || r.Policy.Crossing == nil || *r.Policy.Crossing
	build := func(rule Rule) Rule {
		rule.Legs = p.legs(rule, legs, divide, crossing)
		return rule
	}
	elsewhere := len(legs) > 1 && crossing || slices.ContainsFunc(legs, func(l leg) bool { return len(l.Failover) > 0 })
	if !base.Retry.afterSending() || !elsewhere {
		return []Rule{build(base)}
	}
	safe := base
	safe.Idempotent = true
	return []Rule{build(safe), build(base)}
}

// legs are the shares of one rule.
func (p *planner) legs(rule Rule, legs []leg, divide int, crossing bool) []RouteLeg {
	clusters := make([]string, divide)
	for i := range clusters {
		clusters[i] = p.alternatives(rule, legs, i, crossing)
	}
	all := []routing.Range{{Leg: 0, Weight: routing.TotalWeight}}
	switch {
	case divide > 1 && rule.Sticky:
		all = p.ranges(legs[:divide])
	case divide > 1:
		all = nil
		for i, l := range legs[:divide] {
			all = append(all, routing.Range{Leg: i, Weight: l.Weight})
		}
	}
	out := make([]RouteLeg, len(all))
	for i, a := range all {
		out[i] = RouteLeg{Cluster: clusters[a.Leg], Weight: a.Weight}
		if s := legs[a.Leg].Split; s != nil {
			out[i].RequestHeaders, out[i].ResponseHeaders = s.RequestHeaders, s.ResponseHeaders
		}
	}
	return out
}

// copies is how often a leg's target is tried before anybody else is.
func (p *planner) copies(rule Rule, l leg) int {
	retries, legacy := int(max(rule.Retry.Number, 1)), l.way == config.WayLegacy
	switch {
	// No retry leaves the target, unless nobody is there; nor does one whose Host was rewritten.
	case rule.Retry.afterSending() && (!rule.Idempotent || legacy && rule.RewriteHost):
		return retries + 1
	// One address: who cannot connect to it need not try again.
	case !rule.Retry.afterSending() && legacy && p.chain.Protocol == config.HTTP:
		return 1
	}
	return retries
}

// alternatives is the cluster of a leg or, where somebody can stand in for it, the
// group that tries the leg first.
func (p *planner) alternatives(rule Rule, legs []leg, i int, crossing bool) string {
	wanted := legs[i]
	own := p.members(wanted)
	var others []string
	// A target without a gateway answers why; nobody takes its place unasked.
	if crossing && !p.dead(wanted) {
		for j, l := range legs {
			if j != i && !p.dead(l) {
				others = append(others, p.members(l)[0])
			}
		}
	}
	if len(own)+len(others) == 1 {
		return own[0]
	}
	name := wanted.Target.SNI(p.in.TrustDomain)
	if wanted.straight() {
		name = own[0]
	}
	attempts := int(max(rule.Retry.Number, 1)) + 1
	g := Group{StatName: name, Members: append(slices.Repeat(own[:1], p.copies(rule, wanted)), own[1:]...), Limits: limits(p.settings)}
	g.Limits.RetryBudget = rule.Retry.afterSending()
	for _, o := range others {
		if !slices.Contains(g.Members, o) {
			g.Members = append(g.Members, o)
		}
	}
	for i := 0; len(others) > 0 && len(g.Members) < attempts; i++ { // past the list there is nobody
		g.Members = append(g.Members, others[i%len(others)])
	}
	content := fmt.Sprintf("%q %v", g.Members, g.Limits)
	g.Name = fmt.Sprintf("%s%s~%08x", groupPrefix, name, uint32(routing.Hash(content)))
	return p.group(g)
}

// dead reports whether neither a leg's target nor its failovers can be reached, ever.
func (p *planner) dead(r leg) bool {
	return p.unreachable(r.Target) != "" && !slices.ContainsFunc(r.Failover, func(t routing.Target) bool { return p.unreachable(t) == "" })
}

// rule takes in what a service-router says.
func rule(out *Rule, r config.ServiceRoute) {
	if r.Match != nil {
		out.Match = r.Match.HTTP
	}
	d := r.Destination
	if d == nil {
		return
	}
	out.PrefixRewrite, out.RequestHeaders, out.ResponseHeaders = d.PrefixRewrite, d.RequestHeaders, d.ResponseHeaders
	out.Timeout = first(time.Duration(d.RequestTimeout), out.Timeout)
	out.IdleTimeout = time.Duration(d.IdleTimeout)
	retry := Retry{On: slices.Clone(d.RetryOn), Codes: slices.Clone(d.RetryOnStatusCodes), Number: defaultRetries}
	if len(retry.Codes) > 0 || len(retry.On) > 0 || d.RetryOnConnectFailure || d.NumRetries > 0 {
		retry.Number = cmp.Or(d.NumRetries, 1)
	}
	retry.On = slices.DeleteFunc(retry.On, harmless)
	slices.Sort(retry.On)
	slices.Sort(retry.Codes)
	out.Retry = retry
}

// harmless are the conditions that are always on.
func harmless(condition string) bool {
	return condition == "connect-failure" || condition == "refused-stream" || condition == "reset-before-request"
}

// timeout is the longest that resolvers give a request, if all of them do.
func timeout(legs []routing.Leg) (out time.Duration) {
	for _, l := range legs {
		if l.RequestTimeout == 0 {
			return 0
		}
		out = max(out, l.RequestTimeout)
	}
	return out
}

// hashPolicies are those of the first leg that has any: a route has one list.
func hashPolicies(legs []leg) []config.HashPolicy {
	for _, l := range legs {
		if lb := l.LoadBalancer; lb != nil && (lb.Policy == "ring_hash" || lb.Policy == "maglev") {
			return lb.HashPolicies
		}
	}
	return nil
}

// IdempotentMethods may be repeated (RFC 9110, section 9.2.2), QUERY as
// it is defined among them.
func IdempotentMethods() []string {
	return []string{"DELETE", "GET", "HEAD", "OPTIONS", "PUT", "QUERY", "TRACE"}
}
