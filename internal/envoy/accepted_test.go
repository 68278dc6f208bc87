package envoy_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/meshtest/effort"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// dice throws values into anything that JSON can say: most fields stay as they are,
// so that a good part of what comes out is accepted.
type dice struct{ *rand.Rand }

// texts are what strings become: names that fit together, and trouble.
func (d dice) text() string {
	return one(d, "web", "api", "db", "*", "http", "tcp", "grpc", "exact_balance", "allow", "deny", "127.0.0.1", "::1", "10.0.0.1", "host.example",
		"/run/app.sock", "", " ", "\x00", "é\u2028", "%2f..", "(", "a{1000}", "10s", "-1s", "{}", `{"@type":"x"}`, "spiffe://x", string(make([]byte, 300)))
}

func one[T any](d dice, of ...T) T { return of[d.IntN(len(of))] }

// fill changes about one field in part of what v holds.
func (d dice) fill(v reflect.Value, part, depth int) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		d.fill(v.Elem(), part, depth)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() && depth > 0 && d.IntN(part) == 0 {
				d.fill(v.Field(i), part, depth-1)
			}
		}
	case reflect.Slice:
		list := reflect.MakeSlice(v.Type(), d.IntN(4), 4)
		for i := range list.Len() {
			d.fill(list.Index(i), max(1, part/2), depth)
		}
		v.Set(list)
	case reflect.Map:
		m := reflect.MakeMap(v.Type())
		for range d.IntN(3) {
			value := reflect.New(v.Type().Elem()).Elem()
			d.fill(value, part, depth)
			m.SetMapIndex(reflect.ValueOf(d.text()).Convert(v.Type().Key()), value)
		}
		v.Set(m)
	case reflect.String:
		v.SetString(d.text())
	case reflect.Bool:
		v.SetBool(d.IntN(2) == 0)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(one[int64](d, 0, 1, 5, 80, 100, 1000, 65535, 65536, 1<<31-1, 1<<31, 1<<53, -1))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(one[uint64](d, 0, 1, 100, 65536, 1<<32-1))
	case reflect.Float32, reflect.Float64:
		v.SetFloat(one(d, 0, 0.01, 1, 50, 99.99, 100, 1e300, -1))
	case reflect.Interface:
		if v.NumMethod() == 0 {
			v.Set(reflect.ValueOf(one[any](d, "x", 1.0, true, []any{"x"}, map[string]any{"a": 1.0})))
		}
	}
}

// entries are some that are accepted.
func (d dice) entries() *config.Set {
	var out []config.Entry
	for _, kind := range config.Kinds() {
		for _, name := range []string{"web", "api", "db", "*", "global", "mesh"} {
			for _, seed := range []string{
				`{"Kind":%q,"Name":%q}`,
				`{"Kind":%q,"Name":%q,"Protocol":"http"}`,
				`{"Kind":%q,"Name":%q,"Sources":[{"Name":"web","Action":"allow"},{"Name":"*","Action":"deny"}]}`,
				`{"Kind":%q,"Name":%q,"JWT":{"Providers":[{"Name":"web"}]},"Sources":[{"Name":"web","Permissions":[{"Action":"allow","HTTP":{"PathPrefix":"/","Header":[{"Name":"x","Exact":"y"}]},"JWT":{"Providers":[{"Name":"api","VerifyClaims":[{"Path":["a"],"Value":"b"}]}]}},{"Action":"deny","HTTP":{"PathRegex":"/a.*"}}]}]}`,
				`{"Kind":%q,"Name":%q,"Issuer":"i","JSONWebKeySet":{"Local":{"JWKS":"eyJrZXlzIjpbeyJrdHkiOiJFQyIsImNydiI6IlAtMjU2IiwiYWxnIjoiRVMyNTYiLCJraWQiOiIxIiwieCI6IjBHWmRGd0dzck9EdGRPRVNRYkZWMEN6Yldna19fSUI2T3pGV2dZOGhjY2ciLCJ5IjoieDU2RGVvOC1YZnR6TkpyZk9kTXVkMGxxZktIdzVRU21uQVJqdFpEN1pCZyJ9XX0="}},"Locations":[{"Header":{"Name":"x"}}],"Forwarding":{"HeaderName":"x"}}`,
				`{"Kind":%q,"Destination":%q,"Source":"web","Legacy":{"Address":"127.0.0.1:1","Host":"old"},"Shares":{"legacy":50,"direct":25,"mtls":25},"Sticky":{"Source":true}}`,
				`{"Kind":%q,"Name":%q,"Audit":{"Sources":["web"],"Default":true}}`,
			} {
				e, err := config.DecodeEntryJSON(fmt.Appendf(nil, seed, kind, name))
				if err != nil {
					continue
				}
				d.fill(reflect.ValueOf(e), 4, 6)
				body, err := config.EncodeEntry(e)
				if err != nil {
					continue
				}
				if e, err = config.DecodeEntryJSON(body); err == nil {
					out = append(out, e)
				}
			}
		}
	}
	return config.NewSet(out...)
}

