// Package proxy decides, once, all that one sidecar needs: where it listens, whom
// it lets in, which targets it calls and how.
//
// In: the registration of a connect-proxy and the configuration entries; for
// endpoints, a catalog snapshot. Out: a [Proxy] and, per target, [Endpoints], in
// no one's wire format; and what could not be honoured, as [Problem] values. What
// two Envoy resources must agree on (a name, a timeout, a protocol) is a field
// here, so that package envoy only translates.
//
// A Proxy does not depend on the catalog: instances come and go without a rebuild.
// [Proxy.Reads] names the entries it depends on. A problem harms the one upstream
// or setting that it names and nothing else.
//
// Pure: no I/O, no clock, no log. Everything returned is sorted.
package proxy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/identity"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// Problem is something that was asked for and cannot be had.
type Problem = routing.Problem

// Proxy is all that one sidecar needs. Immutable.
type Proxy struct {
	ID       string // of the connect-proxy, unique on its node
	Node     string
	Identity identity.SPIFFE // of the service that it stands for

	Normalization Normalization
	// Inbound is what it accepts; nil when it has no usable address.
	Inbound *Inbound
	// Upstreams are its outbound listeners, sorted by [Upstream.ListenerName].
	Upstreams []Upstream
	// Routes are what the HTTP upstreams follow, sorted by name. Two upstreams
	// with one destination share a route.
	Routes []Route
	// Clusters are the targets of all upstreams, sorted by name, each once.
	Clusters []Cluster
	// Groups are clusters of clusters, sorted by name, each once.
	Groups []Group

	// Shifts are the shares that the sidecar has, by destination, sorted: what it tells a
	// server that has lost the newest.
	Shifts []Shift
	// Cuts are orders to close what is open on ways that are left, by destination, sorted.
	Cuts []Cut

	// Reads lists the entries that Build looked for, found or not. Sorted.
	Reads []config.Key
	// Sources are the services whose addresses decide whose plaintext is let in. Sorted.
	Sources []string
}

// Shift is the shares of one pair.
type Shift struct {
	Destination string
	Generation  uint64
	Shares      config.Shares
}

// Cut is an order to a sidecar: what is open to a destination on other ways than one is to be
// closed, once its Envoy leads nothing there any more.
type Cut struct {
	Destination string
	ID          string // of the order; one that was followed is not followed again
	Keep        string // the way that is left alone
	Over        time.Duration
	// Part, of Parts, is which of the sidecars that close something at the same time this is,
	// from 0, so that they do not all do it at the same moments.
	Part, Parts int
}

// Input is what [Build] decides from.
type Input struct {
	Instance    catalog.Instance // of kind connect-proxy
	Config      *config.Set
	Datacenter  string // the sidecar's own
	TrustDomain string
	// ConsulCallers lets sidecars call that Consul configures, whose TLS ends at 1.2.
	ConsulCallers bool
	// BindAny has a sidecar that is registered without an address of its own listen on all,
	// as Consul's do: their agents look for it on loopback, whatever the node's address.
	BindAny bool
	// AllowEscapeHatches lets registrations and entries hold resources in Envoy's own words.
	AllowEscapeHatches bool
	DefaultAllow       bool // what happens to a caller that no intention mentions
	// Chain, when set, stands in place of [routing.Compile], to compile once for many
	// sidecars and to keep what worked where entries make no chain any more.
	Chain func(routing.Request) (routing.Chain, []Problem)
	// Addresses lists where the instances of a service send from. Nil: nobody's are known.
	Addresses func(service string) []netip.Addr
	// Known reports whether a service was ever registered. Nil: all were. It decides
	// nothing but [Upstream.Unknown].
	Known func(service string) bool
	// Cuts are orders of today, which no entry holds. Sorted by destination.
	Cuts []Cut
}

// Inbound is the public listener and the app behind it.
type Inbound struct {
	ListenerName string
	Address      string // an IP
	Port         int
	Protocol     string // the app's
	// ExactBalance spreads connections evenly over Envoy's workers.
	ExactBalance bool
	// MaxConnections that are accepted at once; 0: no limit.
	MaxConnections int
	// PeerURIPrefix starts the URI of every caller that is let in: the sidecar's
	// own trust domain and datacenter.
	PeerURIPrefix string
	// TLS12 lets callers use that version of TLS too.
	TLS12      bool
	Intentions Intentions
	// Plaintext is set where the port takes what is not encrypted as well.
	Plaintext *Plaintext
	// Admission is set for tcp when the app has an IP.
	Admission *Admission
	App       App
	// ListenerJSON and ClusterJSON, when set, are a listener to stand in place of the
	// public one and a cluster in place of the app's, in Envoy's own words.
	ListenerJSON, ClusterJSON string
	Exposed                   []Exposed // sorted by [Exposed.ListenerName]
}

// App is the local service instance.
type App struct {
	// SocketPath, when set, stands in place of Address and Port.
	SocketPath string
	Address    string // an IP or a host name
	Port       int

	ConnectTimeout time.Duration
	// RequestTimeout is how long the app may take to answer; 0: for ever.
	RequestTimeout time.Duration
	// IdleTimeout ends a request, or a TCP connection, on which nothing moves;
	// 0: as docs/envoy.md says for the protocol.
	IdleTimeout time.Duration
}

