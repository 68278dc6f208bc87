package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/envoyadmin"
)

// fakeAdmin is Envoy's admin socket with scripted gauges.
type fakeAdmin struct {
	mu      sync.Mutex
	calls   []string         // POSTs and what the test adds, in order
	gauges  map[string]int64 // by stat name
	onPost  func(f *fakeAdmin, path string)
	onStats func(f *fakeAdmin)
	broken  bool
	warming int64
	names   []string // active listeners
	runtime string   // what /runtime answers
}

func (f *fakeAdmin) note(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, what)
}

func (f *fakeAdmin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.broken:
		http.Error(w, "broken", http.StatusInternalServerError)
	case r.Method == http.MethodPost:
		f.calls = append(f.calls, r.URL.RequestURI())
		if f.onPost != nil {
			f.onPost(f, r.URL.RequestURI())
		}
	case r.URL.Path == "/ready":
		fmt.Fprintln(w, "LIVE")
	case r.URL.Path == "/listeners":
		var list []string
		for _, n := range f.names {
			list = append(list, fmt.Sprintf(`{"name":%q}`, n))
		}
		fmt.Fprintf(w, `{"listener_statuses":[%s]}`, strings.Join(list, ","))
	case r.URL.Path == "/runtime":
		fmt.Fprint(w, f.runtime)
	case r.URL.Path == "/stats":
		if f.onStats != nil {
			f.onStats(f)
		}
		fmt.Fprintf(w, "listener_manager.total_listeners_warming: %d\n", f.warming)
		for name, n := range f.gauges {
			fmt.Fprintf(w, "%s: %d\n", name, n)
		}
	}
}

// serveAdmin serves f on a Unix socket until the test ends.
func serveAdmin(t *testing.T, f *fakeAdmin) *envoyadmin.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: f}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	a := envoyadmin.New(socket, adminTimeout)
	t.Cleanup(func() {
		a.Close()
		_ = srv.Close()
		<-done
	})
	return a
}

const (
	gracefully = "/drain_listeners?graceful&skip_exit&inboundonly"
	closePort  = "/drain_listeners?inboundonly"
	rqActive   = "http.public_listener.downstream_rq_active"
	httpCx     = "http.public_listener.downstream_cx_active"
	anyCx      = "listener.127.0.0.1_21000.downstream_cx_active"
)

func TestDrainSequence(t *testing.T) {
	f := &fakeAdmin{gauges: map[string]int64{rqActive: 2, httpCx: 1, anyCx: 1}}
	// What is under way ends only after the port is closed.
	f.onPost = func(f *fakeAdmin, path string) {
		if path == closePort {
			f.gauges = map[string]int64{rqActive: 0, httpCx: 0, anyCx: 0}
		}
	}
	d := &drain{
		admin: serveAdmin(t, f), service: "catalog-1", ports: []int{21000, 21500}, bound: time.Minute, log: slog.New(slog.DiscardHandler),
		goodbye: func(context.Context, time.Duration) (string, error) {
			f.note("goodbye")
			return "2/2", nil
		},
	}
	d.run(t.Context())
	if want := []string{"goodbye", gracefully, closePort}; !slices.Equal(f.calls, want) {
		t.Errorf("calls = %q, want %q", f.calls, want)
	}
}

// A connection that Envoy took as it was told to close the port, and counts only then, is waited for.
func TestDrainWaitsForWhoCameLast(t *testing.T) {
	const counted, over = 20 * time.Millisecond, 300 * time.Millisecond // after the port was closed
	var closed time.Time
	f := &fakeAdmin{}
	f.onPost = func(_ *fakeAdmin, path string) {
		if path == closePort {
			closed = time.Now()
		}
	}
	f.onStats = func(f *fakeAdmin) {
		f.gauges = nil
		if since := time.Since(closed); !closed.IsZero() && since >= counted && since < over {
			f.gauges = map[string]int64{rqActive: 1, httpCx: 1, anyCx: 1}
		}
	}
	d := &drain{
		admin: serveAdmin(t, f), service: "catalog-1", ports: []int{21000}, bound: time.Minute, log: slog.New(slog.DiscardHandler),
		goodbye: func(context.Context, time.Duration) (string, error) { return "", errors.New("no server answers") },
	}
	d.run(t.Context())
	if took := time.Since(closed); took < over {
		t.Errorf("drained %s after the port was closed, while a request was under way until %s", took, over)
	}
}

