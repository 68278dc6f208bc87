package config

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"
	"pgregory.net/rapid"
)

// Every entry of every kind reads back as it was written: by us, as YAML, and through
// Consul's own client.
func TestEntryRoundTrip(t *testing.T) {
	for _, kind := range Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				want := draw(t, kind)
				if err := want.Validate(); err != nil {
					t.Fatalf("before Normalize: %v", err)
				}
				want.Normalize()
				if err := want.Validate(); err != nil {
					t.Fatalf("after Normalize: %v", err)
				}
				body, err := EncodeEntry(want)
				if err != nil {
					t.Fatal(err)
				}
				same := func(how string, got Entry, err error) {
					if err != nil {
						t.Fatalf("%s: %v\n%s", how, err, body)
					}
					if diff := cmp.Diff(want, got); diff != "" {
						t.Fatalf("%s: %s\n(-want +got)\n%s", how, body, diff)
					}
					if again, err := EncodeEntry(got); err != nil || string(again) != string(body) {
						t.Fatalf("%s: written again: %v\n%s\n%s", how, err, body, again)
					}
				}
				got, err := DecodeEntryJSON(body)
				same("JSON", got, err)
				got, err = DecodeEntry("a.yaml", body)
				same("YAML", got, err)
				if kind == KindTrafficPolicy || !clientKnows(want) {
					return
				}
				there, err := api.DecodeConfigEntryFromJSON(body)
				if err != nil {
					t.Fatalf("Consul's client: %v\n%s", err, body)
				}
				sent, err := json.Marshal(there)
				if err != nil {
					t.Fatal(err)
				}
				got, err = DecodeEntryJSON(sent)
				same("Consul's client", got, err)
				plain := reflect.New(reflect.TypeOf(there).Elem()).Interface()
				if err := json.Unmarshal(body, plain); err != nil {
					t.Fatalf("Consul's client, read as JSON: %v\n%s", err, body)
				}
				if diff := cmp.Diff(there, plain); diff != "" {
					t.Fatalf("Consul's client reads it in two ways (-decoded +JSON):\n%s", diff)
				}
			})
		})
	}
}

// clientKnows reports whether Consul's client has a place for all of e: it takes a
// MergeSlashes that is off for one that is not given.
func clientKnows(e Entry) bool {
	m, ok := e.(*Mesh)
	if !ok {
		return true
	}
	n := m.normalization()
	return n == nil || n.MergeSlashes == nil || *n.MergeSlashes
}

// A field that the generator never sets would be in no test above.
func TestGeneratorSetsEveryField(t *testing.T) {
	set := map[string]bool{}
	for _, kind := range Kinds() {
		gen := rapid.Custom(func(t *rapid.T) Entry { return draw(t, kind) })
		for seed := range 1000 {
			mark(reflect.ValueOf(gen.Example(seed)), set)
		}
		for _, field := range fieldsOf(reflect.TypeOf(newEntry(kind)), nil) {
			if !set[field] && !strings.HasSuffix(field, ".Kind") { // Normalize sets that
				t.Errorf("%s: %s is never set", kind, field)
			}
		}
	}
}

// mark notes every field reached from v that is not zero.
func mark(v reflect.Value, set map[string]bool) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			mark(v.Elem(), set)
		}
	case reflect.Slice:
		for i := range v.Len() {
			mark(v.Index(i), set)
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			mark(it.Value(), set)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if !v.Field(i).IsZero() {
				set[v.Type().Name()+"."+v.Type().Field(i).Name] = true
				mark(v.Field(i), set)
			}
		}
	}
}

// fieldsOf lists every field reached from t.
func fieldsOf(t reflect.Type, seen []reflect.Type) (out []string) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		return fieldsOf(t.Elem(), seen)
	case reflect.Struct:
		if slices.Contains(seen, t) {
			return nil
		}
		for f := range t.Fields() {
			out = append(out, t.Name()+"."+f.Name)
			out = append(out, fieldsOf(f.Type, append(seen, t))...)
		}
	}
	return out
}

// source draws parts of entries.
type source struct{ *rapid.T }

