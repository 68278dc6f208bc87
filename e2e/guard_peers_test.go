//go:build peers

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// guarded is a real Consul, a server of ours that reads it through a proxy which can spoil
// answers, and four Envoys: web calls three instances of catalog, without a break.
type guarded struct {
	t                *testing.T
	consul, dir      string
	port             []int
	cmd              *exec.Cmd
	spoil            atomic.Pointer[func(path string, resp *http.Response)]
	sent, failed     atomic.Int64
	mu               sync.Mutex
	reasons          map[string]int
	rounds           int
	consulURL, ours  string
	upstream, binary string
	homes            [4]string // the agents' addresses, of the three instances and of web
	check            string    // of each sidecar, in JSON; %d is its port
}

// ttl is a check that passes by itself.
const ttl = `{"Name":"up","TTL":"24h","Status":"passing"}`

func (g *guarded) p(i int) string { return fmt.Sprint(g.port[i]) }

// startConsul runs the one server, with what its data directory has.
func (g *guarded) startConsul() {
	g.t.Helper()
	g.cmd = exec.Command(g.consul, "agent", "-server", "-bootstrap-expect", "1", "-data-dir", filepath.Join(g.dir, "consul"), "-bind", "127.0.0.1", "-client", "127.0.0.1",
		"-node", "n1", "-http-port", g.p(0), "-grpc-port", "-1", "-grpc-tls-port", "-1", "-dns-port", "-1", "-server-port", g.p(3), "-serf-lan-port", g.p(4), "-serf-wan-port", g.p(5), "-log-level", "warn")
	if err := g.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	meshtest.Eventually(g.t, "consul has a leader and knows its node", func() error {
		_, body, err := ask(g.consulURL+"/v1/health/service/consul?passing", "")
		if err == nil && !strings.Contains(body, "serfHealth") {
			err = fmt.Errorf("not yet: %.100s", body)
		}
		return err
	})
	meshtest.ConsulSettled(g.t, g.consulURL)
}

func (g *guarded) killConsul() {
	g.cmd.Process.Kill()
	g.cmd.Wait()
}

func (g *guarded) runConsul(args ...string) {
	g.t.Helper()
	cmd := exec.CommandContext(g.t.Context(), g.consul, args...)
	cmd.Env = append(os.Environ(), "CONSUL_HTTP_ADDR="+g.consulURL)
	if out, err := cmd.CombinedOutput(); err != nil {
		g.t.Fatalf("consul %v: %v\n%s", args, err, out)
	}
}

func (g *guarded) register(home, body string) {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), http.MethodPut, home+"/v1/agent/service/register", strings.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		g.t.Fatalf("register: %s %s", resp.Status, b)
	}
}

// instances registers the three of catalog, which say that they are well: an agent that restarts remembers
// what a TTL check was set to, and not what it was registered with.
func (g *guarded) instances() {
	g.t.Helper()
	for i := range 3 {
		g.register(g.homes[i], fmt.Sprintf(`{"Name":"catalog","ID":"catalog-%d","Port":%d,"Meta":{"round":"%d"},"Connect":{"SidecarService":{"Port":%d,"Checks":[%s],"Meta":{"round":"%d"}}}}`, i, g.port[6+i], g.rounds, g.port[9+i], g.checkOf(9+i), g.rounds))
		if g.check == ttl {
			put(g.t, fmt.Sprintf("%s/v1/agent/check/pass/service:catalog-%d-sidecar-proxy?note=up", g.homes[i], i), "")
		}
	}
}

// web registers the caller.
func (g *guarded) web() {
	g.register(g.homes[3], fmt.Sprintf(`{"Name":"web","ID":"web","Port":%d,"Connect":{"SidecarService":{"Port":%d,"Checks":[%s],"Proxy":{"Upstreams":[{"DestinationName":"catalog","LocalBindPort":%d}]}}}}`, g.port[13], g.port[14], g.checkOf(14), g.port[12]))
}

func (g *guarded) checkOf(port int) string { return strings.ReplaceAll(g.check, "%d", g.p(port)) }

func (g *guarded) held() (out api.CatalogHeld) {
	g.t.Helper()
	_, body, err := ask(g.ours+"/v1/crossfade/catalog/held", "")
	if err == nil {
		err = json.Unmarshal([]byte(body), &out)
	}
	if err != nil {
		g.t.Fatal(err)
	}
	return out
}

