package protocols

import (
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// flood is what a caller may send without end.
type flood struct {
	name   string
	more   func(h *h2conn) error // writes the next piece
	pieces int                   // that one connection sends, unless it is ended before
	// ends says that it costs the caller its connection. Otherwise it is refused piece
	// by piece.
	ends bool
}

var get = []field{{":method", "GET"}, {":scheme", "http"}, {":authority", "shop"}, {":path", "/stream?n=100000"}}

var floods = []flood{
	{"CONTINUATION", func(h *h2conn) error {
		if h.stream == 1 {
			h.block.Reset()
			h.stream = 3
			if err := h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: h.encode(get[0])}); err != nil {
				return err
			}
		}
		return h.WriteContinuation(1, false, h.encode(field{"x", strings.Repeat("a", 4000)}))
	}, 2000, true},
	{"empty CONTINUATION", func(h *h2conn) error {
		if h.stream == 1 {
			h.stream = 3
			if err := h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: h.encode(get[0])}); err != nil {
				return err
			}
		}
		return h.WriteContinuation(1, false, nil)
	}, 2000, true},
	{"rapid reset", func(h *h2conn) error {
		id, err := h.headers(true, get...)
		if err != nil {
			return err
		}
		return h.WriteRSTStream(id, http2.ErrCodeCancel)
	}, 2000, true},
	{"one header of 1 MB", func(h *h2conn) error {
		h.stream += 2
		err := h.WriteHeaders(http2.HeadersFrameParam{StreamID: h.stream, BlockFragment: h.encode(get...)})
		for range 64 {
			if err == nil {
				err = h.WriteContinuation(h.stream, false, h.encode(field{"x", strings.Repeat("a", 16000)}))
			}
		}
		if err != nil {
			return err
		}
		return h.WriteContinuation(h.stream, true, h.encode(field{"y", "z"}))
	}, 3, false},
	{"10,000 headers from the table", func(h *h2conn) error {
		h.stream += 2
		// One byte each, once the table has it.
		block := append(h.encode(append(get, field{"x", strings.Repeat("a", 3000)})...), strings.Repeat("\xbe", 10000)...)
		return h.WriteHeaders(http2.HeadersFrameParam{StreamID: h.stream, BlockFragment: block, EndHeaders: true, EndStream: true})
	}, 20, false},
	{"SETTINGS", func(h *h2conn) error {
		return h.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 16})
	}, 2000, true},
	{"PING", func(h *h2conn) error { return h.WritePing(false, [8]byte{}) }, 2000, true},
	{"PRIORITY", func(h *h2conn) error { return h.WritePriority(1, http2.PriorityParam{StreamDep: 3}) }, 2000, true},
	{"empty DATA", func(h *h2conn) error {
		if h.stream == 1 {
			if _, err := h.headers(false, get...); err != nil {
				return err
			}
		}
		return h.WriteData(1, false, nil)
	}, 2000, true},
}

// encode is a block of fields.
func (h *h2conn) encode(fields ...field) []byte {
	h.block.Reset()
	for _, f := range fields {
		h.encoder.WriteField(hpack.HeaderField{Name: f.name, Value: f.value})
	}
	return h.block.Bytes()
}

const (
	floodEvery = 100 * time.Millisecond // another connection
	floodEnd   = 5 * time.Second        // until it must have been
)

// run sends until the peer closes or there was enough, and says whether it did close.
func (f flood) run(c net.Conn) (ended bool, pieces int, err error) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(floodEnd))
	b := &batch{Conn: c}
	h, err := newH2(b)
	if err != nil {
		return false, 0, err
	}
	closed := make(chan bool, 1)
	go func() { closed <- drain(c) == nil }()
	for pieces = range f.pieces {
		if err = f.more(h); err != nil {
			break
		}
	}
	if err == nil {
		b.flush()
		if !f.ends {
			return false, pieces, nil
		}
	}
	return <-closed, pieces, nil
}

// batch writes frames a few at a time.
type batch struct {
	net.Conn
	buf []byte
}

func (b *batch) Write(p []byte) (int, error) {
	b.buf = append(b.buf, p...)
	if len(b.buf) < 8<<10 {
		return len(p), nil
	}
	return len(p), b.flush()
}

func (b *batch) flush() error {
	_, err := b.Conn.Write(b.buf)
	b.buf = b.buf[:0]
	return err
}

// What a caller sends without end over HTTP/2, to the callee's sidecar, ends with its
// connection or is refused, takes no memory, and costs others nothing.
func TestFloods(t *testing.T) {
	m, _ := startHTTP(t)
	config := m.ca.Client(spiffe("other"))
	config.NextProtos = []string{"h2"}
	m.goodTraffic(t, true, "catalog", "search").endure(t, func() {
		tick := time.NewTicker(floodEvery)
		defer tick.Stop()
		for _, f := range floods {
			before := m.resident(t)
			var connections, pieces, ended atomic.Int64
			done := make(chan error, 100)
			n := 0
			for end := time.Now().Add(700 * time.Millisecond); time.Now().Before(end); n++ {
				<-tick.C
				service := []string{"catalog", "search"}[n%2]
				go func() {
					c, err := tlsDial(t.Context(), m.side[service], config)
					if err != nil {
						done <- err
						return
					}
					yes, sent, err := f.run(c)
					connections.Add(1)
					pieces.Add(int64(sent))
					if yes {
						ended.Add(1)
					}
					done <- err
				}()
			}
			for range n {
				if err := <-done; err != nil {
					t.Errorf("%s: %v", f.name, err)
				}
			}
			t.Logf("%s: %d connections, %d ended by the sidecar, after %d pieces each; grown by %d KB",
				f.name, connections.Load(), ended.Load(), pieces.Load()/connections.Load(), (m.resident(t)-before)>>10)
			if f.ends && ended.Load() != connections.Load() {
				t.Errorf("%s: the sidecar ended %d of %d connections", f.name, ended.Load(), connections.Load())
			}
			if grown := m.resident(t) - before; grown > growth {
				t.Errorf("%s: sidecars have grown by %d MB", f.name, grown>>20)
			}
		}
	})
	m.unchanged(t)
}

// resident is the memory of all Envoys.
func (m *mesh) resident(t *testing.T) (sum int) {
	t.Helper()
	for _, e := range m.envoys {
		sum += resident(t, e.PID)
	}
	return sum
}
