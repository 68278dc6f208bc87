package sidecar

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// shareable is an error when hostPort cannot be bound beside whoever listens there. It
// never listens itself, which would take connections from them.
func shareable(hostPort string) error {
	at, err := netip.ParseAddrPort(hostPort)
	if err != nil {
		return err
	}
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()})
	if at.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, option := range []int{unix.SO_REUSEADDR, unix.SO_REUSEPORT} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1); err != nil {
			return err
		}
	}
	return unix.Bind(fd, sa)
}

// othersListen reports whether a process other than pid listens at a TCP port of this
// network namespace. What cannot be read counts as nobody.
func othersListen(port, pid int) bool {
	own := map[string]bool{}
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil {
			own[strings.TrimSuffix(strings.TrimPrefix(to, "socket:["), "]")] = true
		}
	}
	if len(own) == 0 {
		return false // whose sockets are whose is not known
	}
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		for _, inode := range listeners(file, port) {
			if !own[inode] {
				return true
			}
		}
	}
	return false
}

// listeners are the inodes of the sockets that listen at a port, from a table of proc(5).
func listeners(file string, port int) (inodes []string) {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	suffix := fmt.Sprintf(":%04X", port)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// sl local_address rem_address st … inode
		if words := strings.Fields(lines.Text()); len(words) > 9 && words[3] == "0A" && strings.HasSuffix(words[1], suffix) {
			inodes = append(inodes, words[9])
		}
	}
	return inodes
}
