package protocols

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// listen runs serve for every connection, until the test ends.
func listen(t *testing.T, serve func(*net.TCPConn)) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

func TestTCP(t *testing.T) {
	heard := make(chan string, 10)
	m := start(t,
		// Speaks when its caller has ended, as databases' bulk protocols do.
		service{name: "ledger", protocol: "tcp", port: listen(t, func(c *net.TCPConn) {
			s, err := sum(c)
			fmt.Fprintln(c, s, err)
			io.Copy(c, body(1<<20))
		})},
		// Greets, says that it has no more to say, and goes on listening.
		service{name: "mail", protocol: "tcp", port: listen(t, func(c *net.TCPConn) {
			fmt.Fprintln(c, "220 mail")
			c.CloseWrite()
			s, err := sum(c)
			heard <- fmt.Sprint(s, err)
		})},
		service{name: "cache", protocol: "tcp", port: listen(t, func(c *net.TCPConn) { io.Copy(c, c) })},
		service{name: "down", protocol: "tcp", port: meshtest.FreePorts(t, 1)[0]},
	)
	t.Run("caller ends first", func(t *testing.T) {
		defer m.watch(t)()
		for _, n := range []int64{0, 1, 65536, 64 << 20} {
			want, _ := sum(body(n))
			c := m.dial(t, "ledger").(*net.TCPConn)
			if _, err := io.Copy(c, body(n)); err != nil {
				t.Fatal(err)
			}
			c.CloseWrite()
			r := bufio.NewReader(c)
			if line, err := r.ReadString('\n'); line != want+" <nil>\n" {
				t.Errorf("the app got %q, %v, want %q", line, err, want)
			}
			want, _ = sum(body(1 << 20))
			if got, err := sum(r); got != want || err != nil {
				t.Errorf("after its end the caller got %q, %v, want %q", got, err, want)
			}
		}
	})
	t.Run("callee speaks and ends first", func(t *testing.T) {
		want, _ := sum(body(1 << 20))
		c := m.dial(t, "mail").(*net.TCPConn)
		if got, err := io.ReadAll(c); string(got) != "220 mail\n" || err != nil {
			t.Fatalf("%q, %v, want a greeting and the end", got, err)
		}
		if _, err := io.Copy(c, body(1<<20)); err != nil {
			t.Fatal(err)
		}
		c.CloseWrite()
		if got := <-heard; got != want+"<nil>" {
			t.Errorf("after its end the app got %q, want %q", got, want)
		}
	})
	t.Run("turn by turn", func(t *testing.T) {
		c := m.dial(t, "cache")
		buf := make([]byte, 5000)
		for i := range 1000 {
			message := pattern[:i*7%5000+1]
			if _, err := c.Write(message); err != nil {
				t.Fatal(err)
			}
			if n, err := io.ReadFull(c, buf[:len(message)]); err != nil || string(buf[:n]) != string(message) {
				t.Fatalf("message %d: %d bytes, %v", i, n, err)
			}
		}
	})
	t.Run("an app that is down", func(t *testing.T) {
		if got, err := io.ReadAll(m.dial(t, "down")); len(got) > 0 {
			t.Errorf("%q, %v, want the connection closed", got, err)
		}
	})
	t.Run("a caller that is gone", func(t *testing.T) {
		c := m.dial(t, "mail").(*net.TCPConn)
		if _, err := io.ReadAll(c); err != nil {
			t.Fatal(err)
		}
		c.SetLinger(0)
		c.Close() // with a reset
		<-heard
	})
	m.unchanged(t)
}

// A caller's connection outlives the one to the app, which is let go of before any
// app would close it.
func TestIdleConnection(t *testing.T) {
	m, _ := startHTTP(t)
	c := client(t, 1)
	reused := false
	trace := func(r *http.Request) {
		*r = *r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused }}))
	}
	for range 2 {
		if a := m.ask(t, c, "catalog", "GET", "/x", nil, trace); a.StatusCode != 200 {
			t.Fatalf("%d %q", a.StatusCode, a.body)
		}
		meshtest.Eventually(t, "the app's connection is closed", func() error {
			if n := m.envoys["catalog"].Stat("cluster.local_app.upstream_cx_active"); n != 0 {
				return errors.New("it is open")
			}
			return nil
		})
	}
	if !reused {
		t.Error("the caller's own connection did not last")
	}
	if n := m.envoys["catalog"].Stat("cluster.local_app.upstream_cx_total"); n != 2 {
		t.Errorf("%d connections to the app, want 2", n)
	}
}