func (s source) some(label string) bool { return rapid.Bool().Draw(s.T, label) }
func (s source) name() string {
	return rapid.StringMatching(`[A-Za-z0-9_][A-Za-z0-9_.-]{0,12}`).Draw(s.T, "name")
}
func (s source) word() string { return rapid.StringMatching(`[a-z0-9]{1,8}`).Draw(s.T, "word") }
func (s source) text() string { return rapid.StringMatching(`[ -~]{1,20}`).Draw(s.T, "text") }
func (s source) path() string {
	return "/" + rapid.StringMatching(`[a-zA-Z0-9/._%-]{0,12}`).Draw(s.T, "path")
}
func (s source) number(most int) int { return rapid.IntRange(0, most).Draw(s.T, "number") }
func (s source) duration() Duration {
	return Duration(rapid.Int64Range(0, int64(48*time.Hour)).Draw(s.T, "duration"))
}
func (s source) of(words ...string) string { return rapid.SampledFrom(words).Draw(s.T, "of") }

// maybe draws a pointer that may be nil.
func maybe[T any](s source, gen func() T) *T {
	if !s.some("given") {
		return nil
	}
	v := gen()
	return &v
}

// list draws up to three; none is nil.
func list[T any](s source, gen func(i int) T) []T {
	var out []T
	for i := range s.number(3) {
		out = append(out, gen(i))
	}
	return out
}

func (s source) meta() map[string]string {
	if !s.some("meta") {
		return nil
	}
	return rapid.MapOfN(rapid.StringMatching(`[a-z._ -]{1,9}`), rapid.StringMatching(`[ -~é🙂]{0,9}`), 1, 3).Draw(s.T, "meta")
}

// draw is a valid entry as a writer could write it.
func draw(t *rapid.T, kind Kind) Entry {
	s := source{t}
	switch kind {
	case KindProxyDefaults:
		return &ProxyDefaults{Name: Global, Meta: s.meta(), Config: map[string]any{"protocol": s.of("", "HTTP"), "local_idle_timeout_ms": float64(s.number(9))}}
	case KindServiceDefaults:
		return s.serviceDefaults()
	case KindServiceIntentions:
		return s.serviceIntentions()
	case KindServiceRouter:
		return &ServiceRouter{Name: s.name(), Meta: s.meta(), Routes: list(s, func(int) ServiceRoute { return s.route() })}
	case KindServiceSplitter:
		return s.serviceSplitter()
	case KindServiceResolver:
		return s.serviceResolver()
	case KindJWTProvider:
		return s.jwtProvider()
	case KindTrafficPolicy:
		return s.trafficPolicy()
	case KindMesh:
		return &Mesh{Meta: s.meta(), HTTP: maybe(s, func() MeshHTTP {
			return MeshHTTP{Incoming: maybe(s, func() MeshIncoming {
				return MeshIncoming{RequestNormalization: maybe(s, func() RequestNormalization {
					return RequestNormalization{
						InsecureDisablePathNormalization: s.some("disable"), MergeSlashes: maybe(s, func() bool { return s.some("merge") }),
						PathWithEscapedSlashesAction: s.of("", "REJECT_REQUEST", envoyDefault), HeadersWithUnderscoresAction: s.of("", "ALLOW"),
					}
				})}
			})}
		})}
	}
	panic(fmt.Sprintf("no generator for %s", kind))
}

