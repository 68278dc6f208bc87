package proxy

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Requirement is met by a request with any of the tokens. An empty one asks for nothing.
type Requirement []Token

// Token is a valid token of a provider, with claims.
type Token struct {
	Provider string // one of [Intentions.Providers]
	Claims   []Claim
}

// Claim is met by a token that has Value at Path, by itself or in a list.
type Claim struct {
	Path  []string
	Value string
}

// Provider says how tokens of one issuer are found and verified.
type Provider struct {
	Name      string
	Issuer    string // "": any
	Audiences []string
	Keys      string // a JSON Web Key Set
	// Where a token may be. All empty: the header "authorization" after "Bearer ", or
	// the parameter "access_token" of the query.
	Headers         []TokenHeader
	Params, Cookies []string
	Forward         bool   // the app gets the token too
	PayloadHeader   string // in which the app gets the payload; "": it does not
	PadPayload      bool
	ClockSkew       int // seconds
	CacheSize       int // verified tokens that are remembered; 0: none
}

// TokenHeader is a header that holds a token after a prefix.
type TokenHeader struct{ Name, Prefix string }

// defaultClockSkew is Consul's, in seconds.
const defaultClockSkew = 30

// requirement resolves providers. One that cannot be used is a problem and left
// out: when none is left, nothing can meet the requirement.
func (b *builder) requirement(subject string, r *config.JWTRequirement) Requirement {
	var out Requirement
	for _, p := range r.Providers {
		if p == nil || !b.provider(subject, p.Name) {
			continue
		}
		t := Token{Provider: p.Name}
		bad := false
		for _, c := range p.VerifyClaims {
			if c == nil || len(c.Path) == 0 || slices.Contains(c.Path, "") {
				bad = true
				continue
			}
			t.Claims = append(t.Claims, Claim{Path: slices.Clone(c.Path), Value: c.Value})
		}
		if bad {
			b.problem(subject, "a claim of provider %q has no path: no token of it is accepted", p.Name)
			continue
		}
		out = append(out, t)
	}
	return out
}

// provider makes one that is asked for known, once.
func (b *builder) provider(subject, name string) bool {
	if known, asked := b.providers[name]; asked {
		if known == nil {
			b.problem(subject, "JWT provider %q cannot be used: no token of it is accepted", name)
		}
		return known != nil
	}
	key := config.Key{Kind: config.KindJWTProvider, Name: name}
	b.read(key)
	var out *Provider
	if e := b.in.Config.JWTProvider(name); e == nil {
		b.problem(subject, "JWT provider %q does not exist: no token of it is accepted", name)
	} else if p, err := readProvider(e); err != nil {
		b.problem(key.String(), "%v: no token of it is accepted", err)
	} else {
		out = &p
	}
	if b.providers == nil {
		b.providers = map[string]*Provider{}
	}
	b.providers[name] = out
	return out != nil
}

// usedProviders are those that could be used, sorted by name.
func (b *builder) usedProviders() []Provider {
	var out []Provider
	for _, p := range b.providers {
		if p != nil {
			out = append(out, *p)
		}
	}
	slices.SortFunc(out, func(x, y Provider) int { return cmp.Compare(x.Name, y.Name) })
	return out
}

func readProvider(e *config.JWTProvider) (Provider, error) {
	out := Provider{Name: e.Name, Issuer: e.Issuer, Audiences: slices.Clone(e.Audiences), ClockSkew: cmp.Or(e.ClockSkewSeconds, defaultClockSkew)}
	if e.JSONWebKeySet == nil || e.JSONWebKeySet.Local == nil {
		return out, fmt.Errorf("JSONWebKeySet: no key set in the entry")
	}
	keys, err := base64.StdEncoding.DecodeString(e.JSONWebKeySet.Local.JWKS)
	if err != nil {
		return out, fmt.Errorf("JSONWebKeySet: %w", err)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(keys, &set); err != nil {
		return out, fmt.Errorf("JSONWebKeySet: %w", err)
	}
	if len(set.Keys) == 0 {
		return out, fmt.Errorf("JSONWebKeySet: it has no keys")
	}
	out.Keys = string(keys)
	if e.ClockSkewSeconds < 0 {
		return out, fmt.Errorf("ClockSkewSeconds %d is negative", e.ClockSkewSeconds)
	}
	for _, l := range e.Locations {
		switch {
		case l == nil:
		case l.Header != nil:
			if !headerName.MatchString(l.Header.Name) {
				return out, fmt.Errorf("location: no header is called %q", l.Header.Name)
			}
			out.Headers = append(out.Headers, TokenHeader{Name: l.Header.Name, Prefix: l.Header.ValuePrefix})
			out.Forward = out.Forward || l.Header.Forward
		case l.QueryParam != nil && l.QueryParam.Name != "":
			out.Params = append(out.Params, l.QueryParam.Name)
		case l.Cookie != nil && l.Cookie.Name != "":
			out.Cookies = append(out.Cookies, l.Cookie.Name)
		}
	}
	if f := e.Forwarding; f != nil && f.HeaderName != "" {
		if !headerName.MatchString(f.HeaderName) {
			return out, fmt.Errorf("forwarding: no header is called %q", f.HeaderName)
		}
		out.PayloadHeader, out.PadPayload = f.HeaderName, f.PadForwardPayloadHeader
	}
	if c := e.CacheConfig; c != nil {
		out.CacheSize = max(0, c.Size)
	}
	return out, nil
}