// holds waits until something, or nothing, is held.
func (g *guarded) holds(what bool) {
	g.t.Helper()
	meshtest.Eventually(g.t, fmt.Sprintf("something is held: %v", what), func() error {
		// Others come back when their agent looks for them, once a minute.
		h := slices.DeleteFunc(g.held().Services, func(h api.HeldService) bool { return !strings.HasPrefix(h.Service, "catalog") })
		if len(h) > 0 != what {
			return fmt.Errorf("%+v", h)
		}
		return nil
	})
}

// newGuarded is one of which nothing is started, with all registrations at one agent.
func newGuarded(t *testing.T) *guarded {
	t.Helper()
	g := &guarded{t: t, consul: consulBinary(t), dir: meshtest.RunDir(t), port: meshtest.FreePorts(t, 20), binary: build(t), reasons: map[string]int{}, check: ttl}
	g.consulURL, g.ours, g.upstream = "http://127.0.0.1:"+g.p(0), "http://127.0.0.1:"+g.p(1), "http://127.0.0.1:"+g.p(12)+"/"
	for i := range g.homes {
		g.homes[i] = g.consulURL
	}
	return g
}

// startGuarded starts it all, and returns when web reaches catalog.
func startGuarded(t *testing.T, flags ...string) *guarded {
	t.Helper()
	g := newGuarded(t)
	g.startConsul()
	t.Cleanup(func() { g.killConsul() })
	g.runConsul("snapshot", "save", filepath.Join(g.dir, "before.snap"))

	target, err := url.Parse(g.consulURL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ModifyResponse = func(resp *http.Response) error {
		if spoil := g.spoil.Load(); spoil != nil {
			(*spoil)(resp.Request.URL.Path, resp)
		}
		return nil
	}
	front := httptest.NewServer(proxy)
	t.Cleanup(func() { front.CloseClientConnections(); front.Close() })
	g.serve(front.URL, flags...)
	return g
}

// serve starts a server that reads the Consul at an address, and the Envoys.
func (g *guarded) serve(consul string, flags ...string) {
	t := g.t
	t.Helper()
	run(t, nil, g.binary, append([]string{"server", "--dev", "--consul", consul, "--http-port", g.p(1), "--grpc-port", g.p(2)}, flags...)...)
	answers(t, g.ours+"/v1/status/leader", "")
	g.instances()
	g.web()
	defaults := write(t, g.dir, "defaults.hcl", "Kind = \"proxy-defaults\"\nName = \"global\"\nConfig { protocol = \"http\" }\n")
	if out, err := exec.CommandContext(t.Context(), g.binary, "config", "write", "--http-addr", g.ours, defaults).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for i, id := range []string{"catalog-0", "catalog-1", "catalog-2", "web"} {
		if id != "web" {
			serve(t, g.port[6+i], "catalog")
		}
		meshtest.Eventually(t, id+" is known to our server", func() error {
			_, body, err := ask(g.ours+"/v1/crossfade/proxies?sidecar-for="+id, "")
			if err == nil && !strings.Contains(body, id) {
				err = fmt.Errorf("%.200s", body)
			}
			return err
		})
		run(t, []string{"CROSSFADE_HTTP_ADDR=" + g.ours}, g.binary, "connect", "envoy", "-sidecar-for", id, "-admin-bind", "127.0.0.1:"+g.p(15+i), "--", "--log-level", "warning", "--concurrency", "1")
	}
	answers(t, g.upstream, "hello from catalog")
}

// load sends 50 requests a second, whatever becomes of them, until stop.
func (g *guarded) load() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 100}}
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			wg.Go(func() {
				g.sent.Add(1)
				resp, err := client.Get(g.upstream)
				why := ""
				if err != nil {
					why = err.Error()
				} else {
					b, _ := io.ReadAll(resp.Body)
					resp.Body.Close()
					if resp.StatusCode != http.StatusOK {
						why = fmt.Sprintf("%d %.100s", resp.StatusCode, b)
					}
				}
				if why != "" {
					g.failed.Add(1)
					g.mu.Lock()
					g.reasons[why]++
					g.mu.Unlock()
				}
			})
		}
	})
	return func() {
		cancel()
		wg.Wait()
		client.CloseIdleConnections()
	}
}

// blank restores the snapshot from before anything was registered, and takes the node out of the
// catalog behind its agent's back.
func (g *guarded) blank() {
	g.runConsul("snapshot", "restore", filepath.Join(g.dir, "before.snap"))
	put(g.t, g.consulURL+"/v1/catalog/deregister", `{"Node":"n1"}`)
}

