package appport

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The messages of sock_diag(7), in bytes: struct inet_diag_req_v2, of which the last 48 are
// struct inet_diag_sockid, as they are after the first four of struct inet_diag_msg.
const (
	diagRequest = 56
	diagAnswer  = 72
)

// diagnose finds the addresses by the kernel's sock_diag.
func diagnose(port int) ([]netip.Addr, error) {
	c, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	defer c.Close()
	var out []netip.Addr
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		answers, err := c.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: netlink.Request | netlink.Dump},
			Data:   listeners(family, port),
		})
		if err != nil {
			return nil, fmt.Errorf("sock_diag: %w", err)
		}
		for _, a := range answers {
			at, err := listener(a.Data)
			if err != nil {
				return nil, err
			}
			if int(at.Port()) == port { // which old kernels leave to us
				out = append(out, at.Addr())
			}
		}
	}
	return out, nil
}

// listeners asks for the TCP sockets that listen at a port.
func listeners(family byte, port int) []byte {
	b := make([]byte, diagRequest)
	b[0], b[1] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(b[4:], 1<<unix.BPF_TCP_LISTEN)
	binary.BigEndian.PutUint16(b[8:], uint16(port))
	return b
}

// listener reads the address of a socket.
func listener(b []byte) (netip.AddrPort, error) {
	if len(b) < diagAnswer {
		return netip.AddrPort{}, fmt.Errorf("sock_diag: %d bytes of a socket, want %d", len(b), diagAnswer)
	}
	source := b[8:24]
	if b[0] == unix.AF_INET {
		source = source[:4]
	}
	addr, _ := netip.AddrFromSlice(source)
	return netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(b[4:])), nil
}
