//go:build peers

package consulapi_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// registries are ours and, for comparison, a real Consul.
func registries(t *testing.T) map[string]string {
	ours, _ := newServer(t, "")
	return map[string]string{"crossfade": ours.URL, "consul": startConsul(t)}
}

// start runs a program until the test ends, and shows what it said when it failed.
func start(t *testing.T, path string, args ...string) {
	t.Helper()
	var said meshtest.Log
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(5*time.Second, func() { cmd.Process.Kill() })
		cmd.Wait()
		timer.Stop()
		if t.Failed() {
			t.Logf("%s said:\n%s", filepath.Base(path), said.String())
		}
	})
}

func register(t *testing.T, c *api.Client, node, address string, s api.AgentService, status string) {
	t.Helper()
	_, err := c.Catalog().Register(&api.CatalogRegistration{Node: node, Address: address, NodeMeta: map[string]string{"rack": "r1"}, Service: &s,
		Check: &api.AgentCheck{CheckID: "c", Name: "c", ServiceID: s.Service, Status: status}}, nil)
	must(t, err)
}

// TestConsulTemplate has the real one render services, keys and nodes as they come,
// change and go.
func TestConsulTemplate(t *testing.T) {
	path := binary(t, "consul-template", "CROSSFADE_CONSUL_TEMPLATE")
	for name, url := range registries(t) {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
			must(t, os.WriteFile(in, []byte(`{{range service "web"}}web {{.Node}} {{.Address}}:{{.Port}} {{.Tags}} {{.NodeMeta.rack}}
{{end}}{{range service "v2.web"}}v2 {{.Node}}
{{end}}{{range ls "shop"}}{{.Key}}={{.Value}}
{{end}}{{range services}}{{if ne .Name "consul"}}{{.Name}} {{end}}{{end}}
{{range nodes}}{{if ne .Node "self"}}{{.Node}} {{end}}{{end}}
`), 0o600))
			c := newClient(t, url)
			rendered := func(want string) {
				t.Helper()
				var got string
				within(t, 20*time.Second, want, func() bool {
					raw, err := os.ReadFile(out)
					got = string(raw)
					return err == nil && got == want
				})
			}
			start(t, path, "-consul-addr", strings.TrimPrefix(url, "http://"), "-template", in+":"+out, "-log-level", "warn")
			rendered("\n\n")
			register(t, c, "n1", "10.0.0.1", api.AgentService{Service: "web", Port: 80, Tags: []string{"v1"}}, "passing")
			rendered("web n1 10.0.0.1:80 [v1] r1\nweb \nn1 \n")
			register(t, c, "n2", "10.0.0.2", api.AgentService{Service: "web", Port: 81, Tags: []string{"v2"}}, "passing")
			_, err := c.KV().Put(&api.KVPair{Key: "shop/color", Value: []byte("red")}, nil)
			must(t, err)
			rendered("web n1 10.0.0.1:80 [v1] r1\nweb n2 10.0.0.2:81 [v2] r1\nv2 n2\ncolor=red\nweb \nn1 n2 \n")
			register(t, c, "n1", "10.0.0.1", api.AgentService{Service: "web", Port: 80, Tags: []string{"v1"}}, "critical")
			rendered("web n2 10.0.0.2:81 [v2] r1\nv2 n2\ncolor=red\nweb \nn1 n2 \n")
			for _, node := range []string{"n1", "n2"} {
				_, err := c.Catalog().Deregister(&api.CatalogDeregistration{Node: node}, nil)
				must(t, err)
			}
			_, err = c.KV().DeleteTree("shop", nil)
			must(t, err)
			rendered("\n\n")
		})
	}
}

// TestPrometheus has the real one find and scrape what is registered, and forget it.
func TestPrometheus(t *testing.T) {
	path := binary(t, "prometheus", "CROSSFADE_PROMETHEUS")
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		io.WriteString(w, "shop_orders_total 1\n")
	}))
	defer app.Close()
	host, port, err := net.SplitHostPort(app.Listener.Addr().String())
	must(t, err)
	appPort := ok[int](t)(strconv.Atoi(port))
	for name, url := range registries(t) {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "prometheus.yml")
			must(t, os.WriteFile(file, fmt.Appendf(nil, `
scrape_configs:
  - job_name: mesh
    scrape_interval: 1s
    consul_sd_configs:
      - server: %s
        tags: [metrics]
        node_meta: {rack: r1}
        filter: ServiceName != "consul"
        refresh_interval: 1s
    relabel_configs:
      - {source_labels: [__meta_consul_service], target_label: service}
      - {source_labels: [__meta_consul_node], target_label: node}
      - {source_labels: [__meta_consul_tags], target_label: tags}
      - {source_labels: [__meta_consul_service_metadata_team], target_label: team}
      - {source_labels: [__meta_consul_health], target_label: health}
      - {source_labels: [__meta_consul_dc], target_label: dc}
`, strings.TrimPrefix(url, "http://")), 0o600))
			listen := loopback() + ":19090"
			start(t, path, "--config.file", file, "--storage.tsdb.path", filepath.Join(dir, "data"), "--web.listen-address", listen, "--log.level", "warn")
			c := newClient(t, url)
			register(t, c, "n1", "10.0.0.1", api.AgentService{Service: "web", Port: appPort, Address: host, Tags: []string{"metrics", "v1"}, Meta: map[string]string{"team": "shop"}}, "passing")
			register(t, c, "n2", "10.0.0.2", api.AgentService{Service: "quiet", Port: appPort, Address: host}, "passing")
			targets := func() []string {
				resp, err := http.Get("http://" + listen + "/api/v1/targets?state=active")
				if err != nil {
					return []string{err.Error()}
				}
				defer resp.Body.Close()
				var body struct {
					Data struct {
						ActiveTargets []struct {
							Labels map[string]string
							Health string
						}
					}
				}
				if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
					return []string{err.Error()}
				}
				out := []string{}
				for _, a := range body.Data.ActiveTargets {
					l := a.Labels
					out = append(out, strings.Join([]string{l["service"], l["node"], l["tags"], l["team"], l["health"], l["dc"], a.Health}, " "))
				}
				return out
			}
			within(t, 40*time.Second, "the target is scraped", func() bool {
				got := targets()
				return len(got) == 1 && got[0] == "web n1 ,metrics,v1, shop passing dc1 up"
			})
			_, err := c.Catalog().Deregister(&api.CatalogDeregistration{Node: "n1"}, nil)
			must(t, err)
			within(t, 40*time.Second, "the target is gone", func() bool { return len(targets()) == 0 })
		})
	}
}