// registration is one that is accepted, or not.
func (d dice) registration() (config.Definition, bool) {
	var p config.ProxyConfig
	d.fill(reflect.ValueOf(&p), 6, 4)
	var upstreams []any
	for i := range d.IntN(5) {
		var settings config.UpstreamSettings
		d.fill(reflect.ValueOf(&settings), 4, 4)
		u := map[string]any{"DestinationName": one(d, "web", "api", "db"), "LocalBindPort": 7000 + i, "Config": map[string]any{
			"protocol": settings.Protocol, "connect_timeout_ms": settings.ConnectTimeoutMs, "limits": settings.Limits,
			"passive_health_check": settings.PassiveHealthCheck, "balance_outbound_connections": settings.BalanceOutboundConnections,
			"envoy_listener_json": settings.EnvoyListenerJSON, "envoy_cluster_json": settings.EnvoyClusterJSON,
		}}
		if d.IntN(4) == 0 {
			u["Datacenter"] = "dc2"
		}
		if d.IntN(4) == 0 {
			delete(u, "LocalBindPort")
			u["LocalBindSocketPath"] = fmt.Sprintf("/run/%d.sock", i)
		}
		upstreams = append(upstreams, u)
	}
	body, err := json.Marshal(map[string]any{
		"Name": one(d, "web", "api", "db"), "Port": one(d, 0, 80, 8080), "Address": one(d, "", "10.0.0.1", "host.example", "fd00::1"),
		"Connect": map[string]any{"SidecarService": map[string]any{"Port": one(d, 0, 21000), "Proxy": map[string]any{"Upstreams": upstreams, "Config": p}}},
	})
	if err != nil {
		return config.Definition{}, false
	}
	out, err := config.DecodeRegistration(body)
	return out, err == nil && out.SidecarService() != nil
}

// FuzzAccepted holds that whatever entries and registrations are accepted, a sidecar
// and its endpoints are built from them, and can be sent.
func FuzzAccepted(f *testing.F) {
	for seed := range uint64(effort.Rounds(200)) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		d := dice{rand.New(rand.NewPCG(seed, 1))}
		set := d.entries()
		definition, accepted := d.registration()
		for range 20 {
			if accepted {
				break
			}
			definition, accepted = d.registration()
		}
		if !accepted {
			return
		}
		service := *definition.SidecarService()
		node := &catalog.Node{Name: "n", Address: one(d, "10.0.0.1", "host.example", "fd00::1", "", "\xff")}
		in := catalog.Instance{Node: node, Service: &service}
		p, _ := proxy.Build(proxy.Input{
			Instance: in, Config: set, Datacenter: "dc1", TrustDomain: "test.consul", DefaultAllow: d.IntN(2) == 0,
			AllowEscapeHatches: d.IntN(2) == 0, Known: func(string) bool { return d.IntN(2) == 0 },
		})
		r, err := envoy.Build(p)
		if err != nil {
			t.Fatalf("not built: %v", err)
		}
		for _, m := range messages(r) {
			sendable(t, m)
		}
		snap := catalog.NewSnapshot("dc1", 1, map[string]*catalog.Set{
			service.Name:            catalog.NewSet(service.Name, []catalog.Instance{in, in}),
			definition.Service.Name: catalog.NewSet(definition.Service.Name, []catalog.Instance{{Node: node, Service: &definition.Service}}),
		})
		for _, ref := range append(p.Endpoints(), proxy.EndpointsOf(routing.Target{Service: definition.Service.Name, Datacenter: "dc1"}, "test.consul")) {
			sendable(t, envoy.Endpoints(proxy.BuildEndpoints(snap, ref, nil, nil)))
		}
	})
}

// sendable fails unless a message can be written, and keeps Envoy's own rules.
func sendable(t *testing.T, m proto.Message) {
	t.Helper()
	if _, err := proto.Marshal(m); err != nil {
		t.Errorf("%v: %v", m, err)
	}
	for _, part := range append(packed(m), m) {
		if v, ok := part.(interface{ ValidateAll() error }); ok {
			if err := v.ValidateAll(); err != nil {
				t.Errorf("Envoy will refuse %v: %v", part, err)
			}
		}
	}
}
