package appport

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// What sock_diag says is what /proc/net says, of one port among others, and of this host alone.
func TestListening(t *testing.T) {
	if !meshtest.OwnHost(t) {
		return
	}
	other := meshtest.NewHost(t)
	listen := func(network, address string) net.Listener {
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	for _, tc := range []struct {
		name   string
		listen []string // network and address
		want   []string
	}{
		{"nobody", nil, nil},
		{"loopback", []string{"tcp4 127.0.0.1"}, []string{"127.0.0.1"}},
		{"any", []string{"tcp4 0.0.0.0"}, []string{"0.0.0.0"}},
		{"IPv6 alone", []string{"tcp6 [::1]"}, []string{"::1"}},
		{"both families on one socket", []string{"tcp [::]"}, []string{"::"}},
		{"several", []string{"tcp6 [::1]", "tcp4 " + meshtest.HostAddress, "tcp4 127.0.0.1", "tcp4 127.0.0.2"}, []string{meshtest.HostAddress, "127.0.0.1", "127.0.0.2", "::1"}},
		{"IPv4 on a socket of IPv6", []string{"mapped 127.0.0.1"}, []string{"127.0.0.1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			port := 0
			for _, l := range append([]string{"tcp4 127.0.0.9"}, tc.listen...) {
				network, address, _ := strings.Cut(l, " ")
				switch {
				case port == 0: // a port that is free; whoever has it there is closed again
					l := listen(network, address+":0")
					port = l.Addr().(*net.TCPAddr).Port
					l.Close()
				case network == "mapped":
					listenMapped(t, address, port)
				default:
					listen(network, fmt.Sprintf("%s:%d", address, port))
				}
			}
			// Beside it: another port, a connection to it, and the same port of another host.
			beside := listen("tcp4", "127.0.0.1:0")
			c, err := net.Dial("tcp4", beside.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := other.Do(func() error {
				l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.7:%d", port))
				if err == nil {
					t.Cleanup(func() { l.Close() })
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}

			var want []netip.Addr
			for _, a := range tc.want {
				want = append(want, netip.MustParseAddr(a))
			}
			var log bytes.Buffer
			s := Sockets{Log: slog.New(slog.NewTextHandler(&log, nil))}
			got, err := s.Listening(port)
			if err != nil || !reflect.DeepEqual(got, want) || log.Len() > 0 {
				t.Errorf("%v, %v, want %v\n%s", got, err, want, log.String())
			}
			for by, find := range map[string]func(int) ([]netip.Addr, error){"sock_diag": diagnose, "/proc/net": readProc} {
				if got, err := find(port); err != nil || !reflect.DeepEqual(inOrder(got), want) {
					t.Errorf("%s says %v, %v, want %v", by, got, err, want)
				}
			}
			client := c.LocalAddr().(*net.TCPAddr).Port
			if got, err := s.Listening(client); err != nil || len(got) > 0 {
				t.Errorf("at the port of a connection: %v, %v", got, err)
			}
		})
	}
}

// listenMapped listens at an address of IPv4 by a socket of IPv6, which package net never does.
func listenMapped(t *testing.T, address string, port int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet6{Addr: netip.MustParseAddr(address).As16(), Port: port}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
}

// Where a sandbox forbids netlink the answer is the same, and it is said once why it takes longer.
func TestListeningWithoutNetlink(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	var log bytes.Buffer
	s := Sockets{Log: slog.New(slog.NewTextHandler(&log, nil))}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // which ends with this goroutine
		if err := forbidNetlink(); err != nil {
			t.Error(err)
			return
		}
		for range 2 {
			got, err := s.Listening(port)
			if err != nil || len(got) != 1 || got[0] != netip.MustParseAddr("127.0.0.1") {
				t.Errorf("%v, %v", got, err)
			}
		}
	}()
	<-done
	if n := strings.Count(log.String(), "operation not permitted"); n != 1 {
		t.Errorf("the reason is said %d times:\n%s", n, log.String())
	}
	log.Reset()
	if got, err := s.Listening(port); err != nil || len(got) != 1 || log.Len() > 0 {
		t.Errorf("by netlink again: %v, %v\n%s", got, err, log.String())
	}
}

// forbidNetlink makes the kernel refuse netlink to this thread, as a seccomp profile would.
func forbidNetlink() error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the number of the system call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_SOCKET, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 16}, // its first argument
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.AF_NETLINK, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
}

func TestListener(t *testing.T) {
	v4, v6 := make([]byte, diagAnswer), make([]byte, diagAnswer)
	v4[0], v6[0] = unix.AF_INET, unix.AF_INET6
	copy(v4[4:], []byte{0x1f, 0x90, 0, 0, 10, 0, 0, 1})
	copy(v6[4:], []byte{0x1f, 0x90, 0, 0, 0xfe, 0x80})
	v6[23] = 1
	for want, b := range map[string][]byte{"10.0.0.1:8080": v4, "[fe80::1]:8080": v6} {
		if got, err := listener(b); err != nil || got.String() != want {
			t.Errorf("%v, %v, want %s", got, err, want)
		}
	}
	if _, err := listener(v4[:diagAnswer-1]); err == nil {
		t.Error("a short answer is taken")
	}
}
