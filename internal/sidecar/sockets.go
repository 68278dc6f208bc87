package sidecar

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// resetAfter is how long the ends of a connection that was shut down may take to close it
// themselves.
const resetAfter = time.Second

// sockets are the connections of another process of the same user, or of a child. The kernel
// lends them: see pidfd_getfd(2).
type sockets struct {
	pid   int
	pidfd int
}

func openSockets(pid int) (*sockets, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, notLent(pid, err)
	}
	return &sockets{pid, fd}, nil
}

func (s *sockets) close() { unix.Close(s.pidfd) }

// socket is one connection of tcp.
type socket struct {
	fd         int // the other process's
	self, peer netip.AddrPort
	idle       time.Duration // since anything came or went
}

// to lists the connections to addresses.
func (s *sockets) to(addresses map[netip.AddrPort]struct{}) (out []socket, err error) {
	folder := fmt.Sprintf("/proc/%d/fd", s.pid)
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, notLent(s.pid, err)
	}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if what, _ := os.Readlink(folder + "/" + e.Name()); err != nil || !strings.HasPrefix(what, "socket:") {
			continue
		}
		fd, err := s.borrow(n)
		if err != nil {
			return nil, err
		}
		if fd < 0 {
			continue
		}
		one, established := lookAt(fd)
		unix.Close(fd)
		if _, wanted := addresses[one.peer]; wanted && established {
			one.fd = n
			out = append(out, one)
		}
	}
	return out, nil
}

// lookAt tells of a borrowed descriptor. established says that nobody has shut it down here.
func lookAt(fd int) (_ socket, established bool) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return socket{}, false
	}
	return socket{
		self: nameOf(fd, unix.Getsockname), peer: nameOf(fd, unix.Getpeername),
		idle: time.Duration(min(info.Last_data_sent, info.Last_data_recv)) * time.Millisecond,
	}, info.State == unix.BPF_TCP_ESTABLISHED || info.State == unix.BPF_TCP_CLOSE_WAIT
}

// borrow is a descriptor of the same open socket, or -1 if it is gone. As long as it is held
// the other process cannot close the connection.
func (s *sockets) borrow(fd int) (int, error) {
	own, err := unix.PidfdGetfd(s.pidfd, fd, 0)
	switch {
	case errors.Is(err, unix.EBADF):
		return -1, nil
	case err != nil:
		return -1, notLent(s.pid, err)
	}
	return own, nil
}

// shut ends a connection as if its other end had: what came is still read, and what is not
// closed in answer to that is reset a little later. It is false if it is gone.
func (s *sockets) shut(c socket) (bool, error) {
	fd, err := s.borrow(c.fd)
	if err != nil || fd < 0 {
		return false, err
	}
	if now, established := lookAt(fd); !established || now.self != c.self || now.peer != c.peer || unix.Shutdown(fd, unix.SHUT_RDWR) != nil {
		unix.Close(fd) // its number has become another's
		return false, nil
	}
	time.AfterFunc(resetAfter, func() {
		disconnect(fd)
		unix.Close(fd)
	})
	return true, nil
}

// disconnect is connect(2) to nowhere: it resets what is still connected.
func disconnect(fd int) {
	nowhere := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, _ = unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&nowhere)), unsafe.Sizeof(nowhere))
}

// nameOf is an address of a socket; the zero value if it has none of IP.
func nameOf(fd int, get func(int) (unix.Sockaddr, error)) netip.AddrPort {
	name, err := get(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}

// notLent says why the kernel does not lend the sockets of a process, and what to do.
func notLent(pid int, err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.ENOSYS):
		hint = ": it takes Linux 5.6, or a seccomp filter that knows pidfd_getfd"
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		hint = ": a seccomp filter forbids pidfd_getfd, as containers' own does without CAP_SYS_PTRACE, or the process is another user's"
		scope, _ := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope")
		if n := strings.TrimSpace(string(scope)); n == "2" || n == "3" {
			hint = fmt.Sprintf(": kernel.yama.ptrace_scope is %s: it takes 1 or less, or CAP_SYS_PTRACE where it is 2", n)
		}
	}
	return fmt.Errorf("connections of process %d cannot be taken: %w%s", pid, cause(err), hint)
}
