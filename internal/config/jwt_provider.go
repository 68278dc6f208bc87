package config

// JWTProvider is Consul's jwt-provider entry: who issues tokens, and where a request
// carries them. See Consul's "JWT provider configuration entry reference".
type JWTProvider struct {
	Kind             Kind              `json:"Kind"`
	Name             string            `json:"Name"`
	JSONWebKeySet    *JSONWebKeySet    `json:"JSONWebKeySet,omitempty"`
	Issuer           string            `json:"Issuer,omitempty"`
	Audiences        []string          `json:"Audiences,omitempty"`
	Locations        []*JWTLocation    `json:"Locations,omitempty"`
	Forwarding       *JWTForwarding    `json:"Forwarding,omitempty"`
	ClockSkewSeconds int               `json:"ClockSkewSeconds,omitempty"` // 0: 30
	CacheConfig      *JWTCache         `json:"CacheConfig,omitempty"`
	Meta             map[string]string `json:"Meta,omitempty"`
}

// JSONWebKeySet is the issuer's keys. Only keys in the entry itself are served: a
// file would have to be on every host, and a remote set needs a way out of the mesh.
type JSONWebKeySet struct {
	Local *LocalJWKS `json:"Local,omitempty"`
}

// LocalJWKS is a key set in the entry.
type LocalJWKS struct {
	JWKS string `json:"JWKS,omitempty"` // base64 of the JSON
}

// JWTLocation is one place of a request where the token may be. Exactly one is set.
type JWTLocation struct {
	Header     *JWTHeader     `json:"Header,omitempty"`
	QueryParam *JWTQueryParam `json:"QueryParam,omitempty"`
	Cookie     *JWTCookie     `json:"Cookie,omitempty"`
}

// JWTHeader is a header that holds the token after ValuePrefix.
type JWTHeader struct {
	Name        string `json:"Name,omitempty"`
	ValuePrefix string `json:"ValuePrefix,omitempty"`
	Forward     bool   `json:"Forward,omitempty"` // the app gets it too
}

// JWTQueryParam is a parameter of the query.
type JWTQueryParam struct {
	Name string `json:"Name,omitempty"`
}

// JWTCookie is a cookie.
type JWTCookie struct {
	Name string `json:"Name,omitempty"`
}

// JWTForwarding gives the app the token's payload in a header.
type JWTForwarding struct {
	HeaderName              string `json:"HeaderName,omitempty"`
	PadForwardPayloadHeader bool   `json:"PadForwardPayloadHeader,omitempty"`
}

// JWTCache is how many verified tokens are remembered.
type JWTCache struct {
	Size int `json:"Size,omitempty"`
}

// EntryKind implements [Entry].
func (e *JWTProvider) EntryKind() Kind { return KindJWTProvider }

// EntryName implements [Entry].
func (e *JWTProvider) EntryName() string { return e.Name }

// Normalize implements [Entry].
func (e *JWTProvider) Normalize() {
	e.Kind = KindJWTProvider
	if e.ClockSkewSeconds == 0 {
		e.ClockSkewSeconds = defaultClockSkew
	}
	e.CacheConfig = orNil(e.CacheConfig)
}

const defaultClockSkew = 30

// Validate implements [Entry].
func (e *JWTProvider) Validate() error { return validate(e) }

func (e *JWTProvider) check(r *report) {
	r.name("Name", e.Name)
	r.meta("Meta", e.Meta)
	switch k := e.JSONWebKeySet; {
	case k == nil:
		r.addf("JSONWebKeySet", "missing: want Local { JWKS }, the key set in base64")
	case k.Local == nil || k.Local.JWKS == "":
		r.addf("JSONWebKeySet.Local.JWKS", "missing: want the key set in base64")
	default:
		if err := checkKeySet(k.Local.JWKS); err != nil {
			r.addf("JSONWebKeySet.Local.JWKS", "%s", err)
		}
	}
	r.text("Issuer", e.Issuer)
	if !r.most("Audiences", "audiences", len(e.Audiences), maxAudiences) {
		for i, a := range e.Audiences {
			if a == "" {
				r.addf(index("Audiences", i), "must not be empty")
			}
			r.text(index("Audiences", i), a)
		}
	}
	if !r.most("Locations", "locations", len(e.Locations), maxLocations) {
		for i, l := range e.Locations {
			l.check(r, index("Locations", i))
		}
	}
	if f := e.Forwarding; f != nil {
		r.modifiable("Forwarding.HeaderName", f.HeaderName)
	}
	if e.ClockSkewSeconds < 0 || e.ClockSkewSeconds > maxClockSkew {
		r.addf("ClockSkewSeconds", "%d: want seconds, 1 to %d", e.ClockSkewSeconds, maxClockSkew)
	}
	if c := e.CacheConfig; c != nil && (c.Size < 0 || c.Size > maxTokenCache) {
		r.addf("CacheConfig.Size", "%d: want 0 to %d", c.Size, maxTokenCache)
	}
}

func (l *JWTLocation) check(r *report, path string) {
	if count(l.Header != nil, l.QueryParam != nil, l.Cookie != nil) != 1 {
		r.addf(path, "exactly one of Header, QueryParam and Cookie must be set")
	}
	if h := l.Header; h != nil {
		r.token(path+".Header.Name", h.Name)
		r.text(path+".Header.ValuePrefix", h.ValuePrefix)
	}
	if q := l.QueryParam; q != nil {
		r.parameter(path+".QueryParam.Name", q.Name)
	}
	if c := l.Cookie; c != nil {
		r.token(path+".Cookie.Name", c.Name)
	}
}
