package config

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"
	"github.com/rogpeppe/go-internal/txtar"
)

func TestDecodeEntry(t *testing.T) {
	a, err := txtar.ParseFile("testdata/entries.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var pending []txtar.File
	for _, f := range a.Files {
		if f.Name != "want" {
			pending = append(pending, f)
			continue
		}
		want := strings.TrimSpace(string(f.Data))
		for _, in := range pending {
			t.Run(in.Name, func(t *testing.T) {
				e, err := DecodeEntry(in.Name, in.Data)
				if err != nil {
					t.Fatal(err)
				}
				if got := encode(t, e); got != want {
					t.Errorf("got  %s\nwant %s", got, want)
				}
				if err := e.Validate(); err != nil {
					t.Error(err)
				}
			})
		}
		pending = nil
	}
}

func encode(t *testing.T, e Entry) string {
	t.Helper()
	data, err := EncodeEntry(e)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// Consul's own client writes and reads the entries.
func TestConsulClient(t *testing.T) {
	limit, percent, eject := 3, uint32(50), 30*time.Second
	for _, want := range []api.ConfigEntry{
		&api.ServiceConfigEntry{
			Kind: api.ServiceDefaults, Name: "web", Protocol: "grpc", Mode: api.ProxyModeDirect,
			TransparentProxy: &api.TransparentProxyConfig{},
			UpstreamConfig: &api.UpstreamConfiguration{
				Overrides: []*api.UpstreamConfig{{Name: "db", ConnectTimeoutMs: 5, Limits: &api.UpstreamLimits{MaxConnections: &limit}}},
				Defaults: &api.UpstreamConfig{PassiveHealthCheck: &api.PassiveHealthCheck{
					Interval: 10 * time.Second, MaxFailures: 2, MaxEjectionPercent: &percent, BaseEjectionTime: &eject,
				}},
			},
			MaxInboundConnections: 4, LocalConnectTimeoutMs: 5, LocalRequestTimeoutMs: 6, BalanceInboundConnections: "exact_balance",
			RateLimits: &api.RateLimits{}, EnvoyExtensions: []api.EnvoyExtension{}, Meta: map[string]string{"a": "b"}, ModifyIndex: 7,
		},
		&api.ProxyConfigEntry{
			Kind: api.ProxyDefaults, Name: "global", Config: map[string]any{"protocol": "http", "local_request_timeout_ms": 5.0},
			MutualTLSMode: api.MutualTLSModeStrict, AccessLogs: &api.AccessLogsConfig{}, TransparentProxy: &api.TransparentProxyConfig{},
		},
		&api.ServiceIntentionsConfigEntry{Kind: api.ServiceIntentions, Name: "web", Sources: []*api.SourceIntention{
			{Name: "a", Action: api.IntentionActionAllow, Precedence: 9, Type: api.IntentionSourceConsul, Description: "d"},
		}},
		&api.MeshConfigEntry{HTTP: &api.MeshHTTPConfig{Incoming: &api.MeshDirectionalHTTPConfig{
			RequestNormalization: &api.RequestNormalizationMeshConfig{MergeSlashes: true, HeadersWithUnderscoresAction: "ALLOW"},
		}}},
	} {
		t.Run(want.GetKind(), func(t *testing.T) {
			body, err := json.Marshal(want)
			if err != nil {
				t.Fatal(err)
			}
			e, err := DecodeEntryJSON(body)
			if err != nil {
				t.Fatalf("%s: %v", body, err)
			}
			got := reflect.New(reflect.TypeOf(want).Elem()).Interface()
			if err := json.Unmarshal([]byte(encode(t, e)), got); err != nil {
				t.Fatal(err)
			}
			// What asks for nothing does not come back.
			switch w := want.(type) {
			case *api.ServiceConfigEntry:
				w.Mode, w.TransparentProxy, w.RateLimits, w.EnvoyExtensions, w.ModifyIndex = "", nil, nil, nil, 0
			case *api.ProxyConfigEntry:
				w.AccessLogs, w.TransparentProxy = nil, nil
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("entry as Consul's client reads it back (-sent +got):\n%s", diff)
			}
		})
	}
}

func TestDecodeEntryJSONRefuses(t *testing.T) {
	for body, want := range map[string]string{
		`{"Kind":"service-defaults","Name":"web","Foo":1}`:                         `service-defaults "web": Foo: unknown field`,
		"{\"Kind\":\"service-defaults\",\n\"Name\":\"web\",\"Protocol\":\"smtp\"}": `line 2: service-defaults "web": Protocol: "smtp": want tcp, http, http2 or grpc`,
		`{"Kind":"service-defaults","Name":"web","EnvoyExtensions":[{}]}`:          `service-defaults "web": EnvoyExtensions: not served by this version`,
		`{"Kind":"ingress-gateway"}`:                                               `kind "ingress-gateway" is not served by this version; served are jwt-provider, mesh, proxy-defaults, service-defaults, service-intentions, service-resolver, service-router, service-splitter, traffic-policy, traffic-shift`,
		`{`:                                                                        `not valid JSON: unexpected end of JSON input`,
		`null`:                                                                     `want an object, got null`,
	} {
		if _, err := DecodeEntryJSON([]byte(body)); err == nil || err.Error() != want {
			t.Errorf("%s\n got %v\nwant %s", body, err, want)
		}
	}
}

func TestValidate(t *testing.T) {
	e := &ServiceDefaults{Name: "web", Protocol: "HTTP"}
	e.Normalize()
	if err := e.Validate(); err != nil || e.Protocol != HTTP || e.Kind != KindServiceDefaults {
		t.Errorf("%+v, %v", e, err)
	}
	e.LocalConnectTimeoutMs = -1
	const want = `service-defaults "web": LocalConnectTimeoutMs: -1: want 0 to 2147483647`
	if err := e.Validate(); err == nil || err.Error() != want {
		t.Errorf("Validate() = %v, want %s", err, want)
	}
}

func TestOpaque(t *testing.T) {
	c, unknown, err := DecodeProxyConfig(map[string]any{
		"protocol": "HTTP2", "bind_port": 20000.0, "local_connect_timeout_ms": "250", "max_inbound_connections": json.Number("7"),
		"local_idle_timeout_ms": int64(9), "bind_address": "0.0.0.0", "envoy_x": 1, "another": nil,
		"envoy_stats_tags": []any{"nomad.group=api", "team=a=b", "empty="},
	})
	want := ProxyConfig{
		Protocol: HTTP2, BindAddress: "0.0.0.0", BindPort: 20000, LocalConnectTimeoutMs: 250, LocalIdleTimeoutMs: 9, MaxInboundConnections: 7,
		StatsTags: []string{"nomad.group=api", "team=a=b", "empty="},
	}
	if err != nil || !reflect.DeepEqual(c, want) || !reflect.DeepEqual(unknown, []string{"another", "envoy_x"}) {
		t.Errorf("DecodeProxyConfig: %+v, %q, %v", c, unknown, err)
	}
	limit, percent := 3, uint32(80)
	u, unknown, err := DecodeUpstreamSettings(map[string]any{
		"connect_timeout_ms": 5, "protocol": "grpc", "name": "x", "mesh_gateway": map[string]any{"mode": "local"}, "envoy_cluster_json": "{}",
		"limits":               map[string]any{"MaxConnections": 3.0, "max_foo": 1},
		"passive_health_check": map[string]any{"interval": "10s", "max_failures": 4, "base_ejection_time": 30e9, "max_ejection_percent": "80"},
	})
	wantSettings := UpstreamSettings{
		Protocol: GRPC, ConnectTimeoutMs: 5, EnvoyClusterJSON: "{}", Limits: &UpstreamLimits{MaxConnections: &limit},
		PassiveHealthCheck: &PassiveHealthCheck{
			Interval: Duration(10 * time.Second), MaxFailures: 4, BaseEjectionTime: Duration(30 * time.Second), MaxEjectionPercent: &percent,
		},
	}
	if diff := cmp.Diff(wantSettings, u); diff != "" || err != nil {
		t.Errorf("DecodeUpstreamSettings: %v (-want +got)\n%s", err, diff)
	}
	if !reflect.DeepEqual(unknown, []string{"Limits.max_foo", "MeshGateway", "name"}) {
		t.Errorf("unknown keys %q", unknown)
	}
	if _, _, err := DecodeProxyConfig(map[string]any{"protocol": 5, "bind_port": -1}); err == nil ||
		err.Error() != "protocol: want a string, got number 5; put it in quotes\nbind_port: -1: want a port, 1 to 65535" {
		t.Errorf("error %v", err)
	}
	c, _, err = DecodeProxyConfig(map[string]any{statsTagsKey: []any{"good=1", "bad", "=x", "also=\n"}})
	if err == nil || strings.Count(err.Error(), "\n") != 2 || !strings.Contains(err.Error(), `envoy_stats_tags: "bad": want name=value`) || !reflect.DeepEqual(c.StatsTags, []string{"good=1"}) {
		t.Errorf("wrong labels: %q, %v", c.StatsTags, err)
	}
	var none *ProxyDefaults
	if none.Protocol() != "" || (&ProxyDefaults{Config: map[string]any{"protocol": "http"}}).Protocol() != HTTP {
		t.Error("ProxyDefaults.Protocol")
	}
}

func TestSet(t *testing.T) {
	web := &ServiceDefaults{Name: "web", Protocol: HTTP}
	all := &ServiceIntentions{Name: Wildcard}
	var empty *Set
	one := empty.With([]Entry{web, all, &Mesh{}}, nil)
	two := one.With([]Entry{&ProxyDefaults{Name: Global}}, []Key{KeyOf(all)})
	if one.ServiceDefaults("web") != web || one.Intentions(Wildcard) != all || one.Mesh() == nil || one.ProxyDefaults() != nil {
		t.Errorf("set holds %v", one.Keys())
	}
	want := []Key{{KindProxyDefaults, Global}, {KindServiceIntentions, Wildcard}}
	if got := Changed(one, two); !reflect.DeepEqual(got, want) {
		t.Errorf("Changed = %v, want %v", got, want)
	}
	if got := Changed(nil, NewSet(web)); !reflect.DeepEqual(got, []Key{{KindServiceDefaults, "web"}}) {
		t.Errorf("Changed from nothing = %v", got)
	}
	if empty.Get(Key{}) != nil || Changed(two, two) != nil {
		t.Error("an empty set or an unchanged one is not so")
	}
}
