package config

// ServiceRouter is Consul's service-router entry: what becomes of a request by its
// path, headers, query and method. See Consul's "Service router configuration
// entry reference".
type ServiceRouter struct {
	Kind Kind   `json:"Kind"`
	Name string `json:"Name"`
	// Routes are tried in order; behind the last stands one that matches everything
	// and leads to the service itself.
	Routes []ServiceRoute    `json:"Routes,omitempty"`
	Meta   map[string]string `json:"Meta,omitempty"`
}

// ServiceRoute is one rule of a router. Without a Match it matches everything,
// without a Destination it leads to the router's own service.
type ServiceRoute struct {
	Match       *RouteMatch       `json:"Match,omitempty"`
	Destination *RouteDestination `json:"Destination,omitempty"`
}

// RouteMatch is what a request must be like. Consul's ServiceRouteMatch.
type RouteMatch struct {
	HTTP *HTTPMatch `json:"HTTP,omitempty"`
}

// HTTPMatch holds conditions that must all be met; of the paths at most one is set.
type HTTPMatch struct {
	PathExact       string        `json:"PathExact,omitempty"`
	PathPrefix      string        `json:"PathPrefix,omitempty"`
	PathRegex       string        `json:"PathRegex,omitempty"` // RE2, of the whole path
	CaseInsensitive bool          `json:"CaseInsensitive,omitempty"`
	Header          []HeaderMatch `json:"Header,omitempty"`
	QueryParam      []QueryMatch  `json:"QueryParam,omitempty"`
	Methods         []string      `json:"Methods,omitempty"` // any of them
}

// HeaderMatch is a condition on one header; exactly one of Present to Regex is set.
type HeaderMatch struct {
	Name    string `json:"Name"`
	Present bool   `json:"Present,omitempty"`
	Exact   string `json:"Exact,omitempty"`
	Prefix  string `json:"Prefix,omitempty"`
	Suffix  string `json:"Suffix,omitempty"`
	Regex   string `json:"Regex,omitempty"`
	Invert  bool   `json:"Invert,omitempty"`
}

// QueryMatch is a condition on one parameter of the query; exactly one of Present
// to Regex is set.
type QueryMatch struct {
	Name    string `json:"Name"`
	Present bool   `json:"Present,omitempty"`
	Exact   string `json:"Exact,omitempty"`
	Regex   string `json:"Regex,omitempty"`
}

// RouteDestination is where a matched request goes, and how. Consul's
// ServiceRouteDestination.
type RouteDestination struct {
	Service               string           `json:"Service,omitempty"`       // empty: the router's own
	ServiceSubset         string           `json:"ServiceSubset,omitempty"` // empty: as the resolver says
	PrefixRewrite         string           `json:"PrefixRewrite,omitempty"` // of what PathExact or PathPrefix matched
	RequestTimeout        Duration         `json:"RequestTimeout,omitempty"`
	IdleTimeout           Duration         `json:"IdleTimeout,omitempty"`
	NumRetries            uint32           `json:"NumRetries,omitempty"` // 0: 1, when any retry is asked for
	RetryOnConnectFailure bool             `json:"RetryOnConnectFailure,omitempty"`
	RetryOnStatusCodes    []uint32         `json:"RetryOnStatusCodes,omitempty"`
	RetryOn               []string         `json:"RetryOn,omitempty"` // Envoy's x-envoy-retry-on and -grpc-on conditions
	RequestHeaders        *HeaderModifiers `json:"RequestHeaders,omitempty"`
	ResponseHeaders       *HeaderModifiers `json:"ResponseHeaders,omitempty"`
}

// HeaderModifiers change headers: first Remove, then Set, then Add. Consul's
// HTTPHeaderModifiers. Values may hold Envoy's %…% operators.
type HeaderModifiers struct {
	Add    map[string]string `json:"Add,omitempty"`
	Set    map[string]string `json:"Set,omitempty"`
	Remove []string          `json:"Remove,omitempty"`
}

// EntryKind implements [Entry].
func (e *ServiceRouter) EntryKind() Kind { return KindServiceRouter }

// EntryName implements [Entry].
func (e *ServiceRouter) EntryName() string { return e.Name }

// Normalize implements [Entry].
func (e *ServiceRouter) Normalize() { e.Kind = KindServiceRouter }

// Validate implements [Entry].
func (e *ServiceRouter) Validate() error { return validate(e) }

func (e *ServiceRouter) check(r *report) {
	r.name("Name", e.Name)
	r.meta("Meta", e.Meta)
}
