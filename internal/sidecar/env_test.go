package sidecar

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

func TestUpstreamEnv(t *testing.T) {
	for _, tt := range []struct {
		name string
		up   []catalog.Upstream
		want []string
	}{
		{"none", nil, nil},
		{"plain name", []catalog.Upstream{{DestinationName: "catalog", LocalBindPort: 7100}}, []string{
			"NOMAD_UPSTREAM_ADDR_catalog=127.0.0.1:7100", "NOMAD_UPSTREAM_IP_catalog=127.0.0.1", "NOMAD_UPSTREAM_PORT_catalog=7100",
		}},
		{"raw and cleaned, case kept", []catalog.Upstream{{DestinationName: "Count-API", LocalBindPort: 1}}, []string{
			"NOMAD_UPSTREAM_ADDR_Count-API=127.0.0.1:1", "NOMAD_UPSTREAM_IP_Count-API=127.0.0.1", "NOMAD_UPSTREAM_PORT_Count-API=1",
			"NOMAD_UPSTREAM_ADDR_Count_API=127.0.0.1:1", "NOMAD_UPSTREAM_IP_Count_API=127.0.0.1", "NOMAD_UPSTREAM_PORT_Count_API=1",
		}},
		{"own address", []catalog.Upstream{{DestinationName: "db", LocalBindAddress: "127.0.0.9", LocalBindPort: 5432}}, []string{
			"NOMAD_UPSTREAM_ADDR_db=127.0.0.9:5432", "NOMAD_UPSTREAM_IP_db=127.0.0.9", "NOMAD_UPSTREAM_PORT_db=5432",
		}},
		{"any address is reached by loopback", []catalog.Upstream{{DestinationName: "db", LocalBindAddress: "::", LocalBindPort: 5432}}, []string{
			"NOMAD_UPSTREAM_ADDR_db=[::1]:5432", "NOMAD_UPSTREAM_IP_db=::1", "NOMAD_UPSTREAM_PORT_db=5432",
		}},
		{"same name twice: the later wins", []catalog.Upstream{{DestinationName: "a", LocalBindPort: 1}, {DestinationName: "a", LocalBindPort: 2}}, []string{
			"NOMAD_UPSTREAM_ADDR_a=127.0.0.1:2", "NOMAD_UPSTREAM_IP_a=127.0.0.1", "NOMAD_UPSTREAM_PORT_a=2",
		}},
		{"unix socket", []catalog.Upstream{{DestinationName: "a", LocalBindSocketPath: "/run/a.sock"}}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := upstreamEnv(localUpstreams(&catalog.Proxy{Upstreams: tt.up}))
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("environment (-want +got):\n%s", d)
			}
		})
	}
}

func TestCleanName(t *testing.T) {
	for in, want := range map[string]string{
		"catalog": "catalog", "a-b": "a_b", "a.b": "a.b", "A_9": "A_9", "9lives": "_lives", "a b/c": "a_b_c", "é": "__", "": "",
	} {
		if got := cleanName(in); got != want {
			t.Errorf("cleanName(%q) = %q, want %q", in, got, want)
		}
	}
}
