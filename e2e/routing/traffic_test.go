package routing

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/crossfade-mesh/crossfade/internal/demo/load"
)

var quiet = log.New(io.Discard, "", 0)

// How long the same stream or connection may say nothing, and a request may take.
const patience = 10 * time.Second

// wire is a connection on which requests, or lines, follow each other.
type wire struct {
	sync.Mutex
	net.Conn
	in *bufio.Reader
}

func dialWire(port int, deadline time.Time) (*wire, error) {
	c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Until(deadline))
	if err != nil {
		return nil, err
	}
	c.SetDeadline(deadline)
	return &wire{Conn: c, in: bufio.NewReader(c)}, nil
}

// line writes one and reads it back.
func (c *wire) line(n uint64, deadline time.Time) error {
	c.Lock()
	defer c.Unlock()
	c.SetDeadline(deadline)
	if _, err := fmt.Fprintln(c.Conn, n); err != nil {
		return err
	}
	got, err := c.in.ReadString('\n')
	if err == nil && got != fmt.Sprintln(n) {
		err = fmt.Errorf("%q came back for %d", got, n)
	}
	return err
}

// traffic is requests of all kinds at a constant rate, and connections and streams
// that last as long as it does. It never tries anything twice.
type traffic struct {
	t       *testing.T
	ports   map[string]int // by upstream
	kinds   map[string]*load.Recorder
	idle    chan *wire // kept alive
	sockets []*wire
	lines   []*wire
	rpc     *grpc.ClientConn
	closed  atomic.Int64 // kept-alive connections that the other side ended

	stop func() // ends all and waits

	mu     sync.Mutex
	broken []load.Failure // streams
}

// How many last.
const (
	sockets = 20
	lines   = 20
	streams = 10
)

func (t *traffic) get(n uint64, deadline time.Time, c *wire) (load.Answer, error) {
	method, body := http.MethodGet, ""
	if n%2 == 1 {
		method, body = http.MethodPost, strings.Repeat("x", int(n%2000))
	}
	paths := []string{"/", "/a", "/a/b", "/b/c", "/api/x", "/c/d?e=f"}
	c.SetDeadline(deadline)
	_, err := fmt.Fprintf(c.Conn, "%s %s HTTP/1.1\r\nhost: catalog\r\nx-user: user-%d\r\ncontent-length: %d\r\n\r\n%s", method, paths[n%6], n%50, len(body), body)
	if err != nil {
		return load.Answer{}, err
	}
	resp, err := http.ReadResponse(c.in, &http.Request{Method: method})
	if err != nil {
		return load.Answer{}, err
	}
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: status %d: %s", method, paths[n%6], resp.StatusCode, text)
	}
	if resp.Close {
		t.closed.Add(1)
		c.Close()
	}
	return load.Answer{From: resp.Header.Get("x-instance")}, err
}

// kept sends a request on a connection that others have used.
func (t *traffic) kept(n uint64, deadline time.Time) (load.Answer, error) {
	var c *wire
	select {
	case c = <-t.idle:
	default:
		var err error
		if c, err = dialWire(t.ports["catalog"], deadline); err != nil {
			return load.Answer{}, err
		}
	}
	a, err := t.get(n, deadline, c)
	if err != nil {
		c.Close()
		return a, err
	}
	select {
	case t.idle <- c:
	default:
		c.Close()
	}
	return a, nil
}

func (t *traffic) fresh(n uint64, deadline time.Time) (load.Answer, error) {
	c, err := dialWire(t.ports["catalog"], deadline)
	if err != nil {
		return load.Answer{}, err
	}
	defer c.Close()
	return t.get(n, deadline, c)
}

