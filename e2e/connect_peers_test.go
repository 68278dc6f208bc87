//go:build peers

package e2e

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/crossfade-mesh/crossfade/internal/demo/load"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
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
		text, err := os.ReadFile(filepath.Join(m.state, "status.json"))
		if err == nil && !strings.Contains(string(text), `"state": "ready"`) {
			err = fmt.Errorf("%s", text)
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

// calls is a load from the app of one service to another.
type calls struct {
	*load.Recorder
	stop func()
}

// call offers requests on kept connections, as apps do.
func (m *member) call(rate int, want string) *calls {
	tr := &http.Transport{MaxIdleConnsPerHost: 64}
	client := &http.Client{Transport: tr}
	c := &calls{Recorder: load.NewRecorder()}
	g := load.Generator{Rate: rate, Timeout: 10 * time.Second, Outstanding: 500, Record: c.Recorder, Call: func(n uint64, deadline time.Time) (load.Answer, error) {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		// A body and POST: a client's own retry of a request is not to hide a loss.
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+m.upstream+"/", strings.NewReader("hello"))
		if err != nil {
			return load.Answer{}, err
		}
		req.GetBody = nil
		resp, err := client.Do(req)
		if err != nil {
			return load.Answer{}, err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return load.Answer{}, err
		}
		if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), "hello from "+want) {
			return load.Answer{}, fmt.Errorf("%d %.200s", resp.StatusCode, body)
		}
		return load.Answer{From: want}, nil
	}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); g.Run(ctx) }()
	c.stop = sync.OnceFunc(func() { cancel(); <-done; tr.CloseIdleConnections() })
	m.f.t.Cleanup(c.stop)
	return c
}

// more waits until so many further requests have ended.
func (c *calls) more(t *testing.T, n uint64) {
	t.Helper()
	began := c.Totals().Requests
	meshtest.Eventually(t, "requests", func() error {
		if got := c.Totals().Requests - began; got < n {
			return fmt.Errorf("%d of %d", got, n)
		}
		return nil
	})
}

// unharmed fails the test when requests failed.
func (c *calls) unharmed(t *testing.T, what string) {
	t.Helper()
	failures := c.Failures()
	for i, f := range failures {
		if i == 10 {
			break
		}
		t.Errorf("%s: request sent at %s failed after %s: %s", what, f.Sent.Format("05.000"), f.Ended.Sub(f.Sent), f.Reason)
	}
	t.Logf("%s: %d requests, %d failed, p99 %s", what, c.Totals().Requests, len(failures), c.Latency().Quantile(0.99))
}

