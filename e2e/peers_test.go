//go:build peers

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// TestPeersConsulConnectEnvoy has the real consul binary run Envoys in our mesh,
// registered from Consul's HCL, calling our own sidecar and called by it.
func TestPeersConsulConnectEnvoy(t *testing.T) {
	consul, envoy := consulBinary(t), envoyBinary(t)
	envoyDir := t.TempDir()
	if err := os.Symlink(envoy, filepath.Join(envoyDir, "envoy")); err != nil {
		t.Fatal(err)
	}
	bin, dir := build(t), meshtest.RunDir(t)
	port := meshtest.FreePorts(t, 9)
	httpAddr, grpcAddr := fmt.Sprintf("127.0.0.1:%d", port[0]), fmt.Sprintf("127.0.0.1:%d", port[1])
	env := []string{"CONSUL_HTTP_ADDR=" + httpAddr, "CROSSFADE_HTTP_ADDR=" + httpAddr, "ENVOY=" + envoy, "PATH=" + envoyDir + ":" + os.Getenv("PATH")}

	run(t, env, bin, "server", "--dev", "--http-port", fmt.Sprint(port[0]), "--grpc-port", fmt.Sprint(port[1]))
	answers(t, "http://"+httpAddr+"/v1/status/leader", "")

	serve(t, port[2], "ours")
	serve(t, port[3], "theirs")
	ours := write(t, dir, "ours.yaml", fmt.Sprintf("service: ours\nport: %d\nprotocol: http\nupstreams: [theirs:%d]\n", port[2], port[4]))
	theirs := write(t, dir, "theirs.hcl", fmt.Sprintf(`service {
  name = "theirs"
  port = %d
  connect { sidecar_service {
    port = %d
    proxy { upstreams = [{ destination_name = "ours", local_bind_port = %d }] }
  } }
}`, port[3], port[5], port[6]))
	defaults := write(t, dir, "defaults.hcl", "Kind = \"service-defaults\"\nName = \"theirs\"\nProtocol = \"http\"\n")
	for _, args := range [][]string{{"config", "write", defaults}, {"services", "register", theirs}} {
		cmd := exec.CommandContext(t.Context(), consul, args...)
		cmd.Env = append(os.Environ(), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("consul %v: %v\n%s", args, err, out)
		}
	}
	run(t, env, bin, "sidecar", "--service", ours, "--state-dir", filepath.Join(dir, "state"), "--runtime-dir", filepath.Join(dir, "run"))
	run(t, env, consul, "connect", "envoy", "-sidecar-for", "theirs", "-grpc-addr", grpcAddr,
		"-admin-bind", fmt.Sprintf("127.0.0.1:%d", port[7]), "-ignore-envoy-compatibility")

	answers(t, fmt.Sprintf("http://127.0.0.1:%d/", port[4]), "hello from theirs")
	answers(t, fmt.Sprintf("http://127.0.0.1:%d/", port[6]), "hello from ours")
}

// TestPeersConsulAsSource has a server of ours serve what is registered in a real
// Consul, with certificates of its CA: two services with their sidecars, and who of them is healthy.
func TestPeersConsulAsSource(t *testing.T) {
	consul := consulBinary(t)
	bin, dir := build(t), meshtest.RunDir(t)
	port := meshtest.FreePorts(t, 16)
	p := func(i int) string { return fmt.Sprint(port[i]) }
	consulAddr, httpAddr := "127.0.0.1:"+p(0), "127.0.0.1:"+p(1)
	run(t, nil, consul, "agent", "-dev", "-bind", "127.0.0.1", "-client", "127.0.0.1", "-node", "n1", "-http-port", p(0), "-grpc-port", p(11),
		"-grpc-tls-port", "-1", "-dns-port", "-1", "-server-port", p(3), "-serf-lan-port", p(4), "-serf-wan-port", p(5))
	meshtest.ConsulSettled(t, "http://"+consulAddr)
	run(t, nil, bin, "server", "--dev", "--consul", "http://"+consulAddr, "--ca", "consul", "--http-port", p(1), "--grpc-port", p(2))
	answers(t, "http://"+httpAddr+"/v1/status/leader", "")
	if code, body, err := ask("http://"+httpAddr+"/v1/catalog/services", ""); err != nil || code != http.StatusNotImplemented || !strings.Contains(body, consulAddr) {
		t.Errorf("our own catalog API answers %d %q, %v; want 501 and where to ask", code, body, err)
	}

	serve(t, port[6], "catalog")
	definitions := write(t, dir, "services.hcl", fmt.Sprintf(`services {
  name = "catalog"
  port = %d
  check { id = "up", name = "up", ttl = "10m", status = "passing" }
  connect { sidecar_service { port = %d } }
}
services {
  name = "web"
  port = %d
  connect { sidecar_service {
    port = %d
    proxy { upstreams = [{ destination_name = "catalog", local_bind_port = %d }] }
  } }
}`, port[6], port[7], port[8], port[9], port[10]))
	defaults := write(t, dir, "defaults.hcl", "Kind = \"proxy-defaults\"\nName = \"global\"\nConfig { protocol = \"http\" }\n")
	for _, c := range []struct {
		addr string
		args []string
	}{{consulAddr, []string{"services", "register", definitions}}, {httpAddr, []string{"config", "write", defaults}}} {
		cmd := exec.CommandContext(t.Context(), consul, c.args...)
		cmd.Env = append(os.Environ(), "CONSUL_HTTP_ADDR="+c.addr)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("consul %v: %v\n%s", c.args, err, out)
		}
	}
	for i, service := range []string{"catalog", "web"} {
		meshtest.Eventually(t, service+" is known to our server", func() error {
			_, body, err := ask("http://"+httpAddr+"/v1/crossfade/proxies?sidecar-for="+service, "")
			if err == nil && !strings.Contains(body, service+"-sidecar-proxy") {
				err = fmt.Errorf("%.200s", body)
			}
			return err
		})
		run(t, []string{"CROSSFADE_HTTP_ADDR=" + httpAddr}, bin, "connect", "envoy", "-sidecar-for", service, "-admin-bind", "127.0.0.1:"+p(12+i), "--", "--log-level", "warning")
	}
	upstream := "http://127.0.0.1:" + p(10) + "/"
	answers(t, upstream, "hello from catalog")

	// Consul says that it is down: it leaves the mesh.
	put(t, "http://"+consulAddr+"/v1/agent/check/fail/up", "")
	meshtest.Eventually(t, "a critical instance leaves the mesh", func() error {
		code, body, err := ask(upstream, "")
		if err == nil && (code != http.StatusServiceUnavailable || !strings.Contains(body, "no healthy instance")) {
			err = fmt.Errorf("%d %.200s", code, body)
		}
		return err
	})
	put(t, "http://"+consulAddr+"/v1/agent/check/pass/up", "")
	answers(t, upstream, "hello from catalog")
}

func put(t *testing.T, url, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("PUT %s: %s", url, resp.Status)
	}
}

func serve(t *testing.T, port int, name string) {
	t.Helper()
	srv := &http.Server{Addr: fmt.Sprintf("127.0.0.1:%d", port), Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "hello from %s\n", name)
	})}
	go srv.ListenAndServe()
	t.Cleanup(func() { srv.Close() })
}
