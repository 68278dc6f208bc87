//go:build peers

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/sidecar"
)

// connectFleet is a real Consul with Connect, and a server of ours whose CA is Consul's.
type connectFleet struct {
	t                  *testing.T
	consul, envoy, bin string
	dir, data          string
	ports              []int
	http, grpc         string // Consul's
	ours               string // our server's HTTP API
	agent, server      *process
	serverArgs         []string
}

func newConnectFleet(t *testing.T) *connectFleet {
	t.Helper()
	f := &connectFleet{t: t, consul: consulBinary(t), envoy: envoyBinary(t), bin: build(t), dir: meshtest.RunDir(t), ports: meshtest.FreePorts(t, 30)}
	serf, rpc, wan := f.port(), f.port(), f.port()
	f.http, f.grpc = "127.0.0.1:"+f.port(), "127.0.0.1:"+f.port()
	f.data = filepath.Join(f.dir, "data")
	consulHTTP, consulGRPC := portOf(f.http), portOf(f.grpc)
	f.agent = spawn(t, nil, f.consul, "agent", "-dev", "-bind", "127.0.0.1", "-client", "127.0.0.1", "-node", "n1", "-log-level", "warn", "-http-port", consulHTTP,
		"-grpc-port", consulGRPC, "-grpc-tls-port", "-1", "-dns-port", "-1", "-server-port", rpc, "-serf-lan-port", serf, "-serf-wan-port", wan)
	meshtest.Eventually(t, "Consul has a CA", func() error {
		code, body, err := ask("http://"+f.http+"/v1/connect/ca/roots", "")
		if err == nil && (code != http.StatusOK || !strings.Contains(body, "TrustDomain")) {
			err = fmt.Errorf("%d %.200s", code, body)
		}
		return err
	})
	meshtest.ConsulSettled(t, "http://"+f.http)
	http, grpc := f.port(), f.port()
	f.ours = "127.0.0.1:" + http
	f.serverArgs = []string{"server", "--data-dir", f.data, "--consul", "http://" + f.http, "--ca", "consul", "--http-port", http, "--grpc-port", grpc}
	f.server = spawn(t, nil, f.bin, f.serverArgs...)
	meshtest.Eventually(t, "our server answers", func() error {
		_, _, err := ask("https://"+f.ours+"/v1/status/leader", "")
		return err
	})
	return f
}

func portOf(hostPort string) string { return hostPort[strings.LastIndexByte(hostPort, ':')+1:] }

// port is one that nobody else has.
func (f *connectFleet) port() string {
	p := f.ports[0]
	f.ports = f.ports[1:]
	return fmt.Sprint(p)
}

// env is that of somebody who works with our server.
func (f *connectFleet) env() []string {
	return []string{"CROSSFADE_HTTP_ADDR=" + f.ours, "CROSSFADE_CACERT=" + filepath.Join(f.data, "ca.pem"), "CROSSFADE_HTTP_TOKEN_FILE=" + filepath.Join(f.data, "operator.token")}
}

// command runs one to its end and gives what it wrote to stdout.
func (f *connectFleet) command(env []string, name string, args ...string) string {
	f.t.Helper()
	cmd := exec.CommandContext(f.t.Context(), name, args...)
	cmd.Env = append(os.Environ(), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		f.t.Fatalf("%s %v: %v\n%s", filepath.Base(name), args, err, errs.String())
	}
	return out.String()
}

func (f *connectFleet) consulDo(args ...string) string {
	return f.command([]string{"CONSUL_HTTP_ADDR=" + f.http, "CONSUL_GRPC_ADDR=" + f.grpc}, f.consul, args...)
}

// entry writes a configuration entry to Consul, and to our server.
func (f *connectFleet) entry(text string) {
	f.t.Helper()
	file := write(f.t, f.dir, "entry.hcl", text)
	f.consulDo("config", "write", file)
	f.command(f.env(), f.bin, "config", "write", file)
}

// member is a service of which Consul's agent has one instance and its sidecar.
type member struct {
	f        *connectFleet
	name     string
	upstream string // where its app finds the other service
	admin    string // of Consul's Envoy
	sidecar  *process
	state    string
}

// register makes the app, and has Consul's agent register it from HCL.
func (f *connectFleet) register(name, calls string) *member {
	f.t.Helper()
	app, public := f.port(), f.port()
	m := &member{f: f, name: name, upstream: "127.0.0.1:" + f.port(), admin: "127.0.0.1:" + f.port(), state: filepath.Join(f.dir, name)}
	var port int
	fmt.Sscan(app, &port)
	serve(f.t, port, name)
	f.consulDo("services", "register", write(f.t, f.dir, name+".hcl", fmt.Sprintf(`service {
  name = %q
  id   = "%s-1"
  port = %s
  connect { sidecar_service {
    port = %s
    proxy { upstreams = [{ destination_name = %q, local_bind_port = %s }] }
  } }
}`, name, name, app, public, calls, portOf(m.upstream))))
	token := strings.TrimSpace(f.command(f.env(), f.bin, "token", "create", "--service", name))
	write(f.t, f.dir, name+".token", token+"\n")
	return m
}

