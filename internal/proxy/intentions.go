package proxy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/identity"
)

// Intentions decide, by the caller's SPIFFE ID, who is let in.
type Intentions struct {
	// Callers holds those with a rule of their own, sorted by URI, each once.
	Callers []Caller
	// Otherwise is for every other caller of the datacenter.
	Otherwise Verdict
	// Providers are those of the tokens that verdicts ask for, sorted by name.
	Providers []Provider
}

// Caller is one source with its verdict.
type Caller struct {
	URI string
	Verdict
}

// Verdict is allow or deny, for all requests or by request, and what decided it.
type Verdict struct {
	// Allow decides, unless there are Permissions.
	Allow bool
	// Permissions decide about each request: the first whose conditions it meets,
	// and a request that meets those of none is denied.
	Permissions []Permission
	// Requires must all be met by what is allowed. None is empty.
	Requires []Requirement
	// Audit says that the verdict is counted and does not bind.
	Audit bool
	// Because names the deciding intention "source -> destination", or "default policy".
	Because string

	source string // of the intention; "": the default policy
}

// Conditional reports whether it takes a request to decide.
func (v Verdict) Conditional() bool { return len(v.Permissions) > 0 || len(v.Requires) > 0 }

// intentions merges the entry of the service and the entry of "*" by Consul's
// precedence: an exact destination before "*", then an exact source before "*".
// A "*" source of the service's own entry therefore beats every source of the
// entry of "*".
//
// A token that the service's own entry asks for is needed for every request to the
// service, one that the entry of "*" asks for where no intention of the service's
// own decides. What decides by request denies when the protocol has no requests.
func (b *builder) intentions(protocol string) Intentions {
	own := b.in.Config.Intentions(b.service)
	all := b.in.Config.Intentions(config.Wildcard)
	b.read(config.Key{Kind: config.KindServiceIntentions, Name: b.service}, config.Key{Kind: config.KindServiceIntentions, Name: config.Wildcard})

	otherwise := decision{}
	callers := map[string]decision{}
	sources := map[string]bool{}
	// From low to high precedence; what comes later wins.
	for _, e := range []*config.ServiceIntentions{all, own} {
		if e == nil {
			continue
		}
		for _, s := range e.Sources {
			sources[s.Name] = true
			if s.Name == config.Wildcard {
				otherwise = decision{s, e}
				clear(callers)
			}
		}
		for _, s := range e.Sources {
			if s.Name != config.Wildcard {
				callers[s.Name] = decision{s, e}
			}
		}
	}
	tokens := map[*config.ServiceIntentions][]Requirement{}
	for _, e := range []*config.ServiceIntentions{all, own} {
		if e != nil && e.JWT != nil {
			// When no provider is left, the one requirement is empty: nothing meets it.
			tokens[e] = []Requirement{b.requirement(config.KeyOf(e).String(), e.JWT)}
		}
	}
	var unjudged []string
	verdict := func(d decision) Verdict {
		v := b.verdict(d)
		if own != nil {
			v.Requires = tokens[own]
		}
		if all != nil && (d.entry != own || own == nil) {
			v.Requires = append(slices.Clip(v.Requires), tokens[all]...)
		}
		v, byProtocol := v.settle(protocol)
		if byProtocol {
			unjudged = append(unjudged, v.Because)
		}
		return v
	}

	out := Intentions{Otherwise: verdict(otherwise)}
	for source, d := range callers {
		id := identity.SPIFFE{TrustDomain: b.in.TrustDomain, Datacenter: b.in.Datacenter, Service: source}
		out.Callers = append(out.Callers, Caller{URI: id.URI(), Verdict: verdict(d)})
	}
	slices.SortFunc(out.Callers, func(x, y Caller) int { return cmp.Compare(x.URI, y.URI) })
	if config.IsHTTP(protocol) {
		out.Providers = b.usedProviders()
	}
	if len(unjudged) > 0 {
		b.problem("service-intentions/"+b.service, "%s%s: permissions and tokens are for requests, which protocol %s does not have: denied",
			slices.Min(unjudged), flag(len(unjudged) > 1, fmt.Sprintf(" and %d more", len(unjudged)-1)), protocol)
	}
	b.watch(&out, sources, b.audit())
	return out
}

// decision is the intention that decides about a caller; none: the default policy.
type decision struct {
	intention *config.SourceIntention
	entry     *config.ServiceIntentions
}

// verdict is what an intention itself says.
func (b *builder) verdict(d decision) Verdict {
	if d.intention == nil {
		return Verdict{Allow: b.in.DefaultAllow, Because: "default policy"}
	}
	s := d.intention
	v := Verdict{Allow: s.Action == config.Allow && len(s.Permissions) == 0, Because: s.Name + " -> " + d.entry.Name, source: s.Name}
	for i, p := range s.Permissions {
		subject := fmt.Sprintf("%s source %q permission %d", config.KeyOf(d.entry), s.Name, i+1)
		if made, ok := b.permission(subject, p); ok {
			made.Number = i + 1
			v.Permissions = append(v.Permissions, made)
		}
	}
	return v
}

// settle makes a verdict that nothing can meet a plain deny.
func (v Verdict) settle(protocol string) (settled Verdict, byProtocol bool) {
	deny := Verdict{Because: v.Because, source: v.source}
	if !v.Allow && len(v.Permissions) == 0 {
		return deny, false
	}
	if slices.ContainsFunc(v.Requires, func(r Requirement) bool { return len(r) == 0 }) {
		return deny, false // requirement has said why
	}
	if v.Conditional() && !config.IsHTTP(protocol) {
		return deny, true
	}
	return v, false
}

// Admission repeats Intentions for a point in time at which rules cannot be looked
// up: after a caller's handshake and before the app is connected to. Envoy's own
// rules for connections run on the caller's first byte, when a server that speaks
// first has been connected to and has spoken.
type Admission struct {
	Address    netip.AddrPort // of the app
	Exceptions []string       // URIs to which Otherwise does not apply, sorted
	Otherwise  bool           // whether others are let through
}

// maxAdmission is how many bytes of exceptions fit into the one expression that
// Envoy evaluates; it takes 100,000 in all.
const maxAdmission = 90_000

func (b *builder) admission(in *Inbound) *Admission {
	addr, err := netip.ParseAddr(in.App.Address)
	if config.IsHTTP(in.Protocol) || in.App.SocketPath != "" || err != nil || in.App.Port < 1 || in.App.Port > 65535 {
		return nil
	}
	enforced := in.Intentions.Enforced()
	out := &Admission{Address: netip.AddrPortFrom(addr, uint16(in.App.Port)), Otherwise: enforced.Otherwise.Allow}
	size := 0
	for _, c := range enforced.Callers {
		if c.Allow != out.Otherwise {
			out.Exceptions = append(out.Exceptions, c.URI)
			size += len(c.URI) + len(`"",`)
		}
	}
	if size > maxAdmission {
		b.problem("service-intentions/"+b.service, "%d callers are more than can be refused before the app is connected to: denied ones are refused at their first byte", len(out.Exceptions))
		out.Exceptions, out.Otherwise = nil, true
	}
	return out
}
