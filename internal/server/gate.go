package server

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"runtime"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

const (
	// handshakesEach is how many handshakes a processor works at. When all sidecars come at once
	// the others wait here, where they cost nothing, and not in the queue for the processors
	// behind which streams wait that are there already.
	handshakesEach = 2
	// newcomersEach is how many connections a processor has that are not served yet, from the handshake until
	// all is made that their stream is told. Without that bound all who come at once get as far as all others before
	// anybody is served, and of those that are there already nobody has a turn meanwhile. It is large enough for
	// clients that are far away: they take up places while bytes travel.
	newcomersEach = 50
	// settleTime is how long a connection is a newcomer at most: it may want something else, or nothing.
	settleTime = time.Second
	// handshakeTimeout bounds a handshake with its wait.
	handshakeTimeout = 30 * time.Second
	// catalogWait is how long after a start nobody is let in while there is no catalog. It would come the
	// later for their handshakes, and they would be sent away without it, to come again.
	catalogWait = 10 * time.Second
)

// gate lets connections in, a few at a time, in the order in which clients have spoken.
type gate struct {
	opens     context.Context // ended once somebody may come in
	newcomers chan struct{}   // places until they are served
	places    chan struct{}   // places for handshakes
}

// newGate makes one that opens when there is a catalog, or has been none for long.
func newGate(catalog <-chan struct{}) *gate {
	opens, open := context.WithTimeout(context.Background(), catalogWait)
	go func() {
		defer open()
		select {
		case <-catalog:
		case <-opens.Done():
		}
	}()
	n := runtime.GOMAXPROCS(0)
	return &gate{opens, make(chan struct{}, newcomersEach*n), make(chan struct{}, handshakesEach*n)}
}

// entering is a connection that comes in. Its place for the handshake is free again when the server has
// said its part, which is where most of the work is: a client that says no more holds nobody up.
type entering struct {
	net.Conn
	place    place // for the handshake
	newcomer place
}

// place is one of a channel's, or none.
type place struct{ of atomic.Pointer[chan struct{}] }

// take waits for a place until late.
func (p *place) take(of chan struct{}, late <-chan time.Time) error {
	select {
	case of <- struct{}{}:
		p.of.Store(&of)
		return nil
	case <-late:
		return errors.New("too many others wait")
	}
}

// leave gives the place back, if there is one.
func (p *place) leave() {
	if of := p.of.Swap(nil); of != nil {
		<-*of
	}
}

// enter is for [tls.Config.GetConfigForClient]: what costs time comes after it.
func (g *gate) enter(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	conn, ok := hello.Conn.(*entering)
	if !ok {
		return nil, nil
	}
	late := time.NewTimer(handshakeTimeout)
	defer late.Stop()
	select {
	case <-g.opens.Done():
	case <-late.C:
		return nil, errors.New("there is no catalog yet")
	}
	if err := conn.newcomer.take(g.newcomers, late.C); err != nil {
		return nil, err
	}
	return nil, conn.place.take(g.places, late.C)
}

// settled says that the connection is a newcomer no more. There may be none.
func (e *entering) settled() {
	if e != nil {
		e.newcomer.leave()
	}
}

// Write implements [net.Conn].
func (e *entering) Write(b []byte) (int, error) {
	e.place.leave()
	return e.Conn.Write(b)
}

// Close implements [net.Conn].
func (e *entering) Close() error {
	e.place.leave()
	e.newcomer.leave()
	return e.Conn.Close()
}

// visitor is what is known of a caller: what it has shown, and by which way it has come.
type visitor struct {
	credentials.TLSInfo
	conn *entering
}

// visitorOf is who makes a gRPC call; none without TLS.
func visitorOf(ctx context.Context) visitor {
	if p, ok := peer.FromContext(ctx); ok {
		v, _ := p.AuthInfo.(visitor)
		return v
	}
	return visitor{}
}
