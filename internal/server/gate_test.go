package server

import (
	"crypto/tls"
	"net"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

func quiet() int { return 0 }

// Clients beyond the places wait, and all of them for a catalog; who is answered, and who goes, makes room for the next.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		catalog := make(chan struct{})
		g := newGate(catalog, quiet)
		first, opened := &entering{}, make(chan error, 1)
		go func() {
			_, err := g.enter(&tls.ClientHelloInfo{Conn: first})
			opened <- err
		}()
		synctest.Wait()
		if len(opened) != 0 {
			t.Fatal("one is inside before there is a catalog")
		}
		if n := g.coming(); n != 1 {
			t.Errorf("%d are coming, want the one that waits for a catalog", n)
		}
		close(catalog)
		if err := <-opened; err != nil {
			t.Fatal(err)
		}
		first.place.leave()
		first.settled()
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
		if n := g.coming(); n != len(conns) {
			t.Errorf("%d are coming, want %d, inside and outside", n, len(conns))
		}
		conns[0].place.leave()
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
			c.place.leave()
			c.place.leave() // a place is given back once
			c.settled()
		}
		if n := len(g.places) + g.coming(); n != 0 {
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
		g, began = newGate(nil, quiet), time.Now()
		if _, err := g.enter(&tls.ClientHelloInfo{Conn: conns[0]}); err != nil || time.Since(began) != catalogWait {
			t.Errorf("error %v after %v, want none after %v", err, time.Since(began), catalogWait)
		}
		conns[0].place.leave()
		conns[0].settled()

		// Who comes while many are told something lets that go first.
		g, began = newGate(catalog, func() int { return sendingMany + 1 }), time.Now()
		if _, err := g.enter(&tls.ClientHelloInfo{Conn: conns[0]}); err != nil || time.Since(began) != yieldFor {
			t.Errorf("error %v after %v, want none after %v", err, time.Since(began), yieldFor)
		}
		conns[0].place.leave()
		conns[0].settled()
	})
}

// While there are as many newcomers as there may be nobody else is let in. To be served, to hang up, or to want nothing
// makes room; who has not shown whose it is counts for nothing, however many they are.
func TestGateBoundsNewcomers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		catalog := make(chan struct{})
		close(catalog)
		g := newGate(catalog, quiet)
		const nobody, stranger, sidecar = 0, 1, 2 // nobody says no more
		enter := func(who int) (*entering, chan error) {
			here, there := net.Pipe()
			t.Cleanup(func() { there.Close() })
			c, done := &entering{Conn: here}, make(chan error, 1)
			go func() {
				_, err := g.enter(&tls.ClientHelloInfo{Conn: c})
				c.place.leave() // it has been answered
				switch who {
				case stranger:
					c.settled()
				case sidecar:
					c.arrived()
				}
				done <- err
			}()
			synctest.Wait()
			return c, done
		}
		for range 2 * cap(g.newcomers) {
			if _, done := enter(stranger); len(done) != 1 {
				t.Fatal("strangers hold others up")
			}
		}
		for range cap(g.newcomers) {
			enter(nobody)
		}
		began := time.Now()
		if c, done := enter(sidecar); len(done) != 0 {
			t.Error("thousands are let in before the first has shown who it is")
		} else if <-done; time.Since(began) != proveTime {
			t.Errorf("those who say no more hold others up for %v, want %v", time.Since(began), proveTime)
		} else {
			c.Close()
		}
		var in []*entering
		for range cap(g.newcomers) {
			c, done := enter(sidecar)
			if len(done) != 1 {
				t.Fatalf("%d are newcomers, and no more are let in", len(in))
			}
			in = append(in, c)
		}
		for name, makeRoom := range map[string]func(*entering){"served": (*entering).settled, "gone": func(c *entering) { c.Close() }} {
			c, done := enter(sidecar)
			if len(done) != 0 {
				t.Fatalf("%d are newcomers, and one more", cap(g.newcomers))
			}
			makeRoom(in[0])
			synctest.Wait()
			if len(done) != 1 {
				t.Errorf("one is %s, and nobody is let in", name)
			}
			in = append(in[1:], c)
		}
		if n := len(g.newcomers); n != cap(g.newcomers) {
			t.Errorf("%d are newcomers, want %d", n, cap(g.newcomers))
		}
		<-time.After(settleTime)
		synctest.Wait()
		if n := len(g.newcomers) + len(g.places); n != 0 {
			t.Errorf("%d places are taken by those who want nothing", n)
		}
	})
}
