// Package dns answers Consul's DNS names from the embedded registry:
// [tag.]name.service[.dc].consul and _name._tag.service[.dc].consul with A, AAAA and
// SRV records, name.connect for the proxies of a service, and name.node and
// hex.addr, to which SRV records point.
//
// In: questions over UDP and TCP, and the registry. Out: answers in random order,
// with no lifetime, of instances that are not critical. A UDP answer holds what
// fits, and says by its TC bit that there is more.
//
// It asks no other server: what is not below the domain is refused. It leaves who is
// healthy to catalog and who is registered to catalog/store.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
)

// Domain is below which all names are.
const Domain = "consul."

const (
	// idle is how long a TCP connection may say nothing.
	idle = 10 * time.Second
	// maxConns and maxUDP bound what is served at once; what is above waits, or over
	// UDP is dropped, for clients to ask again.
	maxConns = 256
	maxUDP   = 1024
	// maxUDPSize bounds a UDP answer whatever the client offers to take.
	maxUDPSize = 4096
)

// Options say what to serve.
type Options struct {
	Store *store.Store
	// Addr and Port to listen on, over UDP and TCP; port 0 picks one that is free.
	Addr string
	Port int
	Log  *slog.Logger // nil: discard
}

// Server answers on one address. Make it with [Listen], run it with [Server.Run].
type Server struct {
	store *store.Store
	log   *slog.Logger
	tcp   net.Listener
	udp   net.PacketConn
	busy  chan struct{} // a token for each UDP question that is being answered
}

// Listen opens both sockets; nothing is answered yet.
func Listen(o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{store: o.Store, log: o.Log, busy: make(chan struct{}, maxUDP)}
	const tries = 10 // a port that is free for TCP may be taken for UDP
	var err error
	for range tries {
		if s.tcp, err = net.Listen("tcp", net.JoinHostPort(o.Addr, strconv.Itoa(o.Port))); err != nil {
			break
		}
		if s.udp, err = net.ListenPacket("udp", s.tcp.Addr().String()); err == nil {
			return s, nil
		}
		s.tcp.Close()
		if o.Port != 0 {
			break
		}
	}
	return nil, fmt.Errorf("DNS port %d: %w: stop what listens there or choose another with --dns-port", o.Port, err)
}

// Addr is where it listens, host:port.
func (s *Server) Addr() string { return s.tcp.Addr().String() }

// Close ends a server that does not run.
func (s *Server) Close() error { return errors.Join(s.tcp.Close(), s.udp.Close()) }

// Run answers until ctx ends. It returns nil after an orderly stop, and closes both
// sockets.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	servers := []*dns.Server{
		{PacketConn: s.udp, Handler: dns.HandlerFunc(s.serveUDP), UDPSize: dns.MinMsgSize},
		{Listener: &limited{Listener: s.tcp, free: make(chan struct{}, maxConns)}, Handler: dns.HandlerFunc(s.serveTCP),
			ReadTimeout: idle, WriteTimeout: idle, IdleTimeout: func() time.Duration { return idle }},
	}
	ended := make(chan struct{})
	for _, server := range servers {
		go func() {
			defer func() { ended <- struct{}{} }()
			if err := server.ActivateAndServe(); err != nil {
				cancel(err)
			}
		}()
	}
	<-ctx.Done()
	over, done := context.WithTimeout(context.Background(), time.Second)
	defer done()
	for _, server := range servers {
		_ = server.ShutdownContext(over) // fails only for one that has ended, or not begun
	}
	s.Close() // ends one that had not begun
	for range servers {
		<-ended
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, net.ErrClosed) {
		return cause
	}
	return nil
}

func (s *Server) serveUDP(w dns.ResponseWriter, q *dns.Msg) {
	select {
	case s.busy <- struct{}{}:
		defer func() { <-s.busy }()
	default:
		return
	}
	size := dns.MinMsgSize
	if opt := q.IsEdns0(); opt != nil {
		size = min(max(size, int(opt.UDPSize())), maxUDPSize)
	}
	s.reply(w, q, size)
}

func (s *Server) serveTCP(w dns.ResponseWriter, q *dns.Msg) { s.reply(w, q, dns.MaxMsgSize) }

func (s *Server) reply(w dns.ResponseWriter, q *dns.Msg, size int) {
	m := s.answer(q)
	truncate(m, size)
	if err := w.WriteMsg(m); err != nil {
		s.log.Debug("DNS answer not written", "client", w.RemoteAddr().String(), "err", err)
	}
}

// truncate makes an answer fit. TC says that records of the answer are missing, not
// that some of those beside it are.
func truncate(m *dns.Msg, size int) {
	m.Compress = true
	all := len(m.Answer)
	m.Truncate(size)
	m.Truncated = len(m.Answer) < all
}

// limited is a listener with a bound on the connections that are open at once.
type limited struct {
	net.Listener
	free chan struct{}
}

func (l *limited) Accept() (net.Conn, error) {
	l.free <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &limitedConn{Conn: c, free: l.free}, nil
}

type limitedConn struct {
	net.Conn
	free   chan struct{}
	closed sync.Once
}

func (c *limitedConn) Close() error {
	c.closed.Do(func() { <-c.free })
	return c.Conn.Close()
}
