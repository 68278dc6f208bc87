package server

import (
	"crypto/tls"
	"net"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// Clients beyond the places wait, and all of them for a catalog; who is answered, and who goes, makes room for the next.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		catalog := make(chan struct{})
		g := newGate(catalog)
		first, opened := &entering{}, make(chan error, 1)
		go func() {
			_, err := g.enter(&tls.ClientHelloInfo{Conn: first})
			opened <- err
		}()
		synctest.Wait()
		if len(opened) != 0 {
			t.Fatal("one is inside before there is a catalog")
		}
		close(catalog)
		if err := <-opened; err != nil {
			t.Fatal(err)
		}
		first.leave()
		places := handshakesEach * runtime.GOMAXPROCS(0)
		conns := make([]*entering, places+2)
		entered := make(chan error, len(conns))
		for i := range conns {
			here, there := net.Pipe()
			defer there.Close()
			go func() { // takes what it is told
				var b [1]byte
				there.Read(b[:])
			}()
			conns[i] = &entering{Conn: here}
			go func() {
				_, err := g.enter(&tls.ClientHelloInfo{Conn: conns[i]})
				entered <- err
			}()
			synctest.Wait()
		}
		if len(entered) != places {
			t.Fatalf("%d are inside of %d places", len(entered), places)
		}
		conns[0].leave()
		synctest.Wait()
		if len(entered) != places+1 {
			t.Errorf("one has gone: %d have entered, want %d", len(entered), places+1)
		}
		if _, err := conns[1].Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(entered) != places+2 {
			t.Errorf("one is answered: %d have entered, want all %d", len(entered), places+2)
		}
		for _, c := range conns {
			c.leave()
			c.leave() // a place is given back once
		}
		if n := len(g.places); n != 0 {
			t.Errorf("%d places are taken by nobody", n)
		}
		for range conns {
			if err := <-entered; err != nil {
				t.Error(err)
			}
		}

		// Who waits for too long is refused.
		for range places {
			g.places <- struct{}{}
		}
		began := time.Now()
		if _, err := g.enter(&tls.ClientHelloInfo{Conn: conns[0]}); err == nil || time.Since(began) != handshakeTimeout {
			t.Errorf("error %v after %v, want one after %v", err, time.Since(began), handshakeTimeout)
		}

		// Where no catalog comes, who asks for something else is let in.
		g, began = newGate(nil), time.Now()
		if _, err := g.enter(&tls.ClientHelloInfo{Conn: conns[0]}); err != nil || time.Since(began) != catalogWait {
			t.Errorf("error %v after %v, want none after %v", err, time.Since(began), catalogWait)
		}
		conns[0].leave()
	})
}
