// Package configtest makes configuration entries for property tests.
//
// In: a source of chance and a kind, and which names to use. Out: entries that are
// valid, with every field of every kind set at some time. Whether entries go
// together is left to who draws them.
//
// Test only: nothing outside of tests imports it.
package configtest

import (
	"encoding/base64"
	"fmt"
	"reflect"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Names are what entries are drawn with.
type Names struct {
	// Services and Subsets are what is named; of either, none stands for any name.
	Services, Subsets []string
	// Providers are those of tokens, two at least; none: any.
	Providers []string
	// Protocols are what services speak; none: some.
	Protocols []string
}

// Draw is a valid entry as a writer could write it.
func Draw(t *rapid.T, kind config.Kind, names Names) config.Entry {
	return source{t, names}.entry(kind)
}

// Fields lists every field reached from type t, as "Struct.Field".
func Fields(t reflect.Type) []string { return fields(t, nil) }

func fields(t reflect.Type, seen []reflect.Type) (out []string) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		return fields(t.Elem(), seen)
	case reflect.Struct:
		if slices.Contains(seen, t) {
			return nil
		}
		for f := range t.Fields() {
			out = append(out, t.Name()+"."+f.Name)
			out = append(out, fields(f.Type, append(seen, t))...)
		}
	}
	return out
}

// Mark notes every field reached from v that is not zero, under the names of [Fields].
func Mark(v reflect.Value, set map[string]bool) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			Mark(v.Elem(), set)
		}
	case reflect.Slice:
		for i := range v.Len() {
			Mark(v.Index(i), set)
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			Mark(it.Value(), set)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if !v.Field(i).IsZero() {
				set[v.Type().Name()+"."+v.Type().Field(i).Name] = true
				Mark(v.Field(i), set)
			}
		}
	}
}

// source draws parts of entries.
type source struct {
	*rapid.T
	names Names
}

func (s source) some(label string) bool { return rapid.Bool().Draw(s.T, label) }

// name is that of a service.
func (s source) name() string {
	if len(s.names.Services) > 0 {
		return s.of(s.names.Services...)
	}
	return rapid.StringMatching(`[A-Za-z0-9_][A-Za-z0-9_.-]{0,12}`).Draw(s.T, "name")
}

// nth is a service's name that differs for every i up to the bound, of those given.
func (s source) nth(i int) string {
	if n := len(s.names.Services); n > 0 {
		return s.names.Services[i%n]
	}
	return fmt.Sprintf("%s-%d", s.name(), i)
}

func (s source) subset() string {
	if len(s.names.Subsets) > 0 {
		return s.of(s.names.Subsets...)
	}
	return s.word()
}

// numbered is a subset's name that differs for every i up to the bound, of those given.
func (s source) numbered(i int) string {
	if n := len(s.names.Subsets); n > 0 {
		return s.names.Subsets[i%n]
	}
	return fmt.Sprintf("v%d", i)
}

func (s source) protocol() string {
	if len(s.names.Protocols) > 0 {
		return s.of(s.names.Protocols...)
	}
	return s.of("", "HTTP", "http2")
}

// most is n, but no more than there are names.
func most(n int, names []string) int {
	if len(names) == 0 {
		return n
	}
	return min(n, len(names))
}

