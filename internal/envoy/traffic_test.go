package envoy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"golang.org/x/tools/txtar"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/identity"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// mesh is a scenario in which real Envoys run, told everything at start.
type mesh struct {
	t        *testing.T
	scenario meshtest.Scenario
	ca       *meshtest.Authority
	hatches  bool // escape hatches are allowed
}

// start runs the sidecar with that service ID.
func (m *mesh) start(proxyID string) *meshtest.Envoy {
	m.t.Helper()
	in, ok := m.scenario.Snapshot.Proxy(proxyID, "")
	if !ok {
		m.t.Fatalf("no proxy %q", proxyID)
	}
	p, problems := proxy.Build(proxy.Input{Instance: in, Config: m.scenario.Config, Datacenter: meshtest.Datacenter, TrustDomain: meshtest.TrustDomain, DefaultAllow: m.scenario.DefaultAllow, AllowEscapeHatches: m.hatches})
	if len(problems) > 0 {
		m.t.Fatal(problems)
	}
	var endpoints []*endpointv3.ClusterLoadAssignment
	for _, ref := range p.Endpoints() {
		endpoints = append(endpoints, envoy.Endpoints(proxy.BuildEndpoints(m.scenario.Snapshot, ref, nil, nil)))
	}
	cert, key := m.ca.Leaf(p.Identity)
	b, err := envoy.StaticBootstrap(envoy.BootstrapOptions{NodeID: p.ID, Service: p.Identity.Service, Datacenter: meshtest.Datacenter, AdminSocket: filepath.Join(meshtest.RunDir(m.t), "admin.sock")},
		resources(m.t, p), endpoints, envoy.LeafSecret(cert, key), envoy.RootsSecret(m.ca.PEM))
	if err != nil {
		m.t.Fatal(err)
	}
	e := meshtest.StartEnvoy(m.t, b)
	e.WaitReady()
	return e
}

// client calls as id, past the caller's sidecar.
func (m *mesh) client(tlsConfig *tls.Config) *http.Client {
	tr := &http.Transport{TLSClientConfig: tlsConfig, ForceAttemptHTTP2: true}
	m.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 10 * time.Second}
}

func spiffe(service string) identity.SPIFFE {
	return identity.SPIFFE{TrustDomain: meshtest.TrustDomain, Datacenter: meshtest.Datacenter, Service: service}
}

// catalogApp answers with what it was sent.
func catalogApp(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") == "websocket" {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		rw.Flush()
		io.Copy(conn, rw)
		return
	}
	w.Header().Set("Server", "catalog/1")
	fmt.Fprintln(w, r.Method, r.Proto, r.Host, r.URL.Path)
	r.Header.Write(w)
}

// bannerApp is a TCP server that speaks first and then echoes.
func bannerApp(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go accept(l, func(c net.Conn) {
		fmt.Fprintln(c, "payments ready")
		io.Copy(c, c)
	})
	return l.Addr().(*net.TCPAddr).Port
}

// accept hands over connections until the listener closes, and closes each after it.
func accept(l net.Listener, speak func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			speak(c)
		}()
	}
}

// healthApp is a gRPC server without TLS.
func healthApp(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	healthpb.RegisterHealthServer(g, health.NewServer())
	go g.Serve(l)
	t.Cleanup(g.Stop)
	return l.Addr().(*net.TCPAddr).Port
}

