package config

// ServiceResolver is Consul's service-resolver entry: which instances answer for a
// service. See Consul's "Service resolver configuration entry reference".
type ServiceResolver struct {
	Kind           Kind                        `json:"Kind"`
	Name           string                      `json:"Name"`
	DefaultSubset  string                      `json:"DefaultSubset,omitempty"`
	Subsets        map[string]ResolverSubset   `json:"Subsets,omitempty"`
	Redirect       *ResolverRedirect           `json:"Redirect,omitempty"`
	Failover       map[string]ResolverFailover `json:"Failover,omitempty"` // by subset, or "*" for all
	ConnectTimeout Duration                    `json:"ConnectTimeout,omitempty"`
	RequestTimeout Duration                    `json:"RequestTimeout,omitempty"`
	LoadBalancer   *LoadBalancer               `json:"LoadBalancer,omitempty"`
	Meta           map[string]string           `json:"Meta,omitempty"`
}

// ResolverSubset is a named part of a service's instances.
type ResolverSubset struct {
	Filter      string `json:"Filter,omitempty"` // go-bexpr, on an instance as the health API shows it
	OnlyPassing bool   `json:"OnlyPassing,omitempty"`
}

// ResolverRedirect leads to another service, subset or datacenter in this one's place.
type ResolverRedirect struct {
	Service       string `json:"Service,omitempty"`
	ServiceSubset string `json:"ServiceSubset,omitempty"`
	Datacenter    string `json:"Datacenter,omitempty"`
}

// ResolverFailover is who answers when nobody of a subset can: Targets, or else
// Service and ServiceSubset in this datacenter or in each of Datacenters.
type ResolverFailover struct {
	Service       string           `json:"Service,omitempty"`
	ServiceSubset string           `json:"ServiceSubset,omitempty"`
	Datacenters   []string         `json:"Datacenters,omitempty"`
	Targets       []FailoverTarget `json:"Targets,omitempty"`
}

// FailoverTarget is one target, tried in order.
type FailoverTarget struct {
	Service       string `json:"Service,omitempty"`
	ServiceSubset string `json:"ServiceSubset,omitempty"`
	Datacenter    string `json:"Datacenter,omitempty"`
}

// LoadBalancer is how a caller chooses among instances.
type LoadBalancer struct {
	Policy             string              `json:"Policy,omitempty"` // "", random, round_robin, least_request, ring_hash, maglev
	RingHashConfig     *RingHashConfig     `json:"RingHashConfig,omitempty"`
	LeastRequestConfig *LeastRequestConfig `json:"LeastRequestConfig,omitempty"`
	HashPolicies       []HashPolicy        `json:"HashPolicies,omitempty"`
}

// RingHashConfig bounds the ring. Zero: Envoy's default.
type RingHashConfig struct {
	MinimumRingSize uint32 `json:"MinimumRingSize,omitempty"`
	MaximumRingSize uint32 `json:"MaximumRingSize,omitempty"`
}

// LeastRequestConfig sets among how many instances the least busy is chosen.
type LeastRequestConfig struct {
	ChoiceCount uint32 `json:"ChoiceCount,omitempty"`
}

// HashPolicy is what of a request chooses its instance. Either Field is set, or
// SourceIP.
type HashPolicy struct {
	Field        string        `json:"Field,omitempty"` // header, cookie or query_parameter
	FieldValue   string        `json:"FieldValue,omitempty"`
	CookieConfig *CookieConfig `json:"CookieConfig,omitempty"`
	SourceIP     bool          `json:"SourceIP,omitempty"`
	Terminal     bool          `json:"Terminal,omitempty"` // stop here when it gave a hash
}

// CookieConfig is of a cookie that Envoy makes when there is none.
type CookieConfig struct {
	Session bool     `json:"Session,omitempty"` // without an end; excludes TTL
	TTL     Duration `json:"TTL,omitempty"`
	Path    string   `json:"Path,omitempty"`
}

// EntryKind implements [Entry].
func (e *ServiceResolver) EntryKind() Kind { return KindServiceResolver }

// EntryName implements [Entry].
func (e *ServiceResolver) EntryName() string { return e.Name }

// Normalize implements [Entry].
func (e *ServiceResolver) Normalize() { e.Kind = KindServiceResolver }

// Validate implements [Entry].
func (e *ServiceResolver) Validate() error { return validate(e) }

func (e *ServiceResolver) check(r *report) {
	r.name("Name", e.Name)
	r.meta("Meta", e.Meta)
}
