package proxy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// TestScenarios prints what is decided for each sidecar of a scenario, and what
// could not be honoured.
func TestScenarios(t *testing.T) {
	meshtest.Golden(t, "testdata/*.txtar", func(t *testing.T, input []txtar.File) []txtar.File {
		s := meshtest.Parse(t, input)
		var proxies, problems strings.Builder
		for _, in := range s.Sidecars {
			p, list := proxy.Build(proxy.Input{Instance: in, Config: s.Config, Datacenter: meshtest.Datacenter, TrustDomain: "td.consul", DefaultAllow: s.DefaultAllow})
			proxies.WriteString(p.Describe())
			for _, problem := range list {
				fmt.Fprintln(&problems, problem)
			}
		}
		out := []txtar.File{{Name: "proxies", Data: []byte(proxies.String())}}
		if problems.Len() > 0 {
			out = append(out, txtar.File{Name: "problems", Data: []byte(problems.String())})
		}
		return out
	})
}

// sidecar is a registration as a foreign client may make it: nothing checked it.
func sidecar(s catalog.Service) proxy.Input {
	s.Kind = catalog.ConnectProxy
	if s.ID == "" {
		s.ID = "web-sidecar-proxy"
	}
	return proxy.Input{
		Instance:   catalog.Instance{Node: &catalog.Node{Name: "n1", Address: "127.0.0.1"}, Service: &s},
		Config:     config.NewSet(),
		Datacenter: "dc1", TrustDomain: "td.consul", DefaultAllow: true,
	}
}

func TestBadUpstreamHarmsItselfAlone(t *testing.T) {
	good := catalog.Upstream{DestinationName: "good", LocalBindPort: 7000}
	long := "/" + strings.Repeat("x", 107)
	for _, tc := range []struct {
		name string
		bad  catalog.Upstream
		want string
	}{
		{"no name", catalog.Upstream{LocalBindPort: 7100}, "no destination name"},
		{"prepared query", catalog.Upstream{DestinationName: "a", DestinationType: "prepared_query", LocalBindPort: 7100}, `destination type "prepared_query" is not supported`},
		{"peer", catalog.Upstream{DestinationName: "a", DestinationPeer: "p", LocalBindPort: 7100}, "cluster peering is not supported"},
		{"namespace", catalog.Upstream{DestinationName: "a", DestinationNamespace: "x", LocalBindPort: 7100}, "namespaces and partitions"},
		{"partition", catalog.Upstream{DestinationName: "a", DestinationPartition: "x", LocalBindPort: 7100}, "namespaces and partitions"},
		{"reserved name", catalog.Upstream{DestinationName: "public_listener", LocalBindPort: 7100}, "cannot be called so"},
		{"wildcard", catalog.Upstream{DestinationName: "*", LocalBindPort: 7100}, "cannot be called so"},
		{"no port", catalog.Upstream{DestinationName: "a"}, "local bind port 0 is out of range"},
		{"port too high", catalog.Upstream{DestinationName: "a", LocalBindPort: 65536}, "local bind port 65536 is out of range"},
		{"host name", catalog.Upstream{DestinationName: "a", LocalBindAddress: "localhost", LocalBindPort: 7100}, `local bind address "localhost" is no IP address`},
		{"long socket path", catalog.Upstream{DestinationName: "a", LocalBindSocketPath: long}, "socket path has 108 bytes, a socket can have 107"},
		{"same port", catalog.Upstream{DestinationName: "a", LocalBindPort: 7000}, `127.0.0.1:7000 is taken by upstream "good" port 7000`},
		{"same port on all addresses", catalog.Upstream{DestinationName: "a", LocalBindAddress: "0.0.0.0", LocalBindPort: 7000}, `is taken by upstream "good"`},
		{"public port", catalog.Upstream{DestinationName: "a", LocalBindPort: 20000}, "127.0.0.1:20000 is taken by public_listener"},
		{"other protocol", catalog.Upstream{DestinationName: "good", LocalBindPort: 7100, Config: map[string]any{"protocol": "http"}}, "protocol http does not go with that of another upstream"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, problems := proxy.Build(sidecar(catalog.Service{Port: 20000, Proxy: &catalog.Proxy{DestinationServiceName: "web", Upstreams: []catalog.Upstream{good, tc.bad}}}))
			if len(problems) != 1 || !strings.Contains(problems[0].Reason, tc.want) || problems[0].Service != "web" {
				t.Errorf("problems %v, want one with %q", problems, tc.want)
			}
			if len(p.Upstreams) != 1 || p.Upstreams[0].Name != "good" || p.Inbound == nil {
				t.Errorf("the rest suffered: %s", p.Describe())
			}
		})
	}
}

