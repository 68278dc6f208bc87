package proxy

import (
	"cmp"
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
}

// Caller is one source with its verdict.
type Caller struct {
	URI string
	Verdict
}

// Verdict is allow or deny, and what decided it.
type Verdict struct {
	Allow bool
	// Because names the deciding intention "source -> destination", or "default policy".
	Because string
}

// intentions merges the entry of the service and the entry of "*" by Consul's
// precedence: an exact destination before "*", then an exact source before "*".
// A "*" source of the service's own entry therefore beats every source of the
// entry of "*".
func (b *builder) intentions() Intentions {
	own := config.Key{Kind: config.KindServiceIntentions, Name: b.service}
	all := config.Key{Kind: config.KindServiceIntentions, Name: config.Wildcard}
	b.read(own, all)

	out := Intentions{Otherwise: Verdict{Allow: b.in.DefaultAllow, Because: "default policy"}}
	callers := map[string]Verdict{}
	// From low to high precedence; what comes later wins.
	for _, key := range []config.Key{all, own} {
		e := b.in.Config.Intentions(key.Name)
		if e == nil {
			continue
		}
		for _, s := range e.Sources {
			if s.Name == config.Wildcard {
				out.Otherwise = verdict(s, key.Name)
				clear(callers)
			}
		}
		for _, s := range e.Sources {
			if s.Name != config.Wildcard {
				callers[s.Name] = verdict(s, key.Name)
			}
		}
	}
	for source, v := range callers {
		id := identity.SPIFFE{TrustDomain: b.in.TrustDomain, Datacenter: b.in.Datacenter, Service: source}
		out.Callers = append(out.Callers, Caller{URI: id.URI(), Verdict: v})
	}
	slices.SortFunc(out.Callers, func(x, y Caller) int { return cmp.Compare(x.URI, y.URI) })
	return out
}

func verdict(s *config.SourceIntention, destination string) Verdict {
	return Verdict{Allow: s.Action == config.Allow, Because: s.Name + " -> " + destination}
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
	out := &Admission{Address: netip.AddrPortFrom(addr, uint16(in.App.Port)), Otherwise: in.Intentions.Otherwise.Allow}
	size := 0
	for _, c := range in.Intentions.Callers {
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
