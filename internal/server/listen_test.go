package server

import (
	"net"
	"syscall"
	"testing"
)

// The kernel sends no probes on streams' connections, of which a single lost one would end them.
func TestStreamsHaveNoProbes(t *testing.T) {
	for name, tc := range map[string]struct {
		listen func(what, addr string, port int, flag string) (net.Listener, error)
		want   int
	}{"streams": {listenStreams, 0}, "others": {listen, 1}} {
		l, err := tc.listen(name, "127.0.0.1", 0, "--port")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		got := -1
		var failed error
		if err := raw.Control(func(fd uintptr) {
			got, failed = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_KEEPALIVE)
		}); err != nil || failed != nil {
			t.Fatal(err, failed)
		}
		if got != tc.want {
			t.Errorf("%s: SO_KEEPALIVE is %d, want %d", name, got, tc.want)
		}
	}
}