// Upstream is one outbound listener.
type Upstream struct {
	// Name is the destination as Consul writes an upstream: "catalog", or
	// "catalog?dc=dc2" in another datacenter.
	Name         string
	ListenerName string
	SocketPath   string // in place of Address and Port
	SocketMode   uint32 // of SocketPath; 0: left to the umask
	Address      string // an IP
	Port         int
	Protocol     string
	Target       routing.Target // the destination that was declared
	// Cluster or group that the connections of a tcp upstream go to. Its name is that
	// of the destination whatever entries say, since the listener holds it.
	Cluster      string
	ExactBalance bool
	// ListenerJSON, when set, is a listener to stand in place of this one.
	ListenerJSON string
	// Unknown says that nobody ever registered the service and that nothing says
	// what it speaks. Its listener tells an HTTP caller so, and closes others.
	Unknown bool
}

// StatPrefix names the upstream's listener in Envoy's stats.
func (u Upstream) StatPrefix() string {
	return "upstream." + u.Target.Service + "." + identity.Namespace + "." + identity.Namespace + "." + u.Target.Datacenter
}

// Build decides all that the sidecar in.Instance needs.
func Build(in Input) (*Proxy, []Problem) {
	reg := in.Instance.Service.Proxy
	if reg == nil {
		reg = &catalog.Proxy{}
	}
	b := &builder{
		in:      in,
		service: reg.DestinationServiceName,
		reads:   make(map[config.Key]bool, 8+8*len(reg.Upstreams)),
		bound:   make(map[bind]string, 1+len(reg.Upstreams)),
	}
	b.proxy = &Proxy{
		ID:       in.Instance.Service.ID,
		Node:     in.Instance.Node.Name,
		Identity: identity.SPIFFE{TrustDomain: in.TrustDomain, Datacenter: in.Datacenter, Service: b.service},
		Cuts:     in.Cuts,
	}
	if b.service == "" {
		b.problem("proxy "+b.proxy.ID, "no destination service name: it stands for nobody, and nobody will accept it")
	}
	b.defaults = b.serviceDefaults()
	b.proxy.Normalization = b.normalization()
	b.proxy.Inbound = b.inbound(reg)
	n := len(reg.Upstreams)
	b.proxy.Upstreams, b.proxy.Routes, b.proxy.Clusters = slices.Grow(b.proxy.Upstreams, n), slices.Grow(b.proxy.Routes, n), slices.Grow(b.proxy.Clusters, n+1)
	for _, u := range reg.Upstreams {
		b.upstream(u)
	}

	p := b.proxy
	slices.SortFunc(p.Upstreams, func(x, y Upstream) int { return cmp.Compare(x.ListenerName, y.ListenerName) })
	slices.SortFunc(p.Routes, func(x, y Route) int { return cmp.Compare(x.Name, y.Name) })
	slices.SortFunc(p.Clusters, func(x, y Cluster) int { return cmp.Compare(x.Name, y.Name) })
	slices.SortFunc(p.Groups, func(x, y Group) int { return cmp.Compare(x.Name, y.Name) })
	slices.SortFunc(p.Shifts, func(x, y Shift) int { return cmp.Compare(x.Destination, y.Destination) })
	p.Reads = slices.Grow(p.Reads, len(b.reads))
	for k := range b.reads {
		p.Reads = append(p.Reads, k)
	}
	slices.SortFunc(p.Reads, config.Key.Compare)
	slices.SortFunc(b.problems, Problem.Compare)
	return p, slices.Compact(b.problems)
}

// builder holds what the steps of one Build share.
type builder struct {
	in       Input
	service  string
	proxy    *Proxy
	defaults *config.ServiceDefaults // the service's own entry, or nil
	reads    map[config.Key]bool
	bound    map[bind]string // who listens there already
	// providers are the JWT providers asked for so far; nil: it cannot be used.
	providers map[string]*Provider
	problems  []Problem
}

// bind is a place to listen at: either an address and port or a socket path.
type bind struct {
	addr netip.Addr
	port int
	path string
}

func (b *builder) problem(subject, format string, args ...any) {
	b.problems = append(b.problems, Problem{Service: b.service, Subject: subject, Reason: fmt.Sprintf(format, args...)})
}

func (b *builder) read(keys ...config.Key) {
	for _, k := range keys {
		b.reads[k] = true
	}
}

func (b *builder) serviceDefaults() *config.ServiceDefaults {
	b.read(config.Key{Kind: config.KindServiceDefaults, Name: b.service})
	return b.in.Config.ServiceDefaults(b.service)
}

// claim notes that owner listens at place, or returns who does so already. A
// wildcard address takes the port on every address.
func (b *builder) claim(place bind, owner string) (holder string, ok bool) {
	for taken, holder := range b.bound {
		overlap := taken == place
		if place.path == "" && taken.path == "" && taken.port == place.port {
			overlap = overlap || taken.addr.IsUnspecified() || place.addr.IsUnspecified()
		}
		if overlap {
			return holder, false
		}
	}
	b.bound[place] = owner
	return "", true
}
