// Package routing proves what configuration entries do to real requests: a real
// server, a real sidecar and Envoy on the caller's side, and callees that speak mTLS
// themselves, so that a fleet of them costs nothing.
package routing

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/ca"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/identity"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
	"github.com/crossfade-mesh/crossfade/internal/sidecar"
)

// world is a server in development mode and what takes part in its mesh.
type world struct {
	t      *testing.T
	server *servertest.Server
	roots  *x509.CertPool
}

func newWorld(t *testing.T, edit ...func(*server.Options)) *world {
	ports := meshtest.FreePorts(t, 2)
	o := server.Options{NodeName: "host", HTTPPort: ports[0], GRPCPort: ports[1], DefaultAllow: true}
	for _, e := range edit {
		e(&o)
	}
	w := &world{t: t, server: servertest.Start(t, o), roots: x509.NewCertPool()}
	_, body := w.server.Call(http.MethodGet, "/v1/connect/ca/roots?pem=true", nil)
	if !w.roots.AppendCertsFromPEM(body) {
		t.Fatalf("no roots: %s", body)
	}
	return w
}

// leaf is a certificate of a service.
func (w *world) leaf(service string) tls.Certificate {
	w.t.Helper()
	key, csr, err := ca.NewKeyAndCSR(identity.SPIFFE{TrustDomain: w.server.TrustDomain(), Datacenter: "dc1", Service: service})
	if err != nil {
		w.t.Fatal(err)
	}
	chain, err := ca.NewClient(w.server.Conn()).Sign(w.t.Context(), csr)
	if err != nil {
		w.t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		w.t.Fatal(err)
	}
	return pair
}

// instance is one callee.
type instance struct {
	w       *world
	service string
	id      string
	meta    map[string]string
	port    int
	served  atomic.Int64 // requests or connections
	// status is what requests to /status are answered with.
	status atomic.Int64
	stop   func()
}

func (w *world) tlsConfig(service string) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{w.leaf(service)}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: w.roots, MinVersion: tls.VersionTLS13}
}

// http runs an instance that tells of itself and of the request.
func (w *world) http(service, id string, meta map[string]string) *instance {
	w.t.Helper()
	in := &instance{w: w, service: service, id: id, meta: meta}
	in.status.Store(200)
	s := httptest.NewUnstartedServer(http.HandlerFunc(in.answer))
	s.TLS, s.EnableHTTP2 = w.tlsConfig(service), true
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	in.port = s.Listener.Addr().(*net.TCPAddr).Port
	in.stop = sync.OnceFunc(func() { s.CloseClientConnections(); s.Close() })
	w.t.Cleanup(in.stop)
	in.register()
	return in
}

// answer tells of the instance and of the request.
func (in *instance) answer(rw http.ResponseWriter, r *http.Request) {
	in.served.Add(1)
	body, _ := io.ReadAll(r.Body)
	rw.Header().Set("x-instance", in.id)
	for name, values := range r.Header {
		rw.Header()["Got-"+name] = values
	}
	if strings.HasSuffix(r.URL.Path, "/status") {
		rw.WriteHeader(int(in.status.Load()))
	}
	fmt.Fprintf(rw, "%s %s %s %s %s", in.id, r.Method, r.Host, r.URL.RequestURI(), body)
}

// tcp runs an instance that says its name first, then echoes.
func (w *world) tcp(service, id string, meta map[string]string) *instance {
	w.t.Helper()
	in := &instance{w: w, service: service, id: id, meta: meta}
	l, err := tls.Listen("tcp", "127.0.0.1:0", w.tlsConfig(service))
	if err != nil {
		w.t.Fatal(err)
	}
	in.port = l.Addr().(*net.TCPAddr).Port
	in.stop = sync.OnceFunc(func() { l.Close() })
	w.t.Cleanup(in.stop)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			in.served.Add(1)
			go func() {
				defer c.Close()
				fmt.Fprintln(c, in.id)
				io.Copy(c, c)
			}()
		}
	}()
	in.register()
	return in
}