func (s source) serviceDefaults() *ServiceDefaults {
	settings := func(name string) UpstreamSettings {
		u := UpstreamSettings{
			Name: name, Protocol: s.of("", "GRPC", TCP), ConnectTimeoutMs: s.number(999), BalanceOutboundConnections: s.of("", exactBalance),
			EnvoyClusterJSON: s.of("", `{"a": "<b>"}`),
			Limits: maybe(s, func() UpstreamLimits {
				n := func() *int { return maybe(s, func() int { return s.number(9) }) }
				return UpstreamLimits{MaxConnections: n(), MaxPendingRequests: n(), MaxConcurrentRequests: n()}
			}),
			PassiveHealthCheck: maybe(s, func() PassiveHealthCheck {
				n := func() *uint32 { return maybe(s, func() uint32 { return uint32(s.number(100)) }) }
				return PassiveHealthCheck{
					Interval: s.duration(), MaxFailures: uint32(s.number(9)), EnforcingConsecutive5xx: n(), MaxEjectionPercent: n(), BaseEjectionTime: s.duration(),
				}
			}),
		}
		if name != "" {
			u.EnvoyListenerJSON = s.of("", "{}")
		}
		return u
	}
	return &ServiceDefaults{
		Name: s.name(), Protocol: s.of("", "HTTP", "http2"), Meta: s.meta(), MaxInboundConnections: s.number(9), LocalConnectTimeoutMs: s.number(9),
		LocalRequestTimeoutMs: s.number(9), BalanceInboundConnections: s.of("", exactBalance),
		UpstreamConfig: maybe(s, func() UpstreamConfiguration {
			return UpstreamConfiguration{
				Defaults:  maybe(s, func() UpstreamSettings { return settings("") }),
				Overrides: list(s, func(i int) UpstreamSettings { return settings(fmt.Sprintf("%s-%d", s.word(), i)) }),
			}
		}),
	}
}

func (s source) methods() []string {
	return list(s, func(i int) string { return []string{s.of("get", "GET"), "post", "DELETE"}[i] })
}

func (s source) regex() string { return s.of("[^/]+", "a|b", "/v[0-9]+/.*", `\d{3}`, "(?i)x") }

func (s source) headerName() string { return s.of("X-User", "x-user", ":authority", "x_y", "cookie") }

func (s source) route() ServiceRoute {
	r := ServiceRoute{
		Match: maybe(s, func() RouteMatch {
			return RouteMatch{HTTP: maybe(s, func() HTTPMatch {
				m := HTTPMatch{Methods: s.methods()}
				switch s.of("none", "exact", "prefix", "regex") {
				case "exact":
					m.PathExact, m.CaseInsensitive = s.path(), s.some("case")
				case "prefix":
					m.PathPrefix, m.CaseInsensitive = s.path(), s.some("case")
				case "regex":
					m.PathRegex = s.regex()
				}
				m.Header = list(s, func(int) HeaderMatch {
					h := HeaderMatch{Name: s.headerName(), Invert: s.some("invert")}
					s.one(&h.Present, &h.Regex, &h.Exact, &h.Prefix, &h.Suffix)
					return h
				})
				m.QueryParam = list(s, func(int) QueryMatch {
					q := QueryMatch{Name: s.text()}
					s.one(&q.Present, &q.Regex, &q.Exact)
					return q
				})
				return m
			})}
		}),
		Destination: maybe(s, func() RouteDestination {
			return RouteDestination{
				Service: s.of("", s.name()), ServiceSubset: s.of("", s.word()), RequestTimeout: s.duration(), IdleTimeout: s.duration(),
				NumRetries: uint32(s.number(9)), RetryOnConnectFailure: s.some("connect"),
				RetryOnStatusCodes: list(s, func(int) uint32 { return uint32(100 + s.number(499)) }),
				RetryOn:            list(s, func(int) string { return s.of(retryConditions()...) }),
				RequestHeaders:     s.modifiers(), ResponseHeaders: s.modifiers(),
			}
		}),
	}
	if r.Destination != nil && r.Match != nil && r.Match.HTTP != nil && r.Match.HTTP.PathExact+r.Match.HTTP.PathPrefix != "" {
		r.Destination.PrefixRewrite = s.of("", s.path())
	}
	return r
}

// one sets exactly one way to compare.
func (s source) one(present *bool, regex *string, others ...*string) {
	switch i := s.number(len(others) + 1); i {
	case 0:
		*present = true
	case 1:
		*regex = s.regex()
	default:
		*others[i-2] = s.text()
	}
}

