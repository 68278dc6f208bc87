package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Exchanger does one request after the other on one kept-alive connection and
// checks each answer. After an error it is of no more use.
type Exchanger interface {
	Exchange(ctx context.Context) error
	Close() error
}

// Dial opens one connection to addr for answers of size bytes. Its deadline is ctx's at each exchange.
func Dial(protocol, addr string, size int) (Exchanger, error) {
	switch protocol {
	case HTTP:
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return nil, err
		}
		request := fmt.Appendf(nil, "GET /item HTTP/1.1\r\nhost: %s\r\nuser-agent: bench\r\naccept: */*\r\n\r\n", addr)
		return &httpConn{deadlined: deadlined{Conn: c}, request: request, want: payload(size), buf: make([]byte, size+(15<<10))}, nil
	case TCP:
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return nil, err
		}
		return &tcpConn{deadlined: deadlined{Conn: c}, want: payload(size), buf: make([]byte, size)}, nil
	case GRPC:
		c, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})))
		if err != nil {
			return nil, err
		}
		return &grpcConn{ClientConn: c, want: payload(size)}, nil
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

// Answers is a condition that holds when one request on a connection of its own gets
// through: a caller's listener is there before its first endpoint is.
func Answers(ctx context.Context, protocol, addr string, size int) func() (bool, error) {
	return func() (bool, error) {
		c, err := Dial(protocol, addr, size)
		if err != nil {
			return false, err
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		err = c.Exchange(ctx)
		return err == nil, err
	}
}