// Where somebody else has the ports nobody is told, listening ends first, and the app's own
// calls are waited for as well.
func TestHandOver(t *testing.T) {
	const out, outCx = "http.upstream.db.default.default.dc1.downstream_rq_active", "listener.127.0.0.1_7100.downstream_cx_active"
	f := &fakeAdmin{gauges: map[string]int64{rqActive: 1, httpCx: 1, anyCx: 1, out: 1, outCx: 1}}
	looks := 0
	f.onStats = func(f *fakeAdmin) {
		switch looks++; looks {
		case 2:
			f.gauges = map[string]int64{out: 1, outCx: 1}
		case 3:
			f.gauges = nil
		}
	}
	var log strings.Builder
	d := &drain{
		admin: serveAdmin(t, f), service: "catalog-1", ports: []int{21000}, outbound: []int{7100}, bound: time.Minute, log: slog.New(slog.NewTextHandler(&log, nil)),
		taken: func() bool { return true },
		goodbye: func(context.Context, time.Duration) (string, error) {
			f.note("goodbye")
			return "", nil
		},
	}
	d.run(t.Context())
	if want := []string{"/drain_listeners", "/drain_listeners?graceful&skip_exit"}; !slices.Equal(f.calls, want) || looks != 3 {
		t.Errorf("calls = %q, want %q; %d looks, want 3", f.calls, want, looks)
	}
	if !strings.Contains(log.String(), "handed over") {
		t.Errorf("log:\n%s", log.String())
	}

	f.gauges, f.onStats, d.bound = map[string]int64{out: 1, outCx: 1}, nil, 100*time.Millisecond
	d.run(t.Context())
	if !strings.Contains(log.String(), "not all that was under way ended in time") {
		t.Errorf("log:\n%s", log.String())
	}
}

// A dead admin socket says nothing, so the whole time is given.
func TestDrainWithoutAdmin(t *testing.T) {
	var log strings.Builder
	d := &drain{
		admin: serveAdmin(t, &fakeAdmin{broken: true}), service: "catalog-1", bound: 300 * time.Millisecond, log: slog.New(slog.NewTextHandler(&log, nil)),
		goodbye: func(context.Context, time.Duration) (string, error) { return "", errors.New("no server") },
	}
	began := time.Now()
	d.run(t.Context())
	if took := time.Since(began); took < d.bound {
		t.Errorf("drained in %v, less than its bound %v", took, d.bound)
	}
	for _, want := range []string{"callers could not be told", "not all that was under way ended"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("log lacks %q:\n%s", want, log.String())
		}
	}
}

