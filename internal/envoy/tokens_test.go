package envoy_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// issuer makes tokens of one jwt-provider.
type issuer struct {
	t    *testing.T
	name string
	key  *ecdsa.PrivateKey
}

func newIssuer(t *testing.T, name string) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{t: t, name: name, key: key}
}

// provider is the entry. edit may be nil.
func (i *issuer) provider(edit func(*config.JWTProvider)) config.Entry {
	i.t.Helper()
	public, err := i.key.PublicKey.Bytes()
	if err != nil {
		i.t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	keys := fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"1","x":%q,"y":%q}]}`, b64(public[1:33]), b64(public[33:]))
	e := &config.JWTProvider{Name: i.name, Issuer: "https://" + i.name, JSONWebKeySet: &config.JSONWebKeySet{Local: &config.LocalJWKS{JWKS: base64.StdEncoding.EncodeToString([]byte(keys))}}}
	if edit != nil {
		edit(e)
	}
	e.Normalize()
	if err := e.Validate(); err != nil {
		i.t.Fatal(err)
	}
	return e
}

// token is one that is valid for an hour, unless the claims say otherwise.
func (i *issuer) token(claims map[string]any) string {
	i.t.Helper()
	all := map[string]any{"iss": "https://" + i.name, "sub": "someone", "exp": time.Now().Add(time.Hour).Unix()}
	maps.Copy(all, claims)
	body, err := json.Marshal(all)
	if err != nil {
		i.t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	signed := b64([]byte(`{"alg":"ES256","kid":"1","typ":"JWT"}`)) + "." + b64(body)
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, i.key, sum[:])
	if err != nil {
		i.t.Fatal(err)
	}
	signature := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	return signed + "." + b64(signature)
}

func bearer(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }

func needs(provider string, claims ...*config.JWTClaim) *config.JWTRequirement {
	return &config.JWTRequirement{Providers: []*config.JWTProviderRequirement{{Name: provider, VerifyClaims: claims}}}
}

func claim(value string, path ...string) *config.JWTClaim {
	return &config.JWTClaim{Path: path, Value: value}
}

func TestTokens(t *testing.T) {
	l, address := startAPI(t)
	client := l.mesh.client(l.mesh.ca.Client(spiffe("web")))
	okta, other := newIssuer(t, "okta"), newIssuer(t, "auth0")
	expect := func(what string, h http.Header, want int) {
		t.Helper()
		if got := send(t, client, address, "GET", "/", h); got != want {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}
	service := func(jwt *config.JWTRequirement, sources ...*config.SourceIntention) config.Entry {
		return &config.ServiceIntentions{Kind: config.KindServiceIntentions, Name: "api", JWT: jwt, Sources: sources}
	}
	web := &config.SourceIntention{Name: "web", Action: config.Allow}
	expect("nothing asked for", nil, 200)

	l.write(okta.provider(nil), service(needs("okta"), web))
	expect("no token", nil, 403)
	expect("a token", bearer(okta.token(nil)), 200)
	expect("another issuer's key", bearer(other.token(map[string]any{"iss": "https://okta"})), 403)
	expect("another issuer's name", bearer(okta.token(map[string]any{"iss": "https://auth0"})), 403)
	expect("an old token", bearer(okta.token(map[string]any{"exp": time.Now().Add(-31 * time.Second).Unix()})), 403)
	expect("a token within the skew", bearer(okta.token(map[string]any{"exp": time.Now().Add(-5 * time.Second).Unix()})), 200)
	expect("a token of tomorrow", bearer(okta.token(map[string]any{"nbf": time.Now().Add(time.Hour).Unix()})), 403)
	header, rest, _ := strings.Cut(okta.token(nil), ".")
	payload, _, _ := strings.Cut(rest, ".")
	expect("no signature", bearer(header+"."+payload+"."), 403)
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`))
	expect("no algorithm", bearer(none+"."+payload+"."), 403)
	expect("another payload", bearer(header+"."+base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"https://okta"}`))+"."+strings.Split(rest, ".")[1]), 403)
	expect("not a token", bearer("x"), 403)
	expect("the token in the query", nil, 403)
	if got := send(t, client, address, "GET", "/?access_token="+okta.token(nil), nil); got != 200 {
		t.Errorf("the token in the query: %d", got)
	}
	if status, _, _ := l.mesh.call(spiffe("batch"), address); status != 403 {
		t.Errorf("whom only the default policy allows, without a token: %d", status)
	}

	l.write(service(needs("okta", claim("admin", "perms", "role")), web))
	for what, c := range map[string]any{"no claim": nil, "another value": map[string]any{"role": "user"}, "not a text": map[string]any{"role": 1}, "in a list of others": map[string]any{"role": []string{"user"}}, "one level too high": "admin"} {
		expect(what, bearer(okta.token(map[string]any{"perms": c, "role": "admin", "perms.role": "admin"})), 403)
	}
	expect("the claim", bearer(okta.token(map[string]any{"perms": map[string]any{"role": "admin"}})), 200)
	expect("the claim in a list", bearer(okta.token(map[string]any{"perms": map[string]any{"role": []string{"user", "admin"}}})), 200)

	// Two providers: each token counts, also when both are there.
	inHeader := other.provider(func(e *config.JWTProvider) {
		e.Locations = []*config.JWTLocation{{Header: &config.JWTHeader{Name: "x-token", Forward: true}}, {QueryParam: &config.JWTQueryParam{Name: "t"}}, {Cookie: &config.JWTCookie{Name: "t"}}}
		e.Audiences = []string{"api", "all"}
		e.Forwarding = &config.JWTForwarding{HeaderName: "x-payload"}
		e.CacheConfig = &config.JWTCache{Size: 10}
	})
	l.write(inHeader, service(needs("okta"), &config.SourceIntention{Name: "web", Permissions: []*config.Permission{
		{Action: config.Deny, HTTP: &config.HTTPPermission{PathPrefix: "/"}, JWT: needs("auth0", claim("yes", "blocked"))},
		{Action: config.Allow, HTTP: &config.HTTPPermission{Methods: []string{"GET"}}},
		{Action: config.Allow, HTTP: &config.HTTPPermission{PathPrefix: "/"}, JWT: needs("auth0")},
	}}))
	theirs := other.token(map[string]any{"aud": "api"})
	both := bearer(okta.token(nil))
	both.Set("X-Token", theirs)
	expect("none of two", nil, 403)
	expect("the service's", bearer(okta.token(nil)), 200)
	expect("the permission's alone", http.Header{"X-Token": {theirs}}, 403)
	expect("both", both, 200)
	post := func(h http.Header) int { return send(t, client, address, "POST", "/", h) }
	if got := post(bearer(okta.token(nil))); got != 403 {
		t.Errorf("without the permission's token: %d", got)
	}
	if got := post(both); got != 200 {
		t.Errorf("with both tokens: %d", got)
	}
	cookie := bearer(okta.token(nil))
	cookie.Set("Cookie", "a=b; t="+theirs)
	if got := post(cookie); got != 200 {
		t.Errorf("the second in a cookie: %d", got)
	}
	blocked := bearer(okta.token(nil))
	blocked.Set("X-Token", other.token(map[string]any{"aud": []string{"all"}, "blocked": "yes"}))
	expect("a token that shuts out", blocked, 403)
	wrong := bearer(okta.token(nil))
	wrong.Set("X-Token", other.token(map[string]any{"aud": "else"}))
	if got := post(wrong); got != 403 {
		t.Errorf("for another audience: %d", got)
	}

	// What the app gets: not the token, unless told so; the payload as verified.
	req, _ := http.NewRequestWithContext(t.Context(), "GET", "https://"+address, nil)
	req.Header = both.Clone()
	req.Header.Set("X-Payload", "forged")
	_, _, body := do(t, client, req)
	if strings.Contains(body, "Authorization") || !strings.Contains(body, "X-Token: "+theirs) || strings.Contains(body, "forged") || !strings.Contains(body, "X-Payload: "+strings.Split(theirs, ".")[1]) {
		t.Errorf("the app got %s", body)
	}

	// New keys, and an end of it.
	renewed := newIssuer(t, "okta")
	l.write(renewed.provider(nil))
	expect("an old key", bearer(okta.token(nil)), 403)
	expect("the new key", bearer(renewed.token(nil)), 200)
	l.write(service(nil, web))
	expect("nothing asked for any more", nil, 200)
	l.untouched()
}
