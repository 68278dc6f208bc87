package envoy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"golang.org/x/tools/txtar"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// live is one real Envoy that is told by delta ADS what to run.
type live struct {
	*meshtest.Envoy
	t      *testing.T
	server *xds.Server
	input  proxy.Input
	mesh   *mesh
	// secrets are made once: a new leaf would be one more change.
	secrets []proto.Message
	sent    []*xds.Resource
	// problemsAreFine lets what cannot be honoured pass.
	problemsAreFine bool

	mu      sync.Mutex
	acked   map[xds.Key]string // version in Envoy's hands
	refused []string
}

func startLive(t *testing.T, scenario string, ca *meshtest.Authority, args ...string) *live {
	t.Helper()
	s := meshtest.Parse(t, txtar.Parse([]byte(scenario)).Files)
	l := &live{t: t, input: input(s), mesh: &mesh{t: t, ca: ca, scenario: s}, acked: map[xds.Key]string{}}
	l.server = xds.NewServer(xds.Options{
		Open: func(_ context.Context, n *corev3.Node) (string, error) { return n.GetId(), nil },
		Settled: func(_ string, t xds.Type, o xds.Outcome) {
			l.mu.Lock()
			defer l.mu.Unlock()
			for name, version := range o.Acked {
				l.acked[xds.Key{Type: t, Name: name}] = version
			}
			for name, r := range o.Refused {
				l.refused = append(l.refused, fmt.Sprintf("%s %q: %s", t.Short(), name, r.Message))
			}
		},
		Log: slog.New(slog.DiscardHandler),
	})
	dir := meshtest.RunDir(t)
	socket := filepath.Join(dir, "xds.sock")
	lis, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(xds.ServerOptions()...)
	l.server.Register(g)
	go g.Serve(lis)
	t.Cleanup(g.Stop)

	cert, key := l.mesh.ca.Leaf(spiffe(l.input.Instance.Service.Proxy.DestinationServiceName))
	l.secrets = []proto.Message{envoy.LeafSecret(cert, key), envoy.RootsSecret(l.mesh.ca.PEM)}
	l.push()
	b, err := envoy.Bootstrap(envoy.BootstrapOptions{NodeID: l.input.Instance.Service.ID, Service: "x", Datacenter: meshtest.Datacenter, XDSSocket: socket, AdminSocket: filepath.Join(dir, "admin.sock")})
	if err != nil {
		t.Fatal(err)
	}
	l.Envoy = meshtest.StartEnvoy(t, b, args...)
	l.WaitReady()
	l.settle()
	return l
}

// write puts entries into the configuration and waits until Envoy has taken what
// they changed.
func (l *live) write(entries ...config.Entry) {
	l.t.Helper()
	l.input.Config = l.input.Config.With(entries, nil)
	l.push()
	l.settle()
}

func (l *live) push() {
	l.t.Helper()
	p, problems := proxy.Build(l.input)
	if len(problems) > 0 && !l.problemsAreFine {
		l.t.Fatal(problems)
	}
	l.sent = nil
	all := append(messages(resources(l.t, p)), l.secrets...)
	for _, ref := range p.Endpoints() {
		all = append(all, envoy.Endpoints(proxy.BuildEndpoints(l.mesh.scenario.Snapshot, ref, nil, nil)))
	}
	for _, m := range all {
		typ, name := xds.Type("type.googleapis.com/"+string(m.ProtoReflect().Descriptor().FullName())), nameOf(m)
		res, err := xds.NewResource(typ, name, m)
		if err != nil {
			l.t.Fatal(err)
		}
		l.sent = append(l.sent, res)
	}
	l.server.Update(xds.Update{Views: map[string]*xds.View{l.input.Instance.Service.ID: {Own: xds.Own(l.sent...)}}})
}

// nameOf is the name of a resource.
func nameOf(m proto.Message) string {
	if e, ok := m.(*endpointv3.ClusterLoadAssignment); ok {
		return e.ClusterName
	}
	return m.(interface{ GetName() string }).GetName()
}

func (l *live) settle() {
	l.t.Helper()
	meshtest.Eventually(l.t, "Envoy takes what it is sent", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.refused) > 0 {
			l.t.Fatalf("Envoy refuses %q", l.refused)
		}
		for _, res := range l.sent {
			if l.acked[xds.Key{Type: res.Type, Name: res.Name}] != res.Version {
				return fmt.Errorf("%s %q is not acknowledged", res.Type.Short(), res.Name)
			}
		}
		return nil
	})
}