// checkHealth calls once and opens a stream, whose first message it waits for.
func checkHealth(ctx context.Context, t *testing.T, addr string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := healthpb.NewHealthClient(conn)
	if _, err := c.Check(ctx, &healthpb.HealthCheckRequest{}); err != nil {
		return err
	}
	stream, err := c.Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

// tlsServer is an app that is its own sidecar: it accepts with id's certificate.
func (m *mesh) tlsServer(id identity.SPIFFE, app http.HandlerFunc) int {
	s := httptest.NewUnstartedServer(app)
	s.TLS = m.ca.Client(id)
	s.EnableHTTP2 = true
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // callers refuse it, that is the point
	s.StartTLS()
	m.t.Cleanup(s.Close)
	return s.Listener.Addr().(*net.TCPAddr).Port
}

const trafficScenario = `
-- services/catalog.hcl --
services {
  id = "catalog-1"
  name = "catalog"
  port = %[1]d
  connect { sidecar_service { port = %[2]d } }
}
services {
  id = "catalog-2"
  name = "catalog"
  port = %[1]d
  connect { sidecar_service { port = %[3]d } }
}
services {
  name = "payments"
  port = %[4]d
  connect { sidecar_service { port = %[5]d } }
}
services {
  name = "search"
  port = 1
  connect { sidecar_service { port = %[6]d } }
}
services {
  name = "down"
  port = %[7]d
  connect { sidecar_service { port = %[8]d } }
}
services {
  name = "assignments"
  port = %[16]d
  connect { sidecar_service { port = %[17]d } }
}
services {
  name = "storefront"
  port = 1
  connect {
    sidecar_service {
      port = %[9]d
      proxy {
        upstreams = [
          { destination_name = "catalog", local_bind_port = %[10]d },
          { destination_name = "payments", local_bind_port = %[11]d },
          { destination_name = "search", local_bind_port = %[12]d },
          { destination_name = "ghost", local_bind_port = %[13]d },
          { destination_name = "catalog", datacenter = "dc2", local_bind_port = %[14]d },
          { destination_name = "down", local_bind_port = %[15]d },
          { destination_name = "assignments", local_bind_port = %[18]d },
          { destination_name = "ghost-grpc", local_bind_port = %[19]d },
        ]
      }
    }
  }
}
-- config/global.hcl --
Kind = "proxy-defaults"
Name = "global"
Config { protocol = "http" }
-- config/payments.hcl --
Kind = "service-defaults"
Name = "payments"
Protocol = "tcp"
-- config/assignments.hcl --
Kind = "service-defaults"
Name = "assignments"
Protocol = "grpc"
-- config/ghost-grpc.hcl --
Kind = "service-defaults"
Name = "ghost-grpc"
Protocol = "grpc"
-- config/catalog-intentions.hcl --
Kind = "service-intentions"
Name = "catalog"
Sources = [{ Name = "reports", Action = "deny" }]
-- config/payments-intentions.hcl --
Kind = "service-intentions"
Name = "payments"
Sources = [{ Name = "storefront", Action = "allow" }, { Name = "*", Action = "deny" }]
`

// shop is the scenario above, running: storefront calls all others.
type shop struct {
	*mesh
	catalog, payments *meshtest.Envoy
	// Addresses of storefront's upstreams, and of two public listeners.
	toCatalog, toPayments, toSearch, toGhost, toElsewhere, toDown, toAssignments, toGhostGRPC string
	catalogSide, paymentsSide                                                                 string
}

func startShop(t *testing.T) *shop {
	app := httptest.NewServer(http.HandlerFunc(catalogApp))
	t.Cleanup(app.Close)
	m := &mesh{t: t, ca: meshtest.NewAuthority(t)}
	imposter := m.tlsServer(spiffe("reports"), catalogApp)
	free := meshtest.FreePorts(t, 15)
	catalogSide, closed, paymentsSide, downApp, downSide, storefrontSide, assignmentsSide := free[0], free[1], free[2], free[3], free[4], free[5], free[6]
	up := free[7:]
	m.scenario = meshtest.Parse(t, txtar.Parse(fmt.Appendf(nil, trafficScenario,
		app.Listener.Addr().(*net.TCPAddr).Port, catalogSide, closed, bannerApp(t), paymentsSide, imposter, downApp, downSide, storefrontSide,
		up[0], up[1], up[2], up[3], up[4], up[5], healthApp(t), assignmentsSide, up[6], up[7])).Files)
	at := func(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
	s := &shop{
		mesh: m, catalog: m.start("catalog-1-sidecar-proxy"), payments: m.start("payments-sidecar-proxy"),
		toCatalog: at(up[0]), toPayments: at(up[1]), toSearch: at(up[2]), toGhost: at(up[3]), toElsewhere: at(up[4]), toDown: at(up[5]),
		toAssignments: at(up[6]), toGhostGRPC: at(up[7]), catalogSide: at(catalogSide), paymentsSide: at(paymentsSide),
	}
	m.start("down-sidecar-proxy")
	m.start("assignments-sidecar-proxy")
	m.start("storefront-sidecar-proxy")
	return s
}

func TestTraffic(t *testing.T) {
	s := startShop(t)
	t.Run("http through the pair", s.testHTTP)
	t.Run("a closed instance is retried elsewhere", s.testRetry)
	t.Run("websocket", s.testWebSocket)
	t.Run("tcp through the pair", s.testTCP)
	t.Run("grpc through the pair", s.testGRPC)
	t.Run("replies that explain", s.testReplies)
	t.Run("what a header may be called", s.testUnderscore)
	t.Run("a denied caller gets 403", s.testDenied)
	t.Run("strangers do not get as far", s.testStrangers)
	t.Run("a denied connection", s.testDeniedConnection)
}

func (s *shop) testHTTP(t *testing.T) {
	req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://"+s.toCatalog+"//a/../b//c", nil)
	req.Header.Set("X-Forwarded-Client-Cert", "URI=spiffe://forged")
	code, header, body := do(t, http.DefaultClient, req)
	if code != 200 || header.Get("Server") != "catalog/1" {
		t.Fatalf("%d, server %q: %s", code, header.Get("Server"), body)
	}
	if !strings.HasPrefix(body, "GET HTTP/1.1 "+s.toCatalog+" /b/c\n") {
		t.Errorf("the app got %q, want HTTP/1.1, its host and a normal path", body)
	}
	xfcc := ""
	for line := range strings.Lines(body) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch name = strings.ToLower(name); {
		case name == "x-forwarded-client-cert":
			xfcc = value
		case strings.HasPrefix(name, "x-envoy") || name == "x-forwarded-for" || name == "via":
			t.Errorf("the app got %q, which the caller did not send", line)
		}
	}
	// Envoy always begins with its own URI (By) and a hash of the certificate.
	want := "By=" + spiffe("catalog").URI() + ";Hash="
	if !strings.HasPrefix(xfcc, want) || !strings.HasSuffix(xfcc, ";URI="+spiffe("storefront").URI()) || strings.Count(xfcc, ";") != 2 {
		t.Errorf("x-forwarded-client-cert %q, want the caller's URI and nothing of its certificate", xfcc)
	}
	for name := range header {
		if strings.HasPrefix(strings.ToLower(name), "x-envoy") {
			t.Errorf("the caller got %s", name)
		}
	}
}

func (s *shop) testRetry(t *testing.T) {
	for range 50 {
		if status, _, body := get(t, s.toCatalog); status != 200 {
			t.Fatalf("%d: %s", status, body)
		}
	}
}

func (s *shop) testWebSocket(t *testing.T) {
	c := dial(t, s.toCatalog)
	fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: catalog\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", resp, err)
	}
	fmt.Fprintln(c, "hello")
	if line, err := r.ReadString('\n'); line != "hello\n" {
		t.Fatalf("%q, %v", line, err)
	}
}

