// Package nodeproxy is an old mesh: one Envoy per host that all apps of the host share,
// in plaintext. A request goes from an app, or a sidecar, to this host's node proxy, from
// there to the node proxy of a host that has the callee, and from that to the callee:
//
//	caller ─▶ node proxy (front) ─▶ node proxy (peer) ─▶ callee
//
// HTTP, with gRPC and WebSocket, comes to one port and is told apart by Host; each TCP
// service has a port of its own. It is what pairs are moved away from in tests, in
// benchmarks and in the demo.
//
// In: a [catalog.Source], which may be a Consul, and [Options]. Out: a running Envoy, told
// by files that it watches. [Build] is pure; [Run] is the rest.
//
// It knows nothing of identity, entries or intentions, and encrypts nothing.
package nodeproxy

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
)

// Layout is where one node proxy listens.
type Layout struct {
	Node   string // this host's name in the registry
	Front  string // host:port at which apps of this host call services by Host
	Peer   string // host:port at which node proxies of other hosts call those of this one
	Domain string // catalog.<Domain> is catalog, too
	TCP    []TCP
}

// TCP is a service without a Host to be told by.
type TCP struct {
	Service     string
	Front, Peer int // ports, at the addresses of Layout's
}

// ParseTCP reads NAME=FRONT:PEER.
func ParseTCP(text string) (TCP, error) {
	name, ports, ok := strings.Cut(text, "=")
	front, peer, ok2 := strings.Cut(ports, ":")
	t := TCP{Service: name}
	var err1, err2 error
	t.Front, err1 = strconv.Atoi(front)
	t.Peer, err2 = strconv.Atoi(peer)
	if !ok || !ok2 || err1 != nil || err2 != nil || !usable(name) || !port(t.Front) || !port(t.Peer) {
		return t, fmt.Errorf("TCP service %q: want NAME=FRONT:PEER, such as payments=5140:5141", text)
	}
	return t, nil
}

// Validate says what is wrong with a layout.
func (l Layout) Validate() error {
	taken := map[string]string{}
	claim := func(what, addr string) error {
		host, text, err := net.SplitHostPort(addr)
		n, err2 := strconv.Atoi(text)
		if err != nil || err2 != nil || net.ParseIP(host) == nil || !port(n) {
			return fmt.Errorf("%s address %q: want IP:PORT", what, addr)
		}
		if other := taken[addr]; other != "" {
			return fmt.Errorf("%s address %q: it is that of %s as well", what, addr, other)
		}
		taken[addr] = what
		return nil
	}
	if l.Node == "" {
		return fmt.Errorf("node: it has no name")
	}
	if err := cmp.Or(claim("front", l.Front), claim("peer", l.Peer)); err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, t := range l.TCP {
		if seen[t.Service] {
			return fmt.Errorf("TCP service %q: it is there twice", t.Service)
		}
		seen[t.Service] = true
		err := cmp.Or(claim("front of "+t.Service, l.frontOf(t)), claim("peer of "+t.Service, l.peerOf(t)))
		if err != nil {
			return err
		}
	}
	return nil
}

func (l Layout) frontOf(t TCP) string { return withPort(l.Front, t.Front) }
func (l Layout) peerOf(t TCP) string  { return withPort(l.Peer, t.Peer) }

// peerPort is where node proxies take what is meant for a service.
func (l Layout) peerPort(service string) int {
	for _, t := range l.TCP {
		if t.Service == service {
			return t.Peer
		}
	}
	_, n := split(l.Peer)
	return n
}

func (l Layout) tcp(service string) bool {
	return slices.ContainsFunc(l.TCP, func(t TCP) bool { return t.Service == service })
}

// usable reports whether a name may become part of file names and Hosts.
func usable(service string) bool {
	return service != "" && len(service) <= 128 && !strings.ContainsFunc(service, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	}) && !strings.HasPrefix(service, ".")
}

func port(n int) bool { return n > 0 && n < 1<<16 }

func split(addr string) (host string, n int) {
	host, text, _ := net.SplitHostPort(addr)
	n, _ = strconv.Atoi(text) // it was checked
	return host, n
}

func withPort(addr string, n int) string {
	host, _ := split(addr)
	return net.JoinHostPort(host, strconv.Itoa(n))
}
