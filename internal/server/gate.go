package server

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"runtime"
	"sync/atomic"
	"time"
)

const (
	// handshakesEach is how many handshakes a processor works at. When all sidecars come at once
	// the others wait here, where they cost nothing, and not in the queue for the processors
	// behind which streams wait that are there already.
	handshakesEach = 2
	// handshakeTimeout bounds a handshake with its wait.
	handshakeTimeout = 30 * time.Second
	// catalogWait is how long after a start nobody is let in while there is no catalog. It would come the
	// later for their handshakes, and they would be sent away without it, to come again.
	catalogWait = 10 * time.Second
)

// gate lets TLS handshakes in, a few at a time, in the order in which clients have spoken.
type gate struct {
	opens  context.Context // ended once somebody may come in
	places chan struct{}
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
	return &gate{opens, make(chan struct{}, handshakesEach*runtime.GOMAXPROCS(0))}
}

// entering is a connection whose handshake is under way. Its place is free again when the server has
// said its part, which is where most of the work is: a client that says no more holds nobody up.
type entering struct {
	net.Conn
	back atomic.Pointer[func()] // nil: it has no place
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
	select {
	case g.places <- struct{}{}:
	case <-late.C:
		return nil, errors.New("too many others wait")
	}
	back := func() { <-g.places }
	conn.back.Store(&back)
	return nil, nil
}

// leave gives the place back, if there is one.
func (e *entering) leave() {
	if back := e.back.Swap(nil); back != nil {
		(*back)()
	}
}

// Write implements [net.Conn].
func (e *entering) Write(b []byte) (int, error) {
	e.leave()
	return e.Conn.Write(b)
}
