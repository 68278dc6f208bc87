// Package appport looks at the port of an app itself, past its sidecar: who can reach it,
// and rules that keep others out.
//
// In: a port of this network namespace. Out: the addresses on which it listens, from the
// kernel's sock_diag, else from /proc/net; and rules in its nf_tables, in a table of their own,
// that refuse connections to it which don't come over loopback. Rules last until they are
// removed or the host restarts. It leaves to others what to make of it.
package appport

import (
	"log/slog"
	"net/netip"
	"slices"
)

// Sockets lists sockets. It is not safe for concurrent use.
type Sockets struct {
	Log *slog.Logger

	told bool // why sock_diag is of no use
}

// Listening lists the addresses on which something listens at a TCP port, sorted. The kernel
// is asked for that port alone; where a sandbox or the kernel refuses that, all of
// /proc/net is read, which takes the longer the more connections the host has.
func (s *Sockets) Listening(port int) ([]netip.Addr, error) {
	out, err := diagnose(port)
	if err != nil {
		if !s.told {
			s.told = true
			s.Log.Info("the kernel does not say over netlink who listens at the app's port, /proc/net is read instead", "port", port, "reason", err)
		}
		out, err = readProc(port)
	}
	return inOrder(out), err
}

func inOrder(list []netip.Addr) []netip.Addr {
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list)
}

// Loopback reports whether all addresses are loopback's.
func Loopback(list []netip.Addr) bool {
	return !slices.ContainsFunc(list, func(a netip.Addr) bool { return !a.IsLoopback() })
}