func (s source) word() string { return rapid.StringMatching(`[a-z0-9]{1,8}`).Draw(s.T, "word") }
func (s source) text() string { return rapid.StringMatching(`[ -~]{1,20}`).Draw(s.T, "text") }
func (s source) path() string {
	return "/" + rapid.StringMatching(`[a-zA-Z0-9/._%-]{0,12}`).Draw(s.T, "path")
}
func (s source) number(most int) int { return rapid.IntRange(0, most).Draw(s.T, "number") }
func (s source) duration() config.Duration {
	return config.Duration(rapid.Int64Range(0, int64(48*time.Hour)).Draw(s.T, "duration"))
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

func (s source) entry(kind config.Kind) config.Entry {
	switch kind {
	case config.KindProxyDefaults:
		return &config.ProxyDefaults{Name: config.Global, Meta: s.meta(), MutualTLSMode: s.of("", config.MutualTLSStrict, config.MutualTLSPermissive), Config: map[string]any{
			"protocol": s.of("", "HTTP"), "local_idle_timeout_ms": float64(s.number(9)), "local_connect_timeout_ms": float64(s.number(9)),
			"local_request_timeout_ms": float64(s.number(9)), "max_inbound_connections": float64(s.number(9)), "balance_inbound_connections": s.of("", "exact_balance"),
		}}
	case config.KindServiceDefaults:
		return s.serviceDefaults()
	case config.KindServiceIntentions:
		return s.serviceIntentions()
	case config.KindServiceRouter:
		return &config.ServiceRouter{Name: s.name(), Meta: s.meta(), Routes: list(s, func(int) config.ServiceRoute { return s.route() })}
	case config.KindServiceSplitter:
		return s.serviceSplitter()
	case config.KindServiceResolver:
		return s.serviceResolver()
	case config.KindJWTProvider:
		return s.jwtProvider()
	case config.KindTrafficPolicy:
		return s.trafficPolicy()
	case config.KindTrafficShift:
		return s.trafficShift()
	case config.KindMesh:
		return &config.Mesh{Meta: s.meta(), AllowEnablingPermissiveMutualTLS: s.some("permissive"), HTTP: maybe(s, func() config.MeshHTTP {
			return config.MeshHTTP{Incoming: maybe(s, func() config.MeshIncoming {
				return config.MeshIncoming{RequestNormalization: maybe(s, func() config.RequestNormalization {
					return config.RequestNormalization{
						InsecureDisablePathNormalization: s.some("disable"), MergeSlashes: maybe(s, func() bool { return s.some("merge") }),
						PathWithEscapedSlashesAction: s.of("", "REJECT_REQUEST", "IMPLEMENTATION_SPECIFIC_DEFAULT"), HeadersWithUnderscoresAction: s.of("", "ALLOW"),
					}
				})}
			})}
		})}
	}
	panic(fmt.Sprintf("no generator for %s", kind))
}

func (s source) serviceDefaults() *config.ServiceDefaults {
	settings := func(name string) config.UpstreamSettings {
		u := config.UpstreamSettings{
			Name: name, Protocol: s.of("", "GRPC", config.TCP), ConnectTimeoutMs: s.number(999), BalanceOutboundConnections: s.of("", "exact_balance"),
			EnvoyClusterJSON: s.of("", `{"a": "<b>"}`),
			Limits: maybe(s, func() config.UpstreamLimits {
				n := func() *int { return maybe(s, func() int { return s.number(9) }) }
				return config.UpstreamLimits{MaxConnections: n(), MaxPendingRequests: n(), MaxConcurrentRequests: n()}
			}),
			PassiveHealthCheck: maybe(s, func() config.PassiveHealthCheck {
				n := func() *uint32 { return maybe(s, func() uint32 { return uint32(s.number(100)) }) }
				return config.PassiveHealthCheck{
					Interval: s.duration(), MaxFailures: uint32(s.number(9)), EnforcingConsecutive5xx: n(), MaxEjectionPercent: n(), BaseEjectionTime: s.duration(),
				}
			}),
		}
		if name != "" {
			u.EnvoyListenerJSON = s.of("", "{}")
		}
		return u
	}
	return &config.ServiceDefaults{
		Name: s.name(), Protocol: s.protocol(), Meta: s.meta(), MutualTLSMode: s.of("", config.MutualTLSStrict, config.MutualTLSPermissive), MaxInboundConnections: s.number(9), LocalConnectTimeoutMs: s.number(9),
		LocalRequestTimeoutMs: s.number(9), BalanceInboundConnections: s.of("", "exact_balance"),
		Destination: maybe(s, func() config.ServiceDestination {
			return config.ServiceDestination{Addresses: []string{s.of("192.0.2.1", "db.example.com")}, Port: 1 + s.number(9)}
		}),
		UpstreamConfig: maybe(s, func() config.UpstreamConfiguration {
			return config.UpstreamConfiguration{
				Defaults:  maybe(s, func() config.UpstreamSettings { return settings("") }),
				Overrides: list(s, func(i int) config.UpstreamSettings { return settings(s.nth(i)) }),
			}
		}),
	}
}

func (s source) methods() []string {
	return list(s, func(i int) string { return []string{s.of("get", "GET"), "post", "DELETE"}[i] })
}

func (s source) regex() string {
	return s.of("[^/]+", "a|b", "/v[0-9]+/.*", `\d{3}`, "(?i)x", "/a{990}", `(\pL{9}){9}`)
}

func (s source) headerName() string { return s.of("X-User", "x-user", ":authority", "x_y", "cookie") }

func (s source) route() config.ServiceRoute {
	r := config.ServiceRoute{
		Match: maybe(s, func() config.RouteMatch {
			return config.RouteMatch{HTTP: maybe(s, func() config.HTTPMatch {
				m := config.HTTPMatch{Methods: s.methods()}
				switch s.of("none", "exact", "prefix", "regex") {
				case "exact":
					m.PathExact, m.CaseInsensitive = s.path(), s.some("case")
				case "prefix":
					m.PathPrefix, m.CaseInsensitive = s.path(), s.some("case")
				case "regex":
					m.PathRegex = s.regex()
				}
				m.Header = list(s, func(int) config.HeaderMatch {
					h := config.HeaderMatch{Name: s.headerName(), Invert: s.some("invert")}
					s.one(&h.Present, &h.Regex, &h.Exact, &h.Prefix, &h.Suffix)
					return h
				})
				m.QueryParam = list(s, func(int) config.QueryMatch {
					q := config.QueryMatch{Name: s.text()}
					s.one(&q.Present, &q.Regex, &q.Exact)
					return q
				})
				return m
			})}
		}),
		Destination: maybe(s, func() config.RouteDestination {
			return config.RouteDestination{
				Service: s.of("", s.name()), ServiceSubset: s.of("", s.subset()), RequestTimeout: s.duration(), IdleTimeout: s.duration(),
				NumRetries: uint32(s.number(9)), RetryOnConnectFailure: s.some("connect"),
				RetryOnStatusCodes: list(s, func(int) uint32 { return uint32(100 + s.number(499)) }),
				RetryOn: list(s, func(int) string {
					return s.of("5xx", "gateway-error", "reset", "connect-failure", "envoy-ratelimited", "retriable-4xx", "refused-stream",
						"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable")
				}),
				RequestHeaders: s.modifiers(), ResponseHeaders: s.modifiers(),
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

func (s source) modifiers() *config.HeaderModifiers {
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
	return maybe(s, func() config.HeaderModifiers {
		return config.HeaderModifiers{Add: values("X-A"), Set: values("x-s"), Remove: list(s, func(i int) string { return fmt.Sprintf("x-r%d", i) })}
	})
}

func (s source) serviceSplitter() *config.ServiceSplitter {
	e, left := &config.ServiceSplitter{Name: s.name(), Meta: s.meta()}, 100_00
	for i := range most(1+s.number(3), s.names.Subsets) {
		weight := s.number(left)
		left -= weight
		e.Splits = append(e.Splits, config.ServiceSplit{
			Weight: float64(weight) / 100, Service: s.of("", s.name()), ServiceSubset: s.numbered(i),
			RequestHeaders: s.modifiers(), ResponseHeaders: s.modifiers(),
		})
	}
	e.Splits = append(e.Splits, config.ServiceSplit{Weight: float64(left) / 100})
	return e
}

func (s source) serviceResolver() *config.ServiceResolver {
	e := &config.ServiceResolver{Name: s.name(), Meta: s.meta(), ConnectTimeout: s.duration(), RequestTimeout: s.duration(), LoadBalancer: maybe(s, s.loadBalancer)}
	first := s.numbered(1)
	if len(s.names.Subsets) > 0 || s.some("subsets") {
		e.Subsets = map[string]config.ResolverSubset{}
		for i := range max(1, len(s.names.Subsets)) {
			e.Subsets[s.numbered(i+1)] = config.ResolverSubset{
				Filter: s.of("", `Service.Meta.version == v1`, `"a" in Service.Tags and not (Node.Meta["zone"] == b)`), OnlyPassing: s.some("passing"),
			}
		}
		e.DefaultSubset = s.of("", first)
	}
	if s.some("redirect") {
		e.Redirect = &config.ResolverRedirect{Service: s.name(), ServiceSubset: s.of("", s.subset()), Datacenter: s.of("", "DC2")}
		return e
	}
	failover := func() config.ResolverFailover {
		if s.some("targets") {
			return config.ResolverFailover{Targets: []config.FailoverTarget{{Service: s.name()}, {Datacenter: "Dc3"}, {Service: s.name(), ServiceSubset: s.subset()}}}
		}
		return config.ResolverFailover{Service: s.name(), ServiceSubset: s.of("", s.subset()), Datacenters: list(s, func(i int) string { return fmt.Sprintf("DC%d", i) })}
	}
	if s.some("failover") {
		e.Failover = map[string]config.ResolverFailover{config.Wildcard: failover()}
		if e.Subsets != nil {
			e.Failover[first] = failover()
		}
	}
	return e
}

func (s source) loadBalancer() config.LoadBalancer {
	l := config.LoadBalancer{Policy: s.of("", config.PolicyRandom, config.PolicyRoundRobin, config.PolicyLeastRequest, config.PolicyRingHash, config.PolicyMaglev)}
	switch l.Policy {
	case config.PolicyLeastRequest:
		l.LeastRequestConfig = maybe(s, func() config.LeastRequestConfig {
			return config.LeastRequestConfig{ChoiceCount: uint32(s.number(1) * 7)}
		})
	case config.PolicyRingHash:
		l.RingHashConfig = maybe(s, func() config.RingHashConfig {
			return config.RingHashConfig{MinimumRingSize: uint32(s.number(1024)), MaximumRingSize: uint32(s.number(1) * 4096)}
		})
		fallthrough
	case config.PolicyMaglev:
		l.HashPolicies = list(s, func(int) config.HashPolicy {
			h := config.HashPolicy{Field: s.of("", config.HashHeader, config.HashCookie, config.HashQueryParameter), Terminal: s.some("terminal")}
			h.SourceIP = h.Field == ""
			if h.Field != "" {
				h.FieldValue = s.word()
			}
			if h.Field == config.HashCookie {
				h.CookieConfig = maybe(s, func() config.CookieConfig {
					if s.some("session") {
						return config.CookieConfig{Session: true, Path: s.of("", s.path())}
					}
					return config.CookieConfig{TTL: 1 + s.duration(), Path: s.of("", s.path())}
				})
			}
			return h
		})
	}
	return l
}

// provider is a name that differs for 0 and 1.
func (s source) provider(i int) string {
	if len(s.names.Providers) > 0 {
		return s.names.Providers[i]
	}
	return []string{"p-" + s.name(), "other"}[i]
}

func (s source) requirement() *config.JWTRequirement {
	return maybe(s, func() config.JWTRequirement {
		return config.JWTRequirement{Providers: []*config.JWTProviderRequirement{{Name: s.provider(0), VerifyClaims: list(s, func(int) *config.JWTClaim {
			return &config.JWTClaim{Path: append(list(s, func(int) string { return s.text() }), "a"), Value: s.text()}
		})}, {Name: s.provider(1)}}}
	})
}

func (s source) serviceIntentions() *config.ServiceIntentions {
	e := &config.ServiceIntentions{Name: s.of(config.Wildcard, s.name()), JWT: s.requirement(), Meta: s.meta()}
	for i := range most(1+s.number(3), s.names.Services) {
		from := &config.SourceIntention{
			Name: s.nth(i), Description: s.of("", s.text()), Precedence: s.number(9), Type: s.of("", "consul"),
		}
		e.Sources = append(e.Sources, from)
		if e.Name == config.Wildcard || s.some("action") {
			from.Action = config.Action(s.of(string(config.Allow), string(config.Deny)))
			continue
		}
		from.Permissions = append(list(s, func(int) *config.Permission { return s.permission() }), s.permission())
	}
	return e
}

func (s source) permission() *config.Permission {
	h := &config.HTTPPermission{Methods: append(s.methods(), "OPTIONS")}
	s.one(new(bool), &h.PathRegex)
	if h.PathRegex == "" {
		h.PathExact = s.of("", s.path())
	}
	if h.PathRegex+h.PathExact == "" {
		h.PathPrefix = s.of("", s.path())
	}
	h.Header = list(s, func(int) config.HeaderPermission {
		c := config.HeaderPermission{Name: s.headerName(), Invert: s.some("invert")}
		s.one(&c.Present, &c.Regex, &c.Exact, &c.Prefix, &c.Suffix, &c.Contains)
		c.IgnoreCase = !c.Present && c.Regex == "" && s.some("case")
		return c
	})
	return &config.Permission{Action: config.Action(s.of(string(config.Allow), string(config.Deny))), HTTP: h, JWT: s.requirement()}
}

// publicKey is an Ed25519 key of RFC 8037.
const publicKey = `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`

func (s source) jwtProvider() *config.JWTProvider {
	return &config.JWTProvider{
		Name: s.provider(s.number(1)), Meta: s.meta(), Issuer: s.of("", s.text()), Audiences: list(s, func(int) string { return s.text() }),
		JSONWebKeySet: &config.JSONWebKeySet{Local: &config.LocalJWKS{JWKS: base64.StdEncoding.EncodeToString([]byte(`{"keys":[` + publicKey + `]}`))}},
		Locations: list(s, func(int) *config.JWTLocation {
			return []*config.JWTLocation{
				{Header: &config.JWTHeader{Name: "Authorization", ValuePrefix: s.of("", "Bearer "), Forward: s.some("forward")}},
				{QueryParam: &config.JWTQueryParam{Name: s.text()}}, {Cookie: &config.JWTCookie{Name: s.word()}},
			}[s.number(2)]
		}),
		Forwarding: maybe(s, func() config.JWTForwarding {
			return config.JWTForwarding{HeaderName: "X-Claims", PadForwardPayloadHeader: s.some("pad")}
		}),
		ClockSkewSeconds: s.number(99), CacheConfig: maybe(s, func() config.JWTCache { return config.JWTCache{Size: s.number(9)} }),
	}
}

func (s source) trafficPolicy() *config.TrafficPolicy {
	e := &config.TrafficPolicy{Name: s.of(config.Wildcard, s.name()), Meta: s.meta(), Crossing: maybe(s, func() bool { return s.some("crossing") })}
	e.Sticky = s.sticky()
	e.Audit = maybe(s, func() config.Audit {
		return config.Audit{Sources: list(s, func(i int) string { return []string{config.Wildcard, "a", "b-" + s.name()}[i] }), Default: s.some("default")}
	})
	return e
}

func (s source) sticky() *config.Sticky {
	switch s.of("", "header", "cookie", "source") {
	case "header":
		return &config.Sticky{Header: s.headerName()}
	case "cookie":
		return &config.Sticky{Cookie: &config.StickyCookie{Name: s.word(), TTL: s.duration(), Path: s.of("", s.path())}}
	case "source":
		return &config.Sticky{Source: true}
	}
	return nil
}

func (s source) trafficShift() *config.TrafficShift {
	e := &config.TrafficShift{Source: s.of(config.Wildcard, s.name()), Destination: s.of(config.Wildcard, s.name()), Meta: s.meta(), Sticky: s.sticky()}
	if s.some("name") {
		e.Name = config.PairName(e.Source, e.Destination)
	}
	e.Legacy = maybe(s, func() config.LegacyWay {
		return config.LegacyWay{
			Address: s.of("old.example.com:80", "10.0.0.1:4140", "[::1]:80"), Host: s.of("", "catalog.old", "catalog.old:80", "10.0.0.1", "[::1]"),
		}
	})
	left := 10_000
	share := func() float64 {
		n := s.number(left)
		left -= n
		return float64(n) / 100
	}
	if e.Legacy != nil {
		e.Shares.Legacy = share()
	}
	e.Shares.Direct = share()
	e.Shares.Plain = share()
	e.Shares.MTLS = float64(left) / 100
	e.Generation = uint64(s.number(5))
	if s.some("stage") {
		e.Stage = config.StagePermissive
	}
	if s.some("plan") {
		e.Slots = "mtls=2500,direct=7500"
		e.Steps, e.Dwell, e.Windows = []float64{1, 12.5, 100}, config.Duration(time.Minute), []string{"Mon-Fri 09:00-17:00"}
	}
	e.Guard = maybe(s, func() config.ShiftGuard {
		return config.ShiftGuard{
			Off: s.some("off"), OnBreach: s.of("", config.OnBreachRevert, config.OnBreachPause), Failures: float64(s.number(10)), Slower: float64(s.number(100)),
			SlowerBy: s.duration(), Attempts: uint64(s.number(1000)),
		}
	})
	return e
}