func (in *instance) register() {
	in.w.t.Helper()
	body, err := json.Marshal(map[string]any{
		"ID": in.id, "Name": in.service, "Address": "127.0.0.1", "Port": in.port, "Meta": in.meta, "Connect": map[string]any{"Native": true},
	})
	if err != nil {
		in.w.t.Fatal(err)
	}
	in.w.server.Call(http.MethodPut, "/v1/agent/service/register", body)
}

// deregister returns when every caller has acknowledged that the instance is gone.
func (in *instance) deregister() {
	in.w.t.Helper()
	in.w.server.Call(http.MethodPut, "/v1/agent/service/deregister/"+in.id+"?wait=10s", nil)
}

// write writes an entry given in HCL, JSON or YAML. It returns the index of the write.
func (w *world) write(text string) string {
	w.t.Helper()
	e, err := config.DecodeEntry("-", []byte(text))
	if err != nil {
		w.t.Fatal(err)
	}
	body, err := config.EncodeEntry(e)
	if err != nil {
		w.t.Fatal(err)
	}
	h, _ := w.server.Call(http.MethodPut, "/v1/config", body)
	return h.Get("X-Crossfade-Index")
}

// apply is write, and waits until every Envoy has acknowledged what changed.
func (w *world) apply(text string) {
	w.t.Helper()
	w.server.Call(http.MethodGet, "/v1/crossfade/applied?wait=10s&index="+w.write(text), nil)
}

func (w *world) delete(kind, name string) {
	w.t.Helper()
	w.server.Call(http.MethodDelete, "/v1/config/"+kind+"/"+name, nil)
}

// caller is a service with a sidecar, and no app: the test is its app.
type caller struct {
	process
	w      *world
	ports  map[string]int // by upstream
	client *http.Client
}

// caller runs the sidecar of a service with the upstreams.
func (w *world) caller(service, id string, upstreams ...string) *caller {
	w.t.Helper()
	ports := meshtest.FreePorts(w.t, len(upstreams)+1)
	c := &caller{w: w, ports: map[string]int{}}
	var list []string
	for i, u := range upstreams {
		c.ports[u] = ports[i+1]
		list = append(list, fmt.Sprintf("%q", fmt.Sprintf("%s:%d", u, ports[i+1])))
	}
	text := fmt.Sprintf("service: %s\nid: %s\nport: %d\nupstreams: [%s]\n", service, id, ports[0], strings.Join(list, ", "))
	c.process = w.sidecar(id, "service.yaml", text)
	tr := &http.Transport{MaxIdleConnsPerHost: 64}
	c.client = &http.Client{Transport: tr, Timeout: 10 * time.Second}
	w.t.Cleanup(tr.CloseIdleConnections)
	return c
}

// process is a running sidecar.
type process struct {
	dir string // of its state
	run string // of its sockets
}

// sidecar runs the sidecar of the one instance in the text of a definition file, and
// returns when it is ready.
func (w *world) sidecar(id, file, text string) process {
	w.t.Helper()
	defs, err := config.DecodeDefinitions(file, []byte(text))
	if err != nil {
		w.t.Fatal(err)
	}
	p := process{dir: filepath.Join(w.t.TempDir(), id), run: meshtest.RunDir(w.t)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	var out bytes.Buffer
	go func() {
		done <- sidecar.Run(ctx, sidecar.Options{
			Definition: defs[0], HTTPAddrs: []string{w.server.HTTPAddr()}, Node: "host", StateDir: p.dir, RuntimeDir: p.run, Concurrency: 1,
			CallerWait: time.Second, DrainTime: time.Second, Log: slog.New(slog.NewTextHandler(&out, nil)),
		})
	}()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("sidecar %s: %v", id, err)
		}
		if w.t.Failed() {
			w.t.Log(out.String())
		}
	})
	meshtest.Eventually(w.t, "sidecar "+id+" is ready", func() error {
		b, err := os.ReadFile(filepath.Join(p.dir, "status.json"))
		if err == nil && !bytes.Contains(b, []byte(`"state":"ready"`)) && !bytes.Contains(b, []byte(`"state": "ready"`)) {
			err = fmt.Errorf("status %s", b)
		}
		select {
		case stopped := <-done:
			w.t.Fatalf("sidecar ended: %v\n%s", stopped, out.String())
		default:
		}
		return err
	})
	return p
}