// What came without TLS is under way as well.
func TestDrainSeesPlaintext(t *testing.T) {
	f := &fakeAdmin{gauges: map[string]int64{
		rqActive: 1, httpCx: 2, anyCx: 5, "http.public_listener_plaintext.downstream_rq_active": 3, "http.public_listener_plaintext.downstream_cx_active": 3,
		"listener.127.0.0.1_21500.downstream_cx_active": 7, "listener.127.0.0.1_7100.downstream_cx_active": 9,
	}}
	d := &drain{admin: serveAdmin(t, f), ports: []int{21000, 21500}}
	if got, want := d.look(t.Context()), (inbound{requests: 4, httpConns: 5, connections: 12}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestDrainInAHurry(t *testing.T) {
	f := &fakeAdmin{gauges: map[string]int64{rqActive: 1, httpCx: 1, anyCx: 1}}
	hurry, rush := context.WithCancel(t.Context())
	f.onPost = func(*fakeAdmin, string) { rush() }
	d := &drain{
		admin: serveAdmin(t, f), ports: []int{21000, 21500}, bound: time.Hour, log: slog.New(slog.DiscardHandler),
		goodbye: func(context.Context, time.Duration) (string, error) { return "0/0", nil },
	}
	d.run(hurry) // returns, or the test times out

	// Even without time the registry is told.
	var waits []time.Duration
	d.goodbye = func(ctx context.Context, wait time.Duration) (string, error) {
		waits = append(waits, wait)
		return "", ctx.Err()
	}
	d.callerWait = time.Minute
	d.run(hurry)
	if want := []time.Duration{time.Minute, 0}; !slices.Equal(waits, want) {
		t.Errorf("waited for callers %v, want %v", waits, want)
	}
}

func TestInboundEnded(t *testing.T) {
	for _, tt := range []struct {
		name  string
		in    inbound
		quiet time.Duration
		want  bool
	}{
		{"nothing left", inbound{}, 0, true},
		{"a request", inbound{requests: 1, httpConns: 1, connections: 1}, time.Hour, false},
		{"idle connection", inbound{httpConns: 1, connections: 1}, quietTime - 1, false},
		{"idle connection for long", inbound{httpConns: 1, connections: 1}, quietTime, true},
		{"raw TCP beside it", inbound{httpConns: 1, connections: 2}, time.Hour, false},
		{"raw TCP", inbound{connections: 1}, time.Hour, false},
		{"unknown", inbound{err: errors.New("x")}, time.Hour, false},
	} {
		if got := tt.in.ended(tt.quiet); got != tt.want {
			t.Errorf("%s: ended(%v) = %v, want %v", tt.name, tt.quiet, got, tt.want)
		}
	}
}

func TestAcceptAfterGoodbye(t *testing.T) {
	for _, tt := range []struct {
		waited string
		err    error
		want   time.Duration
	}{
		{"3/3", nil, acceptTold},
		{"0/0", nil, acceptTold},
		{"1/3", nil, acceptTold},
		{"", nil, acceptUntold},
		{"", errors.New("no server"), acceptTold},
	} {
		d := &drain{log: slog.New(slog.DiscardHandler), goodbye: func(context.Context, time.Duration) (string, error) { return tt.waited, tt.err }}
		if got := d.sayGoodbye(t.Context()); got != tt.want {
			t.Errorf("after %q, %v: accepts for %v, want %v", tt.waited, tt.err, got, tt.want)
		}
	}
}

func TestWantedListeners(t *testing.T) {
	const up = "catalog:127.0.0.1:7100"
	w := wantedListeners{publicPort: 21000}
	now := time.Unix(1000, 0)
	active := map[string]bool{"public_listener:127.0.0.1:21000": true}
	if w.public(map[string]bool{"public_listener:127.0.0.1:1": true}) || !w.public(active) {
		t.Error("the public listener is known by its port")
	}
	for _, tt := range []struct {
		name    string
		seen    seenListeners
		since   time.Time
		want    bool
		missing string
	}{
		{"no answer", seenListeners{problem: "an answer"}, time.Time{}, false, "an answer"},
		{"no public listener", seenListeners{active: map[string]bool{up: true}}, time.Time{}, false, "public listener on port 21000"},
		{"all there", seenListeners{serving: true, active: map[string]bool{up: true}, told: []string{up}}, now, true, ""},
		{"warming", seenListeners{serving: true, warming: 1}, now, false, "1 listeners still warming"},
		{"upstream missing", seenListeners{serving: true, told: []string{up}}, now, false, up},
		{"upstream missing for long", seenListeners{serving: true, told: []string{up}}, now.Add(-listenerGrace), true, up},
	} {
		ok, missing := w.met(tt.seen, now, tt.since)
		if ok != tt.want || !strings.Contains(missing, tt.missing) {
			t.Errorf("%s: met = %v, %q; want %v, %q", tt.name, ok, missing, tt.want, tt.missing)
		}
	}
}
