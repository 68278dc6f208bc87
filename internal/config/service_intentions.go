package config

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

// SourceIntention decides for one source. Precedence is Consul's: exact source
// before "*", exact destination before "*".
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
