//go:build peers

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestPeersImportCheck: of a fleet that is served as it is nothing is said; what would break
// is named from Consul's own entries and registrations.
func TestPeersImportCheck(t *testing.T) {
	f := newConnectFleet(t)
	f.entry("Kind = \"proxy-defaults\"\nName = \"global\"\nConfig { protocol = \"http\" }\n")
	f.register("shop", "stock")
	f.register("stock", "shop")
	check := func(args ...string) (code int, out string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), f.bin, append([]string{"import", "consul-connect", "--check", "--consul", "http://" + f.http}, args...)...)
		text, err := cmd.Output()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), string(text)
	}
	if code, out := check(); code != 0 || out != "nothing differs: 1 entries, 2 sidecars\n" {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	if code, out := check("--default-intention-policy", "deny"); code != 1 || !strings.Contains(out, "--default-intention-policy allow") {
		t.Errorf("with another default: exit code %d:\n%s", code, out)
	}

	// What differs and works is no failure.
	put := func(json string) { t.Helper(); f.consulDo("config", "write", write(t, f.dir, "entry.json", json)) }
	put(`{"Kind": "ingress-gateway", "Name": "door", "Listeners": [{"Port": 8888, "Protocol": "http", "Services": [{"Name": "shop", "Hosts": ["*"]}]}]}`)
	if code, out := check(); code != 0 || !strings.Contains(out, "differs   ingress-gateway/door") {
		t.Errorf("with an ingress gateway: exit code %d:\n%s", code, out)
	}

	put(`{"Kind": "service-defaults", "Name": "shop", "Protocol": "http", "Mode": "transparent", "MeshGateway": {"Mode": "local"},
		"EnvoyExtensions": [{"Name": "builtin/lua", "Arguments": {"ProxyType": "connect-proxy", "Listener": "inbound", "Script": "function envoy_on_request(h) end"}}]}`)
	put(`{"Kind": "terminating-gateway", "Name": "way-out", "Services": [{"Name": "legacy"}]}`)
	put(`{"Kind": "exported-services", "Name": "default", "Services": [{"Name": "stock", "Consumers": [{"Peer": "other"}]}]}`)
	put(`{"Kind": "service-resolver", "Name": "far", "Redirect": {"Service": "far", "Datacenter": "dc2"}}`)
	f.consulDo("services", "register", write(t, f.dir, "odd.hcl", fmt.Sprintf(`service {
  name = "odd"
  port = %s
  connect { sidecar_service {
    port = %s
    proxy {
      config { envoy_public_listener_json = "{}", envoy_extra_static_clusters_json = "{}", unheard_of = 1 }
      upstreams = [
        { destination_name = "stock", destination_peer = "other", local_bind_port = %s },
        { destination_name = "far", local_bind_port = %s },
      ]
    }
  } }
}`, f.port(), f.port(), f.port(), f.port())))
	code, out := check("-o", "json")
	var report struct {
		Findings []struct{ Severity, Subject, Problem string }
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != 1 {
		t.Fatalf("exit code %d, %v:\n%s", code, err, out)
	}
	for _, want := range []string{
		"breaks service-defaults/shop: Mode: not served by this version",
		"breaks service-defaults/shop: MeshGateway: not served by this version",
		"breaks service-defaults/shop: EnvoyExtensions: builtin/lua is not served",
		"breaks sidecar shop-1-sidecar-proxy on n1: Proxy.EnvoyExtensions: not served by this version",
		"breaks terminating-gateway/way-out: services behind it can't be called",
		"breaks exported-services/default: cluster peering is not served",
		`breaks sidecar odd-sidecar-proxy on n1: upstream "stock" port`,
		`breaks sidecar odd-sidecar-proxy on n1: upstream "far": no mesh gateway for dc2`,
		"breaks sidecar odd-sidecar-proxy on n1: public_listener: envoy_public_listener_json: escape hatches are off",
		`breaks sidecar odd-sidecar-proxy on n1: proxy config: "envoy_extra_static_clusters_json"`,
		`differs sidecar odd-sidecar-proxy on n1: proxy config: "unheard_of": unknown key`,
	} {
		if !slices.ContainsFunc(report.Findings, func(x struct{ Severity, Subject, Problem string }) bool {
			return strings.HasPrefix(x.Severity+" "+x.Subject+": "+x.Problem, want)
		}) {
			t.Errorf("nobody says %q", want)
		}
	}
	for _, x := range report.Findings {
		if x.Subject == "sidecar stock-1-sidecar-proxy on n1" {
			t.Errorf("of a sidecar with nothing odd: %+v", x)
		}
	}
}

// TestPeersRegisterWithConsul: a sidecar with a definition of its own registers with the
// Consul agent, is called by what Consul has there already, and leaves again.
func TestPeersRegisterWithConsul(t *testing.T) {
	f := newConnectFleet(t)
	f.entry("Kind = \"proxy-defaults\"\nName = \"global\"\nConfig { protocol = \"http\" }\n")
	stock := f.register("stock", "shop")
	stock.sidecar = stock.consuls()
	app, upstream := f.port(), f.port()
	var port int
	fmt.Sscan(app, &port)
	serve(t, port, "shop")
	token := write(t, f.dir, "shop.token", f.command(f.env(), f.bin, "token", "create", "--service", "shop"))
	definition := write(t, f.dir, "shop.yaml", fmt.Sprintf("service: shop\nport: %s\nprotocol: http\nupstreams: [stock:%s]\nchecks: [{http: /}]\n", app, upstream))
	shop := spawn(t, f.env(), f.bin, "sidecar", "--consul", "http://"+f.http, "--service", definition, "--join-token-file", token,
		"--state-dir", filepath.Join(f.dir, "shop"), "--runtime-dir", filepath.Join(f.dir, "shop-run"), "--drain-time", "5s")
	answers(t, "http://"+stock.upstream+"/", "hello from shop")
	answers(t, "http://127.0.0.1:"+upstream+"/", "hello from stock")
	passing := func() string {
		_, body, err := ask("http://"+f.http+"/v1/health/connect/shop?passing", "")
		if err != nil {
			t.Fatal(err)
		}
		return body
	}
	if body := passing(); !strings.Contains(body, "shop-sidecar-proxy") || !strings.Contains(body, "crossfade sidecar alive") {
		t.Errorf("Consul has it as %s", body)
	}
	if err := shop.stop(); err != nil {
		t.Error(err)
	}
	if body := passing(); body != "[]" {
		t.Errorf("Consul has it still: %s", body)
	}
}
