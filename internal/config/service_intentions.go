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
		for _, p := range s.Permissions {
			if p.HTTP != nil {
				upperAll(p.HTTP.Methods)
			}
		}
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
	rules := 0
	for i, s := range e.Sources {
		path := index("Sources", i)
		if s.Name != Wildcard {
			r.name(path+".Name", s.Name)
		}
		if seen[s.Name] {
			r.addf(path+".Name", "%q is given more than once", cut(s.Name))
		}
		seen[s.Name] = true
		rules += len(s.Permissions)
		switch {
		case len(s.Permissions) == 0:
			r.action(path+".Action", s.Action)
		case s.Action != "":
			r.addf(path+".Action", "cannot be set beside Permissions, which decide in its place")
		case e.Name == Wildcard:
			r.addf(path+".Permissions", `cannot be set for destination "*", whose services need not speak HTTP`)
		}
		if !r.most(path+".Permissions", "permissions", len(s.Permissions), maxPermissions) {
			for j, p := range s.Permissions {
				p.check(r, index(path+".Permissions", j))
			}
		}
		r.oneOf(path+".Type", s.Type, "", intentionType)
		if len(s.Description) > maxDescription {
			r.addf(path+".Description", "longer than %d characters", maxDescription)
		}
	}
	r.most("Sources", "permissions", rules, maxRules)
	e.JWT.check(r, "JWT")
}

func (r *report) action(path string, a Action) {
	if a == "" {
		r.addf(path, "missing: want allow or deny")
		return
	}
	r.oneOf(path, string(a), string(Allow), string(Deny))
}

func (p *Permission) check(r *report, path string) {
	r.action(path+".Action", p.Action)
	p.JWT.check(r, path+".JWT")
	h := p.HTTP
	if h == nil || h.PathExact+h.PathPrefix+h.PathRegex == "" && len(h.Header)+len(h.Methods) == 0 {
		r.addf(path+".HTTP", `needs a condition; PathPrefix "/" is met by every request`)
		return
	}
	path += ".HTTP"
	r.httpPath(path, h.PathExact, h.PathPrefix, h.PathRegex)
	r.httpMethods(path+".Methods", h.Methods)
	if r.most(path+".Header", "headers", len(h.Header), maxConditions) {
		return
	}
	for i, c := range h.Header {
		at := index(path+".Header", i)
		r.headerName(at+".Name", c.Name)
		r.oneCondition(at, c.Present, given{"Exact", c.Exact}, given{"Prefix", c.Prefix}, given{"Suffix", c.Suffix},
			given{"Contains", c.Contains}, given{"Regex", c.Regex})
		if c.IgnoreCase && c.Exact+c.Prefix+c.Suffix+c.Contains == "" {
			r.addf(at+".IgnoreCase", "has an effect on Exact, Prefix, Suffix and Contains only; a Regex may begin with (?i)")
		}
	}
}

func (j *JWTRequirement) check(r *report, path string) {
	if j == nil {
		return
	}
	path += ".Providers"
	if len(j.Providers) == 0 {
		r.addf(path, "at least one provider is needed; leave JWT out to ask for no token")
	}
	if r.most(path, "providers", len(j.Providers), maxProviders) {
		return
	}
	seen := map[string]bool{}
	for i, p := range j.Providers {
		at := index(path, i)
		r.name(at+".Name", p.Name)
		if seen[p.Name] {
			r.addf(at+".Name", "%q is given more than once", cut(p.Name))
		}
		seen[p.Name] = true
		if r.most(at+".VerifyClaims", "claims", len(p.VerifyClaims), maxClaims) {
			continue
		}
		for k, c := range p.VerifyClaims {
			c.check(r, index(at+".VerifyClaims", k))
		}
	}
}

func (c *JWTClaim) check(r *report, path string) {
	if len(c.Path) == 0 {
		r.addf(path+".Path", `missing: want the claim's name, such as ["aud"]`)
	}
	if !r.most(path+".Path", "parts", len(c.Path), maxClaimDepth) {
		for i, part := range c.Path {
			if part == "" {
				r.addf(index(path+".Path", i), "must not be empty")
			}
			r.text(index(path+".Path", i), part)
		}
	}
	if c.Value == "" {
		r.addf(path+".Value", "missing")
	}
	r.text(path+".Value", c.Value)
}
