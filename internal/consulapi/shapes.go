package consulapi

import (
	"cmp"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

// The shapes of Consul's answers. Go names equal JSON names, since filter
// expressions select by them.

type nodeShape struct {
	ID              string
	Node            string
	Address         string
	Datacenter      string
	TaggedAddresses map[string]string
	Meta            map[string]string
	CreateIndex     uint64
	ModifyIndex     uint64
}

func showNode(n *catalog.Node) nodeShape {
	return nodeShape{
		ID: n.ID, Node: n.Name, Address: n.Address, Datacenter: n.Datacenter,
		TaggedAddresses: n.TaggedAddresses, Meta: n.Meta, CreateIndex: n.CreateIndex, ModifyIndex: n.ModifyIndex,
	}
}

type proxyShape struct {
	DestinationServiceName string `json:",omitempty"`
	DestinationServiceID   string `json:",omitempty"`
	LocalServiceAddress    string `json:",omitempty"`
	LocalServicePort       int    `json:",omitempty"`
	LocalServiceSocketPath string `json:",omitempty"`
	Mode                   string
	Config                 map[string]any  `json:",omitempty" bexpr:"-"`
	Upstreams              []upstreamShape `json:",omitempty"`
	MeshGateway            struct{}
	Expose                 exposeShape
}

type exposeShape struct {
	Checks bool              `json:",omitempty"`
	Paths  []exposePathShape `json:",omitempty"`
}

type exposePathShape struct {
	catalog.ExposePath
	// ParsedFromCheck is shown by the agent endpoints only, and is always false.
	ParsedFromCheck *bool `json:",omitempty"`
}

// upstreamShape repeats the fields of catalog.Upstream: filters know no embedding.
type upstreamShape struct {
	DestinationType      string
	DestinationName      string
	Datacenter           string         `json:",omitempty"`
	LocalBindAddress     string         `json:",omitempty"`
	LocalBindPort        int            `json:",omitempty"`
	LocalBindSocketPath  string         `json:",omitempty"`
	LocalBindSocketMode  string         `json:",omitempty"`
	DestinationNamespace string         `json:",omitempty"`
	DestinationPartition string         `json:",omitempty"`
	DestinationPeer      string         `json:",omitempty"`
	Config               map[string]any `json:",omitempty" bexpr:"-"`
	MeshGateway          struct{}
}

func showProxy(p *catalog.Proxy) proxyShape {
	if p == nil {
		return proxyShape{}
	}
	out := proxyShape{
		DestinationServiceName: p.DestinationServiceName, DestinationServiceID: p.DestinationServiceID,
		LocalServiceAddress: p.LocalServiceAddress, LocalServicePort: p.LocalServicePort,
		LocalServiceSocketPath: p.LocalServiceSocketPath, Mode: p.Mode, Config: p.Config,
	}
	for _, u := range p.Upstreams {
		out.Upstreams = append(out.Upstreams, upstreamShape{
			DestinationType: cmp.Or(u.DestinationType, "service"), DestinationName: u.DestinationName, Datacenter: u.Datacenter,
			LocalBindAddress: u.LocalBindAddress, LocalBindPort: u.LocalBindPort,
			LocalBindSocketPath: u.LocalBindSocketPath, LocalBindSocketMode: u.LocalBindSocketMode,
			DestinationNamespace: u.DestinationNamespace, DestinationPartition: u.DestinationPartition,
			DestinationPeer: u.DestinationPeer, Config: u.Config,
		})
	}
	out.Expose.Checks = p.Expose.Checks
	for _, path := range p.Expose.Paths {
		out.Expose.Paths = append(out.Expose.Paths, exposePathShape{ExposePath: path})
	}
	return out
}

// serviceShape is a service in the catalog and health endpoints.
type serviceShape struct {
	Kind              catalog.Kind `json:",omitempty"`
	ID                string
	Service           string
	Tags              []string
	Address           string
	TaggedAddresses   map[string]catalog.Address `json:",omitempty"`
	Meta              map[string]string
	Port              int    `json:",omitempty"`
	SocketPath        string `json:",omitempty"`
	Weights           catalog.Weights
	EnableTagOverride bool
	Proxy             proxyShape
	Connect           catalog.Connect
	PeerName          string
	CreateIndex       uint64
	ModifyIndex       uint64
}

func showService(s *catalog.Service) serviceShape {
	return serviceShape{
		Kind: s.Kind, ID: s.ID, Service: s.Name, Tags: s.Tags, Address: s.Address, TaggedAddresses: s.TaggedAddresses,
		Meta: s.Meta, Port: s.Port, SocketPath: s.SocketPath, Weights: s.Weights, EnableTagOverride: s.EnableTagOverride,
		Proxy: showProxy(s.Proxy), Connect: s.Connect, CreateIndex: s.CreateIndex, ModifyIndex: s.ModifyIndex,
	}
}

// agentServiceShape is a service in the agent endpoints.
type agentServiceShape struct {
	Kind              catalog.Kind `json:",omitempty"`
	ID                string
	Service           string
	Tags              []string
	Meta              map[string]string
	Port              int
	Address           string
	SocketPath        string                     `json:",omitempty"`
	TaggedAddresses   map[string]catalog.Address `json:",omitempty"`
	Weights           catalog.Weights
	EnableTagOverride bool
	ContentHash       string           `json:",omitempty"`
	Proxy             *proxyShape      `json:",omitempty"`
	Connect           *catalog.Connect `json:",omitempty"`
	Datacenter        string
}

func showAgentService(s *catalog.Service, datacenter string) *agentServiceShape {
	out := &agentServiceShape{
		Kind: s.Kind, ID: s.ID, Service: s.Name, Tags: s.Tags, Meta: s.Meta, Port: s.Port, Address: s.Address,
		SocketPath: s.SocketPath, TaggedAddresses: s.TaggedAddresses, Weights: s.Weights,
		EnableTagOverride: s.EnableTagOverride, Datacenter: datacenter,
	}
	if out.Meta == nil {
		out.Meta = map[string]string{}
	}
	if s.Proxy != nil {
		p := showProxy(s.Proxy)
		for i := range p.Expose.Paths {
			p.Expose.Paths[i].ParsedFromCheck = new(bool)
		}
		out.Proxy = &p
	}
	if s.Connect != (catalog.Connect{}) {
		out.Connect = &s.Connect
	}
	return out
}

// whole is the service with nothing absent, as filter expressions need it.
func (s *agentServiceShape) whole() agentServiceShape {
	out := *s
	if out.Proxy == nil {
		out.Proxy = &proxyShape{}
	}
	if out.Connect == nil {
		out.Connect = &catalog.Connect{}
	}
	return out
}

type checkShape struct {
	Node        string
	CheckID     string
	Name        string
	Status      catalog.Status
	Notes       string
	Output      string
	ServiceID   string
	ServiceName string
	ServiceTags []string
	Type        string
	Interval    string
	Timeout     string
	ExposedPort int
	Definition  struct{}
	CreateIndex uint64
	ModifyIndex uint64
}

func showCheck(c *catalog.Check) checkShape {
	return checkShape{
		Node: c.Node, CheckID: c.CheckID, Name: c.Name, Status: c.Status, Notes: c.Notes, Output: c.Output,
		ServiceID: c.ServiceID, ServiceName: c.ServiceName, ServiceTags: c.ServiceTags, Type: c.Type,
		Interval: c.Interval, Timeout: c.Timeout, CreateIndex: c.CreateIndex, ModifyIndex: c.ModifyIndex,
	}
}

func showChecks(checks []*catalog.Check) []checkShape {
	out := []checkShape{}
	for _, c := range checks {
		out = append(out, showCheck(c))
	}
	return out
}

// instanceShape is an instance in the health endpoints.
type instanceShape struct {
	Node    nodeShape
	Service serviceShape
	Checks  []checkShape
}

func showInstance(in catalog.Instance) instanceShape {
	return instanceShape{showNode(in.Node), showService(in.Service), showChecks(in.Checks)}
}

// catalogServiceShape is an instance in the catalog endpoints.
type catalogServiceShape struct {
	ID                       string
	Node                     string
	Address                  string
	Datacenter               string
	TaggedAddresses          map[string]string
	NodeMeta                 map[string]string
	ServiceKind              catalog.Kind
	ServiceID                string
	ServiceName              string
	ServiceTags              []string
	ServiceAddress           string
	ServiceTaggedAddresses   map[string]catalog.Address `json:",omitempty"`
	ServiceWeights           catalog.Weights
	ServiceMeta              map[string]string
	ServicePort              int
	ServicePorts             any `bexpr:"-"` // a feature of later Consuls; always null
	ServiceSocketPath        string
	ServiceEnableTagOverride bool
	ServiceProxy             proxyShape
	ServiceConnect           catalog.Connect
	ServiceLocality          any `bexpr:"-"` // of Consul Enterprise; always null
	CreateIndex              uint64
	ModifyIndex              uint64
}

func showCatalogService(in catalog.Instance) catalogServiceShape {
	n, s := in.Node, in.Service
	out := catalogServiceShape{
		ID: n.ID, Node: n.Name, Address: n.Address, Datacenter: n.Datacenter, TaggedAddresses: n.TaggedAddresses, NodeMeta: n.Meta,
		ServiceKind: s.Kind, ServiceID: s.ID, ServiceName: s.Name, ServiceTags: s.Tags, ServiceAddress: s.Address,
		ServiceTaggedAddresses: s.TaggedAddresses, ServiceWeights: s.Weights, ServiceMeta: s.Meta, ServicePort: s.Port,
		ServiceSocketPath: s.SocketPath, ServiceEnableTagOverride: s.EnableTagOverride, ServiceProxy: showProxy(s.Proxy),
		ServiceConnect: s.Connect, CreateIndex: s.CreateIndex, ModifyIndex: s.ModifyIndex,
	}
	if out.ServiceMeta == nil {
		out.ServiceMeta = map[string]string{}
	}
	return out
}
