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
	// JWT is required of every request that an intention allows.
	JWT  *JWTRequirement   `json:"JWT,omitempty"`
	Meta map[string]string `json:"Meta,omitempty"`
}

// Permission is a rule for requests. Consul's IntentionPermission.
type Permission struct {
	Action Action          `json:"Action"`
	HTTP   *HTTPPermission `json:"HTTP,omitempty"`
	JWT    *JWTRequirement `json:"JWT,omitempty"`
}

// HTTPPermission holds conditions that must all be met; of the paths at most one is set.
type HTTPPermission struct {
	PathExact  string             `json:"PathExact,omitempty"`
	PathPrefix string             `json:"PathPrefix,omitempty"`
	PathRegex  string             `json:"PathRegex,omitempty"`
	Header     []HeaderPermission `json:"Header,omitempty"`
	Methods    []string           `json:"Methods,omitempty"`
}

// HeaderPermission is a condition on one header; exactly one of Present to Regex is set.
type HeaderPermission struct {
	Name       string `json:"Name"`
	Present    bool   `json:"Present,omitempty"`
	Exact      string `json:"Exact,omitempty"`
	Prefix     string `json:"Prefix,omitempty"`
	Suffix     string `json:"Suffix,omitempty"`
	Contains   string `json:"Contains,omitempty"`
	Regex      string `json:"Regex,omitempty"`
	Invert     bool   `json:"Invert,omitempty"`
	IgnoreCase bool   `json:"IgnoreCase,omitempty"`
}

// JWTRequirement asks for a token of any of the providers.
type JWTRequirement struct {
	Providers []*JWTProviderRequirement `json:"Providers,omitempty"`
}

// JWTProviderRequirement asks for a token of one jwt-provider, with claims.
type JWTProviderRequirement struct {
	Name         string      `json:"Name,omitempty"`
	VerifyClaims []*JWTClaim `json:"VerifyClaims,omitempty"` // all of them
}

// JWTClaim is a value that a token must hold, in a list or by itself.
type JWTClaim struct {
	Path  []string `json:"Path,omitempty"`
	Value string   `json:"Value,omitempty"`
}

// SourceIntention decides for one source. The intention of the highest Precedence
// that matches decides: exact destination before "*", then exact source before "*".
type SourceIntention struct {
	Name   string `json:"Name"` // the caller, or "*"
	Action Action `json:"Action,omitempty"`
	// Permissions stand in place of Action: the first that matches a request decides,
	// and one that none matches is denied.
	Permissions []*Permission `json:"Permissions,omitempty"`
	Precedence  int           `json:"Precedence,omitempty"` // computed
	Type        string        `json:"Type,omitempty"`       // "consul"
	Description string        `json:"Description,omitempty"`
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