// answer is what a request came to.
type answer struct {
	code     int
	instance string
	header   http.Header
	body     string
	err      error
}

func (a answer) ok() error {
	if a.err != nil {
		return a.err
	}
	if a.code != 200 {
		return fmt.Errorf("status %d: %s", a.code, a.body)
	}
	return nil
}

// do sends one request to an upstream; edit may change it.
func (c *caller) do(method, upstream, path string, edit ...func(*http.Request)) (a answer) {
	var body io.Reader
	if method == http.MethodPost {
		body = strings.NewReader("sent")
	}
	r, err := http.NewRequestWithContext(context.Background(), method, fmt.Sprintf("http://127.0.0.1:%d%s", c.ports[upstream], path), body)
	if err != nil {
		return answer{err: err}
	}
	for _, e := range edit {
		e(r)
	}
	resp, err := c.client.Do(r)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{code: resp.StatusCode, instance: resp.Header.Get("x-instance"), header: resp.Header, body: string(b), err: err}
}

func (c *caller) get(upstream, path string, edit ...func(*http.Request)) answer {
	return c.do(http.MethodGet, upstream, path, edit...)
}

// eventually waits until an answer is as wanted, and returns how long that took.
func (c *caller) eventually(what, upstream, path string, want func(answer) error, edit ...func(*http.Request)) time.Duration {
	c.w.t.Helper()
	begin := time.Now()
	meshtest.Eventually(c.w.t, what, func() error { return want(c.get(upstream, path, edit...)) })
	return time.Since(begin)
}

// by wants an answer from an instance whose ID begins so.
func by(prefix string) func(answer) error {
	return func(a answer) error {
		if err := a.ok(); err != nil {
			return err
		}
		if !strings.HasPrefix(a.instance, prefix) {
			return fmt.Errorf("answered by %q, want %q", a.instance, prefix)
		}
		return nil
	}
}

// shares sends n requests at once to an upstream and counts answers by instance;
// any that is not 200 fails the test.
func (c *caller) shares(n int, upstream, path string, edit ...func(*http.Request)) map[string]int {
	c.w.t.Helper()
	var mu sync.Mutex
	out := map[string]int{}
	var failed []error
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			for i := worker; i < n; i += 16 {
				a := c.get(upstream, path, edit...)
				mu.Lock()
				if err := a.ok(); err != nil {
					failed = append(failed, err)
				}
				out[a.instance]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(failed) > 0 {
		c.w.t.Errorf("%d of %d requests failed: %v", len(failed), n, failed[0])
	}
	return out
}

// dial opens a connection to a tcp upstream and reads who answers.
func (c *caller) dial(upstream string) (net.Conn, string, error) {
	conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", c.ports[upstream]), 5*time.Second)
	if err != nil {
		return nil, "", err
	}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	id, err := readLine(conn)
	if err != nil {
		conn.Close()
		return nil, "", err
	}
	return conn, id, nil
}

func readLine(r io.Reader) (string, error) {
	var out []byte
	b := make([]byte, 1)
	for {
		if _, err := io.ReadFull(r, b); err != nil {
			return "", errors.Join(fmt.Errorf("after %q", out), err)
		}
		if b[0] == '\n' {
			return string(out), nil
		}
		out = append(out, b[0])
	}
}

// header sets a header of a request.
func header(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

const allHTTP = "Kind = \"proxy-defaults\"\nName = \"global\"\nConfig { protocol = \"http\" }\n"

const versions = `
Kind = "service-resolver"
Name = "catalog"
DefaultSubset = "v1"
Subsets = {
  v1 = { Filter = "Service.Meta.version == v1" }
  v2 = { Filter = "Service.Meta.version == v2" }
  v3 = { Filter = "Service.Meta.version == v3" }
}
`

func version(n int) map[string]string { return map[string]string{"version": fmt.Sprintf("v%d", n)} }
