package sidecar

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/crossfade-mesh/crossfade/internal/envoyadmin"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/shift"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

// counting is an Envoy's admin socket that counts requests to catalog and plaintext.
type counting struct {
	mu                  sync.Mutex
	attempts, plaintext uint64
}

func (c *counting) add(attempts, plaintext uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.attempts, c.plaintext = c.attempts+attempts, c.plaintext+plaintext
}

func (c *counting) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(w, `{"stats":[{"name":"cf.attempt.destination.catalog.way..wanted.catalog.code.200.flags.-.grpc.","value":%d},{"name":"cf.plaintext.source_address.10.0.0.7","value":%d}]}`, c.attempts, c.plaintext)
}

// lossy is a connection that can lose what the server answers, or reach nobody.
type lossy struct {
	grpc.ClientConnInterface
	lose, away bool
}

func (l *lossy) NewStream(ctx context.Context, d *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if l.away {
		return nil, status.Error(codes.Unavailable, "away")
	}
	s, err := l.ClientConnInterface.NewStream(ctx, d, method, opts...)
	return lossyStream{s, l}, err
}

type lossyStream struct {
	grpc.ClientStream
	l *lossy
}

func (s lossyStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if s.l.lose || s.l.away {
		return status.Error(codes.Unavailable, "lost")
	}
	return err
}

// reporting is a reporter, driven by hand, and the server that it reports to.
type reporting struct {
	*reporter
	t      *testing.T
	envoy  *counting
	server *telemetry.Server
	conn   *lossy
	now    time.Time
	book   *telemetry.Book
	taken  uint64 // attempts that the book's windows have added up to
	log    bytes.Buffer
	saved  telemetry.Memory
}

func newReporting(t *testing.T) *reporting {
	r := &reporting{t: t, envoy: &counting{}, now: time.Now(), book: telemetry.NewBook()}
	socket := filepath.Join(meshtest.RunDir(t), "admin.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: r.envoy}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	r.server = &telemetry.Server{
		Admit: func(_ context.Context, node, sidecar string) (telemetry.Key, error) {
			return telemetry.Key{Node: node, Sidecar: sidecar, Service: "web"}, nil
		},
		Take: func(k telemetry.Key, report telemetry.Report, _ time.Time) { r.book.Put(k, report, r.now) },
	}
	r.server.Register(g)
	go g.Serve(l)
	t.Cleanup(g.Stop)
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r.conn = &lossy{ClientConnInterface: conn}
	r.reporter = &reporter{
		admin: envoyadmin.New(socket, adminTimeout), conn: r.conn, node: "n1", sidecar: "web-sidecar-proxy", log: slog.New(slog.NewTextHandler(&r.log, nil)),
		envoy: func() int64 { return 1 }, keep: func(m telemetry.Memory) error { r.saved = m; return nil },
		session: 7, since: r.now, kept: r.now,
	}
	t.Cleanup(func() { r.hangUp(); r.admin.Close() })
	return r
}

// step lets some time pass, and does what run does then.
func (r *reporting) step(pass time.Duration) error {
	r.now = r.now.Add(pass)
	r.count(r.t.Context(), r.now)
	err := r.tell(r.t.Context(), r.now)
	if err != nil {
		r.hangUp()
	}
	for _, w := range r.book.Drain() {
		for _, t := range w.Ways {
			r.taken += t.Attempts
		}
	}
	return err
}

func (r *reporting) want(attempts uint64) {
	r.t.Helper()
	if r.taken != attempts {
		r.t.Errorf("the server has counted %d attempts, want %d", r.taken, attempts)
	}
}

// Nothing counts twice, and nothing is lost, whatever becomes of reports and answers.
func TestReportsCountOnce(t *testing.T) {
	r := newReporting(t)
	r.envoy.add(10, 0)
	if err := r.step(time.Second); err != nil {
		t.Fatal(err)
	}
	r.want(10)
	r.conn.lose = true // taken, and the sidecar never hears of it
	r.envoy.add(5, 0)
	if err := r.step(time.Second); err == nil {
		t.Fatal("an answer that was lost is no error")
	}
	r.want(15)
	r.envoy.add(3, 0)
	_ = r.step(time.Second)
	r.conn.lose = false
	r.envoy.add(2, 0)
	if err := r.step(time.Second); err != nil {
		t.Fatal(err)
	}
	r.want(20)
	r.conn.away = true
	for range 30 {
		r.envoy.add(1, 0)
		if err := r.step(time.Second); err == nil {
			t.Fatal("a server that is away takes reports")
		}
	}
	r.conn.away = false
	if err := errors.Join(r.step(time.Second), r.step(time.Second)); err != nil {
		t.Fatal(err)
	}
	r.want(50)
	// A server that has restarted, and knows nothing.
	r.book = telemetry.NewBook()
	r.hangUp()
	r.envoy.add(4, 0)
	if err := r.step(time.Second); err != nil {
		t.Fatal(err)
	}
	r.want(54)
	// An Envoy that has, and counts more than the one before by the time it is read.
	pid := int64(1)
	r.reporter.envoy = func() int64 { pid = 2; return pid }
	r.envoy.add(1000, 0)
	if err := r.step(time.Second); err != nil {
		t.Fatal(err)
	}
	r.want(54 + 10 + 5 + 3 + 2 + 30 + 4 + 1000)
}

