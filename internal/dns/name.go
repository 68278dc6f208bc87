package dns

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
)

// kind is what a name is about.
type kind string

const (
	serviceKind kind = "service"
	connectKind kind = "connect"
	nodeKind    kind = "node"
	addrKind    kind = "addr"
	// emptyKind is a name that has no records itself, but others below it.
	emptyKind kind = "empty"
)

// name is a question's name, understood.
type name struct {
	kind       kind
	name       string // of the service or node; "" for emptyKind
	tag        string // "" for any
	datacenter string // "" for that of the registry
	addr       netip.Addr
}

// parse understands a name below the domain. It reports false for one that no
// registry can hold.
func parse(qname string) (name, bool) {
	below, ok := strings.CutSuffix(strings.ToLower(qname), Domain)
	if !ok {
		return name{}, false
	}
	below = strings.TrimSuffix(below, ".")
	if below == "" {
		return name{kind: emptyKind}, true
	}
	labels := strings.Split(below, ".")
	for at, label := range slices.Backward(labels) {
		k := kind(label)
		switch k {
		case serviceKind, connectKind, nodeKind, addrKind:
		default:
			continue
		}
		datacenter, ok := datacenterOf(labels[at+1:])
		if !ok {
			return name{}, false
		}
		n := name{kind: k, datacenter: datacenter}
		if at == 0 {
			n.kind = emptyKind
			return n, true
		}
		return n.of(labels[:at])
	}
	return name{}, false
}

// datacenterOf understands what stands behind the kind: nothing, "dc1" or "dc1.dc".
func datacenterOf(labels []string) (string, bool) {
	switch {
	case len(labels) == 0:
		return "", true
	case len(labels) == 1, len(labels) == 2 && labels[1] == "dc":
		return labels[0], true
	}
	return "", false
}

// of understands what stands before the kind.
func (n name) of(labels []string) (name, bool) {
	switch last := labels[len(labels)-1]; {
	case n.kind == addrKind:
		raw, err := hex.DecodeString(last)
		addr, ok := netip.AddrFromSlice(raw)
		n.addr = addr
		return n, err == nil && ok && len(labels) == 1
	case n.kind == nodeKind:
		// Consul's own names of nodes may hold dots.
		n.name = strings.Join(labels, ".")
		return n, true
	case len(labels) == 2 && len(labels[0]) > 1 && labels[0][0] == '_' && len(last) > 1 && last[0] == '_':
		n.name = labels[0][1:]
		if last != "_tcp" {
			n.tag = last[1:]
		}
		return n, true
	case len(labels) == 1:
		n.name = last
		return n, true
	case len(labels) == 2:
		n.tag, n.name = labels[0], last
		return n, n.kind == serviceKind
	}
	return n, false
}
