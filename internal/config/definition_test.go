package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"
	"github.com/rogpeppe/go-internal/txtar"
	"pgregory.net/rapid"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

func TestDecodeDefinitions(t *testing.T) {
	a, err := txtar.ParseFile("testdata/definitions.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(a.Files); i += 2 {
		in, want := a.Files[i], strings.TrimSpace(string(a.Files[i+1].Data))
		t.Run(in.Name, func(t *testing.T) {
			defs, err := DecodeDefinitions(in.Name, in.Data)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, d := range defs {
				got = append(got, string(marshal(t, d)))
				if side := d.SidecarService(); side != nil {
					data, err := json.Marshal(side)
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, "sidecar "+string(data))
				}
			}
			if diff := cmp.Diff(strings.Split(want, "\n"), got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func marshal(t interface {
	Helper()
	Fatal(...any)
}, d Definition) []byte {
	t.Helper()
	data, err := d.MarshalRegistration()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestShortFormProtocol(t *testing.T) {
	defs, err := DecodeDefinitions("-", []byte("service: a\nid: a-1\nport: 1\nprotocol: GRPC\n"))
	if err != nil || len(defs) != 1 || defs[0].Protocol != GRPC || defs[0].Service.ID != "a-1" || defs[0].Sidecar == nil {
		t.Errorf("%+v, %v", defs, err)
	}
}

// Both forms say a sidecar's size, and the registry's copy says the same.
func TestSizing(t *testing.T) {
	want := Sizing{CPU: 0.5, MemoryBytes: 128 * MiB, Concurrency: 1, MaxConnections: 10000}
	for name, text := range map[string]string{
		"a.yaml": "service: a\nport: 1\nsidecar: {cpu: 0.5, memory: 134217728, concurrency: 1, connections: 1e4}",
		"a.hcl":  `service { name = "a" port = 1 connect { sidecar_service { proxy { config { crossfade_sizing { cpu = "0.5" memory = "0.125GiB" concurrency = 1 connections = 10000 } } } } } }`,
		"p.json": `{"service": {"kind": "connect-proxy", "name": "p", "port": 1, "proxy": {"destination_service_name": "a",
			"config": {"crossfade_sizing": {"cpu": 0.5, "memory": "131072KiB", "concurrency": "1", "connections": 10000}}}}}`,
	} {
		defs, err := DecodeDefinitions(name, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeRegistration(marshal(t, defs[0]))
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range []Definition{defs[0], back} {
			if got := d.Sizing(); got != want {
				t.Errorf("%s: %+v, want %+v", name, got, want)
			}
		}
	}
	if got := (Definition{}).Sizing(); got != (Sizing{}) {
		t.Errorf("of nothing: %+v", got)
	}
}

func TestBytes(t *testing.T) {
	for b, want := range map[Bytes]string{0: "0B", 1: "1B", 1000: "1KB", 1024: "1KiB", 1 << 30: "1GiB", 1e9: "1GB", 3 << 20: "3MiB", 1025: "1025B"} {
		if b.String() != want {
			t.Errorf("%d is %s, want %s", int64(b), b, want)
		}
	}
}

// What Consul's own client sends and reads.
func TestRegistrationConsulClient(t *testing.T) {
	body, err := json.Marshal(&api.AgentServiceRegistration{
		Kind: api.ServiceKindTypical, ID: "web-1", Name: "web", Tags: []string{"a"}, Port: 8080, Address: "10.0.0.1",
		Check: &api.AgentServiceCheck{TTL: "10s"}, Checks: api.AgentServiceChecks{{HTTP: "http://127.0.0.1:1/", Interval: "1s"}},
		Weights: &api.AgentWeights{Passing: 3, Warning: 1}, Namespace: "default",
		Connect: &api.AgentServiceConnect{SidecarService: &api.AgentServiceRegistration{Proxy: &api.AgentServiceConnectProxyConfig{
			Config: map[string]any{"protocol": "http", "envoy_dogstatsd_url": "x"}, Mode: api.ProxyModeDirect,
			Upstreams: []api.Upstream{{DestinationName: "db", LocalBindPort: 5, DestinationNamespace: "default"}},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	d, err := DecodeRegistration(body)
	if err != nil {
		t.Fatal(err)
	}
	want := Definition{
		Service: catalog.Service{
			ID: "web-1", Name: "web", Tags: []string{"a"}, Port: 8080, Address: "10.0.0.1", Weights: catalog.Weights{Passing: 3, Warning: 1},
		},
		Sidecar: &Definition{Service: catalog.Service{Kind: catalog.ConnectProxy, Proxy: &catalog.Proxy{
			Config:    map[string]any{"protocol": "http", "envoy_dogstatsd_url": "x"},
			Upstreams: []catalog.Upstream{{DestinationType: "service", DestinationName: "db", LocalBindPort: 5}},
		}}},
		Checks: []CheckDefinition{
			{ID: "service:web-1:1", Name: "Service 'web' check", Status: catalog.Critical, HTTP: "http://127.0.0.1:1/", Interval: Duration(time.Second)},
			{ID: "service:web-1:2", Name: "Service 'web' check", Status: catalog.Critical, TTL: Duration(10 * time.Second)},
		},
	}
	if diff := cmp.Diff(want, d); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	var back api.AgentServiceRegistration
	dec := json.NewDecoder(bytes.NewReader(marshal(t, d)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&back); err != nil || back.Checks[1].TTL != "10s" || back.Connect.SidecarService.ID != "" {
		t.Errorf("Consul's client reads %+v, %v", back, err)
	}
}

func TestDecodeRegistrationRefuses(t *testing.T) {
	for body, want := range map[string]string{
		`{"Name":"x","Foo":1}`:                         `service "x": Foo: unknown field`,
		`{"Name":"x","Port":"80"}`:                     `service "x": Port: want a number, got string "80"`,
		`{"Port":80}`:                                  `service: Name: missing`,
		`{"Name":"x","ID":"a b"}`:                      `service "x": ID: "a b": want up to 256 letters, digits and _.:@~+=,-`,
		`{"Name":"x","Check":{"ScriptArgs":["true"]}}`: `service "x": Check.ScriptArgs: ` + scriptChecks,
		`{"Name":"x","Ports":[{"Name":"a","Port":1,"Default":true}]}`:     `service "x": Ports: not served by this version`,
		`{"Name":"x","Weights":{"Passing":0,"Warning":5}}`:                `service "x": Weights: want passing 1 to 65535 and warning 0 to 65535`,
		`{"Name":"x","Checks":[{"TTL":"1s","Header":{"a":["b",null]}}]}`:  `service "x": Checks[0].Header["a"][1]: must not be null`,
		`{"Name":"x","Port":5,"Connect":{"SidecarService":{"Port":"x"}}}`: `service "x": Connect.SidecarService.Port: want a number, got string "x"`,
	} {
		if _, err := DecodeRegistration([]byte(body)); err == nil || err.Error() != want {
			t.Errorf("%s\n got %v\nwant %s", body, err, want)
		}
	}
}

func TestRegistrationRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := definition().Draw(t, "definition")
		want.normalize()
		body := marshal(t, want)
		got, err := DecodeRegistration(body)
		if err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%s\n(-want +got)\n%s", body, diff)
		}
	})
}

// definition generates valid definitions as they are before normalizing.
func definition() *rapid.Generator[Definition] {
	name := rapid.StringMatching(`[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}`)
	text := rapid.StringN(0, 20, -1)
	some := func(t *rapid.T, label string) bool { return rapid.Bool().Draw(t, label) }
	service := func(t *rapid.T, s *catalog.Service) {
		if some(t, "tags") {
			s.Tags = rapid.SliceOfN(text, 1, 3).Draw(t, "tag")
		}
		if some(t, "meta") {
			s.Meta = rapid.MapOfN(name, text, 1, 3).Draw(t, "pair")
		}
		s.Address = rapid.SampledFrom([]string{"", "10.0.0.1", "::1", "host.example"}).Draw(t, "address")
		s.EnableTagOverride = some(t, "override")
		if some(t, "tagged") {
			s.TaggedAddresses = map[string]catalog.Address{text.Draw(t, "tag"): {Address: "10.0.0.2", Port: rapid.IntRange(0, maxPort).Draw(t, "port")}}
		}
		if some(t, "weights") {
			s.Weights = catalog.Weights{Passing: rapid.IntRange(1, 10).Draw(t, "passing"), Warning: rapid.IntRange(0, 10).Draw(t, "warning")}
		}
	}
	checks := func(t *rapid.T) []CheckDefinition {
		var out []CheckDefinition
		for i := range rapid.IntRange(0, 3).Draw(t, "checks") {
			c := rapid.SampledFrom([]CheckDefinition{
				{HTTP: "http://127.0.0.1:80/a?b=<c>", Method: "PUT", Header: map[string][]string{"A": {"b", ""}}, Body: "\x01é", Interval: 5},
				{TCP: "[::1]:80", Interval: Duration(time.Hour), Timeout: 3, FailuresBeforeCritical: 2, FailuresBeforeWarning: 1},
				{UDP: "10.0.0.1:53", Interval: 1, OutputMaxSize: 100},
				{H2PING: "a.b:1", H2PingUseTLS: new(bool), TLSServerName: "c.d", Interval: 1},
				{TCP: "[::1]:80", TCPUseTLS: true, Interval: 1},
				{HTTP: "https://127.0.0.1:80/", DisableRedirects: true, Interval: 1},
				{GRPC: "a.b:1/svc", GRPCUseTLS: true, TLSSkipVerify: true, Interval: 1, DeregisterCriticalServiceAfter: 1},
				{TTL: Duration(1500 * time.Millisecond), Status: catalog.Passing, Notes: "n", Name: "mine"},
				{AliasNode: "n", AliasService: "s", SuccessBeforePassing: 4},
			}).Draw(t, "check")
			if some(t, "id") {
				c.ID = fmt.Sprintf("id %d", i)
			}
			out = append(out, c)
		}
		return out
	}
	proxy := func(t *rapid.T) *catalog.Proxy {
		p := &catalog.Proxy{DestinationServiceName: name.Draw(t, "destination"), LocalServicePort: rapid.IntRange(0, 999).Draw(t, "local")}
		if some(t, "exposed") {
			p.Expose = catalog.Expose{Checks: some(t, "checks"), Paths: []catalog.ExposePath{{Path: "/m", ListenerPort: 4000, LocalPathPort: 1, Protocol: "http2"}, {Path: "/n", ListenerPort: 4001}}}
		}
		if some(t, "config") {
			p.Config = map[string]any{"protocol": "http", "x": []any{1.5, nil, "a", true, map[string]any{}}, text.Draw(t, "key"): -3.0}
		}
		for i := range rapid.IntRange(0, 3).Draw(t, "upstreams") {
			u := catalog.Upstream{DestinationName: name.Draw(t, "upstream"), LocalBindPort: 2000 + i, Datacenter: "dc2"}
			if some(t, "socket") {
				u.LocalBindPort, u.LocalBindSocketPath, u.LocalBindSocketMode = 0, fmt.Sprintf("/run/%d.sock", i), "0600"
			}
			p.Upstreams = append(p.Upstreams, u)
		}
		return p
	}
	return rapid.Custom(func(t *rapid.T) Definition {
		d := Definition{Service: catalog.Service{Name: name.Draw(t, "name"), Port: rapid.IntRange(1000, 1999).Draw(t, "port")}}
		if some(t, "id") {
			d.Service.ID = name.Draw(t, "id")
		}
		service(t, &d.Service)
		d.Checks = checks(t)
		switch rapid.SampledFrom([]string{"plain", "native", "proxy", "sidecar"}).Draw(t, "kind") {
		case "native":
			d.Service.Connect.Native = true
		case "proxy":
			d.Service.Kind, d.Service.Proxy = catalog.ConnectProxy, proxy(t)
		case "sidecar":
			d.Sidecar = &Definition{Service: catalog.Service{Proxy: proxy(t)}, Checks: checks(t)}
			service(t, &d.Sidecar.Service)
			if d.Sidecar.Service.Weights == (catalog.Weights{}) && some(t, "named") {
				d.Sidecar.Service.Name = "side"
			}
		}
		return d
	})
}
