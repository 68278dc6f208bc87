package config

// TrafficPolicy is a kind of our own: what Consul's kinds have no fields for. It is
// about the callee, as a service-splitter is.
type TrafficPolicy struct {
	Kind Kind   `json:"Kind"`
	Name string `json:"Name"` // the service, or "*" for all that have none of their own
	// Sticky keeps a caller on its leg of the service's split while weights move.
	Sticky *Sticky `json:"Sticky,omitempty"`
	// Crossing is whether a request that failed before the callee can have seen it
	// may be tried on another leg, or another failover target. Nil: it may.
	Crossing *bool `json:"Crossing,omitempty"`
	// Audit lists intentions that are judged and counted, and not enforced.
	Audit *Audit            `json:"Audit,omitempty"`
	Meta  map[string]string `json:"Meta,omitempty"`
}

// Sticky says by what a caller is known again. Exactly one is set.
type Sticky struct {
	Header string        `json:"Header,omitempty"` // name of a header that every request has
	Cookie *StickyCookie `json:"Cookie,omitempty"`
	Source bool          `json:"Source,omitempty"` // the calling instance; for tcp the only one
}

// StickyCookie is made when a request has none.
type StickyCookie struct {
	Name string   `json:"Name"`
	TTL  Duration `json:"TTL,omitempty"` // 0: until the browser closes
	Path string   `json:"Path,omitempty"`
}

// Audit names what is only watched.
type Audit struct {
	// Sources are the sources of the service's intentions, "*" for that of all
	// others. Empty and Default unset: none.
	Sources []string `json:"Sources,omitempty"`
	// Default is for callers that no intention mentions.
	Default bool `json:"Default,omitempty"`
}

// EntryKind implements [Entry].
func (e *TrafficPolicy) EntryKind() Kind { return KindTrafficPolicy }

// EntryName implements [Entry].
func (e *TrafficPolicy) EntryName() string { return e.Name }

// Normalize implements [Entry].
func (e *TrafficPolicy) Normalize() {
	e.Kind = KindTrafficPolicy
	if a := e.Audit; a != nil && len(a.Sources) == 0 && !a.Default {
		e.Audit = nil
	}
}

// Validate implements [Entry].
func (e *TrafficPolicy) Validate() error { return validate(e) }

func (e *TrafficPolicy) check(r *report) {
	if e.Name != Wildcard {
		r.name("Name", e.Name)
	}
	r.meta("Meta", e.Meta)
	e.Sticky.check(r, "Sticky")
	if e.Audit == nil || r.most("Audit.Sources", "sources", len(e.Audit.Sources), maxAudited) {
		return
	}
	seen := map[string]bool{}
	for i, name := range e.Audit.Sources {
		at := index("Audit.Sources", i)
		if name != Wildcard {
			r.name(at, name)
		}
		if seen[name] {
			r.addf(at, "%q is given more than once", cut(name))
		}
		seen[name] = true
	}
}

func (s *Sticky) check(r *report, path string) {
	if s == nil {
		return
	}
	if count(s.Header != "", s.Cookie != nil, s.Source) != 1 {
		r.addf(path, "exactly one of Header, Cookie and Source must be set")
	}
	if s.Header != "" {
		r.headerName(path+".Header", s.Header)
	}
	if c := s.Cookie; c != nil {
		r.token(path+".Cookie.Name", c.Name)
		r.cookie(path+".Cookie", c.TTL, c.Path)
	}
}