func (s *shop) testTCP(t *testing.T) {
	c := dial(t, s.toPayments)
	r := bufio.NewReader(c)
	if line, err := r.ReadString('\n'); line != "payments ready\n" {
		t.Fatalf("%q, %v; the server speaks first", line, err)
	}
	fmt.Fprintln(c, "ping")
	if line, err := r.ReadString('\n'); line != "ping\n" {
		t.Fatalf("%q, %v", line, err)
	}
}

func (s *shop) testGRPC(t *testing.T) {
	ctx := metadata.AppendToOutgoingContext(t.Context(), "user_id", "1")
	if err := checkHealth(ctx, t, s.toAssignments); err != nil {
		t.Error(err)
	}
	err := checkHealth(ctx, t, s.toGhostGRPC)
	if want := `crossfade: upstream "ghost-grpc": no healthy instance (UH)`; status.Code(err) != codes.Unavailable || status.Convert(err).Message() != want {
		t.Errorf("%v, want Unavailable and %q", err, want)
	}
}

func (s *shop) testReplies(t *testing.T) {
	for addr, want := range map[string]string{
		s.toSearch:    `upstream "search": cannot connect to an instance`,
		s.toGhost:     `upstream "ghost": no healthy instance (UH)`,
		s.toElsewhere: `upstream "catalog": no mesh gateway for dc2`,
		s.toDown:      `service "down": the app refused the connection`,
	} {
		status, _, body := get(t, addr)
		if status != 503 || !strings.HasPrefix(body, "crossfade: "+want) || !strings.HasSuffix(body, "\n") || strings.Count(body, "crossfade") != 1 {
			t.Errorf("%d %q, want 503 and %q", status, body, want)
		}
	}
}

