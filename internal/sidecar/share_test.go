package sidecar

import (
	"context"
	"net"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// listenShared listens as Envoy does.
func listenShared(t *testing.T, at string) net.Listener {
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		_ = c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		return err
	}}
	l, err := lc.Listen(context.Background(), "tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestShareable(t *testing.T) {
	shared := listenShared(t, "127.0.0.1:0")
	alone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer alone.Close()
	if err := shareable(shared.Addr().String()); err != nil {
		t.Errorf("beside one that shares: %v", err)
	}
	if err := shareable(alone.Addr().String()); err == nil {
		t.Error("beside one that doesn't share: no error")
	}
	if err := shareable("[::1]:0"); err != nil {
		t.Errorf("IPv6: %v", err)
	}
	// It took nothing: whoever connects reaches the one who was there.
	conn, err := net.Dial("tcp", shared.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if c, err := shared.Accept(); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
}

func TestOthersListen(t *testing.T) {
	l := listenShared(t, "127.0.0.1:0")
	port := l.Addr().(*net.TCPAddr).Port
	if othersListen(port, os.Getpid()) {
		t.Error("our own socket counts as another's")
	}
	if !othersListen(port, os.Getppid()) {
		t.Error("for another process ours counts as its own")
	}
	if othersListen(port, 0) {
		t.Error("somebody listens, whoever it is, where the own sockets are not known")
	}
	l.Close()
	if othersListen(port, os.Getppid()) {
		t.Error("nobody listens any more")
	}
}
