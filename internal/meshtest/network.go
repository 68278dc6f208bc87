package meshtest

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Network is a switch that hosts have wires to, and the test's own, in a test that [OwnHost] runs.
type Network struct {
	t     testing.TB
	name  string // of its interfaces, too
	at    string // what its addresses begin with
	wires int
}

// NewNetwork makes one, which is 10.98.<number>.0/24. The test has its address 254.
func NewNetwork(t testing.TB, name string, number int) *Network {
	t.Helper()
	n := &Network{t: t, name: name, at: fmt.Sprintf("10.98.%d.", number)}
	n.ip("link add name %s type bridge", name)
	n.ip("addr add %s254/24 dev %s", n.at, name)
	n.ip("link set dev %s up", name)
	return n
}

func (n *Network) ip(format string, args ...any) {
	n.t.Helper()
	command(n.t, exec.Command("ip", strings.Fields(fmt.Sprintf(format, args...))...))
}

// Wire is a host's way into a network.
type Wire struct {
	Address string
	network *Network
	plug    string // the end at the switch
}

// Plug gives a host that [NewBareHost] made a wire.
func (n *Network) Plug(h *Host) *Wire {
	n.t.Helper()
	n.wires++
	w := &Wire{Address: fmt.Sprint(n.at, n.wires), network: n, plug: fmt.Sprint(n.name, n.wires)}
	if err := h.Do(func() error {
		n.ip("link add %s type veth peer name %s netns %d", n.name, w.plug, os.Getpid())
		n.ip("addr add %s/24 dev %s", w.Address, n.name)
		n.ip("link set dev %s up", n.name)
		return nil
	}); err != nil {
		n.t.Fatalf("entering a network namespace: %v", err)
	}
	n.ip("link set dev %s master %s", w.plug, n.name)
	w.Mend()
	return w
}

// Cut pulls the wire out: what is under way is lost, and nobody is told.
func (w *Wire) Cut() { w.network.ip("link set dev %s down", w.plug) }

// Mend puts it back.
func (w *Wire) Mend() { w.network.ip("link set dev %s up", w.plug) }

// NewBareHost makes a host that has nothing but a loopback interface.
func NewBareHost(t testing.TB) *Host {
	t.Helper()
	h := &Host{t: t, starts: make(chan start)}
	made := make(chan error)
	go func() {
		_ = onThread(func() error {
			err := unix.Unshare(unix.CLONE_NEWNET)
			if err == nil {
				h.ns, err = os.Open("/proc/thread-self/ns/net")
			}
			made <- err
			for s := range h.starts {
				s.done <- s.cmd.Start()
			}
			return nil
		})
	}()
	if err := <-made; err != nil {
		t.Fatalf("making a network namespace: %v", err)
	}
	t.Cleanup(func() { close(h.starts); h.ns.Close() })
	if err := h.Do(func() error { command(t, exec.Command("ip", "link", "set", "dev", "lo", "up")); return nil }); err != nil {
		t.Fatalf("entering a network namespace: %v", err)
	}
	return h
}

type start struct {
	cmd  *exec.Cmd
	done chan error
}

// Start starts a process on a host that [NewBareHost] made. It is the child of a thread that lives until the
// test ends, as Pdeathsig needs.
func (h *Host) Start(cmd *exec.Cmd) error {
	s := start{cmd, make(chan error)}
	h.starts <- s
	return <-s.done
}