// untouched fails when a write has reached a listener.
func (l *live) untouched() {
	l.t.Helper()
	for _, stat := range []string{"listener_manager.listener_modified", "listener_manager.listener_in_place_updated", "listener_manager.total_filter_chains_draining"} {
		if n := l.Stat(stat); n != 0 {
			l.t.Errorf("%s is %d, want 0", stat, n)
		}
	}
}

func intentions(callee string, sources ...*config.SourceIntention) config.Entry {
	return &config.ServiceIntentions{Kind: config.KindServiceIntentions, Name: callee, Sources: sources}
}

func TestWritesReachConnectionsNotListeners(t *testing.T) {
	port := meshtest.FreePorts(t, 1)[0]
	l := startLive(t, fmt.Sprintf(`
-- services/payments.hcl --
service {
  name = "payments"
  port = %d
  connect { sidecar_service { port = %d } }
}
`, bannerApp(t), port), meshtest.NewAuthority(t))

	held, banner := l.greet(port)
	if banner != "payments ready\n" {
		t.Fatalf("an allowed caller read %q", banner)
	}
	l.write(intentions("payments", &config.SourceIntention{Name: "storefront", Action: config.Deny}))
	if _, banner := l.greet(port); banner != "" {
		t.Errorf("after a deny the caller read %q", banner)
	}
	l.write(intentions("payments", &config.SourceIntention{Name: "storefront", Action: config.Allow}, &config.SourceIntention{Name: config.Wildcard, Action: config.Deny}))
	if _, banner := l.greet(port); banner != "payments ready\n" {
		t.Errorf("allowed again, the caller read %q", banner)
	}
	l.write(intentions("payments", &config.SourceIntention{Name: config.Wildcard, Action: config.Deny}))
	if _, banner := l.greet(port); banner != "" {
		t.Errorf("with all denied the caller read %q", banner)
	}

	l.write(intentions("payments"), &config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "payments", MaxInboundConnections: 1})
	if _, banner := l.greet(port); banner != "" {
		t.Errorf("one connection too many read %q", banner)
	}
	l.write(&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "payments", MaxInboundConnections: 10})
	if _, banner := l.greet(port); banner != "payments ready\n" {
		t.Errorf("with room for more the caller read %q", banner)
	}

	fmt.Fprintln(held, "still here")
	if line, err := bufio.NewReader(held).ReadString('\n'); line != "still here\n" {
		t.Errorf("the first connection, open all the time: %q, %v", line, err)
	}
	l.untouched()
}

func TestDenyOnALiveConnection(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(catalogApp))
	t.Cleanup(app.Close)
	port := meshtest.FreePorts(t, 1)[0]
	l := startLive(t, fmt.Sprintf(`
-- services/catalog.hcl --
service {
  name = "catalog"
  port = %d
  connect { sidecar_service { port = %d } }
}
-- config/catalog.hcl --
Kind = "service-defaults"
Name = "catalog"
Protocol = "http"
`, app.Listener.Addr().(*net.TCPAddr).Port, port), meshtest.NewAuthority(t))

	c := l.mesh.client(l.mesh.ca.Client(spiffe("storefront")))
	call := func() int {
		t.Helper()
		req, _ := http.NewRequestWithContext(t.Context(), "GET", fmt.Sprintf("https://127.0.0.1:%d/", port), nil)
		status, _, _ := do(t, c, req)
		return status
	}
	if status := call(); status != 200 {
		t.Fatalf("%d, want 200", status)
	}
	l.write(intentions("catalog", &config.SourceIntention{Name: "storefront", Action: config.Deny}))
	if status := call(); status != 403 {
		t.Errorf("%d after a deny, want 403", status)
	}
	l.write(intentions("catalog"), &config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "catalog", Protocol: "http", LocalRequestTimeoutMs: 30000})
	if status := call(); status != 200 {
		t.Errorf("%d when allowed again, want 200", status)
	}
	if n := l.Stat("http.public_listener.downstream_cx_total"); n != 1 {
		t.Errorf("%d connections, want one for all", n)
	}
	l.untouched()
}

// greet connects as storefront and reads the line that the app begins with, "" when
// the connection ends instead.
func (l *live) greet(port int) (net.Conn, string) {
	l.t.Helper()
	config := l.mesh.ca.Client(spiffe("storefront"))
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: config}
	c, err := d.DialContext(l.t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return nil, "" // closed before the handshake
	}
	l.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(5 * time.Second))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		var op *net.OpError
		if !errors.As(err, &op) || op.Timeout() {
			l.t.Errorf("neither greeted nor closed: %v", err)
		}
	}
	return c, line
}
