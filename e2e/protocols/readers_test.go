package protocols

import (
	"crypto/tls"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

const (
	// much is what a slow reader asks for: more than an Envoy should take ahead, and
	// not so much that the kernel's own buffers would fill the memory it has for them.
	much = 2 << 20

	// heldEach is how much a sidecar may hold of an answer that nobody reads: what its
	// peer may send ahead, a buffer for each of its two connections, and what the
	// allocator wastes. Beside it all of them together cost heldAll at most.
	heldEach = 512 << 10
	heldAll  = 16 << 20
)

// stubborn are connections for which the kernel takes little ahead.
var stubborn = net.Dialer{Timeout: patience, Control: func(_, _ string, c syscall.RawConn) (err error) {
	if e := c.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 8<<10) }); e != nil {
		return e
	}
	return err
}}

// slowHTTP1 asks, and leaves it to others to read.
func slowHTTP1(c net.Conn) (int, error) {
	_, err := fmt.Fprintf(c, "GET /stream?n=%d HTTP/1.1\r\nHost: shop\r\n\r\n", much)
	return 1, err
}

// slowHTTP2 asks five times, and lets the server send as much as it likes.
func slowHTTP2(c net.Conn) (int, error) {
	h, err := newH2(c)
	if err != nil {
		return 0, err
	}
	if err := h.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1}); err != nil {
		return 0, err
	}
	if err := h.WriteWindowUpdate(0, 1<<30); err != nil {
		return 0, err
	}
	for n := range 5 {
		_, err := h.headers(true, field{":method", "GET"}, field{":scheme", "http"}, field{":authority", "shop"}, field{":path", fmt.Sprintf("/stream?n=%d", much)})
		if err != nil {
			return n, err
		}
	}
	return 5, nil
}

// slowly is a number of connections that do not read.
type slowly struct {
	n       int
	connect func() (net.Conn, error)
	ask     func(net.Conn) (int, error)
	through []*meshtest.Envoy
}

// Callers that ask for much and read nothing hold what buffers hold, at both
// sidecars. Good requests to the same app do not wait for them: not those that
// share the caller's connections to the callee, and not those that share the
// callee's connections to an app that speaks HTTP/2.
func TestSlowReaders(t *testing.T) {
	m, _ := startHTTP(t)
	bare, bareAddr := startBare(t, serve(t, 1, &httpApp{}), "")
	direct := m.ca.Client(spiffe("other"))
	direct.NextProtos = []string{"h2"}
	attacks := []slowly{{20, func() (net.Conn, error) { return stubborn.Dial("tcp", bareAddr) }, slowHTTP2, []*meshtest.Envoy{bare}}}
	for service, addr := range m.out {
		past := func() (net.Conn, error) {
			return (&tls.Dialer{NetDialer: &stubborn, Config: direct}).Dial("tcp", m.side[service])
		}
		through := func() (net.Conn, error) { return stubborn.Dial("tcp", addr) }
		caller, callee := m.envoys[caller], m.envoys[service]
		attacks = append(attacks,
			slowly{20, past, slowHTTP2, []*meshtest.Envoy{callee}},
			slowly{10, through, slowHTTP1, []*meshtest.Envoy{caller, callee}},
			slowly{4, through, slowHTTP2, []*meshtest.Envoy{caller, callee}},
		)
	}
	first := map[*meshtest.Envoy]int{bare: resident(t, bare.PID)}
	for _, e := range m.envoys {
		first[e] = resident(t, e.PID)
	}
	m.goodTraffic(t, true, "catalog", "search").endure(t, func() {
		asked := map[*meshtest.Envoy]int{}
		for _, a := range attacks {
			for range a.n {
				c, err := a.connect()
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				n, err := a.ask(c)
				if err != nil {
					t.Error(err)
					return
				}
				for _, e := range a.through {
					asked[e] += n
				}
			}
		}
		most := map[*meshtest.Envoy]int{}
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for end := time.Now().Add(4 * window); time.Now().Before(end); <-tick.C {
			for e := range first {
				most[e] = max(most[e], resident(t, e.PID)-first[e])
			}
		}
		within := func(e *meshtest.Envoy) bool { return most[e] <= asked[e]*heldEach+heldAll }
		for name, e := range m.envoys {
			t.Logf("sidecar %q: grown by %d MB for %d slow readers", name, most[e]>>20, asked[e])
			if !within(e) {
				t.Errorf("sidecar %q has grown by %d MB for %d slow readers, want at most %d KB for each", name, most[e]>>20, asked[e], heldEach>>10)
			}
		}
		t.Logf("bare Envoy: grown by %d MB for %d slow readers", most[bare]>>20, asked[bare])
		if within(bare) {
			t.Errorf("a bare Envoy has grown by %d MB for %d slow readers: they are no burden", most[bare]>>20, asked[bare])
		}
	})
	m.unchanged(t)
}
