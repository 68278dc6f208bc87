package server

import (
	"crypto/tls"
	"net"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// Clients beyond the places wait; who leaves, and who says no more, makes room for the next.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		places := handshakesEach * runtime.GOMAXPROCS(0)
		conns := make([]net.Conn, places+2)
		entered := make(chan net.Conn, len(conns))
		enter := func(i int) {
			conns[i], _ = net.Pipe()
			go func() {
				if _, err := g.enter(&tls.ClientHelloInfo{Conn: conns[i]}); err != nil {
					t.Error(err)
				}
				entered <- conns[i]
			}()
			synctest.Wait()
		}
		for i := range conns {
			enter(i)
		}
		if len(entered) != places {
			t.Fatalf("%d are inside of %d places", len(entered), places)
		}
		g.leave(conns[0])
		synctest.Wait()
		if len(entered) != places+1 {
			t.Errorf("one has left: %d have entered, want %d", len(entered), places+1)
		}
		<-time.After(handshakeFor)
		synctest.Wait()
		if len(entered) != places+2 {
			t.Errorf("the others say no more: %d have entered, want all %d", len(entered), places+2)
		}
		for _, c := range conns {
			g.leave(c)
		}
		<-time.After(handshakeFor)
		if n := len(g.places); n != 0 {
			t.Errorf("%d places are taken by nobody", n)
		}
	})
}
