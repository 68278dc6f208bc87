package envoy_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/meshtest/effort"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// some is nil about as often as not.
func some[T any](d dice, build func() *T) *T {
	if d.IntN(2) == 0 {
		return nil
	}
	return build()
}

// list has up to n elements.
func list[T any](d dice, n int, build func() T) []T {
	var out []T
	for range d.IntN(n + 1) {
		out = append(out, build())
	}
	return out
}

func (d dice) callers() []string { return []string{"web", "batch", "mobile", "cron"} }

func (d dice) action() config.Action { return one(d, config.Allow, config.Deny) }

// requirement names okta and auth0, and sometimes nobody, who does not exist.
func (d dice) requirement() *config.JWTRequirement {
	out := &config.JWTRequirement{}
	for _, name := range []string{"okta", "auth0", "nobody"} {
		if d.IntN(3) == 0 {
			out.Providers = append(out.Providers, &config.JWTProviderRequirement{Name: name, VerifyClaims: list(d, 2, func() *config.JWTClaim {
				return &config.JWTClaim{Path: one(d, []string{"role"}, []string{"perms", "role"}, []string{"perms"}), Value: one(d, "admin", "user")}
			})})
		}
	}
	if len(out.Providers) == 0 {
		return nil
	}
	return out
}

func (d dice) permission() *config.Permission {
	h := &config.HTTPPermission{}
	switch d.IntN(5) {
	case 0:
		h.PathExact = one(d, "/", "/a", "/admin", "/a/b")
	case 1, 2:
		h.PathPrefix = one(d, "/", "/a", "/admin", "/a/")
	case 3:
		h.PathRegex = one(d, "/a.*", "^/admin$", "/[ab]+", ".*n", "/a(/b)?")
	}
	h.Header = list(d, 2, func() config.HeaderPermission {
		c := config.HeaderPermission{Name: one(d, "x-role", "X-Tier"), Invert: d.IntN(3) == 0}
		value := one(d, "a", "b", "ab", "A", "a,b")
		fold := d.IntN(3) == 0
		switch d.IntN(6) {
		case 0:
			c.Exact, c.IgnoreCase = value, fold
		case 1:
			c.Prefix, c.IgnoreCase = value, fold
		case 2:
			c.Suffix, c.IgnoreCase = value, fold
		case 3:
			c.Contains, c.IgnoreCase = value, fold
		case 4:
			c.Regex = one(d, "a+", "^ab?$", "[a-c]", "a.*b", "(?i)A")
		default:
			c.Present = true
		}
		return c
	})
	h.Methods = one(d, nil, nil, []string{"GET"}, []string{"POST", "DELETE"}, []string{"DELETE"})
	if h.PathExact+h.PathPrefix+h.PathRegex == "" && len(h.Header)+len(h.Methods) == 0 {
		h.PathPrefix = "/"
	}
	p := &config.Permission{Action: d.action(), HTTP: h}
	if d.IntN(4) == 0 {
		p.JWT = d.requirement()
	}
	return p
}

func (d dice) intentions(destination string) *config.ServiceIntentions {
	e := &config.ServiceIntentions{Kind: config.KindServiceIntentions, Name: destination}
	for _, name := range append(d.callers()[:3], config.Wildcard) {
		if d.IntN(2) == 0 {
			continue
		}
		s := &config.SourceIntention{Name: name, Action: d.action()}
		if destination != config.Wildcard && d.IntN(3) > 0 {
			s.Action = ""
			s.Permissions = append(list(d, 3, d.permission), d.permission())
		}
		e.Sources = append(e.Sources, s)
	}
	if len(e.Sources) == 0 {
		e.Sources = []*config.SourceIntention{{Name: "web", Action: d.action()}}
	}
	if d.IntN(4) == 0 {
		e.JWT = d.requirement()
	}
	e.Normalize()
	return e
}