// spoiled replaces bodies below a path.
func (g *guarded) spoiled(below, body, index string, status int) {
	spoil := func(path string, resp *http.Response) {
		if !strings.HasPrefix(path, below) {
			return
		}
		resp.Body.Close()
		resp.Body, resp.ContentLength, resp.StatusCode = io.NopCloser(strings.NewReader(body)), int64(len(body)), status
		resp.Header.Del("Content-Encoding")
		resp.Header.Set("Content-Length", fmt.Sprint(len(body)))
		if index != "" {
			resp.Header.Set("X-Consul-Index", index)
		}
	}
	g.spoil.Store(&spoil)
	// Queries that wait return, with what is spoiled.
	g.rounds++
	g.register(g.consulURL, fmt.Sprintf(`{"Name":"tick-%d","Port":1}`, g.rounds))
	g.instances()
}

// TestPeersEndpointGuard does to a real Consul what empties a mesh: it is scaled to zero and
// back, has its answers spoiled, is stopped, killed, and blanked. Only the first shows.
func TestPeersEndpointGuard(t *testing.T) {
	g := startGuarded(t)

	began := time.Now()
	for i := range 3 {
		put(t, g.consulURL+fmt.Sprintf("/v1/agent/service/deregister/catalog-%d", i), "")
	}
	meshtest.Eventually(t, "scaled to zero", func() error {
		code, body, err := ask(g.upstream, "")
		if err == nil && code != http.StatusServiceUnavailable {
			err = fmt.Errorf("%d %.100s; held: %+v", code, body, g.held().Services)
		}
		return err
	})
	down := time.Since(began)
	began = time.Now()
	g.instances()
	answers(t, g.upstream, "hello from catalog")
	t.Logf("to zero in %v, back in %v", down.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	meshtest.Eventually(t, "all three are back", func() error {
		_, body, err := ask(g.ours+"/v1/crossfade/proxies", "")
		if err == nil && strings.Count(body, `"catalog-sidecar-proxy"`) != 3 {
			err = fmt.Errorf("%.300s", body)
		}
		return err
	})

	stop := g.load()
	for _, s := range []struct {
		below, body, index string
		status             int
	}{
		{"/v1/health/service/catalog", "[]", "99999", 200}, {"/v1/catalog/services", "{}", "99999", 200}, {"/v1/", "<html>", "", 200},
		{"/v1/", "No cluster leader", "", 500}, {"/v1/health/", "null", "3", 200},
	} {
		g.spoiled(s.below, s.body, s.index, s.status)
		waitFor(3 * time.Second)
		g.spoil.Store(nil)
		g.holds(false)
	}
	t.Logf("after answers that were spoiled: %d failed", g.failed.Load())
	g.cmd.Process.Signal(syscall.SIGSTOP)
	waitFor(8 * time.Second)
	g.cmd.Process.Signal(syscall.SIGCONT)
	t.Logf("after a Consul that stood still: %d failed", g.failed.Load())
	g.killConsul()
	waitFor(3 * time.Second)
	g.startConsul()
	g.holds(false)
	t.Logf("after a Consul that was killed: %d failed", g.failed.Load())

	meshtest.Eventually(t, "our server follows it again", func() error {
		_, body, err := ask(g.ours+"/v1/crossfade/health", "")
		if err == nil && strings.Contains(body, `"consul http`) {
			err = fmt.Errorf("%.300s", body)
		}
		return err
	})
	g.blank()
	g.holds(true)
	t.Logf("after a Consul that was blanked: %d failed", g.failed.Load())
	waitFor(3 * time.Second)
	began = time.Now()
	g.rounds++ // what does not change is not written again
	g.instances()
	g.web()
	g.holds(false)
	t.Logf("all as it was %v after it was registered again", time.Since(began).Round(time.Millisecond))
	stop()
	answers(t, g.upstream, "hello from catalog")
	if g.failed.Load() > 0 || g.sent.Load() < 500 {
		t.Errorf("%d of %d requests failed: %v", g.failed.Load(), g.sent.Load(), g.reasons)
	}
	t.Logf("%d requests, none failed", g.sent.Load())
}

// The control: without the guard a Consul that says that nobody is there empties the mesh.
func TestPeersEndpointGuardOff(t *testing.T) {
	g := startGuarded(t, "--endpoint-guard", "off")
	stop := g.load()
	g.spoiled("/v1/health/service/catalog", "[]", "99999", http.StatusOK)
	meshtest.Eventually(t, "requests fail", func() error {
		if g.failed.Load() == 0 {
			return fmt.Errorf("%d sent, none failed", g.sent.Load())
		}
		return nil
	})
	stop()
}

// waitFor lets a fault last.
func waitFor(d time.Duration) { <-time.After(d) }
