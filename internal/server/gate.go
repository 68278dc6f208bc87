package server

import (
	"crypto/tls"
	"errors"
	"net"
	"runtime"
	"sync"
	"time"
)

const (
	// handshakesEach is how many handshakes a processor works at. When all sidecars come at once
	// the others wait here, where they cost nothing, and not in the queue for the processors
	// behind which streams wait that are there already.
	handshakesEach = 2
	// handshakeFor is how long a handshake keeps its place at most: a client that says no more
	// holds nobody up.
	handshakeFor = 100 * time.Millisecond
	// handshakeTimeout bounds a handshake with its wait.
	handshakeTimeout = 30 * time.Second
)

// gate lets TLS handshakes in, a few at a time, in the order in which clients have spoken.
type gate struct {
	places chan struct{}
	inside sync.Map // of func(), by connection: gives the place back
}

func newGate() *gate { return &gate{places: make(chan struct{}, handshakesEach*runtime.GOMAXPROCS(0))} }

// enter is for [tls.Config.GetConfigForClient]: what costs time comes after it.
func (g *gate) enter(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	late := time.NewTimer(handshakeTimeout)
	defer late.Stop()
	select {
	case g.places <- struct{}{}:
	case <-late.C:
		return nil, errors.New("too many others wait")
	}
	back := sync.OnceFunc(func() { <-g.places })
	g.inside.Store(hello.Conn, back)
	time.AfterFunc(handshakeFor, back)
	return nil, nil
}

// leave ends a connection's part, whether or not it has entered.
func (g *gate) leave(conn net.Conn) {
	if back, ok := g.inside.LoadAndDelete(conn); ok {
		back.(func())()
	}
}