// What no server takes is kept for a while, and plaintext for ever.
func TestReportsAreBounded(t *testing.T) {
	r := newReporting(t)
	r.conn.away = true
	r.envoy.add(100, 3)
	for range 10 {
		_ = r.step(time.Minute)
	}
	r.envoy.add(7, 0)
	r.conn.away = false
	if err := r.step(time.Second); err != nil {
		t.Fatal(err)
	}
	r.want(7)
	if !r.lost {
		t.Error("that counts were given up is not known")
	}
	list := r.book.Plaintext("web")
	if len(list) != 1 || r.now.Sub(list[0].Last) < 9*time.Minute {
		t.Errorf("plaintext %+v at %v", list, r.now)
	}
	if at := r.book.Reporting(telemetry.Key{Node: "n1", Sidecar: "web-sidecar-proxy", Service: "web"}, r.now); at.Watch.Quiet < 8*time.Minute || at.Watch.Quiet > 10*time.Minute || !at.Watching {
		t.Errorf("%+v", at)
	}
	if r.saved.Quiet == 0 || len(r.saved.Senders) != 1 || r.saved.Senders[0].Count != 3 {
		t.Errorf("kept %+v", r.saved)
	}
}

// A server that has just started is told of plaintext from before; time in which no Envoy ran
// is not watched.
func TestPlaintextIsRemembered(t *testing.T) {
	r := newReporting(t)
	seen := r.now.Add(-time.Hour)
	r.memory = telemetry.Memory{
		Watch:   telemetry.Watch{Since: r.now.Add(-2 * time.Hour), For: time.Hour, Quiet: 50 * time.Minute},
		Senders: []telemetry.Plaintext{{Address: "10.0.0.9", Count: 12, Last: seen}},
	}
	r.reporter.envoy = func() int64 { return 0 }
	if err := r.step(time.Minute); err != nil {
		t.Fatal(err)
	}
	list := r.book.Plaintext("web")
	if len(list) != 1 || list[0].Last.Sub(seen).Abs() > 2*time.Minute || r.memory.Quiet != 50*time.Minute {
		t.Errorf("%+v, %+v", list, r.memory)
	}
	r.reporter.envoy = func() int64 { return 1 }
	if err := errors.Join(r.step(time.Minute), r.step(time.Second)); err != nil || r.memory.Quiet != 50*time.Minute+time.Second {
		t.Errorf("%v %+v", err, r.memory)
	}
	r.envoy.add(0, 1)
	if err := r.step(time.Second); err != nil || r.memory.Quiet != 0 || r.saved.Quiet != 0 || len(r.saved.Senders) != 2 {
		t.Errorf("%v %+v, kept %+v", err, r.memory, r.saved)
	}
}

// A report that a server will never take is given up, with a word, and the next ones are taken.
func TestRefusedReports(t *testing.T) {
	r := newReporting(t)
	r.more = func(report *telemetry.Report) {
		report.Probes = []telemetry.Probe{{Destination: "catalog", Way: "bridge"}}
	}
	if err := r.step(time.Second); status.Code(err) != codes.InvalidArgument {
		t.Fatal(err)
	}
	r.more, r.known.Probes = func(report *telemetry.Report) {
		report.Probes = []telemetry.Probe{{Destination: "catalog", Way: shift.Legacy, Works: true}}
	}, nil
	r.envoy.add(3, 0)
	if err := r.step(time.Second); err != nil {
		t.Fatal(err)
	}
	r.want(3)
}

// Who has nothing to tell says so every few seconds, and no more often.
func TestIdleReports(t *testing.T) {
	r := newReporting(t)
	for range 60 {
		if err := r.step(time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.seq; n < 10 || n > 13 {
		t.Errorf("%d reports in a minute", n)
	}
}

func TestCountPause(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{
		-time.Second:           countEvery, // another process has come
		0:                      countEvery,
		9 * time.Millisecond:   countEvery,
		15 * time.Millisecond:  1500 * time.Millisecond,
		500 * time.Millisecond: countLatest,
	} {
		if got := countPause(took); got != want {
			t.Errorf("after %v: %v, want %v", took, got, want)
		}
	}
}

func TestMainThread(t *testing.T) {
	if mainThread(int64(os.Getpid())) <= 0 {
		t.Error("this process has been on no processor")
	}
	if got := mainThread(-1); got != 0 {
		t.Errorf("a process that is not there: %v", got)
	}
}
