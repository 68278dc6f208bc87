package proxy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/identity"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// maxSocketPath is the longest path, in bytes, that Linux lets a socket have.
const maxSocketPath = 107

// upstream adds the listener of one declared upstream, and its route and cluster
// unless an earlier upstream with the same destination brought them.
func (b *builder) upstream(decl catalog.Upstream) {
	subject := subjectOf(decl)
	if reason := unsupported(decl); reason != "" {
		b.problem(subject, "%s", reason)
		return
	}
	u, place, ok := b.listener(decl, subject)
	if !ok {
		return
	}

	settings := b.upstreamSettings(decl, subject)
	chain, problems := b.chain(routing.Request{Config: b.in.Config, Service: u.Target.Service, Datacenter: u.Target.Datacenter, Protocol: settings.Protocol})
	b.read(chain.Reads...)
	b.problems = append(b.problems, problems...)
	u.Protocol = chain.Protocol
	shift := b.shift(u.Target)
	// An old way may lead to who never registered.
	u.Unknown = shift == nil && settings.Protocol == "" && chain.IsDefault() && b.unknown(u.Target)
	u.ExactBalance = settings.BalanceOutboundConnections == exactBalance
	u.ListenerJSON = b.hatch(subject, config.ListenerHatch, settings.EnvoyListenerJSON)

	out := b.outbound(u, chain, shift, settings, subject)
	u.Cluster = out.entry
	for _, c := range out.clusters {
		if prior, ok := b.proxy.Cluster(c.Name); ok && (prior.Multiplexed != c.Multiplexed || prior.Protocol != c.Protocol) {
			b.problem(subject, "protocol %s does not go with that of another upstream to %q: this listener is left out", u.Protocol, u.Name)
			return
		}
	}
	if holder, ok := b.claim(place, subject); !ok {
		b.problem(subject, "%s is taken by %s: this listener is left out", placeOf(u), holder)
		return
	}
	if differs := b.adopt(out); differs {
		b.problem(subject, "settings differ from those of another upstream to %q: the one declared first counts", u.Name)
	}
	b.proxy.Upstreams = append(b.proxy.Upstreams, u)
	if shift != nil && !slices.ContainsFunc(b.proxy.Shifts, func(s Shift) bool { return s.Destination == u.Target.Service }) {
		b.proxy.Shifts = append(b.proxy.Shifts, Shift{u.Target.Service, shift.Generation, shift.Shares})
	}
}

// chain is the compiled chain of a service.
func (b *builder) chain(req routing.Request) (routing.Chain, []Problem) {
	if b.in.Chain != nil {
		return b.in.Chain(req)
	}
	return routing.Compile(req)
}

// unknown reports whether nothing at all is known of a service of this datacenter.
func (b *builder) unknown(t routing.Target) bool {
	if b.in.Known == nil || t.Datacenter != b.in.Datacenter || b.in.Known(t.Service) {
		return false
	}
	own := b.in.Config.ServiceDefaults(t.Service)
	return (own == nil || own.Protocol == "") && b.in.Config.ProxyDefaults().Protocol() == ""
}

func subjectOf(decl catalog.Upstream) string {
	where := "port " + strconv.Itoa(decl.LocalBindPort)
	if decl.LocalBindSocketPath != "" {
		where = "socket " + decl.LocalBindSocketPath
	}
	return fmt.Sprintf("upstream %q %s", decl.DestinationName, where)
}

// unsupported says why the declaration cannot be served, or "".
func unsupported(decl catalog.Upstream) string {
	switch {
	case decl.DestinationName == "":
		return "no destination name"
	case decl.DestinationName == PublicListener || decl.DestinationName == config.Wildcard:
		return "a service cannot be called so"
	case decl.DestinationType != "" && decl.DestinationType != "service":
		return fmt.Sprintf("destination type %q is not supported: name a service", decl.DestinationType)
	case decl.DestinationPeer != "":
		return fmt.Sprintf("peer %q: cluster peering is not supported", decl.DestinationPeer)
	case decl.DestinationNamespace != "" && decl.DestinationNamespace != identity.Namespace,
		decl.DestinationPartition != "" && decl.DestinationPartition != identity.Namespace:
		return "namespaces and partitions other than default are not supported"
	}
	return ""
}

// listener decides name and place of the upstream's listener.
func (b *builder) listener(decl catalog.Upstream, subject string) (Upstream, bind, bool) {
	u := Upstream{Name: decl.DestinationName, Target: routing.Target{Service: decl.DestinationName, Datacenter: b.in.Datacenter}}
	if dc := decl.Datacenter; dc != "" && dc != b.in.Datacenter {
		u.Target.Datacenter = dc
		u.Name += "?dc=" + dc
	}
	if path := decl.LocalBindSocketPath; path != "" {
		if len(path) > maxSocketPath {
			b.problem(subject, "socket path has %d bytes, a socket can have %d: this listener is left out", len(path), maxSocketPath)
			return u, bind{}, false
		}
		if decl.LocalBindSocketMode != "" {
			mode, err := strconv.ParseUint(decl.LocalBindSocketMode, 8, 32)
			if err != nil || mode > 0o777 {
				b.problem(subject, "socket mode %q is no octal file mode: left to the umask", decl.LocalBindSocketMode)
				mode = 0
			}
			u.SocketMode = uint32(mode)
		}
		u.SocketPath = path
		u.ListenerName = u.Name + ":" + path
		return u, bind{path: path}, true
	}

	address := decl.LocalBindAddress
	if address == "" {
		address = "127.0.0.1"
	}
	addr, err := netip.ParseAddr(address)
	if err != nil {
		b.problem(subject, "local bind address %q is no IP address: this listener is left out", address)
		return u, bind{}, false
	}
	if decl.LocalBindPort < 1 || decl.LocalBindPort > 65535 {
		b.problem(subject, "local bind port %d is out of range: this listener is left out", decl.LocalBindPort)
		return u, bind{}, false
	}
	u.Address, u.Port = addr.String(), decl.LocalBindPort
	u.ListenerName = fmt.Sprintf("%s:%s:%d", u.Name, addr, u.Port)
	return u, bind{addr: addr, port: u.Port}, true
}

func placeOf(u Upstream) string {
	if u.SocketPath != "" {
		return u.SocketPath
	}
	return netip.AddrPortFrom(netip.MustParseAddr(u.Address), uint16(u.Port)).String()
}
