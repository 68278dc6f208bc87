package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// exchanger does one request after the other on one kept-alive connection and
// checks each answer. After an error it is of no more use.
type exchanger interface {
	Exchange(ctx context.Context) error
	Close() error
}

// dial opens one connection to addr. Its deadline is ctx's at each exchange.
func dial(protocol, addr string) (exchanger, error) {
	switch protocol {
	case protoHTTP:
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return nil, err
		}
		request := fmt.Appendf(nil, "GET /item HTTP/1.1\r\nhost: %s\r\nuser-agent: bench\r\naccept: */*\r\n\r\n", addr)
		return &httpConn{deadlined: deadlined{Conn: c}, request: request, want: payload(), buf: make([]byte, 16<<10)}, nil
	case protoTCP:
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return nil, err
		}
		return &tcpConn{deadlined: deadlined{Conn: c}, want: payload(), buf: make([]byte, payloadSize)}, nil
	case protoGRPC:
		c, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})))
		if err != nil {
			return nil, err
		}
		return &grpcConn{ClientConn: c, want: payload()}, nil
	}
	return nil, fmt.Errorf("protocol %q: no client for it", protocol)
}

// deadlined sets a connection's deadline once per context rather than per request.
type deadlined struct {
	net.Conn
	until time.Time
}

func (d *deadlined) follow(ctx context.Context) error {
	until, _ := ctx.Deadline()
	if until.Equal(d.until) {
		return nil
	}
	d.until = until
	return d.SetDeadline(until)
}

type httpConn struct {
	deadlined
	request, want, buf []byte
}

func (h *httpConn) Exchange(ctx context.Context) error {
	if err := h.follow(ctx); err != nil {
		return err
	}
	if _, err := h.Write(h.request); err != nil {
		return err
	}
	have, head := 0, -1
	for head < 0 {
		if have == len(h.buf) {
			return errors.New("response head too long")
		}
		n, err := h.Read(h.buf[have:])
		if err != nil {
			return fmt.Errorf("read response: %w", err)
		}
		have += n
		head = bytes.Index(h.buf[:have], []byte("\r\n\r\n"))
	}
	if !bytes.HasPrefix(h.buf, []byte("HTTP/1.1 200 ")) {
		return fmt.Errorf("response %q", h.buf[:have])
	}
	if n, err := contentLength(h.buf[:head]); err != nil || n != len(h.want) {
		return fmt.Errorf("content-length %d, want %d: %w", n, len(h.want), err)
	}
	body := head + 4
	end := body + len(h.want)
	if end > len(h.buf) || have > end {
		return errors.New("response too long")
	}
	if _, err := io.ReadFull(h.Conn, h.buf[have:end]); err != nil {
		return fmt.Errorf("read body: %w", err)
	}
	if !bytes.Equal(h.buf[body:end], h.want) {
		return errors.New("wrong body")
	}
	return nil
}

// contentLength wants the name in lower case, as Envoy and the app send it.
func contentLength(head []byte) (int, error) {
	const name = "\r\ncontent-length: "
	_, rest, ok := bytes.Cut(head, []byte(name))
	if !ok {
		return 0, errors.New("no such header")
	}
	value, _, _ := bytes.Cut(rest, []byte("\r\n"))
	return strconv.Atoi(string(value))
}

type tcpConn struct {
	deadlined
	want, buf []byte
}

func (c *tcpConn) Exchange(ctx context.Context) error {
	if err := c.follow(ctx); err != nil {
		return err
	}
	if _, err := c.Write(c.want); err != nil {
		return err
	}
	if _, err := io.ReadFull(c.Conn, c.buf); err != nil {
		return fmt.Errorf("read echo: %w", err)
	}
	if !bytes.Equal(c.buf, c.want) {
		return errors.New("wrong echo")
	}
	return nil
}

type grpcConn struct {
	*grpc.ClientConn
	want []byte
}

func (g *grpcConn) Exchange(ctx context.Context) error {
	var got []byte
	if err := g.Invoke(ctx, "/bench.Echo/Unary", &g.want, &got); err != nil {
		return err
	}
	if !bytes.Equal(got, g.want) {
		return errors.New("wrong echo")
	}
	return nil
}

// worker drives one connection, closed loop. A failure ends its part in the turn.
type worker struct {
	conn exchanger // nil: to be dialled
	done atomic.Uint64
	// latencies are of requests begun while recording; written by the worker's goroutine only.
	latencies []time.Duration
	err       error
}

func (w *worker) loop(ctx context.Context, recording, stop *atomic.Bool) {
	w.latencies, w.err = w.latencies[:0], nil
	begun := time.Now()
	for !stop.Load() {
		record := recording.Load()
		if w.err = w.conn.Exchange(ctx); w.err != nil {
			w.conn.Close()
			w.conn = nil
			return
		}
		now := time.Now()
		w.done.Add(1)
		if record {
			w.latencies = append(w.latencies, now.Sub(begun))
		}
		begun = now
	}
}

// crew is the workers of one path. Connections stay open from turn to turn.
type crew struct {
	protocol, addr string
	workers        []*worker
}

func newCrew(protocol, addr string, size int) *crew {
	c := &crew{protocol: protocol, addr: addr}
	for range size {
		c.workers = append(c.workers, &worker{})
	}
	return c
}

func (c *crew) close() {
	for _, w := range c.workers {
		if w.conn != nil {
			w.conn.Close()
			w.conn = nil
		}
	}
}

// hooks of a turn: begin and end are called where the measured part begins and
// ends, while the load goes on; each gets the number of requests done so far.
type hooks struct {
	begin, end func(done uint64) error
}

// turn loads the path for warm-up and measured, and returns the latencies and failures.
func (c *crew) turn(ctx context.Context, warmUp, measured time.Duration, h hooks) (latencies []time.Duration, failures []error, err error) {
	// Far beyond the turn: reached only by a request that hangs.
	loadCtx, cancel := context.WithTimeout(ctx, warmUp+measured+10*time.Second)
	defer cancel()
	for _, w := range c.workers {
		if w.conn == nil {
			if w.conn, err = dial(c.protocol, c.addr); err != nil {
				return nil, nil, err
			}
		}
	}
	var (
		recording, stop atomic.Bool
		wg              sync.WaitGroup
	)
	for _, w := range c.workers {
		wg.Go(func() { w.loop(loadCtx, &recording, &stop) })
	}
	err = func() error {
		if err := pause(ctx, warmUp); err != nil {
			return err
		}
		recording.Store(true)
		if err := h.begin(c.done()); err != nil {
			return err
		}
		if err := pause(ctx, measured); err != nil {
			return err
		}
		return h.end(c.done())
	}()
	stop.Store(true)
	wg.Wait()
	for _, w := range c.workers {
		latencies = append(latencies, w.latencies...)
		if w.err != nil {
			failures = append(failures, w.err)
		}
	}
	return latencies, failures, err
}

func (c *crew) done() (sum uint64) {
	for _, w := range c.workers {
		sum += w.done.Load()
	}
	return sum
}

// pause waits for d, or less when ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
