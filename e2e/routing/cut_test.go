package routing

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/demo/load"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

const (
	// slowAnswer is how long /slow takes.
	slowAnswer = 4 * time.Second
	// promised is how long after the command the new way may still get something new.
	promised = 2 * time.Second
)

// enduring answers requests, /slow after a while, and echoes on WebSockets for as long as they last.
func enduring(id string) http.Handler {
	echo := shop(id)
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodConnect:
			rw.Header().Set("x-instance", id)
		case r.Header.Get("Upgrade") != "":
			c, both, err := http.NewResponseController(rw).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Instance: %s\r\n\r\n", id)
			_, _ = io.Copy(c, both)
			return
		case r.URL.Path == "/slow":
			select {
			case <-time.After(slowAnswer):
			case <-r.Context().Done(): // nobody waits any more
				return
			}
		}
		echo.ServeHTTP(rw, r)
	})
}

// fork is a service that can be reached by an old way and, at several instances, by a new one.
type fork struct {
	service string
	legacy  *app
	record  *load.Recorder
}

const forkInstances = 4

func (w *world) fork(service string) *fork {
	w.t.Helper()
	out := &fork{service: service, record: load.NewRecorder()}
	switch service {
	case "payments":
		out.legacy = w.plainTCP("legacy")
	case "chat":
		out.legacy = w.chat("legacy", false)
	default:
		out.legacy = w.plainHTTP("legacy", enduring("legacy"))
	}
	for i := range forkInstances {
		id := fmt.Sprintf("mtls-%s-%d", service, i)
		switch service {
		case "payments":
			w.tcp(service, id, version(1))
		case "chat":
			a := w.chat("mtls", true)
			w.native(service, id, "v1", a.port, a.stop)
		default:
			a := w.secureHTTP(service, enduring("mtls"))
			w.native(service, id, "v1", a.port, a.stop)
		}
	}
	w.apply(shiftText(service, fmt.Sprintf("127.0.0.1:%d", out.legacy.port), "", [4]float64{0, 0, 0, 100}, unguarded))
	return out
}

