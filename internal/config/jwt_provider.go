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
func (e *JWTProvider) Normalize() { e.Kind = KindJWTProvider }

// Validate implements [Entry].
func (e *JWTProvider) Validate() error { return validate(e) }

func (e *JWTProvider) check(r *report) {
	r.name("Name", e.Name)
	r.meta("Meta", e.Meta)
}