func (s source) modifiers() *HeaderModifiers {
	values := func(prefix string) map[string]string {
		var out map[string]string
		for i := range s.number(2) {
			if out == nil {
				out = map[string]string{}
			}
			out[fmt.Sprintf("%s-%d", prefix, i)] = s.of("", "plain", "100%%", "%REQ(:path)%", "%PROTOCOL% and %START_TIME(%Y)%")
		}
		return out
	}
	return maybe(s, func() HeaderModifiers {
		return HeaderModifiers{Add: values("X-A"), Set: values("x-s"), Remove: list(s, func(i int) string { return fmt.Sprintf("x-r%d", i) })}
	})
}

func (s source) serviceSplitter() *ServiceSplitter {
	e, left := &ServiceSplitter{Name: "a" + s.name(), Meta: s.meta()}, 100_00
	for i := range 1 + s.number(3) {
		weight := s.number(left)
		left -= weight
		e.Splits = append(e.Splits, ServiceSplit{
			Weight: float64(weight) / 100, Service: s.of("", s.name()), ServiceSubset: fmt.Sprintf("v%d", i),
			RequestHeaders: s.modifiers(), ResponseHeaders: s.modifiers(),
		})
	}
	e.Splits = append(e.Splits, ServiceSplit{Weight: float64(left) / 100})
	return e
}

func (s source) serviceResolver() *ServiceResolver {
	e := &ServiceResolver{Name: s.name(), Meta: s.meta(), ConnectTimeout: s.duration(), RequestTimeout: s.duration(), LoadBalancer: maybe(s, s.loadBalancer)}
	if s.some("subsets") {
		e.Subsets = map[string]ResolverSubset{
			"v1": {Filter: s.of("", `Service.Meta.version == v1`, `"a" in Service.Tags and not (Node.Meta["zone"] == b)`), OnlyPassing: s.some("passing")},
		}
		e.DefaultSubset = s.of("", "v1")
	}
	if s.some("redirect") {
		e.Redirect = &ResolverRedirect{Service: s.name(), ServiceSubset: s.of("", s.word()), Datacenter: s.of("", "DC2")}
		return e
	}
	failover := func() ResolverFailover {
		if s.some("targets") {
			return ResolverFailover{Targets: []FailoverTarget{{Service: s.name(), ServiceSubset: ""}, {Datacenter: "Dc3"}, {Service: "b", ServiceSubset: s.word()}}}
		}
		return ResolverFailover{Service: "c", ServiceSubset: s.of("", s.word()), Datacenters: list(s, func(i int) string { return fmt.Sprintf("DC%d", i) })}
	}
	if s.some("failover") {
		e.Failover = map[string]ResolverFailover{Wildcard: failover()}
		if e.Subsets != nil {
			e.Failover["v1"] = failover()
		}
	}
	return e
}

func (s source) loadBalancer() LoadBalancer {
	l := LoadBalancer{Policy: s.of("", PolicyRandom, PolicyRoundRobin, PolicyLeastRequest, PolicyRingHash, PolicyMaglev)}
	switch l.Policy {
	case PolicyLeastRequest:
		l.LeastRequestConfig = maybe(s, func() LeastRequestConfig { return LeastRequestConfig{ChoiceCount: uint32(s.number(1) * 7)} })
	case PolicyRingHash:
		l.RingHashConfig = maybe(s, func() RingHashConfig {
			return RingHashConfig{MinimumRingSize: uint32(s.number(1024)), MaximumRingSize: uint32(s.number(1) * 4096)}
		})
		fallthrough
	case PolicyMaglev:
		l.HashPolicies = list(s, func(int) HashPolicy {
			h := HashPolicy{Field: s.of("", HashHeader, HashCookie, HashQueryParameter), Terminal: s.some("terminal")}
			h.SourceIP = h.Field == ""
			if h.Field != "" {
				h.FieldValue = s.word()
			}
			if h.Field == HashCookie {
				h.CookieConfig = maybe(s, func() CookieConfig {
					if s.some("session") {
						return CookieConfig{Session: true, Path: s.of("", s.path())}
					}
					return CookieConfig{TTL: 1 + s.duration(), Path: s.of("", s.path())}
				})
			}
			return h
		})
	}
	return l
}