// offer sends new requests, streams, WebSockets or connections until the test ends.
func (f *fork) offer(t *testing.T, rate int, call func() (string, error)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	g := load.Generator{Rate: rate, Timeout: 10 * time.Second, Outstanding: 500, Record: f.record, Call: func(uint64, time.Time) (load.Answer, error) {
		id, err := call()
		way, _, _ := strings.Cut(id, "-")
		return load.Answer{From: id, Way: way}, err
	}}
	go func() { defer close(done); g.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

// late says that something new went the new way later than promised after a time.
func (f *fork) late(at time.Time) error {
	last := f.record.LastSent("mtls")
	if after := last.Sub(at); after > promised {
		return fmt.Errorf("%s: something new went by mtls %v after it", f.service, after)
	}
	return nil
}

// until waits until something has been sent after a time, and all of it was answered.
func (f *fork) until(t *testing.T, way string, at time.Time) {
	t.Helper()
	meshtest.Eventually(t, f.service+" goes on by "+way, func() error {
		if last := f.record.LastSent(way); !last.After(at) {
			return fmt.Errorf("the last by %s was sent at %v", way, last)
		}
		return nil
	})
}

// held is something that stays open: hold reads until it ends, say proves that it lives.
type held struct {
	way   string
	say   func() error
	ended chan struct{} // closed when the other end has
	at    time.Time     // when; read after ended
	close func()
}

func newHeld(way string, read func() error, say func() error, closing func()) *held {
	h := &held{way: way, say: say, ended: make(chan struct{}), close: closing}
	go func() {
		for read() == nil {
		}
		h.at = time.Now()
		close(h.ended)
	}()
	return h
}

func (h *held) alive() error {
	select {
	case <-h.ended:
		return errors.New("it has ended")
	default:
		return h.say()
	}
}

// echoing holds a connection on which each line comes back.
func echoing(id string, c net.Conn, in *bufio.Reader) *held {
	way, _, _ := strings.Cut(id, "-")
	c.SetDeadline(time.Time{})
	lines := make(chan string, 16)
	return newHeld(way, func() error {
		line, err := in.ReadString('\n')
		if err == nil {
			lines <- line
		}
		return err
	}, func() error {
		fmt.Fprintln(c, "still here")
		select {
		case <-lines:
			return nil
		case <-time.After(10 * time.Second):
			return errors.New("no echo")
		}
	}, func() { c.Close() })
}

// hold opens one of a service.
func (c *caller) hold(service string, stream func(context.Context) (healthpb.Health_WatchClient, error)) (*held, error) {
	switch service {
	case "payments":
		conn, id, err := c.dial(service)
		if err != nil {
			return nil, err
		}
		return echoing(id, conn, bufio.NewReader(conn)), nil
	case "chat":
		ctx, cancel := context.WithCancel(context.Background())
		s, err := stream(ctx)
		if err != nil {
			cancel()
			return nil, err
		}
		md, err := s.Header()
		if err != nil {
			cancel()
			return nil, err
		}
		ticks := make(chan struct{}, 1)
		return newHeld(strings.Join(md.Get("x-instance"), ""), func() error {
			_, err := s.Recv()
			select {
			case ticks <- struct{}{}:
			default:
			}
			return err
		}, func() error {
			for range 2 { // one may be old
				select {
				case <-ticks:
				case <-time.After(10 * time.Second):
					return errors.New("no tick")
				}
			}
			return nil
		}, cancel), nil
	}
	conn, err := dialWire(c.ports[service], time.Now().Add(patience))
	if err != nil {
		return nil, err
	}
	fmt.Fprint(conn.Conn, "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	resp, err := http.ReadResponse(conn.in, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		conn.Close()
		return nil, fmt.Errorf("%v: %w", resp, err)
	}
	return echoing(resp.Header.Get("x-instance"), conn.Conn, conn.in), nil
}

// revert goes back with everything, and returns when the command was given.
func (w *world) revert(r api.RevertRequest) (at time.Time, out api.Changed) {
	w.t.Helper()
	in, err := json.Marshal(r)
	if err != nil {
		w.t.Fatal(err)
	}
	at = time.Now()
	_, body := w.server.Call(http.MethodPost, "/v1/crossfade/revert", in)
	if err := json.Unmarshal(body, &out); err != nil {
		w.t.Fatalf("%v: %s", err, body)
	}
	return at, out
}

// closed waits for what becomes of an order to close what is open.
func (w *world) closed(id string) (out api.Cut) {
	w.t.Helper()
	meshtest.Eventually(w.t, "what is open is closed", func() error {
		_, body := w.server.Call(http.MethodGet, api.CutPath(id), nil)
		out = api.Cut{}
		if err := json.Unmarshal(body, &out); err != nil || !out.Done {
			return fmt.Errorf("%s", body)
		}
		return nil
	})
	return out
}

// After a revert nothing new goes the new way for longer than two seconds, nothing fails, and
// what is open stays open, until --cut closes that, and only that, spread over a time.
func TestRevertAndCut(t *testing.T) {
	w := newWorld(t)
	w.speak()
	services := []string{"catalog", "chat", "news", "payments"}
	forks := map[string]*fork{}
	for _, s := range services {
		forks[s] = w.fork(s)
	}
	web := w.caller("web", "web-1", services...)
	calls := web.calls()
	conn := web.grpc()
	watch := func(ctx context.Context) (healthpb.Health_WatchClient, error) {
		return healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{Service: "ticks"})
	}
	for _, s := range services {
		web.answers(s, calls[s])
		forks[s].offer(t, 30, calls[s])
	}
	const each = 24
	open := map[string][]*held{}
	for _, s := range services[1:] {
		for range each {
			h, err := web.hold(s, watch)
			if err != nil {
				t.Fatal(s, err)
			}
			t.Cleanup(h.close)
			if open[s] = append(open[s], h); h.way != "mtls" {
				t.Fatalf("%s is answered by %q", s, h.way)
			}
		}
	}

	// Without a revert the same look sees that the new way is used.
	began := time.Now()
	for _, s := range services {
		forks[s].until(t, "mtls", began.Add(promised))
		if forks[s].late(began) == nil {
			t.Errorf("%s: that the new way is used is not seen", s)
		}
	}

	var slow sync.WaitGroup
	slowly := make([]answer, 2)
	begun := make(chan struct{}, len(slowly))
	for i := range slowly {
		slow.Go(func() {
			begun <- struct{}{}
			slowly[i] = web.get("catalog", "/slow")
		})
		<-begun
	}
	meshtest.Eventually(t, "slow requests are under way", func() error {
		if n := w.telemetry("web", "catalog")["mtls"].Open; n < uint64(len(slowly)) {
			return fmt.Errorf("%d", n)
		}
		return nil
	})

	at, out := w.revert(api.RevertRequest{All: true})
	if len(out.Pairs) != len(services) || out.Cut != "" {
		t.Fatalf("%+v", out)
	}
	stay := map[string]*held{}
	for _, s := range services {
		forks[s].until(t, "legacy", at.Add(promised))
		if err := forks[s].late(at); err != nil {
			t.Error(err)
		}
		t.Logf("%s: the last by mtls %v after the command", s, forks[s].record.LastSent("mtls").Sub(at))
	}
	for _, s := range services[1:] {
		for _, h := range open[s] {
			if err := h.alive(); err != nil {
				t.Errorf("%s: what was open: %v", s, err)
			}
		}
		w.opens(s, each)
		h, err := web.hold(s, watch)
		if err != nil || h.way != "legacy" {
			t.Fatalf("%s by %+v: %v", s, h, err)
		}
		t.Cleanup(h.close)
		stay[s] = h
	}

	const over = 3 * time.Second
	at, out = w.revert(api.RevertRequest{All: true, Cut: true, Over: over.String()})
	done := w.closed(out.Cut)
	took := time.Since(at)
	slow.Wait()
	for _, a := range slowly {
		if err := a.ok(); err != nil || a.instance != "mtls" {
			t.Errorf("a slow request by %q: %v", a.instance, err)
		}
	}
	if done.Closed != 3*each || len(done.Sidecars) != len(services) || took > over+5*time.Second {
		t.Errorf("after %v: %+v", took, done)
	}
	for _, row := range done.Sidecars {
		if row.State != api.CutDone || row.Destination != "catalog" && row.Closed != each || row.Connections > row.Closed {
			t.Errorf("%+v", row)
		}
	}
	for _, s := range services[1:] {
		var ends []time.Duration
		for i, h := range open[s] {
			select {
			case <-h.ended:
				ends = append(ends, h.at.Sub(at))
			case <-time.After(5 * time.Second):
				t.Errorf("%s: number %d is still open", s, i)
			}
		}
		quarters := map[int]int{}
		for _, d := range ends {
			quarters[int(d/(over/4))]++
		}
		t.Logf("%s: closed by quarters %v", s, quarters)
		for q, n := range quarters {
			if n > each*6/10 {
				t.Errorf("%s: %d of %d were closed in quarter %d: %v", s, n, each, q, ends)
			}
		}
		if err := stay[s].alive(); err != nil {
			t.Errorf("%s: what is open on the old way: %v", s, err)
		}
		w.opens(s, 0)
	}
	for _, s := range services {
		if failed := forks[s].record.Failures(); len(failed) > 0 {
			t.Errorf("%s: %d failed, such as %+v", s, len(failed), failed[0])
		}
		if n := forks[s].record.Totals().Requests; n < 100 {
			t.Errorf("%s: only %d were sent", s, n)
		}
	}
}

// answers waits until a service does.
func (c *caller) answers(service string, call func() (string, error)) {
	c.w.t.Helper()
	meshtest.Eventually(c.w.t, service+" answers", func() error {
		id, err := call()
		if err == nil && !strings.HasPrefix(id, "mtls") {
			err = fmt.Errorf("by %q", id)
		}
		return err
	})
}

// opens waits until the ledger counts so many as open on mtls.
func (w *world) opens(service string, n uint64) {
	w.t.Helper()
	meshtest.Eventually(w.t, fmt.Sprintf("%d are open to %s", n, service), func() error {
		if got := w.telemetry("web", service)["mtls"].Open; got != n {
			return fmt.Errorf("%d", got)
		}
		return nil
	})
}
