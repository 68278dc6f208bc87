package load

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"google.golang.org/grpc"
)

// payload is the body of every answer, and of every gRPC and TCP request.
func payload(size int) []byte {
	const text = "crossfade bench\n"
	return bytes.Repeat([]byte(text), size/len(text)+1)[:size]
}

// App is the callee. It is in this process and as cheap as it can be: what it
// costs is outside the measured CPU, but on the same cores.
type App struct {
	Port int
	Stop func()
}

// StartApp starts one on a free port that answers with size bytes, or with what it gets.
func StartApp(protocol string, size int) (*App, error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	a := &App{Port: lis.Addr().(*net.TCPAddr).Port}
	switch protocol {
	case HTTP:
		a.Stop = serveConns(lis, func(c net.Conn) { answerHTTP(c, payload(size)) })
	case TCP:
		a.Stop = serveConns(lis, echo)
	case GRPC:
		s := grpc.NewServer(grpc.ForceServerCodec(rawCodec{}), grpc.UnknownServiceHandler(echoGRPC))
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.Serve(lis)
		}()
		a.Stop = func() { s.Stop(); <-done }
	default:
		lis.Close()
		return nil, fmt.Errorf("protocol %q: no app for it", protocol)
	}
	return a, nil
}

// serveConns gives each connection to handle until stop, which waits for all of them.
func serveConns(lis net.Listener, handle func(net.Conn)) (stop func()) {
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex // guards the two below
		open    = map[net.Conn]bool{}
		stopped bool
	)
	wg.Go(func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			if stopped {
				c.Close()
			}
			open[c] = true
			mu.Unlock()
			wg.Go(func() {
				handle(c)
				c.Close()
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	})
	return func() {
		lis.Close()
		mu.Lock()
		stopped = true
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	}
}

// answerHTTP is an HTTP/1.1 server for requests without a body.
func answerHTTP(c net.Conn, body []byte) {
	answer := append(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n", len(body)), body...)
	buf, have := make([]byte, 16<<10), 0
	for {
		n, err := c.Read(buf[have:])
		if err != nil || n == 0 {
			return
		}
		have += n
		for {
			end := bytes.Index(buf[:have], []byte("\r\n\r\n"))
			if end < 0 {
				break
			}
			have = copy(buf, buf[end+4:have])
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
	}
}

func echo(c net.Conn) {
	buf := make([]byte, 16<<10)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

// echoGRPC answers each message of any method with itself.
func echoGRPC(_ any, stream grpc.ServerStream) error {
	for {
		var m []byte
		if err := stream.RecvMsg(&m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.SendMsg(&m); err != nil {
			return err
		}
	}
}

// rawCodec passes *[]byte through, so that no schema is needed.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	b, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("message of type %T", v)
	}
	return *b, nil
}

func (rawCodec) Unmarshal(data []byte, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("message of type %T", v)
	}
	*b = bytes.Clone(data)
	return nil
}
