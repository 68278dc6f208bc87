package nodeproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// registry is a source that says what the test says.
type registry struct {
	snapshots chan *catalog.Snapshot
	fail      chan error
}

func newRegistry() *registry {
	return &registry{make(chan *catalog.Snapshot), make(chan error)}
}

func (r *registry) Run(ctx context.Context, publish func(*catalog.Snapshot)) error {
	for {
		select {
		case s := <-r.snapshots:
			publish(s)
		case err := <-r.fail:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

// start runs a node proxy until the returned function is called, which fails unless it
// ends well.
func start(t *testing.T, l Layout, r *registry, dir string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Options{Layout: l, Source: r, Dir: dir, Concurrency: 1, DrainTime: 5 * time.Second, Output: io.Discard})
	}()
	stopped := false
	stop = func() {
		t.Helper()
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("node proxy %s: %v", l.Node, err)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("node proxy %s does not end", l.Node)
		}
	}
	t.Cleanup(stop)
	return stop
}

// web answers with its name, the Host it was called by and Via, and echoes WebSocket messages.
func web(t *testing.T, addr, name string) (port int) {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/socket" {
			fmt.Fprintf(w, "%s %s [%s] %s", name, r.Host, r.Header.Get("Via"), r.Proto)
			return
		}
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, b, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, append([]byte(name+" "), b...)) != nil {
				return
			}
		}
	})}
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	return ln.Addr().(*net.TCPAddr).Port
}

// speaker says its name at once, and then echoes.
func speaker(t *testing.T, name string) (port int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.WriteString(c, name)
				io.Copy(c, c)
			}()
		}
	}()
	return ln.Addr().(*net.TCPAddr).Port
}

