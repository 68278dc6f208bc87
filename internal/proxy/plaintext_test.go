package proxy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// plaintextOf builds the sidecar of service "a", permissive unless entries say otherwise.
// Services send from the addresses given.
func plaintextOf(t *testing.T, protocol, config, entries string, addresses map[string]string) (*proxy.Proxy, []proxy.Problem) {
	t.Helper()
	s := meshtest.Parse(t, txtar.Parse(fmt.Appendf(nil, `
-- services/a.hcl --
service {
  name = "a"
  port = 8080
  connect { sidecar_service { proxy {
    config { %s }
    upstreams = [{ destination_name = "b", local_bind_address = "127.0.0.1", local_bind_port = 7100 }]
  } } }
}
-- config/a.hcl --
Kind = "service-defaults"
Name = "a"
Protocol = %q
MutualTLSMode = "permissive"
-- config/b.hcl --
Kind = "service-defaults"
Name = "b"
Protocol = "tcp"
%s`, config, protocol, entries)).Files)
	return proxy.Build(proxy.Input{
		Instance: s.Sidecars[0], Config: s.Config, Datacenter: meshtest.Datacenter, TrustDomain: meshtest.TrustDomain, DefaultAllow: true, AllowEscapeHatches: true,
		Addresses: func(service string) (out []netip.Addr) {
			for text := range strings.FieldsSeq(addresses[service]) {
				out = append(out, netip.MustParseAddr(text))
			}
			return out
		},
	})
}

// Of several sources at one address what allows most decides, and the proxy says on whose
// addresses it depends.
func TestPlaintextByAddress(t *testing.T) {
	p, problems := plaintextOf(t, "http", "", `
-- config/intentions.hcl --
Kind = "service-intentions"
Name = "a"
Sources = [
  { Name = "web", Action = "allow" },
  { Name = "reports", Action = "deny" },
  { Name = "stock", Permissions = [{ Action = "allow", HTTP { PathPrefix = "/" } }] },
  { Name = "ghost", Action = "allow" },
  { Name = "*", Action = "deny" },
]
`, map[string]string{"web": "10.0.0.1 10.0.0.2", "reports": "10.0.0.1 10.0.0.3 10.0.0.4", "stock": "10.0.0.2 10.0.0.3 fd00::1", "other": "10.0.0.9"})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if want := []string{"ghost", "reports", "stock", "web"}; !slices.Equal(p.Sources, want) {
		t.Errorf("depends on the addresses of %q, want %q", p.Sources, want)
	}
	var got []string
	for _, h := range p.Inbound.Plaintext.Hosts {
		got = append(got, h.Address.String()+" "+h.Because)
	}
	want := []string{"10.0.0.1 web -> a", "10.0.0.2 web -> a", "10.0.0.3 stock -> a", "10.0.0.4 reports -> a", "fd00::1 stock -> a"}
	if !slices.Equal(got, want) {
		t.Errorf("hosts %q, want %q", got, want)
	}
	if p.Inbound.Plaintext.Otherwise.Allow {
		t.Error("others are let in")
	}
}

func TestPlaintextPorts(t *testing.T) {
	for _, tc := range []struct {
		name, protocol, config string
		port                   int
		apart                  bool
		problem                string
	}{
		{"of requests", "http", "plaintext_port = 21300", 0, false, ""},
		{"of tcp", "tcp", "", 0, false, ""},
		{"of its own", "tcp", "plaintext_port = 21300", 21300, false, ""},
		{"where the app speaks first", "tcp", "plaintext_port = 21300, server_first = true", 21300, true, ""},
		{"without a second port", "tcp", "server_first = true", 0, false, "server_first: without a plaintext_port"},
		{"the public port", "tcp", "plaintext_port = 21000", 0, false, "127.0.0.1:21000 is taken by public_listener"},
		{"another listener says it all", "tcp", `envoy_public_listener_json = "{}"`, -1, false, "has no effect beside envoy_public_listener_json"},
	} {
		p, problems := plaintextOf(t, tc.protocol, tc.config, "", nil)
		text := ""
		for _, problem := range problems {
			text += problem.Reason
		}
		if tc.problem == "" && text != "" || !strings.Contains(text, tc.problem) {
			t.Errorf("%s: problems %q, want %q", tc.name, text, tc.problem)
		}
		switch pt := p.Inbound.Plaintext; {
		case tc.port < 0:
			if pt != nil {
				t.Errorf("%s: plaintext is taken", tc.name)
			}
		case pt == nil || pt.Port != tc.port || pt.Apart != tc.apart:
			t.Errorf("%s: %+v, want port %d, apart %v", tc.name, pt, tc.port, tc.apart)
		}
	}
}

// service-defaults beat proxy-defaults, and without either there is no plaintext.
func TestWhoIsPermissive(t *testing.T) {
	for _, tc := range []struct {
		service, global string
		want            bool
	}{
		{"", "", false}, {"", "permissive", true}, {"", "strict", false}, {"strict", "permissive", false}, {"permissive", "strict", true}, {"permissive", "", true},
	} {
		p, _ := plaintextOf(t, "http", "", fmt.Sprintf("-- config/a2.hcl --\nKind = \"service-defaults\"\nName = \"a\"\nProtocol = \"http\"\nMutualTLSMode = %q\n-- config/global.hcl --\nKind = \"proxy-defaults\"\nName = \"global\"\nMutualTLSMode = %q\n", tc.service, tc.global), nil)
		if got := p.Inbound.Plaintext != nil; got != tc.want {
			t.Errorf("service-defaults %q, proxy-defaults %q: plaintext %v", tc.service, tc.global, got)
		}
	}
}