func (s source) requirement() *JWTRequirement {
	return maybe(s, func() JWTRequirement {
		return JWTRequirement{Providers: []*JWTProviderRequirement{{Name: "p-" + s.name(), VerifyClaims: list(s, func(int) *JWTClaim {
			return &JWTClaim{Path: append(list(s, func(int) string { return s.text() }), "a"), Value: s.text()}
		})}, {Name: "other"}}}
	})
}

func (s source) serviceIntentions() *ServiceIntentions {
	e := &ServiceIntentions{Name: s.of(Wildcard, s.name()), JWT: s.requirement(), Meta: s.meta()}
	for i := range 1 + s.number(3) {
		from := &SourceIntention{
			Name: fmt.Sprintf("%s-%d", s.name(), i), Description: s.of("", s.text()), Precedence: s.number(9), Type: s.of("", intentionType),
		}
		e.Sources = append(e.Sources, from)
		if e.Name == Wildcard || s.some("action") {
			from.Action = Action(s.of(string(Allow), string(Deny)))
			continue
		}
		from.Permissions = append(list(s, func(int) *Permission { return s.permission() }), s.permission())
	}
	return e
}

func (s source) permission() *Permission {
	h := &HTTPPermission{Methods: append(s.methods(), "OPTIONS")}
	s.one(new(bool), &h.PathRegex)
	if h.PathRegex == "" {
		h.PathExact = s.of("", s.path())
	}
	if h.PathRegex+h.PathExact == "" {
		h.PathPrefix = s.of("", s.path())
	}
	h.Header = list(s, func(int) HeaderPermission {
		c := HeaderPermission{Name: s.headerName(), Invert: s.some("invert")}
		s.one(&c.Present, &c.Regex, &c.Exact, &c.Prefix, &c.Suffix, &c.Contains)
		c.IgnoreCase = !c.Present && c.Regex == "" && s.some("case")
		return c
	})
	return &Permission{Action: Action(s.of(string(Allow), string(Deny))), HTTP: h, JWT: s.requirement()}
}

// publicKey is an Ed25519 key of RFC 8037.
const publicKey = `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`

func (s source) jwtProvider() *JWTProvider {
	return &JWTProvider{
		Name: s.name(), Meta: s.meta(), Issuer: s.of("", s.text()), Audiences: list(s, func(int) string { return s.text() }),
		JSONWebKeySet: &JSONWebKeySet{Local: &LocalJWKS{JWKS: base64.StdEncoding.EncodeToString([]byte(`{"keys":[` + publicKey + `]}`))}},
		Locations: list(s, func(int) *JWTLocation {
			return []*JWTLocation{
				{Header: &JWTHeader{Name: "Authorization", ValuePrefix: s.of("", "Bearer "), Forward: s.some("forward")}},
				{QueryParam: &JWTQueryParam{Name: s.text()}}, {Cookie: &JWTCookie{Name: s.word()}},
			}[s.number(2)]
		}),
		Forwarding: maybe(s, func() JWTForwarding {
			return JWTForwarding{HeaderName: "X-Claims", PadForwardPayloadHeader: s.some("pad")}
		}),
		ClockSkewSeconds: s.number(99), CacheConfig: maybe(s, func() JWTCache { return JWTCache{Size: s.number(9)} }),
	}
}

func (s source) trafficPolicy() *TrafficPolicy {
	e := &TrafficPolicy{Name: s.of(Wildcard, s.name()), Meta: s.meta(), Crossing: maybe(s, func() bool { return s.some("crossing") })}
	switch s.of("", "header", "cookie", "source") {
	case "header":
		e.Sticky = &Sticky{Header: s.headerName()}
	case "cookie":
		e.Sticky = &Sticky{Cookie: &StickyCookie{Name: s.word(), TTL: s.duration(), Path: s.of("", s.path())}}
	case "source":
		e.Sticky = &Sticky{Source: true}
	}
	e.Audit = maybe(s, func() Audit {
		return Audit{Sources: list(s, func(i int) string { return []string{Wildcard, "a", "b-" + s.name()}[i] }), Default: s.some("default")}
	})
	return e
}