func (d dice) audit(name string) *config.TrafficPolicy {
	return &config.TrafficPolicy{Kind: config.KindTrafficPolicy, Name: name, Audit: some(d, func() *config.Audit {
		return &config.Audit{Default: d.IntN(2) == 0, Sources: list(d, 2, func() string { return one(d, append(d.callers(), config.Wildcard)...) })}
	})}
}

// world is entries that are valid, and the same as a set. Of providers, okta and
// auth0 exist.
func (d dice) world(t *testing.T) (world, []config.Entry) {
	t.Helper()
	w := world{providers: []string{"okta", "auth0"}, defaultAllow: d.IntN(2) == 0, http: d.IntN(8) > 0}
	var entries []config.Entry
	if w.own = some(d, func() *config.ServiceIntentions { return d.intentions("api") }); d.IntN(4) > 0 && w.own == nil {
		w.own = d.intentions("api")
	}
	if w.own != nil {
		entries = append(entries, w.own)
	}
	if w.all = some(d, func() *config.ServiceIntentions { return d.intentions(config.Wildcard) }); w.all != nil {
		entries = append(entries, w.all)
	}
	own, all := some(d, func() *config.TrafficPolicy { return d.audit("api") }), some(d, func() *config.TrafficPolicy { return d.audit(config.Wildcard) })
	if all != nil {
		entries, w.policy = append(entries, all), all
	}
	if own != nil {
		entries, w.policy = append(entries, own), own
	}
	for _, e := range entries {
		if p, ok := e.(*config.TrafficPolicy); ok && p.Audit != nil {
			continue // the same source twice is refused, and harmless here
		}
		if err := e.Validate(); err != nil {
			t.Fatalf("the dice made an entry that is refused: %v", err)
		}
	}
	protocol := &config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "api", Protocol: "http"}
	if !w.http {
		protocol.Protocol = "tcp"
	}
	return w, append(entries, protocol)
}

func (d dice) asked() asked {
	r := asked{
		caller: one(d, d.callers()...),
		method: one(d, "GET", "GET", "POST", "DELETE", "delete"),
		path:   one(d, "/", "/a", "/a/b", "/admin", "/admin?x", "/a?x=/admin", "/b?admin", "/ab"),
		header: map[string][]string{},
		tokens: map[string]any{},
	}
	for _, name := range []string{"x-role", "x-tier"} {
		if values := one(d, nil, nil, []string{"a"}, []string{"b"}, []string{"a", "b"}, []string{"b, a"}, []string{"ab"}, []string{"A"}, []string{"xa", "by"}, []string{"x", "a", "b"}); values != nil {
			r.header[name] = values
		}
	}
	for _, name := range []string{"okta", "auth0"} {
		if d.IntN(2) == 0 {
			continue
		}
		claims := map[string]any{}
		if role := one[any](d, nil, "admin", "user", []any{"user", "admin"}, 1.0); role != nil {
			claims["role"] = role
		}
		if perms := one[any](d, nil, "admin", []any{"user"}, map[string]any{"role": "admin"}, map[string]any{"role": []any{"user"}}); perms != nil {
			claims["perms"] = perms
		}
		r.tokens[name] = claims
	}
	return r
}