// socket opens a WebSocket. What is said on it is not framed: nobody on the way looks.
func (t *traffic) socket(deadline time.Time) (*wire, error) {
	c, err := dialWire(t.ports["catalog"], deadline)
	if err != nil {
		return nil, err
	}
	fmt.Fprint(c.Conn, "GET /ws HTTP/1.1\r\nhost: catalog\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	resp, err := http.ReadResponse(c.in, nil)
	if err == nil && resp.StatusCode != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(resp.Body)
		err = fmt.Errorf("status %d: %s", resp.StatusCode, text)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// connection opens one to the upstream and reads who answers.
func (t *traffic) connection(deadline time.Time) (*wire, error) {
	c, err := dialWire(t.ports["payments"], deadline)
	if err != nil {
		return nil, err
	}
	if _, err := c.in.ReadString('\n'); err != nil {
		c.Close()
		return nil, fmt.Errorf("no greeting: %w", err)
	}
	return c, nil
}

// short opens one of those, says a line and closes it.
func short(open func(time.Time) (*wire, error)) load.Call {
	return func(n uint64, deadline time.Time) (load.Answer, error) {
		c, err := open(deadline)
		if err != nil {
			return load.Answer{}, err
		}
		defer c.Close()
		return load.Answer{}, c.line(n, deadline)
	}
}

// lasting says a line on one of those that are open.
func lasting(open []*wire) load.Call {
	return func(n uint64, deadline time.Time) (load.Answer, error) {
		return load.Answer{}, open[n%uint64(len(open))].line(n, deadline)
	}
}

func (t *traffic) unary(_ uint64, deadline time.Time) (load.Answer, error) {
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	_, err := healthpb.NewHealthClient(t.rpc).Check(ctx, &healthpb.HealthCheckRequest{})
	return load.Answer{}, err
}

// watch reads a stream of the server until ctx ends.
func (t *traffic) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(patience, func() { cancel(errors.New("silent for too long")) })
	defer silence.Stop()
	s, err := healthpb.NewHealthClient(t.rpc).Watch(ctx, &healthpb.HealthCheckRequest{Service: "ticks"})
	if err != nil {
		return err
	}
	for {
		if _, err := s.Recv(); err != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		silence.Reset(patience)
	}
}

// traffic opens what lasts and begins to send. What cannot be opened fails the test.
func (w *world) traffic(t *testing.T, ports map[string]int) *traffic {
	t.Helper()
	out := &traffic{t: t, ports: ports, kinds: map[string]*load.Recorder{}, idle: make(chan *wire, 64)}
	var err error
	out.rpc, err = grpc.NewClient(fmt.Sprintf("passthrough:///127.0.0.1:%d", ports["chat"]), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
	if err != nil {
		t.Fatal(err)
	}
	for range sockets {
		c, err := out.socket(time.Now().Add(patience))
		if err != nil {
			t.Fatal(err)
		}
		out.sockets = append(out.sockets, c)
	}
	for range lines {
		c, err := out.connection(time.Now().Add(patience))
		if err != nil {
			t.Fatal(err)
		}
		out.lines = append(out.lines, c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, g := range []struct {
		kind string
		rate int
		call load.Call
	}{
		{"requests", 200, out.kept},
		{"requests on new connections", 40, out.fresh},
		{"WebSocket messages", 100, lasting(out.sockets)},
		{"new WebSockets", 5, short(out.socket)},
		{"gRPC calls", 60, out.unary},
		{"TCP messages", 80, lasting(out.lines)},
		{"TCP connections", 15, short(out.connection)},
	} {
		rec := load.NewRecorder()
		out.kinds[g.kind] = rec
		wg.Go(func() {
			(&load.Generator{Rate: g.rate, Timeout: patience, Outstanding: 5000, Call: g.call, Record: rec}).Run(ctx)
		})
	}
	until, end := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	for range streams {
		watching.Go(func() {
			begun := time.Now()
			if err := out.watch(until); until.Err() == nil {
				out.mu.Lock()
				out.broken = append(out.broken, load.Failure{Sent: begun, Ended: time.Now(), Reason: err.Error()})
				out.mu.Unlock()
			}
		})
	}
	out.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		end()
		watching.Wait()
		out.rpc.Close()
		close(out.idle)
		for c := range out.idle {
			c.Close()
		}
		for _, c := range append(out.sockets, out.lines...) {
			c.Close()
		}
	})
	t.Cleanup(out.stop)
	return out
}

// failures are all of every kind, by time.
func (t *traffic) failures() (out []load.Failure) {
	for kind, rec := range t.kinds {
		for _, f := range rec.Failures() {
			f.Reason = kind + ": " + f.Reason
			out = append(out, f)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range t.broken {
		f.Reason = "gRPC stream: " + f.Reason
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b load.Failure) int { return cmp.Compare(a.Ended.UnixNano(), b.Ended.UnixNano()) })
	return out
}

// sent is how many requests ended so far.
func (t *traffic) sent() (n uint64) {
	for _, rec := range t.kinds {
		n += rec.Totals().Requests
	}
	return n
}

// report is a line for each kind.
func (t *traffic) report() string {
	var b strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(t.kinds)) {
		rec := t.kinds[kind]
		total, latency := rec.Totals(), rec.Latency()
		fmt.Fprintf(&b, "\n%-28s %6d, %d failed, p50 %v, p99 %v, longest %v", kind, total.Requests, total.Failed, latency.Quantile(.5), latency.Quantile(.99), latency.Max())
	}
	return b.String()
}
