// Package catalog holds what is known about services: nodes, instances, checks
// and, joined, an immutable [Snapshot].
//
// In: rows as a registry gives them. Out: [Snapshot], which routing, proxy and
// server read. Types carry Consul's names and JSON shapes; see Consul's HTTP API
// pages for catalog, health and agent/service.
//
// It leaves storage to catalog/store, Consul to catalog/consul and the HTTP API
// to consulapi. Pure: no I/O, no clock, no log.
package catalog

import (
	"cmp"
	"slices"
	"strconv"
)

// Status is the state of a check. Order of badness: passing, warning, critical.
type Status string

// The states a check can be in.
const (
	Passing  Status = "passing"
	Warning  Status = "warning"
	Critical Status = "critical"
	// Maintenance is only ever an aggregate, as in Consul; the check itself is critical.
	Maintenance Status = "maintenance"
)

// Valid reports whether a check may be set to s.
func (s Status) Valid() bool { return s == Passing || s == Warning || s == Critical }

// CheckIDs that put a node or a service in maintenance mode.
const (
	NodeMaintenance          = "_node_maintenance"
	ServiceMaintenancePrefix = "_service_maintenance:"
)

// Kind tells an ordinary service ("") from a proxy that stands for one.
type Kind string

// The kinds served.
const (
	Typical      Kind = ""
	ConnectProxy Kind = "connect-proxy"
)

// Node is a host. Address is an IP or a host name, without a port.
type Node struct {
	ID              string            `json:"ID"`
	Name            string            `json:"Node"`
	Address         string            `json:"Address"`
	Datacenter      string            `json:"Datacenter"`
	TaggedAddresses map[string]string `json:"TaggedAddresses"`
	Meta            map[string]string `json:"Meta"`
	CreateIndex     uint64            `json:"CreateIndex"`
	ModifyIndex     uint64            `json:"ModifyIndex"`
}

// Address is a host and port under which a service is also known ("lan", "wan", …).
type Address struct {
	Address string `json:"Address"`
	Port    int    `json:"Port"`
}

// Weights are the share of traffic an instance wants, by health. Zero means unset (1).
type Weights struct {
	Passing int `json:"Passing"`
	Warning int `json:"Warning"`
}

// PlaintextMeta is a key of a connect-proxy's Meta. Its sidecar sets it while its Envoy has a
// listener in force that takes plaintext, to that one's port: not before, whatever entries say.
const PlaintextMeta = "crossfade_plaintext"

// PlaintextPort is where the instance, a sidecar, takes plaintext now; 0: nowhere.
func (i Instance) PlaintextPort() int {
	if i.Service.Kind != ConnectProxy {
		return 0
	}
	port, err := strconv.Atoi(i.Service.Meta[PlaintextMeta])
	if err != nil || port < 1 || port > 65535 {
		return 0
	}
	return port
}

// Service is one registered instance of a service, or a proxy for one. ID is
// unique on its node. Values reached from a Snapshot are never changed.
type Service struct {
	Kind              Kind               `json:"Kind,omitempty"`
	ID                string             `json:"ID"`
	Name              string             `json:"Service"`
	Tags              []string           `json:"Tags"`
	Address           string             `json:"Address"` // empty: the node's
	Port              int                `json:"Port"`
	SocketPath        string             `json:"SocketPath,omitempty"`
	TaggedAddresses   map[string]Address `json:"TaggedAddresses,omitempty"`
	Meta              map[string]string  `json:"Meta"`
	Weights           Weights            `json:"Weights"`
	EnableTagOverride bool               `json:"EnableTagOverride"`
	Proxy             *Proxy             `json:"Proxy,omitempty"` // set when Kind is connect-proxy
	Connect           Connect            `json:"Connect,omitzero"`
	CreateIndex       uint64             `json:"CreateIndex"`
	ModifyIndex       uint64             `json:"ModifyIndex"`
}

// Connect says that a service speaks mTLS itself.
type Connect struct {
	Native bool `json:"Native,omitempty"`
}

// Proxy is what a connect-proxy stands for and what it may call. Consul's
// "Proxy" object in a service registration.
type Proxy struct {
	DestinationServiceName string `json:"DestinationServiceName"`
	DestinationServiceID   string `json:"DestinationServiceID,omitempty"`
	LocalServiceAddress    string `json:"LocalServiceAddress,omitempty"` // empty: 127.0.0.1
	LocalServicePort       int    `json:"LocalServicePort,omitempty"`
	LocalServiceSocketPath string `json:"LocalServiceSocketPath,omitempty"` // in place of address and port
	Mode                   string `json:"Mode,omitempty"`
	// Config is opaque to the catalog: protocol, bind_address, local_connect_timeout_ms, …
	Config    map[string]any `json:"Config,omitempty"`
	Upstreams []Upstream     `json:"Upstreams,omitempty"`
	Expose    Expose         `json:"Expose,omitzero"`
}

// Expose opens parts of the app to callers that are not in the mesh, without TLS.
type Expose struct {
	// Checks asks an agent to reach the service's checks through its proxy.
	Checks bool         `json:"Checks,omitempty"`
	Paths  []ExposePath `json:"Paths,omitempty"`
}

