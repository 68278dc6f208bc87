package proxy

import (
	"cmp"
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