// TestJudgesAsWritten evaluates what is generated of 10,000 random sets of intentions
// for ten random requests each, and holds the outcome to the reference.
func TestJudgesAsWritten(t *testing.T) {
	const requests = 10
	sets := effort.Rounds(10_000)
	d := dice{rand.New(rand.NewPCG(7, 11))}
	providers := []config.Entry{newIssuer(t, "okta").provider(nil), newIssuer(t, "auth0").provider(nil)}
	s := meshtest.Parse(t, txtar.Parse([]byte("-- services/api.yaml --\nservice: api\nport: 80\n")).Files)
	e := &evaluator{}
	seen := map[string]int{}
	for i := range sets {
		w, entries := d.world(t)
		in := input(s)
		in.Config, in.DefaultAllow = config.NewSet(append(entries, providers...)...), w.defaultAllow
		p, _ := proxy.Build(in)
		r := resources(t, p)
		for range requests {
			ask := d.asked()
			wantAllowed, wantCounted := w.judge(ask)
			var allowed, counted bool
			if w.http {
				allowed, counted = e.request(r.Routes[0], ask)
			} else {
				var admitted bool
				admitted, allowed, counted = e.connection(r, ask)
				if admitted != allowed {
					t.Fatalf("set %d: %+v: admitted is %v, then allowed is %v\n%s", i, ask, admitted, allowed, p.Describe())
				}
			}
			if allowed != wantAllowed || counted != wantCounted {
				t.Fatalf("set %d: %+v: allowed %v, counted %v; want %v, %v\n%s", i, ask, allowed, counted, wantAllowed, wantCounted, p.Describe())
			}
			seen[fmt.Sprintf("http %v allowed %v counted %v", w.http, allowed, counted)]++
		}
	}
	t.Log(seen)
	if len(seen) != 6 {
		t.Errorf("not all outcomes came up: %v", seen)
	}
}

// TestEnvoyJudgesAsWritten asks real Envoy about 50 random sets, ten requests each.
func TestEnvoyJudgesAsWritten(t *testing.T) {
	const sets, requests = 50, 10
	l, address := startAPI(t)
	d := dice{rand.New(rand.NewPCG(3, 5))}
	okta := newIssuer(t, "okta")
	auth0 := newIssuer(t, "auth0")
	base := l.input.Config.With([]config.Entry{okta.provider(nil), auth0.provider(func(e *config.JWTProvider) {
		e.Locations = []*config.JWTLocation{{Header: &config.JWTHeader{Name: "x-token"}}}
	})}, nil)
	clients := map[string]*http.Client{}
	for _, caller := range d.callers() {
		clients[caller] = l.mesh.client(l.mesh.ca.Client(spiffe(caller)))
	}
	l.problemsAreFine = true // some ask for tokens of nobody
	counted, denied := 0, 0
	for i := range sets {
		w, entries := d.world(t)
		for !w.http {
			w, entries = d.world(t)
		}
		l.input.Config, l.input.DefaultAllow = base.With(entries, nil), w.defaultAllow
		l.write()
		for range requests {
			ask := d.asked()
			wantAllowed, wantCounted := w.judge(ask)
			h := http.Header{}
			for name, values := range ask.header {
				h[http.CanonicalHeaderKey(name)] = values
			}
			for name, payload := range ask.tokens {
				if name == okta.name {
					h.Set("Authorization", "Bearer "+okta.token(payload.(map[string]any)))
				} else {
					h.Set("X-Token", auth0.token(payload.(map[string]any)))
				}
			}
			status := send(t, clients[ask.caller], address, ask.method, ask.path, h)
			if want := map[bool]int{true: 200, false: 403}[wantAllowed]; status != want {
				t.Fatalf("set %d: %+v: %d, want %d\n%s", i, ask, status, want, describe(l))
			}
			if wantCounted {
				counted++
			}
			if !wantAllowed {
				denied++
			}
		}
	}
	if n := l.Stat("http.public_listener.rbac.shadow_denied"); n != counted {
		t.Errorf("shadow_denied is %d, want %d", n, counted)
	}
	if n := l.Stat("http.public_listener.rbac.denied"); n != denied {
		t.Errorf("denied is %d, want %d", n, denied)
	}
	if counted == 0 || denied == 0 || denied == sets*requests {
		t.Errorf("%d denied, %d counted: not all outcomes came up", denied, counted)
	}
	t.Logf("%d denied, %d counted", denied, counted)
	l.untouched()
}

func describe(l *live) string {
	p, problems := proxy.Build(l.input)
	lines := []string{p.Describe()}
	for _, problem := range problems {
		lines = append(lines, problem.String())
	}
	return strings.Join(lines, "\n")
}
