package envoy_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

const exposedScenario = `
-- services/catalog.hcl --
service {
  name = "catalog"
  port = %[1]d
  connect { sidecar_service {
    port = %[2]d
    proxy { expose { paths = [
      { path = "/metrics" listener_port = %[3]d },
      { path = "/shop.Health/Check" listener_port = %[4]d local_path_port = %[5]d protocol = "http2" },
    ] } }
  } }
}
-- config/catalog.hcl --
Kind = "service-defaults"
Name = "catalog"
Protocol = "http"
-- default-intention-policy --
deny
`

// One path passes, by either version of HTTP, and nothing else does.
func TestExposedPaths(t *testing.T) {
	m := &mesh{t: t, ca: meshtest.NewAuthority(t)}
	app := httptest.NewServer(http.HandlerFunc(catalogApp))
	t.Cleanup(app.Close)
	h2 := httptest.NewUnstartedServer(http.HandlerFunc(catalogApp))
	h2.Config.Protocols = new(http.Protocols)
	h2.Config.Protocols.SetUnencryptedHTTP2(true)
	h2.Start()
	t.Cleanup(h2.Close)
	free := meshtest.FreePorts(t, 3)
	m.scenario = meshtest.Parse(t, txtar.Parse(fmt.Appendf(nil, exposedScenario, portOf(app), free[0], free[1], free[2], portOf(h2))).Files)
	e := m.start("catalog-sidecar-proxy")

	metrics, health := fmt.Sprintf("http://127.0.0.1:%d", free[1]), fmt.Sprintf("http://127.0.0.1:%d", free[2])
	newer := &http.Transport{Protocols: new(http.Protocols)}
	newer.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(newer.CloseIdleConnections)
	clients := map[string]*http.Client{"HTTP/1.1": http.DefaultClient, "HTTP/2": {Transport: newer}}
	for version, c := range clients {
		for url, want := range map[string]string{
			metrics + "/metrics":           "GET HTTP/1.1 ",
			metrics + "/metrics?name=x":    "GET HTTP/1.1 ",
			health + "/shop.Health/Check":  "GET HTTP/2.0 ",
			metrics + "/":                  "",
			metrics + "/metrics/":          "",
			metrics + "/metrics/x":         "",
			metrics + "//metrics":          "",
			metrics + "/x/../metrics":      "",
			metrics + "/metrics/../orders": "",
			metrics + "/METRICS":           "",
			metrics + "/metrics%2f":        "",
			metrics + "/shop.Health/Check": "",
			health + "/metrics":            "",
		} {
			req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-Forwarded-Client-Cert", "URI="+spiffe("storefront").URI())
			status, _, body := do(t, c, req)
			switch {
			case want == "" && status != 404:
				t.Errorf("%s %s: %d %q, want 404", version, url, status, body)
			case want != "" && (status != 200 || !strings.HasPrefix(body, want) || strings.Contains(body, "Client-Cert")):
				t.Errorf("%s %s: %d %q, want %q from the app, and no identity", version, url, status, body, want)
			}
		}
	}
	if n := e.Stat("cluster.local_app.upstream_rq_total"); n != 0 {
		t.Errorf("%d requests passed the public listener's cluster", n)
	}
	if n := e.Stat(fmt.Sprintf("cluster.exposed_cluster_%d.upstream_rq_total", portOf(app))); n != 4 {
		t.Errorf("%d requests reached the app at /metrics, want 4", n)
	}
}

func portOf(s *httptest.Server) int { return s.Listener.Addr().(*net.TCPAddr).Port }