// TestPeersSwapConnectSidecars: two services whose sidecars Consul made call each other
// under load while one sidecar at a time is swapped for ours, and back: every mix of both
// kinds, in both directions, and no request fails.
func TestPeersSwapConnectSidecars(t *testing.T) {
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

// status is a sidecar's status.json.
func (m *member) status() (st struct {
	Certificate struct{ Serial string }
	Envoy       struct {
		AdminSocket string `json:"admin_socket"`
	}
}) {
	m.f.t.Helper()
	text, err := os.ReadFile(filepath.Join(m.state, "status.json"))
	if err := errors.Join(err, json.Unmarshal(text, &st)); err != nil {
		m.f.t.Fatal(err)
	}
	return st
}

// counters are stats of our Envoy.
func (m *member) counters(filter string) map[string]string {
	m.f.t.Helper()
	socket := m.status().Envoy.AdminSocket
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("http://envoy/stats?filter=" + url.QueryEscape(filter))
	if err != nil {
		m.f.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		m.f.t.Fatal(err)
	}
	out := map[string]string{}
	for line := range strings.Lines(string(body)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok {
			out[name] = value
		}
	}
	return out
}

// connections are what a rotation must leave alone: connections made, and what ends them.
const connections = `^(http\.(public_listener|upstream\..*)\.downstream_cx_total|cluster\..*internal.*\.upstream_cx_total|listener_manager\.(listener_modified|listener_added|listener_removed)|.*ssl\.connection_error)$`

// TestPeersConsulCA: the certificates of our sidecars are of Consul's CA. A new root under
// load, and the CA's absence, close no connection and fail no request.
func TestPeersConsulCA(t *testing.T) {
	f := newConnectFleet(t)
	f.entry("Kind = \"proxy-defaults\"\nName = \"global\"\nConfig { protocol = \"http\" }\n")
	shop, stock := f.register("shop", "stock"), f.register("stock", "shop")
	members := []*member{shop, stock}
	for _, m := range members {
		m.sidecar = m.oursNow()
		f.signedBy(m, f.activeRoot())
		if keys := f.command(nil, "grep", "-rl", "PRIVATE KEY", f.data); strings.Contains(keys, m.name) {
			t.Errorf("a sidecar's key is with the server: %s", keys)
		}
	}
	answers(t, "http://"+shop.upstream+"/", "hello from stock")
	answers(t, "http://"+stock.upstream+"/", "hello from shop")
	there, back := shop.call(100, "stock"), stock.call(100, "shop")
	there.more(t, 300)
	back.more(t, 300)

	before, old := map[*member]map[string]string{}, f.activeRoot()
	serial := map[*member]string{}
	for _, m := range members {
		before[m], serial[m] = m.counters(connections), m.status().Certificate.Serial
	}
	f.consulDo("connect", "ca", "set-config", "-config-file", write(t, f.dir, "ca.json", `{"Provider": "consul", "Config": {"PrivateKeyType": "ec", "PrivateKeyBits": 384}}`))
	meshtest.Eventually(t, "Consul has another root", func() error {
		if f.activeRoot() == old {
			return errors.New("the old one is active still")
		}
		return nil
	})
	for _, m := range members {
		meshtest.Eventually(t, m.name+" has a certificate of the new root", func() error {
			if got := m.status().Certificate.Serial; got == serial[m] {
				return errors.New("it has the old one, " + got)
			}
			return nil
		})
		f.signedBy(m, f.activeRoot())
	}
	there.more(t, 300)
	back.more(t, 300)
	for _, m := range members {
		if diff := cmp.Diff(before[m], m.counters(connections)); diff != "" {
			t.Errorf("connections of %s (-before +after the new root):\n%s", m.name, diff)
		}
	}
	// Connections that are made now are under the new root.
	for _, m := range members {
		other := map[*member]string{shop: "stock", stock: "shop"}[m]
		answers(t, "http://"+m.upstream+"/", "hello from "+other)
	}

	// Consul is away: what there is stays in use, and it is said.
	f.agent.signal(syscall.SIGSTOP)
	defer f.agent.signal(syscall.SIGCONT)
	held := stock.status().Certificate.Serial
	if err := stock.sidecar.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	says := func(p *process, text string) {
		t.Helper()
		meshtest.Eventually(t, text, func() error {
			if log := p.log.String(); !strings.Contains(log, text) {
				return errors.New(log)
			}
			return nil
		})
	}
	says(stock.sidecar, "the certificate could not be renewed, the present one stays in use")
	says(f.server, "Consul's CA does not sign")
	operator, err := os.ReadFile(filepath.Join(f.data, "operator.token"))
	if err != nil {
		t.Fatal(err)
	}
	meshtest.Eventually(t, "the server says what is stale", func() error {
		_, text, err := ask("https://"+f.ours+"/v1/crossfade/health", strings.TrimSpace(string(operator)))
		if err == nil && !strings.Contains(text, "CA of consul") {
			err = errors.New(text)
		}
		return err
	})
	there.more(t, 300)
	f.agent.signal(syscall.SIGCONT)
	says(f.server, "Consul's CA signs again")
	meshtest.Eventually(t, "the certificate is renewed by itself", func() error {
		if got := stock.status().Certificate.Serial; got == held {
			return errors.New(got)
		}
		return nil
	})
	there.unharmed(t, "shop to stock")
	back.unharmed(t, "stock to shop")

	// Whose leaf is whose survives a restart of the server, and so does a revocation.
	if err := f.server.stop(); err != nil {
		t.Error(err)
	}
	f.server = spawn(t, nil, f.bin, f.serverArgs...)
	meshtest.Eventually(t, "both are back", func() error {
		_, list, err := ask("https://"+f.ours+"/v1/crossfade/sidecars", strings.TrimSpace(string(operator)))
		if err != nil {
			return err
		}
		if !strings.Contains(list, "shop-1-sidecar-proxy") || !strings.Contains(list, "stock-1-sidecar-proxy") {
			return errors.New(list)
		}
		return nil
	})
	if log := shop.sidecar.log.String(); strings.Contains(log, "joining again") {
		t.Errorf("its leaf was not known after the restart:\n%s", log)
	}
	var tokens []struct {
		Accessor string
		Services []string
	}
	if err := json.Unmarshal([]byte(f.command(f.env(), f.bin, "token", "list", "-o", "json")), &tokens); err != nil {
		t.Fatal(err)
	}
	for _, tok := range tokens {
		if len(tok.Services) == 1 && tok.Services[0] == "shop" {
			f.command(f.env(), f.bin, "token", "revoke", tok.Accessor)
		}
	}
	says(f.server, "that it comes through was revoked at")
}

// activeRoot is the certificate with which Consul signs.
func (f *connectFleet) activeRoot() string {
	f.t.Helper()
	_, body, err := ask("http://"+f.http+"/v1/connect/ca/roots", "")
	var list struct {
		Roots []struct {
			RootCert string
			Active   bool
		}
	}
	if err := errors.Join(err, json.Unmarshal([]byte(body), &list)); err != nil {
		f.t.Fatal(err)
	}
	for _, r := range list.Roots {
		if r.Active {
			return r.RootCert
		}
	}
	f.t.Fatalf("no root is active: %s", body)
	return ""
}

// signedBy fails the test unless the member's certificate is under the root.
func (f *connectFleet) signedBy(m *member, root string) {
	f.t.Helper()
	text, err := os.ReadFile(filepath.Join(m.state, "leaf.pem"))
	if err != nil {
		f.t.Fatal(err)
	}
	block, rest := pem.Decode(text)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		f.t.Fatal(err)
	}
	pool, between := x509.NewCertPool(), x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(root))
	between.AppendCertsFromPEM(rest)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		f.t.Errorf("certificate of %s: %v", m.name, err)
	}
}

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
	definition := write(t, f.dir, "shop.yaml", fmt.Sprintf("service: shop\nport: %s\nprotocol: http\nupstreams: [stock:%s]\nchecks: [{http: \"http://127.0.0.1:%s/\", interval: 1s}]\n", app, upstream, app))
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