func (s *shop) testUnderscore(t *testing.T) {
	req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://"+s.toCatalog+"/", nil)
	req.Header["user_id"] = []string{"1"}
	status, _, body := do(t, http.DefaultClient, req)
	if status != 400 || !strings.Contains(body, "underscore") {
		t.Errorf("%d %q, want 400 and why", status, body)
	}
}

func (s *shop) testDenied(t *testing.T) {
	status, _, body := s.call(spiffe("reports"), s.catalogSide)
	if status != 403 || body != "RBAC: access denied" {
		t.Errorf("%d %q", status, body)
	}
	if status, _, body := s.call(spiffe("other"), s.catalogSide); status != 200 {
		t.Errorf("not denied: %d %q", status, body)
	}
	if n := s.catalog.Stat("http.public_listener.rbac.denied"); n != 1 {
		t.Errorf("rbac.denied is %d, want 1", n)
	}
}

func (s *shop) testStrangers(t *testing.T) {
	elsewhere := spiffe("storefront")
	elsewhere.Datacenter = "dc2"
	for name, config := range map[string]*tls.Config{
		"no certificate":     {InsecureSkipVerify: true},
		"other root":         meshtest.NewAuthority(t).Client(spiffe("storefront")),
		"other datacenter":   s.ca.Client(elsewhere),
		"other trust domain": s.ca.Client(identity.SPIFFE{TrustDomain: "evil.consul", Datacenter: "dc1", Service: "storefront"}),
	} {
		if resp, err := s.client(config).Get("https://" + s.catalogSide); err == nil {
			resp.Body.Close()
			t.Errorf("%s: %s, want the handshake to fail", name, resp.Status)
		}
	}
}

func (s *shop) testDeniedConnection(t *testing.T) {
	c, err := tls.Dial("tcp", s.paymentsSide, s.ca.Client(spiffe("reports")))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 100)
	if n, err := c.Read(buf); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("a denied caller read %q, %v, want the connection closed", buf[:n], err)
	}
	if n := s.payments.Stat("cluster.local_app.upstream_cx_none_healthy"); n != 1 {
		t.Errorf("refused before connecting: %d, want 1", n)
	}
	if n := s.payments.Stat("cluster.local_app.upstream_cx_total"); n != 1 {
		t.Errorf("connections to the app: %d, want only that of the allowed caller", n)
	}
}

func (m *mesh) call(id identity.SPIFFE, addr string) (int, http.Header, string) {
	m.t.Helper()
	req, _ := http.NewRequestWithContext(m.t.Context(), "GET", "https://"+addr+"/", nil)
	return do(m.t, m.client(m.ca.Client(id)), req)
}

func get(t *testing.T, addr string) (int, http.Header, string) {
	t.Helper()
	req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://"+addr+"/", nil)
	return do(t, http.DefaultClient, req)
}

func do(t *testing.T, c *http.Client, req *http.Request) (int, http.Header, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(req.Context(), 10*time.Second)
	defer cancel()
	resp, err := c.Do(req.WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(body)
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}
