package protocols

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// released is how long a caller that sends its request's head slowly may hold on to
// what it was given; the limit itself is 10 s.
const released = 15 * time.Second

// trickler is a connection on which a head never ends.
type trickler struct {
	conn   net.Conn
	opened time.Time
	more   func() error // sends a little
	await  func() error // returns when the server has let go of the request
}

// trickling opens one more.
type trickling func() (*trickler, error)

func trickleHTTP1(connect func() (net.Conn, error)) trickling {
	return func() (*trickler, error) {
		c, err := connect()
		if err != nil {
			return nil, err
		}
		_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: shop\r\n")
		return &trickler{c, time.Now(), func() error {
			_, err := io.WriteString(c, "a: b\r\n")
			return err
		}, func() error { return drain(c) }}, err
	}
}

// drain reads until the peer closes.
func drain(c net.Conn) error {
	_, err := io.Copy(io.Discard, c)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return err
	}
	return nil
}

func trickleHTTP2(connect func() (net.Conn, error)) trickling {
	return func() (*trickler, error) {
		c, err := connect()
		if err != nil {
			return nil, err
		}
		h, err := newH2(c)
		if err != nil {
			return nil, err
		}
		block := func(name, value string) []byte {
			h.block.Reset()
			h.encoder.WriteField(hpack.HeaderField{Name: name, Value: value})
			return h.block.Bytes()
		}
		err = h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(":method", "GET")})
		return &trickler{c, time.Now(), func() error {
			return h.WriteContinuation(1, false, block("a", "b"))
		}, func() error {
			for { // nothing may be written between the parts of a head, be it an acknowledgement
				f, err := h.ReadFrame()
				if err != nil {
					return fmt.Errorf("want an answer: %w", err)
				}
				if head, ok := f.(*http2.MetaHeadersFrame); ok && head.PseudoValue("status") == "408" {
					return nil
				}
			}
		}}, err
	}
}

func trickleHandshake(connect func() (net.Conn, error)) trickling {
	return func() (*trickler, error) {
		c, err := connect()
		if err != nil {
			return nil, err
		}
		_, err = c.Write([]byte{22, 3, 1, 2, 0})
		return &trickler{c, time.Now(), func() error {
			_, err := c.Write([]byte{1})
			return err
		}, func() error { return drain(c) }}, err
	}
}

// trickle opens n connections, sends a byte or some on each once a second, and
// returns how long each was held before the server let go of it. Nothing is closed
// from here, and who waits in vain gives up a second after it should have been.
func trickle(t *testing.T, n int, open trickling) (held []time.Duration, failed error) {
	var all []*trickler
	var mu sync.Mutex
	var wg sync.WaitGroup
	defer func() {
		for _, c := range all {
			c.conn.Close()
		}
	}()
	for range n {
		c, err := open()
		if err != nil {
			t.Error(err)
			break
		}
		all = append(all, c)
		c.conn.SetReadDeadline(c.opened.Add(released + time.Second))
		stop := make(chan struct{})
		go func() {
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for c.more() == nil {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
			}
		}()
		wg.Go(func() {
			defer close(stop)
			err := c.await()
			mu.Lock()
			defer mu.Unlock()
			held = append(held, time.Since(c.opened))
			if err != nil {
				failed = err
			}
		})
	}
	wg.Wait()
	return held, failed
}

// Callers that send their heads slowly are let go of. Over HTTP/2 it is the request
// that ends: its connection is from then on one of those that are idle.
func TestSlowHeads(t *testing.T) {
	app := serve(t, 1, &httpApp{})
	m := start(t, service{name: "catalog", protocol: "http", port: app})
	_, bare := startBare(t, app, "")
	plain := func(addr string) func() (net.Conn, error) {
		return func() (net.Conn, error) { return net.DialTimeout("tcp", addr, patience) }
	}
	secure := func(alpn string) func() (net.Conn, error) {
		config := m.ca.Client(spiffe("other"))
		config.NextProtos = []string{alpn}
		return func() (net.Conn, error) { return tlsDial(t.Context(), m.side["catalog"], config) }
	}
	attacks := []struct {
		kind string
		n    int
		open trickling
	}{
		{"HTTP/1.1 to the callee", 400, trickleHTTP1(secure("http/1.1"))},
		{"HTTP/2 to the callee", 400, trickleHTTP2(secure("h2"))},
		{"handshakes with the callee", 300, trickleHandshake(plain(m.side["catalog"]))},
		{"HTTP/1.1 to the caller's sidecar", 300, trickleHTTP1(plain(m.out["catalog"]))},
		{"HTTP/2 to the caller's sidecar", 100, trickleHTTP2(plain(m.out["catalog"]))},
	}
	m.goodTraffic(t, true, "catalog").endure(t, func() {
		var wg sync.WaitGroup
		for _, a := range attacks {
			wg.Go(func() {
				var longest time.Duration
				held, err := trickle(t, a.n, a.open)
				for _, d := range held {
					longest = max(longest, d)
				}
				t.Logf("%s: %d held for at most %v", a.kind, len(held), longest)
				if err != nil || len(held) != a.n || longest > released {
					t.Errorf("%s: %d of %d held for up to %v, want at most %v (%v)", a.kind, len(held), a.n, longest, released, err)
				}
			})
		}
		// An Envoy of which nothing is set shows that it is not the callers who give up.
		wg.Go(func() {
			held, _ := trickle(t, 20, trickleHTTP1(plain(bare)))
			for _, d := range held {
				if d <= released {
					t.Errorf("a bare Envoy let go after %v", d)
				}
			}
		})
		wg.Wait()
	})
	meshtest.Eventually(t, "no request is left", func() error {
		for name, e := range m.envoys {
			for _, prefix := range []string{"public_listener", "upstream.catalog.default.default.dc1"} {
				if n := e.Stat("http." + prefix + ".downstream_rq_active"); n != 0 {
					return fmt.Errorf("sidecar %q: %d requests at %s", name, n, prefix)
				}
			}
		}
		return nil
	})
	m.unchanged(t)
}
