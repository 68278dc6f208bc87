package proxy

import (
	"cmp"
	"slices"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// audit is what of a service's intentions is only watched: the service's own
// traffic policy says so, else that of "*".
func (b *builder) audit() *config.Audit {
	b.read(config.Key{Kind: config.KindTrafficPolicy, Name: b.service}, config.Key{Kind: config.KindTrafficPolicy, Name: config.Wildcard})
	e := cmp.Or(b.in.Config.TrafficPolicy(b.service), b.in.Config.TrafficPolicy(config.Wildcard))
	if e == nil {
		return nil
	}
	return e.Audit
}

// watch marks the verdicts that an audit is about.
func (b *builder) watch(in *Intentions, sources map[string]bool, audit *config.Audit) {
	if audit == nil {
		return
	}
	in.Otherwise.Audit = in.Otherwise.source == "" && audit.Default || in.Otherwise.source != "" && slices.Contains(audit.Sources, in.Otherwise.source)
	for i := range in.Callers {
		in.Callers[i].Audit = slices.Contains(audit.Sources, in.Callers[i].source)
	}
	own := b.in.Config.TrafficPolicy(b.service) != nil
	for _, s := range audit.Sources {
		if own && !sources[s] {
			b.problem("traffic-policy/"+b.service, "audit: no intention has source %q", s)
		}
	}
}

// Enforced are the intentions that bind: whom an audit is about is let in.
func (in Intentions) Enforced() Intentions {
	return in.each(func(v Verdict) Verdict {
		if v.Audit {
			return Verdict{Allow: true, Because: v.Because}
		}
		return v
	})
}

// Watched are the intentions that only count: those that an audit is about, and
// nobody else is refused. False when there are none.
func (in Intentions) Watched() (Intentions, bool) {
	audited := in.Otherwise.Audit
	out := in.each(func(v Verdict) Verdict {
		audited = audited || v.Audit
		if !v.Audit {
			return Verdict{Allow: true, Because: v.Because}
		}
		return v
	})
	return out, audited
}

// Connections are the intentions when only connections can be judged, and not the
// requests on them: who is allowed some requests is allowed nothing.
func (in Intentions) Connections() Intentions {
	return in.each(func(v Verdict) Verdict {
		if v.Conditional() {
			return Verdict{Because: v.Because, Audit: v.Audit}
		}
		return v
	})
}

// Conditional reports whether any caller's verdict depends on the request.
func (in Intentions) Conditional() bool {
	return in.Otherwise.Conditional() || slices.ContainsFunc(in.Callers, func(c Caller) bool { return c.Conditional() })
}

// LookAtPaths reports whether any verdict depends on a request's path.
func (in Intentions) LookAtPaths() bool {
	paths := func(v Verdict) bool {
		return slices.ContainsFunc(v.Permissions, func(p Permission) bool {
			return slices.ContainsFunc(p.All, func(c Condition) bool { return c.Of == Path })
		})
	}
	return paths(in.Otherwise) || slices.ContainsFunc(in.Callers, func(c Caller) bool { return paths(c.Verdict) })
}

// each is in with other verdicts.
func (in Intentions) each(change func(Verdict) Verdict) Intentions {
	out := Intentions{Otherwise: change(in.Otherwise), Providers: in.Providers}
	for _, c := range in.Callers {
		out.Callers = append(out.Callers, Caller{URI: c.URI, Verdict: change(c.Verdict)})
	}
	return out
}
