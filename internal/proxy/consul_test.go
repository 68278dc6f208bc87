package proxy_test

import (
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// Where a registration that a Consul holds listens, and for whom.
func TestAsConsulServesIt(t *testing.T) {
	for _, tc := range []struct {
		name    string
		service catalog.Service
		config  map[string]any
		want    string
	}{
		{"no address", catalog.Service{Port: 21000}, nil, "public_listener:0.0.0.0:21000"},
		{"an address", catalog.Service{Port: 21000, Address: "127.0.0.5"}, nil, "public_listener:127.0.0.5:21000"},
		{"as Nomad registers", catalog.Service{Port: 28123, Address: "10.0.0.1"}, map[string]any{
			"bind_address": "0.0.0.0", "bind_port": 21000.0, "protocol": "http",
			"envoy_stats_tags": []any{"nomad.alloc_id=5fc65665-8bf4-1864-a408-0d082afda5e4", "nomad.group=api", "nomad.job=catalog", "nomad.namespace=default"},
		}, "public_listener:0.0.0.0:21000"},
	} {
		tc.service.Proxy = &catalog.Proxy{DestinationServiceName: "web", LocalServicePort: 8080, Config: tc.config}
		in := sidecar(tc.service)
		in.BindAny, in.ConsulCallers = true, true
		p, problems := proxy.Build(in)
		if p.Inbound == nil || p.Inbound.ListenerName != tc.want || !p.Inbound.TLS12 || len(problems) > 0 {
			t.Errorf("%s: %+v, %v; want %s", tc.name, p.Inbound, problems, tc.want)
		}
	}
	in := sidecar(catalog.Service{Port: 21000, Proxy: &catalog.Proxy{DestinationServiceName: "web"}})
	if p, _ := proxy.Build(in); p.Inbound.ListenerName != "public_listener:127.0.0.1:21000" || p.Inbound.TLS12 {
		t.Errorf("without a Consul: %+v", p.Inbound)
	}
}
