package sidecar

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/envoyadmin"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/sidecar/relay"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

// The connections of many sidecars are closed evenly over the time, whether each has one or
// many, and those of one until its end.
func TestCutsAreSpread(t *testing.T) {
	const over = 30 * time.Second
	for _, c := range []struct{ sidecars, each int }{{1, 1}, {1, 2}, {1, 40}, {2, 1}, {10, 1}, {100, 1}, {10, 3}, {7, 20}} {
		var all []time.Duration
		for part := range c.sidecars {
			sooner := early(over, c.each, part, c.sidecars)
			now := -sooner
			for left := c.each; left > 0; left-- {
				now += pause(over-sooner-now, left)
				all = append(all, now)
			}
		}
		slices.Sort(all)
		even := over / time.Duration(len(all))
		before := time.Duration(0)
		for _, at := range all {
			if gap := at - before; gap > even+time.Millisecond || gap < even-time.Millisecond {
				t.Errorf("%+v: %v after %v, and not %v", c, at, before, even)
			}
			before = at
		}
		if d := over - before; d > time.Millisecond || d < -time.Millisecond {
			t.Errorf("%+v: the last at %v", c, before)
		}
	}
	if pause(-time.Second, 3) != 0 {
		t.Error("what is late waits")
	}
}

// pairs are connections of this process to an echo.
func pairsTo(t *testing.T, n int) (place netip.AddrPort, conns []net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	for range n {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		conns = append(conns, c)
		if err := echoes(c); err != nil {
			t.Fatal(err)
		}
	}
	return netip.MustParseAddrPort(l.Addr().String()), conns
}

func echoes(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// Connections are taken from a process one by one: here from this one.
func TestSocketsAreShut(t *testing.T) {
	place, conns := pairsTo(t, 3)
	_, others := pairsTo(t, 1)
	s, err := openSockets(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	to := map[netip.AddrPort]struct{}{place: {}}
	open, err := s.to(to)
	if err != nil || len(open) != 3 {
		t.Fatalf("%v, %v", open, err)
	}
	if ok, err := s.shut(open[0]); !ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
	ended := 0
	for _, c := range conns {
		if c.LocalAddr().String() == open[0].self.String() {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("read: %v", err)
			}
			ended++
		} else if err := echoes(c); err != nil {
			t.Errorf("another: %v", err)
		}
	}
	if err := echoes(others[0]); err != nil || ended != 1 {
		t.Errorf("%d ended; elsewhere: %v", ended, err)
	}
	if ok, err := s.shut(open[0]); ok || err != nil {
		t.Errorf("twice: %v, %v", ok, err)
	}
	wrong := open[1]
	wrong.self = open[2].self
	if ok, err := s.shut(wrong); ok || err != nil {
		t.Errorf("another connection under the number: %v, %v", ok, err)
	}
	if again, err := s.to(to); err != nil || len(again) != 2 {
		t.Errorf("%v, %v", again, err)
	}
}

// What the kernel does not lend is said, with what to do. The process that asks is nobody's,
// and the other one root's.
func TestSocketsAreRefused(t *testing.T) {
	const child = "CROSSFADE_TEST_SOCKETS"
	if os.Getenv(child) != "" {
		s, err := openSockets(1)
		if err == nil {
			_, err = s.to(nil)
		}
		if err == nil {
			t.Fatal("the connections of process 1 are lent to anybody")
		}
		t.Logf("said: %v", err)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestSocketsAreRefused$", "-test.v")
	cmd.Env, cmd.Dir = append(os.Environ(), child+"=1"), "/"
	if os.Getuid() == 0 {
		bin, err := os.ReadFile(os.Args[0]) // where nobody may read it
		if err != nil {
			t.Fatal(err)
		}
		dir, err := os.MkdirTemp("/tmp", "sockets") //nolint:usetesting // nobody gets into t.TempDir
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		cmd.Path = dir + "/test"
		if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(cmd.Path, bin, 0o755)); err != nil {
			t.Fatal(err)
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "said: connections of process 1 cannot be taken: permission denied: a seccomp filter forbids pidfd_getfd") {
		t.Errorf("%v\n%s", err, out)
	}
}

// An order is followed once, waits until nothing new goes there, and stops when that is so no
// longer.
func TestCutterFollowsOrders(t *testing.T) {
	place, conns := pairsTo(t, 4)
	stats := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})) // of connections there are none
	defer stats.Close()
	orders, changed := make(chan []relay.Cut, 1), make(chan chan struct{}, 1)
	orders <- nil
	changed <- make(chan struct{})
	only := make(chan bool, 1)
	only <- true
	c := &cutter{
		orders:  func() []relay.Cut { o := <-orders; orders <- o; return o },
		changed: func() <-chan struct{} { x := <-changed; changed <- x; return x },
		onlyOn:  func(string, string) bool { x := <-only; only <- x; return x },
		places: func(string, string) relay.Places {
			return relay.Places{Addresses: map[netip.AddrPort]struct{}{place: {}}, TCP: true}
		},
		envoy: func() int64 { return int64(os.Getpid()) },
		admin: envoyadmin.New(stats.Listener.Addr().String(), time.Second),
		log:   slog.New(slog.DiscardHandler), known: map[string]telemetry.Cut{},
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); c.run(ctx) }()
	defer func() { cancel(); <-done }()
	give := func(o ...relay.Cut) {
		<-orders
		orders <- o
		close(<-changed)
		changed <- make(chan struct{})
	}
	until := func(state string, closed uint64, why string) {
		t.Helper()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		var now []telemetry.Cut
		for began := time.Now(); time.Since(began) < 10*time.Second; <-tick.C {
			if now = c.told(true); len(now) == 1 && now[0].State == state && now[0].Closed == closed && strings.Contains(now[0].Why, why) {
				return
			}
		}
		t.Fatalf("%+v, want %s with %d", now, state, closed)
	}
	alive := func() (n int) {
		for _, c := range conns {
			if echoes(c) == nil {
				n++
			}
		}
		return n
	}
	order := func(id string, in bool, over time.Duration) relay.Cut {
		return relay.Cut{InForce: in, Cut: proxy.Cut{Destination: "payments", ID: id, Keep: "legacy", Over: over, Parts: 1}}
	}
	give(order("a", false, 0))
	until(telemetry.CutWaiting, 0, "not acknowledged")
	if n := alive(); n != 4 {
		t.Errorf("%d of 4 are open before it is in force", n)
	}
	// The first of four is due in half a second, and then shares change.
	give(order("a", true, 2*time.Second))
	until(telemetry.CutClosing, 1, "")
	<-only
	only <- false
	until(telemetry.CutFailed, 1, "shares have changed")
	if n := alive(); n != 3 {
		t.Errorf("%d of 3 are open", n)
	}
	<-only
	only <- true
	give(order("a", true, 0)) // it was followed
	give(order("a", true, 0), order("a", true, 0))
	if n := alive(); n != 3 {
		t.Errorf("%d of 3 are open after the same order again", n)
	}
	give(order("b", true, 0))
	until(telemetry.CutDone, 3, "")
	if n := alive(); n != 0 {
		t.Errorf("%d are open", n)
	}
	// What ends by itself is not waited for.
	last, err := net.Dial("tcp", place.String())
	if err != nil {
		t.Fatal(err)
	}
	give(order("c", true, time.Hour))
	until(telemetry.CutClosing, 0, "")
	last.Close()
	until(telemetry.CutDone, 0, "")
	if c.told(false) != nil {
		t.Error("what was told is new")
	}
}
