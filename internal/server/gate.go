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

	"github.com/crossfade-mesh/crossfade/internal/ca"
)

const (
	// handshakesEach is how many handshakes a processor works at. When all sidecars come at once
	// the others wait here, where they cost nothing, and not in the queue for the processors
	// behind which streams wait that are there already.
	handshakesEach = 2
	// newcomersEach is how many sidecars a processor has that shake hands, or have, and are not served yet, before
	// anybody else is let in. Without that bound all who come at once get as far as all others before anybody is
	// served, and of those that are there already nobody has a turn meanwhile. It is large enough for
	// clients that are far away: they take up places while bytes travel.
	newcomersEach = 50
	// proveTime is how long somebody is a newcomer who has not shown a leaf yet: what is to come from clients takes
	// longer than what is done here, and thousands would be between the two. Strangers hold nobody up for longer.
	proveTime = 100 * time.Millisecond
	// settleTime is how long a sidecar is a newcomer at most: it may want something else, or nothing.
	settleTime = time.Second
	// yieldFor is how long a handshake waits, with its place, while more than sendingMany streams are being told something: a change
	// goes before newcomers. There are places for two hundred a second meanwhile, on two processors.
	yieldFor    = 20 * time.Millisecond
	sendingMany = 250
	// handshakeTimeout bounds a handshake with its wait.
	handshakeTimeout = 30 * time.Second
	// catalogWait is how long after a start nobody is let in while there is no catalog. It would come the
	// later for their handshakes, and they would be sent away without it, to come again.
	catalogWait = 10 * time.Second
)

// gate lets connections in, a few at a time, in the order in which clients have spoken.
type gate struct {
	opens     context.Context // ended once somebody may come in
	newcomers chan struct{}   // one for each newcomer
	places    chan struct{}   // places for handshakes
	sending   func() int      // how many streams are being told something
	waiting   atomic.Int64    // clients that have spoken and are not let in yet
}

// newGate makes one that opens when there is a catalog, or has been none for long.
func newGate(catalog <-chan struct{}, sending func() int) *gate {
	opens, open := context.WithTimeout(context.Background(), catalogWait)
	go func() {
		defer open()
		select {
		case <-catalog:
		case <-opens.Done():
		}
	}()
	n := runtime.GOMAXPROCS(0)
	return &gate{opens: opens, sending: sending, newcomers: make(chan struct{}, newcomersEach*n), places: make(chan struct{}, handshakesEach*n)}
}

// coming is how many clients have spoken and are not served yet.
func (g *gate) coming() int { return int(g.waiting.Load()) + len(g.newcomers) }

// entering is a connection that comes in. Its place for the handshake is free again when the server has
// said its part, which is where most of the work is: a client that says no more has a newcomer's place alone, for proveTime.
type entering struct {
	net.Conn
	gate     *gate // set by enter; nil: it has not been there
	place    place // for the handshake
	newcomer place
	unproved *time.Timer // makes it a newcomer no more; set with gate
}

// place is one of a channel's, or none.
type place struct{ of atomic.Pointer[chan struct{}] }

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
	g.waiting.Add(1)
	defer g.waiting.Add(-1)
	late := time.NewTimer(handshakeTimeout)
	defer late.Stop()
	select {
	case <-g.opens.Done():
	case <-late.C:
		return nil, errors.New("there is no catalog yet")
	}
	tooMany := errors.New("too many others wait")
	select {
	case g.places <- struct{}{}:
		conn.place.of.Store(&g.places)
	case <-late.C:
		return nil, tooMany
	}
	select {
	case g.newcomers <- struct{}{}:
		conn.newcomer.of.Store(&g.newcomers)
	case <-late.C:
		conn.place.leave()
		return nil, tooMany
	}
	if g.sending() > sendingMany {
		<-time.After(yieldFor)
	}
	conn.gate = g
	conn.unproved = time.AfterFunc(proveTime, conn.settled)
	return nil, nil
}

// arrived says that the client has shown whose it is: it is a newcomer until it is settled, or for settleTime. Nobody waits here.
func (e *entering) arrived() {
	if e.gate == nil {
		return
	}
	if !e.unproved.Stop() {
		select {
		case e.gate.newcomers <- struct{}{}:
			e.newcomer.of.Store(&e.gate.newcomers)
		default:
			return
		}
	}
	time.AfterFunc(settleTime, e.settled)
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

// visitor is what is known of a caller: the certificates that it has shown, in DER, whose leaf that was then, if anybody's,
// and by which way it has come.
type visitor struct {
	credentials.CommonAuthInfo
	chain [][]byte
	leaf  ca.Peer
	conn  *entering
}

// AuthType implements [credentials.AuthInfo].
func (visitor) AuthType() string { return "tls" }

// visitorOf is who makes a gRPC call; none without TLS.
func visitorOf(ctx context.Context) visitor {
	if p, ok := peer.FromContext(ctx); ok {
		v, _ := p.AuthInfo.(visitor)
		return v
	}
	return visitor{}
}
