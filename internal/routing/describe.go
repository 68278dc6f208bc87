package routing

import (
	"fmt"
	"slices"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Describe prints the chain for people and for tests: a line per route, and one per leg.
func (c Chain) Describe() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s.%s %s\n", c.Service, c.Datacenter, c.Protocol)
	if c.Broken != "" {
		fmt.Fprintf(&b, "  broken: %s\n", c.Broken)
	}
	for _, r := range c.Routes {
		fmt.Fprintf(&b, "  %s\n", r.describe())
		for _, l := range r.Legs {
			fmt.Fprintf(&b, "    %6.2f%% %s\n", float64(l.Weight)*100/TotalWeight, l.describe())
		}
	}
	return b.String()
}

func describePolicy(p *config.TrafficPolicy) (words []string) {
	if p == nil {
		return nil
	}
	if s := p.Sticky; s != nil {
		switch {
		case s.Header != "":
			words = append(words, "sticky by header "+s.Header)
		case s.Cookie != nil:
			words = append(words, "sticky by cookie "+s.Cookie.Name)
		case s.Source:
			words = append(words, "sticky by calling instance")
		}
	}
	if p.Crossing != nil && !*p.Crossing {
		words = append(words, "no retries elsewhere")
	}
	return words
}

// describe is what a route matches and does, on one line.
func (r Route) describe() string {
	words := []string{r.Match()}
	if r.Rule != nil && r.Rule.Destination != nil {
		d := r.Rule.Destination
		add := func(on bool, format string, args ...any) {
			if on {
				words = append(words, fmt.Sprintf(format, args...))
			}
		}
		add(d.PrefixRewrite != "", "rewrite %q", d.PrefixRewrite)
		add(d.RequestTimeout != 0, "timeout %v", d.RequestTimeout)
		add(d.IdleTimeout != 0, "idle %v", d.IdleTimeout)
		add(d.NumRetries != 0, "retries %d", d.NumRetries)
		on := slices.Clone(d.RetryOn)
		if d.RetryOnConnectFailure {
			on = append(on, "connect-failure")
		}
		for _, code := range d.RetryOnStatusCodes {
			on = append(on, fmt.Sprint(code))
		}
		add(len(on) > 0, "retry on %s", strings.Join(on, ","))
		add(d.RequestHeaders != nil, "request headers %s", describeHeaders(d.RequestHeaders))
		add(d.ResponseHeaders != nil, "response headers %s", describeHeaders(d.ResponseHeaders))
	}
	if r.Splitter != "" {
		words = append(words, "split by service-splitter/"+r.Splitter)
	}
	return strings.Join(append(words, describePolicy(r.Policy)...), ", ")
}

// Match says in words what a route matches.
func (r Route) Match() string {
	if r.Rule == nil || r.Rule.Match == nil || r.Rule.Match.HTTP == nil {
		return "all"
	}
	m := r.Rule.Match.HTTP
	var words []string
	add := func(on bool, format string, args ...any) {
		if on {
			words = append(words, fmt.Sprintf(format, args...))
		}
	}
	add(len(m.Methods) > 0, "%s", strings.Join(m.Methods, "|"))
	add(m.PathExact != "", "path %s", m.PathExact)
	add(m.PathPrefix != "", "path %s…", m.PathPrefix)
	add(m.PathRegex != "", "path ~ %s", m.PathRegex)
	add(m.CaseInsensitive, "in any case")
	for _, h := range m.Header {
		words = append(words, describeCondition("header "+h.Name, h.Invert, h.Exact, h.Prefix, h.Suffix, h.Regex))
	}
	for _, q := range m.QueryParam {
		words = append(words, describeCondition("query "+q.Name, false, q.Exact, "", "", q.Regex))
	}
	if len(words) == 0 {
		return "all"
	}
	return strings.Join(words, " ")
}

func describeCondition(what string, invert bool, exact, prefix, suffix, regex string) string {
	switch {
	case exact != "":
		what += " = " + exact
	case prefix != "":
		what += " = " + prefix + "…"
	case suffix != "":
		what += " = …" + suffix
	case regex != "":
		what += " ~ " + regex
	}
	if invert {
		return "not(" + what + ")"
	}
	return what
}

func describeHeaders(m *config.HeaderModifiers) string {
	if m == nil {
		return ""
	}
	var words []string
	for _, name := range m.Remove {
		words = append(words, "-"+name)
	}
	for _, l := range []struct {
		sign string
		all  map[string]string
	}{{"=", m.Set}, {"+", m.Add}} {
		var part []string
		for name, value := range l.all {
			part = append(part, l.sign+name+":"+value)
		}
		slices.Sort(part)
		words = append(words, part...)
	}
	return strings.Join(words, " ")
}

// describe is a leg's target and how it is called, on one line.
func (l Leg) describe() string {
	words := []string{l.Target.String()}
	add := func(on bool, format string, args ...any) {
		if on {
			words = append(words, fmt.Sprintf(format, args...))
		}
	}
	add(l.Target.Filter != "", "where %s", l.Target.Filter)
	add(l.Target.OnlyPassing, "only passing")
	add(l.ConnectTimeout != 0, "connect %v", l.ConnectTimeout)
	add(l.RequestTimeout != 0, "timeout %v", l.RequestTimeout)
	if lb := l.LoadBalancer; lb != nil {
		add(lb.Policy != "", "%s", lb.Policy)
		for _, h := range lb.HashPolicies {
			if h.SourceIP {
				words = append(words, "hash of source")
			} else {
				words = append(words, "hash of "+h.Field+" "+h.FieldValue)
			}
		}
	}
	if s := l.Split; s != nil {
		add(s.RequestHeaders != nil, "request headers %s", describeHeaders(s.RequestHeaders))
		add(s.ResponseHeaders != nil, "response headers %s", describeHeaders(s.ResponseHeaders))
	}
	for _, t := range l.Failover {
		words = append(words, "else "+t.String())
	}
	return strings.Join(words, ", ")
}