// consuls runs the sidecar that "consul connect envoy" makes.
func (m *member) consuls() *process {
	m.f.t.Helper()
	boot := m.f.consulDo("connect", "envoy", "-sidecar-for", m.name+"-1", "-admin-bind", m.admin, "-ignore-envoy-compatibility", "-bootstrap")
	p := spawn(m.f.t, nil, m.f.envoy, "-c", write(m.f.t, m.f.dir, m.name+".json", boot), "--disable-hot-restart", "--log-level", "error", "--concurrency", "2")
	meshtest.Eventually(m.f.t, "Consul's sidecar of "+m.name+" is ready", func() error {
		code, body, err := ask("http://"+m.admin+"/listeners", "")
		if err == nil && (code != http.StatusOK || strings.Count(body, "\n") < 2) {
			err = fmt.Errorf("%d %s", code, body)
		}
		return err
	})
	return p
}

// oursNow runs our sidecar of the same registration.
func (m *member) oursNow() *process {
	m.f.t.Helper()
	p := spawn(m.f.t, m.f.env(), m.f.bin, "sidecar", "--consul", "http://"+m.f.http, "--sidecar-for", m.name+"-1", "--join-token-file", filepath.Join(m.f.dir, m.name+".token"),
		"--state-dir", m.state, "--runtime-dir", filepath.Join(m.f.dir, m.name+"-run"), "--drain-time", "20s")
	meshtest.Eventually(m.f.t, "our sidecar of "+m.name+" is ready", func() error {
		st, err := readStatus(m.state)
		if err == nil && st.State != sidecar.Ready {
			err = fmt.Errorf("%+v", st)
		}
		return err
	})
	return p
}

// toOurs swaps Consul's sidecar for ours, as docs/connect-fleets.md says.
func (m *member) toOurs() {
	m.f.t.Helper()
	ours := m.oursNow()
	for _, path := range []string{"/drain_listeners", "/healthcheck/fail"} {
		resp, err := http.Post("http://"+m.admin+path, "", nil)
		if err != nil {
			m.f.t.Fatal(err)
		}
		resp.Body.Close()
	}
	m.quiet()
	if err := m.sidecar.stop(); err != nil {
		m.f.t.Errorf("Consul's sidecar of %s: %v", m.name, err)
	}
	m.sidecar = ours
}

// quiet waits until Consul's sidecar has no connections left, or as long as an operator would.
func (m *member) quiet() {
	m.f.t.Helper()
	deadline, tick := time.Now().Add(20*time.Second), time.NewTicker(100*time.Millisecond)
	defer tick.Stop()
	for left := ""; ; <-tick.C {
		_, body, err := ask("http://"+m.admin+"/stats?filter=^http%5C.(public_listener|upstream.*)%5C.downstream_cx_active$", "")
		if err != nil {
			m.f.t.Fatal(err)
		}
		left = ""
		for line := range strings.Lines(body) {
			if !strings.HasSuffix(strings.TrimSpace(line), ": 0") {
				left += line
			}
		}
		if left == "" || time.Now().After(deadline) {
			m.f.t.Logf("Consul's sidecar of %s has left: %q", m.name, left)
			return
		}
	}
}

// toConsuls swaps it back.
func (m *member) toConsuls() {
	m.f.t.Helper()
	theirs := m.consuls()
	if err := m.sidecar.stop(); err != nil {
		m.f.t.Errorf("our sidecar of %s: %v", m.name, err)
	}
	if !strings.Contains(m.sidecar.log.String(), "handed over to who else listens") {
		m.f.t.Errorf("our sidecar of %s did not hand over:\n%s", m.name, m.sidecar.log)
	}
	m.sidecar = theirs
}

// call is a load from the app to that of another service.
func (m *member) call(rate int, other string) *calls {
	return call(m.f.t, rate, "http://"+m.upstream+"/", "hello from "+other)
}

// TestPeersSwapConnectSidecars: two services whose sidecars Consul made call each other
// under load while one sidecar at a time is swapped for ours, and back: every mix of both
// kinds, in both directions, and no request fails.
func TestPeersSwapConnectSidecars(t *testing.T) {
	if !meshtest.OwnHost(t) {
		return
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/tcp_migrate_req", []byte("1"), 0); err != nil {
		t.Logf("connections that are just being made when listening ends may be lost: %v", err)
	}
	f := newConnectFleet(t)
	f.entry("Kind = \"proxy-defaults\"\nName = \"global\"\nConfig { protocol = \"http\" }\n")
	shop, stock := f.register("shop", "stock"), f.register("stock", "shop")
	for _, m := range []*member{shop, stock} {
		m.sidecar = m.consuls()
	}
	answers(t, "http://"+shop.upstream+"/", "hello from stock")
	answers(t, "http://"+stock.upstream+"/", "hello from shop")
	there, back := shop.call(100, "stock"), stock.call(100, "shop")
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"both Consul's", func() {}},
		{"shop ours", shop.toOurs},
		{"both ours", stock.toOurs},
		{"stock ours", shop.toConsuls},
		{"both Consul's again", stock.toConsuls},
		{"stock ours first", stock.toOurs},
		{"shop too", shop.toOurs},
		{"and back", stock.toConsuls},
		{"all back", shop.toConsuls},
	} {
		began := time.Now()
		step.do()
		there.more(t, 300)
		back.more(t, 300)
		t.Logf("%s: after %s %d and %d requests, %d and %d failed", step.name, time.Since(began).Round(time.Millisecond),
			there.Totals().Requests, back.Totals().Requests, there.Totals().Failed, back.Totals().Failed)
	}
	there.unharmed(t, "shop to stock")
	back.unharmed(t, "stock to shop")

	// The control: a sidecar that just ends is noticed.
	before := there.Totals().Failed
	stock.sidecar.signal(syscall.SIGKILL)
	meshtest.Eventually(t, "a killed sidecar is noticed", func() error {
		if there.Totals().Failed == before {
			return errors.New("no request failed")
		}
		return nil
	})
}
