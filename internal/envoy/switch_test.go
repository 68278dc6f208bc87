package envoy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// ongoing is what goes on while something changes. What fails of it is kept.
type ongoing struct {
	ctx  context.Context
	stop func()
	wg   sync.WaitGroup
	sent atomic.Int64

	mu     sync.Mutex
	failed []error
}

func newOngoing(t *testing.T) *ongoing {
	l := &ongoing{}
	ctx, cancel := context.WithCancel(t.Context())
	l.ctx, l.stop = ctx, sync.OnceFunc(func() { cancel(); l.wg.Wait() })
	t.Cleanup(l.stop)
	return l
}

func (l *ongoing) note(what string, err error) {
	l.sent.Add(1)
	if err != nil && l.ctx.Err() == nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.failed = append(l.failed, fmt.Errorf("%s: %w", what, err))
	}
}

// open begins a call per tick, whatever becomes of those before.
func (l *ongoing) open(what string, call func() error) {
	l.wg.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-l.ctx.Done():
				return
			case <-tick.C:
				l.wg.Go(func() { l.note(what, call()) })
			}
		}
	})
}

// hold uses one thing that is open again and again, until it fails.
func (l *ongoing) hold(what string, use func() error) {
	l.wg.Go(func() {
		for l.ctx.Err() == nil {
			err := use()
			l.note(what, err)
			if err != nil {
				return
			}
		}
	})
}

// failures are those so far.
func (l *ongoing) failures() []error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// tickingApp is gRPC's health service; a watch of "ticks" hears of it all the time.
func tickingApp(t *testing.T) int {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g, h := grpc.NewServer(), health.NewServer()
	healthpb.RegisterHealthServer(g, h)
	go g.Serve(lis)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ctx.Err() == nil; n++ {
			h.SetServingStatus("ticks", healthpb.HealthCheckResponse_ServingStatus(1+n%2))
			<-tick.C
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait(); g.Stop() })
	return lis.Addr().(*net.TCPAddr).Port
}

// callees are three services that are called over mTLS all the time: by requests and a
// WebSocket, a stream of gRPC, and connections.
type callees struct {
	*ongoing
	http, grpc, tcp *live
	inTime          atomic.Int64 // new connections whose handshake began before the inspector may have given up
}

