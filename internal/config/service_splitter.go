package config

// ServiceSplitter is Consul's service-splitter entry: how the requests for a
// service are divided. See Consul's "Service splitter configuration entry
// reference".
type ServiceSplitter struct {
	Kind   Kind              `json:"Kind"`
	Name   string            `json:"Name"`
	Splits []ServiceSplit    `json:"Splits,omitempty"`
	Meta   map[string]string `json:"Meta,omitempty"`
}

// ServiceSplit is one leg. Weights of an entry add up to 100.
type ServiceSplit struct {
	Weight          float64          `json:"Weight"`                  // percent, in steps of 0.01
	Service         string           `json:"Service,omitempty"`       // empty: the splitter's own
	ServiceSubset   string           `json:"ServiceSubset,omitempty"` // empty: as the resolver says
	RequestHeaders  *HeaderModifiers `json:"RequestHeaders,omitempty"`
	ResponseHeaders *HeaderModifiers `json:"ResponseHeaders,omitempty"`
}

// EntryKind implements [Entry].
func (e *ServiceSplitter) EntryKind() Kind { return KindServiceSplitter }

// EntryName implements [Entry].
func (e *ServiceSplitter) EntryName() string { return e.Name }

// Normalize implements [Entry].
func (e *ServiceSplitter) Normalize() { e.Kind = KindServiceSplitter }

// Validate implements [Entry].
func (e *ServiceSplitter) Validate() error { return validate(e) }

func (e *ServiceSplitter) check(r *report) {
	r.name("Name", e.Name)
	r.meta("Meta", e.Meta)
}
