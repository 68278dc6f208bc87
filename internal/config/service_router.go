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

// Normalize implements [Entry]. What matches everything and what changes nothing
// end up nil.
func (e *ServiceRouter) Normalize() {
	e.Kind = KindServiceRouter
	for i := range e.Routes {
		route := &e.Routes[i]
		if m := route.Match; m != nil {
			if m.HTTP != nil {
				upperAll(m.HTTP.Methods)
			}
			if m.HTTP.empty() {
				route.Match = nil
			}
		}
		if d := route.Destination; d != nil {
			d.RequestHeaders = d.RequestHeaders.normalize()
			d.ResponseHeaders = d.ResponseHeaders.normalize()
			if d.empty() {
				route.Destination = nil
			}
		}
	}
}

func (m *HTTPMatch) empty() bool {
	return m == nil || m.PathExact+m.PathPrefix+m.PathRegex == "" && !m.CaseInsensitive && len(m.Header)+len(m.QueryParam)+len(m.Methods) == 0
}

func (d *RouteDestination) empty() bool {
	return d.Service+d.ServiceSubset+d.PrefixRewrite == "" && d.RequestTimeout == 0 && d.IdleTimeout == 0 && d.NumRetries == 0 &&
		!d.RetryOnConnectFailure && len(d.RetryOnStatusCodes)+len(d.RetryOn) == 0 && d.RequestHeaders == nil && d.ResponseHeaders == nil
}

// Validate implements [Entry].
func (e *ServiceRouter) Validate() error { return validate(e) }

func (e *ServiceRouter) check(r *report) {
	r.name("Name", e.Name)
	r.meta("Meta", e.Meta)
	if r.most("Routes", "routes", len(e.Routes), maxRoutes) {
		return
	}
	for i, route := range e.Routes {
		path := index("Routes", i)
		var http *HTTPMatch
		if route.Match != nil {
			http = route.Match.HTTP
		}
		http.check(r, path+".Match.HTTP")
		if d := route.Destination; d != nil {
			d.check(r, path+".Destination")
			if d.PrefixRewrite != "" && (http == nil || http.PathExact+http.PathPrefix == "") {
				r.addf(path+".Destination.PrefixRewrite", "needs a PathExact or PathPrefix to rewrite")
			}
		}
	}
}

func (m *HTTPMatch) check(r *report, path string) {
	if m == nil {
		return
	}
	r.httpPath(path, m.PathExact, m.PathPrefix, m.PathRegex)
	if m.CaseInsensitive && m.PathExact+m.PathPrefix == "" {
		r.addf(path+".CaseInsensitive", "has an effect on PathExact and PathPrefix only; a PathRegex may begin with (?i)")
	}
	r.httpMethods(path+".Methods", m.Methods)
	if !r.most(path+".Header", "headers", len(m.Header), maxConditions) {
		for i, h := range m.Header {
			at := index(path+".Header", i)
			r.headerName(at+".Name", h.Name)
			r.oneCondition(at, h.Present, given{"Exact", h.Exact}, given{"Prefix", h.Prefix}, given{"Suffix", h.Suffix}, given{"Regex", h.Regex})
		}
	}
	if !r.most(path+".QueryParam", "parameters", len(m.QueryParam), maxConditions) {
		for i, q := range m.QueryParam {
			at := index(path+".QueryParam", i)
			r.parameter(at+".Name", q.Name)
			r.oneCondition(at, q.Present, given{"Exact", q.Exact}, given{"Regex", q.Regex})
		}
	}
}

// parameter checks the name of a query's parameter.
func (r *report) parameter(path, name string) {
	if name == "" {
		r.addf(path, "missing")
	}
	r.text(path, name)
}

// retryConditions are Envoy's that Consul takes.
func retryConditions() []string {
	return []string{
		"5xx", "gateway-error", "reset", "connect-failure", "envoy-ratelimited", "retriable-4xx", "refused-stream",
		"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
	}
}

func (d *RouteDestination) check(r *report, path string) {
	r.serviceName(path+".Service", d.Service)
	r.subset(path+".ServiceSubset", d.ServiceSubset)
	r.urlPath(path+".PrefixRewrite", d.PrefixRewrite)
	r.notNegative(path+".RequestTimeout", d.RequestTimeout)
	r.notNegative(path+".IdleTimeout", d.IdleTimeout)
	if d.NumRetries > maxRetries {
		r.addf(path+".NumRetries", "%d: want at most %d", d.NumRetries, maxRetries)
	}
	if !r.most(path+".RetryOnStatusCodes", "status codes", len(d.RetryOnStatusCodes), maxStatusCodes) {
		for i, code := range d.RetryOnStatusCodes {
			if code < 100 || code > 599 {
				r.addf(index(path+".RetryOnStatusCodes", i), "%d: want a status, 100 to 599", code)
			}
		}
	}
	if !r.most(path+".RetryOn", "conditions", len(d.RetryOn), 2*len(retryConditions())) {
		for i, condition := range d.RetryOn {
			r.oneOf(index(path+".RetryOn", i), condition, retryConditions()...)
		}
	}
	d.RequestHeaders.check(r, path+".RequestHeaders")
	d.ResponseHeaders.check(r, path+".ResponseHeaders")
}