// startCallees runs them in Envoys whose drains are over within a second.
func startCallees(t *testing.T) *callees {
	app := httptest.NewServer(http.HandlerFunc(catalogApp))
	t.Cleanup(app.Close)
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plain.Close() })
	go echoes(plain)
	drains := []string{"--drain-time-s", "1", "--drain-strategy", "immediate"}
	s := &callees{ongoing: newOngoing(t)}
	var atHTTP, atGRPC, atTCP string
	s.http, atHTTP = startCallee(t, "catalog", "http", app.Listener.Addr().(*net.TCPAddr).Port, "", drains...)
	s.grpc, atGRPC = startCallee(t, "assignments", "grpc", tickingApp(t), "", drains...)
	s.tcp, atTCP = startCallee(t, "payments", "tcp", plain.Addr().(*net.TCPAddr).Port, "", drains...)

	client := s.http.mesh.client(s.http.mesh.ca.Client(spiffe("storefront")))
	s.open("request", func() error {
		resp, err := client.Get("https://" + atHTTP + "/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 {
			return fmt.Errorf("%s: %w", resp.Status, err)
		}
		return nil
	})
	socket := s.http.meshTLS(t, "catalog", atHTTP)
	reader := upgrade(t, socket)
	socket.SetDeadline(time.Time{})
	s.hold("WebSocket", func() error { return echoed(socket, reader, "hello") })

	conn, err := grpc.NewClient("passthrough:///"+atGRPC, grpc.WithTransportCredentials(credentials.NewTLS(s.grpc.mesh.ca.Client(spiffe("storefront")))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	stream, err := healthpb.NewHealthClient(conn).Watch(s.ctx, &healthpb.HealthCheckRequest{Service: "ticks"})
	if err != nil {
		t.Fatal(err)
	}
	s.hold("stream", func() error { _, err := stream.Recv(); return err })
	s.open("call", func() error {
		ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
		defer cancel()
		_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
		return err
	})

	tcp := s.tcp.meshTLS(t, "payments", atTCP)
	tcp.SetDeadline(time.Time{})
	lines := bufio.NewReader(tcp)
	s.hold("connection", func() error { return echoed(tcp, lines, "hello") })
	s.open("new connection", func() error {
		config := s.tcp.mesh.ca.Client(spiffe("storefront"))
		config.ServerName = "payments.default.dc1.internal." + meshtest.TrustDomain
		began := time.Now()
		c, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(s.ctx, "tcp", atTCP)
		if err != nil {
			return err
		}
		defer c.Close()
		said := &firstWord{Conn: c}
		secure := tls.Client(said, config)
		err = echoed(secure, bufio.NewReader(secure), "hello")
		if said.at.Sub(began) > 200*time.Millisecond {
			return nil // on a busy machine: by then it may count as plaintext
		}
		s.inTime.Add(1)
		return err
	})
	return s
}

func (s *callees) mode(mode string) {
	s.http.mode("catalog", "http", mode)
	s.grpc.mode("assignments", "grpc", mode)
	s.tcp.mode("payments", "tcp", mode)
}

// drained waits until no filter chain or listener is on its way out.
func drained(t *testing.T, all ...*live) {
	t.Helper()
	for _, l := range all {
		meshtest.Eventually(t, "drains are over", func() error {
			if n := l.Stat("listener_manager.total_filter_chains_draining") + l.Stat("listener_manager.total_listeners_draining"); n > 0 {
				return fmt.Errorf("%d drain", n)
			}
			return nil
		})
	}
}

func TestModeSwitchDrainsNoMTLS(t *testing.T) {
	s := startCallees(t)
	for range 2 {
		s.mode(config.MutualTLSPermissive)
		s.mode(config.MutualTLSStrict)
	}
	drained(t, s.http, s.grpc, s.tcp)
	s.stop()
	for i, err := range s.failures() {
		if i < 5 {
			t.Error(err)
		}
	}
	t.Logf("%d requests, messages and connections, %d failed", s.sent.Load(), len(s.failures()))
	if s.inTime.Load() == 0 {
		t.Error("no new connection began its handshake in time: nothing is known of them")
	}
	for _, l := range []*live{s.http, s.grpc, s.tcp} {
		if n := l.Stat("listener_manager.listener_in_place_updated"); n != 4 {
			t.Errorf("%s: %d updates in place, want 4", l.input.Instance.Service.ID, n)
		}
		if n := l.Stat("listener_manager.listener_modified"); n != 4 {
			t.Errorf("%s: %d changes of the listener, want 4, all in place", l.input.Instance.Service.ID, n)
		}
	}
}

// What goes on above notices a change that drains: one of the filter chain of mTLS.
func TestChangeOfAFilterChainIsNoticed(t *testing.T) {
	s := startCallees(t)
	s.http.write(&config.Mesh{HTTP: &config.MeshHTTP{Incoming: &config.MeshIncoming{RequestNormalization: &config.RequestNormalization{InsecureDisablePathNormalization: true}}}})
	s.tcp.input.Instance.Service.Proxy.Config = map[string]any{"local_idle_timeout_ms": 60_000}
	s.tcp.write()
	meshtest.Eventually(t, "what is held open is cut", func() error {
		cut := map[string]bool{}
		for _, err := range s.failures() {
			what, _, _ := strings.Cut(err.Error(), ":")
			cut[what] = true
		}
		if !cut["WebSocket"] || !cut["connection"] {
			return fmt.Errorf("cut: %v", cut)
		}
		return nil
	})
}

// Another balance among workers makes another listener in place of the one before: it takes
// what is new at once, and what is open ends when the drain is over.
func TestBalanceReplacesTheListener(t *testing.T) {
	s := startCallees(t)
	balanced := func() int { return strings.Count(s.tcp.Admin("/config_dump"), `"exact_balance"`) }
	if n := balanced(); n != 0 {
		t.Fatalf("%d listeners are balanced from the start", n)
	}
	s.tcp.write(&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "payments", Protocol: "tcp", BalanceInboundConnections: "exact_balance"})
	if balanced() == 0 {
		t.Error("Envoy does not have it")
	}
	drained(t, s.tcp)
	meshtest.Eventually(t, "what is held open is cut", func() error {
		if len(s.failures()) == 0 {
			return fmt.Errorf("%d were sent, nothing failed", s.sent.Load())
		}
		return nil
	})
	s.stop()
	for _, err := range s.failures() {
		if what, _, _ := strings.Cut(err.Error(), ":"); what != "connection" {
			t.Error(err)
		}
	}
	if place, all := s.tcp.Stat("listener_manager.listener_in_place_updated"), s.tcp.Stat("listener_manager.listener_modified"); place != 0 || all != 1 {
		t.Errorf("%d changes of the listener, %d of them in place; want one that is not", all, place)
	}
}

// firstWord notes when a connection's first byte was written.
type firstWord struct {
	net.Conn
	at time.Time
}

func (f *firstWord) Write(b []byte) (int, error) {
	n, err := f.Conn.Write(b)
	if f.at.IsZero() {
		f.at = time.Now()
	}
	return n, err
}