// ExposePath is one path, and nothing below it, on a port of its own.
type ExposePath struct {
	ListenerPort  int    `json:"ListenerPort,omitempty"`
	Path          string `json:"Path,omitempty"`
	LocalPathPort int    `json:"LocalPathPort,omitempty"` // 0: LocalServicePort
	Protocol      string `json:"Protocol,omitempty"`      // "http2", or "" and "http"
}

// Upstream is a destination that a service declares. The app reaches it at
// LocalBindAddress:LocalBindPort.
type Upstream struct {
	DestinationType      string         `json:"DestinationType,omitempty"` // "" and "service" mean the same
	DestinationName      string         `json:"DestinationName"`
	Datacenter           string         `json:"Datacenter,omitempty"`
	LocalBindAddress     string         `json:"LocalBindAddress,omitempty"` // empty: 127.0.0.1
	LocalBindPort        int            `json:"LocalBindPort,omitempty"`
	LocalBindSocketPath  string         `json:"LocalBindSocketPath,omitempty"`
	LocalBindSocketMode  string         `json:"LocalBindSocketMode,omitempty"`
	DestinationNamespace string         `json:"DestinationNamespace,omitempty"`
	DestinationPartition string         `json:"DestinationPartition,omitempty"`
	DestinationPeer      string         `json:"DestinationPeer,omitempty"`
	Config               map[string]any `json:"Config,omitempty"`
}

// Declared are the upstreams that somebody declared. A Consul adds others to a registration,
// which carry what its entries say of destinations: they have no place to listen at.
func Declared(upstreams []Upstream) []Upstream {
	return slices.DeleteFunc(slices.Clone(upstreams), func(u Upstream) bool { return u.LocalBindPort == 0 && u.LocalBindSocketPath == "" })
}

// Check is one health check's last word. ServiceID is empty for a node's check.
type Check struct {
	Node        string   `json:"Node"`
	CheckID     string   `json:"CheckID"`
	Name        string   `json:"Name"`
	Status      Status   `json:"Status"`
	Notes       string   `json:"Notes"`
	Output      string   `json:"Output"`
	ServiceID   string   `json:"ServiceID"`
	ServiceName string   `json:"ServiceName"`
	ServiceTags []string `json:"ServiceTags"`
	Type        string   `json:"Type"` // "http", "tcp", "grpc", "ttl", "alias", …
	Interval    string   `json:"Interval"`
	Timeout     string   `json:"Timeout"`
	CreateIndex uint64   `json:"CreateIndex"`
	ModifyIndex uint64   `json:"ModifyIndex"`
}

// Instance is a service on its node with the checks that bear on it: the
// node's and its own.
type Instance struct {
	Node    *Node
	Service *Service
	Checks  []*Check
}

// same reports whether two instances are made of the same rows: what did not change keeps its parts.
func (i Instance) same(o Instance) bool {
	return i.Node == o.Node && i.Service == o.Service && slices.Equal(i.Checks, o.Checks)
}

// standsFor reports whether the instance is a connect-proxy that says for which service.
func (i Instance) standsFor() bool { return i.Service.Kind == ConnectProxy && i.Service.Proxy != nil }

// Address is where the instance listens: the service's address or the node's.
func (i Instance) Address() string {
	if i.Service.Address != "" {
		return i.Service.Address
	}
	return i.Node.Address
}

// Status is the worst of the instance's checks; passing when there are none.
func (i Instance) Status() Status {
	worst := Passing
	for _, c := range i.Checks {
		switch c.Status {
		case Critical:
			return Critical
		case Warning:
			worst = Warning
		}
	}
	return worst
}

// Weight is the instance's share relative to its peers at its present status: at least 1,
// or 0 when critical.
func (i Instance) Weight() int {
	switch i.Status() {
	case Critical:
		return 0
	case Warning:
		return max(1, i.Service.Weights.Warning)
	default:
		return max(1, i.Service.Weights.Passing)
	}
}

// InstanceKey tells an instance from all others.
type InstanceKey struct{ Node, ID string }

// KeyOf is the instance's key.
func KeyOf(i Instance) InstanceKey { return InstanceKey{i.Node.Name, i.Service.ID} }

// CompareInstances orders by service ID, then node: the order everything is emitted in.
func CompareInstances(a, b Instance) int {
	return cmp.Or(cmp.Compare(a.Service.ID, b.Service.ID), cmp.Compare(a.Node.Name, b.Node.Name))
}

// Set is all instances of one service name, sorted by [CompareInstances].
// Immutable: a change makes a new Set, so that pointer equality means "unchanged".
type Set struct {
	Name      string
	Instances []Instance
}

// NewSet sorts the instances (in place) and wraps them.
func NewSet(name string, instances []Instance) *Set {
	slices.SortFunc(instances, CompareInstances)
	return &Set{Name: name, Instances: instances}
}

// proxies are the connect-proxies among the instances. The set may be nil.
func (s *Set) proxies() (out []Instance) {
	if s == nil {
		return nil
	}
	for _, in := range s.Instances {
		if in.standsFor() {
			out = append(out, in)
		}
	}
	return out
}