func TestBadSettingTakesTheDefault(t *testing.T) {
	for _, tc := range []struct {
		name   string
		config map[string]any
		want   string
	}{
		{"unknown key", map[string]any{"envoy_cluster_json": "{}"}, `"envoy_cluster_json": unknown key, it would have no effect`},
		{"bootstrap hatch", map[string]any{"envoy_tracing_json": "{}"}, `"envoy_tracing_json": this escape hatch is not served, only envoy_public_listener_json`},
		{"hatch", map[string]any{"envoy_public_listener_json": "{}"}, `envoy_public_listener_json: escape hatches are off, it has no effect: start the servers with --allow-escape-hatches`},
		{"wrong type", map[string]any{"local_connect_timeout_ms": []any{}}, "local_connect_timeout_ms"},
		{"unknown protocol", map[string]any{"protocol": "gopher"}, "gopher"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, problems := proxy.Build(sidecar(catalog.Service{Port: 20000, Proxy: &catalog.Proxy{DestinationServiceName: "web", Config: tc.config}}))
			if len(problems) == 0 || !strings.Contains(fmt.Sprint(problems), tc.want) {
				t.Errorf("problems %v, want %q", problems, tc.want)
			}
			if in := p.Inbound; in == nil || in.Protocol != "tcp" || in.App.ConnectTimeout.Seconds() != 5 {
				t.Errorf("inbound %+v, want the defaults", in)
			}
		})
	}
}

func TestInboundAddress(t *testing.T) {
	for _, tc := range []struct {
		service catalog.Service
		config  map[string]any
		want    string
		problem string
	}{
		{catalog.Service{Port: 20000}, nil, "public_listener:127.0.0.1:20000", ""},
		{catalog.Service{Port: 20000, Address: "10.0.0.7"}, nil, "public_listener:10.0.0.7:20000", ""},
		{catalog.Service{Port: 20000, Address: "db.internal"}, map[string]any{"bind_address": "0.0.0.0", "bind_port": 1234}, "public_listener:0.0.0.0:1234", ""},
		{catalog.Service{Port: 20000, Address: "::1"}, nil, "public_listener:::1:20000", ""},
		{catalog.Service{Port: 20000, Address: "db.internal"}, nil, "", `address "db.internal" is no IP address`},
		{catalog.Service{}, nil, "", "port 0 is out of range"},
	} {
		tc.service.Proxy = &catalog.Proxy{DestinationServiceName: "web", Config: tc.config}
		p, problems := proxy.Build(sidecar(tc.service))
		got := ""
		if p.Inbound != nil {
			got = p.Inbound.ListenerName
		}
		if got != tc.want || (tc.problem == "") != (len(problems) == 0) || !strings.Contains(fmt.Sprint(problems), tc.problem) {
			t.Errorf("%s:%d %v: %q, %v; want %q, %q", tc.service.Address, tc.service.Port, tc.config, got, problems, tc.want, tc.problem)
		}
	}
}

func TestAdmissionHasALimit(t *testing.T) {
	in := sidecar(catalog.Service{Port: 20000, Proxy: &catalog.Proxy{DestinationServiceName: "web", LocalServicePort: 80}})
	e := &config.ServiceIntentions{Kind: config.KindServiceIntentions, Name: "web"}
	for i := range 3000 {
		e.Sources = append(e.Sources, &config.SourceIntention{Name: fmt.Sprintf("service-%d", i), Action: config.Deny})
	}
	in.Config = config.NewSet(e)
	p, problems := proxy.Build(in)
	if a := p.Inbound.Admission; len(a.Exceptions) != 0 || !a.Otherwise {
		t.Errorf("admission %+v, want all let through to the rules by map", a)
	}
	if len(p.Inbound.Intentions.Callers) != 3000 || len(problems) != 1 || !strings.Contains(problems[0].Reason, "3000 callers") {
		t.Errorf("%d callers, problems %v", len(p.Inbound.Intentions.Callers), problems)
	}
}

// TestReadsIsComplete changes each entry that could matter and finds it among Reads.
func TestReadsIsComplete(t *testing.T) {
	in := sidecar(catalog.Service{Port: 20000, Proxy: &catalog.Proxy{DestinationServiceName: "web", LocalServicePort: 80,
		Upstreams: []catalog.Upstream{{DestinationName: "db", LocalBindPort: 7000}}}})
	before, _ := proxy.Build(in)
	for _, e := range []config.Entry{
		&config.ProxyDefaults{Kind: config.KindProxyDefaults, Name: "global", Config: map[string]any{"protocol": "http"}},
		&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "web", Protocol: "http"},
		&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "db", Protocol: "http"},
		&config.ServiceIntentions{Kind: config.KindServiceIntentions, Name: "web", Sources: []*config.SourceIntention{{Name: "a", Action: config.Deny}}},
		&config.ServiceIntentions{Kind: config.KindServiceIntentions, Name: "*", Sources: []*config.SourceIntention{{Name: "a", Action: config.Deny}}},
		&config.TrafficPolicy{Kind: config.KindTrafficPolicy, Name: "web", Audit: &config.Audit{Default: true}},
		&config.TrafficPolicy{Kind: config.KindTrafficPolicy, Name: "*", Audit: &config.Audit{Default: true}},
		&config.Mesh{Kind: config.KindMesh, HTTP: &config.MeshHTTP{Incoming: &config.MeshIncoming{RequestNormalization: &config.RequestNormalization{InsecureDisablePathNormalization: true}}}},
	} {
		in.Config = config.NewSet(e)
		after, _ := proxy.Build(in)
		if after.Describe() == before.Describe() {
			t.Errorf("%s changes nothing", config.KeyOf(e))
		}
		if !slices.Contains(before.Reads, config.KeyOf(e)) {
			t.Errorf("%s is not among the reads %v", config.KeyOf(e), before.Reads)
		}
	}
	in.Config = config.NewSet(&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "unrelated", Protocol: "http"})
	if after, _ := proxy.Build(in); after.Describe() != before.Describe() {
		t.Error("an unrelated entry changes the proxy")
	}
}
