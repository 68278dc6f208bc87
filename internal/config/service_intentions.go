package config

import (
	"cmp"
	"slices"
)

// Action is what an intention does with a connection.
type Action string

// The actions.
const (
	Allow Action = "allow"
	Deny  Action = "deny"
)

// Wildcard stands for every service in an intention's source or an entry's name.
const Wildcard = "*"

// ServiceIntentions is Consul's service-intentions entry: who may call Name.
type ServiceIntentions struct {
	Kind    Kind               `json:"Kind"`
	Name    string             `json:"Name"` // the callee, or "*"
	Sources []*SourceIntention `json:"Sources,omitempty"`
	Meta    map[string]string  `json:"Meta,omitempty"`
}

// SourceIntention decides for one source. The intention of the highest Precedence
// that matches decides: exact destination before "*", then exact source before "*".
type SourceIntention struct {
	Name        string `json:"Name"` // the caller, or "*"
	Action      Action `json:"Action,omitempty"`
	Precedence  int    `json:"Precedence,omitempty"` // computed
	Type        string `json:"Type,omitempty"`       // "consul"
	Description string `json:"Description,omitempty"`
}

// EntryKind implements [Entry].
func (e *ServiceIntentions) EntryKind() Kind { return KindServiceIntentions }

// EntryName implements [Entry].
func (e *ServiceIntentions) EntryName() string { return e.Name }

// Normalize implements [Entry]. Sources end up by falling precedence, otherwise in
// the order written.
func (e *ServiceIntentions) Normalize() {
	e.Kind = KindServiceIntentions
	for _, s := range e.Sources {
		if s.Type == "" {
			s.Type = intentionType
		}
		s.Precedence = precedence(s.Name, e.Name)
	}
	slices.SortStableFunc(e.Sources, func(a, b *SourceIntention) int { return cmp.Compare(b.Precedence, a.Precedence) })
}

const intentionType = "consul"

// precedence is Consul's for services of one namespace.
func precedence(source, destination string) int {
	switch {
	case source != Wildcard && destination != Wildcard:
		return 9
	case destination != Wildcard:
		return 8
	case source != Wildcard:
		return 6
	default:
		return 5
	}
}

// Validate implements [Entry].
func (e *ServiceIntentions) Validate() error { return validate(e) }

func (e *ServiceIntentions) check(r *report) {
	if e.Name != Wildcard {
		r.name("Name", e.Name)
	}
	r.meta("Meta", e.Meta)
	switch {
	case len(e.Sources) == 0:
		r.addf("Sources", "at least one source is needed; delete the entry to have none")
	case len(e.Sources) > maxSources:
		r.addf("Sources", "%d sources are more than the limit of %d", len(e.Sources), maxSources)
		return
	}
	seen := make(map[string]bool, len(e.Sources))
	for i, s := range e.Sources {
		path := index("Sources", i)
		if s.Name != Wildcard {
			r.name(path+".Name", s.Name)
		}
		if seen[s.Name] {
			r.addf(path+".Name", "%q is given more than once", cut(s.Name))
		}
		seen[s.Name] = true
		if s.Action == "" {
			r.addf(path+".Action", "missing: want allow or deny")
		} else {
			r.oneOf(path+".Action", string(s.Action), string(Allow), string(Deny))
		}
		r.oneOf(path+".Type", s.Type, "", intentionType)
		if len(s.Description) > maxDescription {
			r.addf(path+".Description", "longer than %d characters", maxDescription)
		}
	}
}