// ask is the answer to a GET by Host, on a connection of its own.
func ask(addr, host, path string) (int, string, error) {
	req, err := http.NewRequest("GET", "http://"+addr+path, nil)
	if err != nil {
		return 0, "", err
	}
	req.Host = host
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func answers(addr, host, want string) error {
	code, body, err := ask(addr, host, "/")
	if err != nil || code != 200 || body != want {
		return fmt.Errorf("%s: %d %q, %w; want %q", host, code, body, err, want)
	}
	return nil
}

// Two hosts: what is called at one is answered on the other, in every protocol; who is
// where changes without a connection being closed, and an Envoy that dies is replaced.
func TestTwoHosts(t *testing.T) {
	p := meshtest.FreePorts(t, 6)
	on := func(node, ip string) Layout {
		return Layout{
			Node: node, Front: net.JoinHostPort(ip, strconv.Itoa(p[0])), Peer: net.JoinHostPort(ip, strconv.Itoa(p[1])), Domain: "old",
			TCP: []TCP{{"payments", p[2], p[3]}},
		}
	}
	a, b := on("a", "127.0.0.1"), on("b", "127.0.0.2")
	ra, rb := newRegistry(), newRegistry()
	dirs := []string{meshtest.RunDir(t), meshtest.RunDir(t)}
	stopA := start(t, a, ra, dirs[0])
	start(t, b, rb, dirs[1])

	port1, port2, pay := web(t, "127.0.0.1:0", "catalog-1"), web(t, "127.0.0.1:0", "catalog-2"), speaker(t, "payments-1\n")
	calls := grpcServer(t)
	say := func(all ...catalog.Instance) {
		s := snapshot(1, all...)
		ra.snapshots <- s
		rb.snapshots <- s
	}
	there := []catalog.Instance{
		at("payments", "1", "b", "127.0.0.2", "127.0.0.1", pay, catalog.Passing),
		at("assignments", "1", "b", "127.0.0.2", "127.0.0.1", calls, catalog.Passing),
	}
	onB := at("catalog", "1", "b", "127.0.0.2", "127.0.0.1", port1, catalog.Passing)
	onA := at("catalog", "2", "a", "127.0.0.1", "127.0.0.1", port2, catalog.Passing)
	say(append(there, onB)...)
	for _, host := range []string{"catalog", "catalog.old", "catalog:80"} {
		want := "catalog-1 " + host + " [node-proxy, node-proxy] HTTP/1.1"
		meshtest.Eventually(t, "an answer from the other host", func() error { return answers(a.Front, host, want) })
	}
	if code, _, err := ask(a.Front, "nobody", "/"); err != nil || code != 404 {
		t.Errorf("unknown Host: %d, %v", code, err)
	}

	conn, err := grpc.NewClient(a.Front, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("assignments.old"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := healthpb.NewHealthClient(conn).Watch(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := stream.Recv(); err != nil || got.Status != healthpb.HealthCheckResponse_SERVING {
		t.Fatalf("gRPC: %v, %v", got, err)
	}
	ws, _, err := websocket.Dial(t.Context(), "ws://"+a.Front+"/socket", &websocket.DialOptions{Host: "catalog"})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	echo := func(text string) {
		t.Helper()
		if err := ws.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := ws.Read(t.Context()); err != nil || string(got) != "catalog-1 "+text {
			t.Fatalf("WebSocket: %q, %v", got, err)
		}
	}
	echo("one")
	c, err := net.Dial("tcp", a.frontOf(a.TCP[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	line := func(want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
			t.Fatalf("TCP: %q, %v", got, err)
		}
	}
	line("payments-1\n")

	// It moves: new requests follow, what is open stays open.
	say(append(there, onA)...)
	meshtest.Eventually(t, "the other instance", func() error {
		return answers(a.Front, "catalog", "catalog-2 catalog [node-proxy, node-proxy] HTTP/1.1")
	})
	echo("two")
	io.WriteString(c, "paid\n")
	line("paid\n")
	// It goes away altogether, and a Host that nobody has is not found.
	say(there...)
	meshtest.Eventually(t, "nobody", func() error {
		if code, _, err := ask(a.Front, "catalog", "/"); err != nil || code != 404 {
			return fmt.Errorf("%d, %w", code, err)
		}
		return nil
	})
	meshtest.Eventually(t, "its files are gone", func() error { // after Envoy has been told
		if left, _ := filepath.Glob(filepath.Join(dirs[0], "eds-*catalog*")); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
	say(append(there, onB)...)
	meshtest.Eventually(t, "it is back", func() error {
		return answers(a.Front, "catalog", "catalog-1 catalog [node-proxy, node-proxy] HTTP/1.1")
	})

	ws.CloseNow()
	conn.Close()
	c.Close()
	kill(t, dirs[0])
	meshtest.Eventually(t, "another Envoy", func() error {
		return answers(a.Front, "catalog", "catalog-1 catalog [node-proxy, node-proxy] HTTP/1.1")
	})

	// Without its registry it begins with what it knew.
	stopA()
	start(t, a, newRegistry(), dirs[0])
	meshtest.Eventually(t, "started from its files", func() error {
		return answers(a.Front, "catalog", "catalog-1 catalog [node-proxy, node-proxy] HTTP/1.1")
	})
}

// A registry that gives up ends the node proxy, and says why.
func TestRegistryThatFails(t *testing.T) {
	p := meshtest.FreePorts(t, 2)
	r := newRegistry()
	ended := make(chan error, 1)
	go func() {
		ended <- Run(t.Context(), Options{
			Layout: Layout{Node: "a", Front: fmt.Sprintf("127.0.0.1:%d", p[0]), Peer: fmt.Sprintf("127.0.0.1:%d", p[1])},
			Source: r, Dir: meshtest.RunDir(t),
		})
	}()
	r.fail <- errors.New("no permission")
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "no permission") {
		t.Error(err)
	}
}

func grpcServer(t *testing.T) (port int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	healthpb.RegisterHealthServer(srv, health.NewServer())
	go srv.Serve(ln)
	t.Cleanup(srv.Stop)
	return ln.Addr().(*net.TCPAddr).Port
}

// kill kills the Envoy that was started with the bootstrap of a folder.
func kill(t *testing.T, dir string) {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range procs {
		line, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(line), "-c\x00"+filepath.Join(dir, bootName)) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatal("no Envoy to kill")
}
