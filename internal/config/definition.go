package config

import (
	"cmp"
	"strconv"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

// Definition is one service as its owner declares it: the instance, its sidecar
// and its checks. It is what Consul's service definition file, the body of
// PUT /v1/agent/service/register and the short YAML form all decode to.
type Definition struct {
	// Service is the instance itself. ID defaults to Name.
	Service catalog.Service
	// Protocol is set by the short form only: the service-defaults protocol that
	// the registering sidecar writes when no entry says otherwise.
	Protocol string
	// Sidecar is connect.sidecar_service: the proxy to register beside it, or nil.
	// Empty fields take Consul's defaults, see [Definition.SidecarService]. Its Kind
	// and Proxy are always set. Port 0 asks for a free one.
	Sidecar *Definition
	// Checks are the service's own.
	Checks []CheckDefinition
}

// CheckDefinition says how to check an instance. Exactly one of HTTP, TCP, UDP, GRPC,
// H2PING, TTL and the alias fields is set.
type CheckDefinition struct {
	ID     string         `json:"CheckID,omitempty"` // default "service:<service id>", with ":<n>" when there are several
	Name   string         `json:"Name,omitempty"`    // default "Service '<name>' check"
	Notes  string         `json:"Notes,omitempty"`
	Status catalog.Status `json:"Status,omitempty"` // before the first result; default critical

	HTTP   string              `json:"HTTP,omitempty"`   // URL
	Method string              `json:"Method,omitempty"` // empty: GET
	Header map[string][]string `json:"Header,omitempty"`
	Body   string              `json:"Body,omitempty"`
	// DisableRedirects takes the answer of the URL itself.
	DisableRedirects bool `json:"DisableRedirects,omitempty"`
	// TLSServerName and TLSSkipVerify are for whichever check uses TLS.
	TLSServerName string   `json:"TLSServerName,omitempty"`
	TLSSkipVerify bool     `json:"TLSSkipVerify,omitempty"`
	TCP           string   `json:"TCP,omitempty"` // host:port
	TCPUseTLS     bool     `json:"TCPUseTLS,omitempty"`
	UDP           string   `json:"UDP,omitempty"`          // host:port
	H2PING        string   `json:"H2PING,omitempty"`       // host:port
	H2PingUseTLS  *bool    `json:"H2PingUseTLS,omitempty"` // nil: true
	GRPC          string   `json:"GRPC,omitempty"`         // host:port[/service]
	GRPCUseTLS    bool     `json:"GRPCUseTLS,omitempty"`
	TTL           Duration `json:"TTL,omitempty"`
	AliasNode     string   `json:"AliasNode,omitempty"`
	AliasService  string   `json:"AliasService,omitempty"` // service ID on the same node

	Interval Duration `json:"Interval,omitempty"` // required for HTTP, TCP, GRPC
	Timeout  Duration `json:"Timeout,omitempty"`  // 0: 10s

	// OutputMaxSize in bytes of what is kept of an output; 0: 4096, and never more.
	OutputMaxSize int `json:"OutputMaxSize,omitempty"`

	SuccessBeforePassing           int      `json:"SuccessBeforePassing,omitempty"`
	FailuresBeforeWarning          int      `json:"FailuresBeforeWarning,omitempty"` // 0: as FailuresBeforeCritical
	FailuresBeforeCritical         int      `json:"FailuresBeforeCritical,omitempty"`
	DeregisterCriticalServiceAfter Duration `json:"DeregisterCriticalServiceAfter,omitempty"` // 0: never
}

// Type is Consul's word for the kind of check.
func (c CheckDefinition) Type() string {
	switch {
	case c.HTTP != "":
		return "http"
	case c.TCP != "":
		return "tcp"
	case c.UDP != "":
		return "udp"
	case c.GRPC != "":
		return "grpc"
	case c.H2PING != "":
		return "h2ping"
	case c.TTL != 0:
		return "ttl"
	default:
		return "alias"
	}
}

// Probes reports whether somebody has to look, at every Interval.
func (c CheckDefinition) Probes() bool { return c.Type() != "ttl" && c.Type() != "alias" }

// SidecarService is the proxy that Sidecar asks for, with Consul's defaults filled
// in from the service: the value to register. Port stays 0 when none is set. It is
// nil without a Sidecar, and shares maps and slices with the definition.
func (d Definition) SidecarService() *catalog.Service {
	if d.Sidecar == nil {
		return nil
	}
	s := d.Sidecar.Service
	s.Kind = catalog.ConnectProxy
	s.ID = cmp.Or(d.Service.ID, d.Service.Name) + sidecarSuffix
	s.Name = cmp.Or(s.Name, d.Service.Name+sidecarSuffix)
	s.Address = cmp.Or(s.Address, d.Service.Address)
	if len(s.Tags) == 0 {
		s.Tags = d.Service.Tags
	}
	if len(s.Meta) == 0 {
		s.Meta = d.Service.Meta
	}
	if s.Weights == (catalog.Weights{}) {
		s.Weights = catalog.Weights{Passing: 1, Warning: 1}
	}
	var p catalog.Proxy
	if s.Proxy != nil {
		p = *s.Proxy
	}
	p.DestinationServiceName = cmp.Or(p.DestinationServiceName, d.Service.Name)
	p.DestinationServiceID = cmp.Or(p.DestinationServiceID, d.Service.ID, d.Service.Name)
	if p.LocalServiceSocketPath == "" && p.LocalServiceAddress == "" && p.LocalServicePort == 0 {
		p.LocalServiceSocketPath = d.Service.SocketPath
	}
	if p.LocalServiceSocketPath == "" {
		p.LocalServiceAddress = cmp.Or(p.LocalServiceAddress, loopback)
		p.LocalServicePort = cmp.Or(p.LocalServicePort, d.Service.Port)
	}
	s.Proxy = &p
	return &s
}

const (
	sidecarSuffix = "-sidecar-proxy"
	loopback      = "127.0.0.1"
)

// normalize fills what Consul fills on registration. A Sidecar stays as declared,
// except that Kind and Proxy are set; see [Definition.SidecarService] for the rest.
func (d *Definition) normalize() {
	s := &d.Service
	s.ID = cmp.Or(s.ID, s.Name)
	if s.Weights == (catalog.Weights{}) {
		s.Weights = catalog.Weights{Passing: 1, Warning: 1}
	}
	normalizeProxy(s.Proxy)
	normalizeChecks(d.Checks, s.ID, s.Name)
	if side := d.Sidecar; side != nil {
		side.Service.Kind = catalog.ConnectProxy
		if side.Service.Proxy == nil {
			side.Service.Proxy = &catalog.Proxy{}
		}
		normalizeProxy(side.Service.Proxy)
		expanded := d.SidecarService()
		normalizeChecks(side.Checks, expanded.ID, expanded.Name)
	}
}

func normalizeProxy(p *catalog.Proxy) {
	if p == nil {
		return
	}
	if p.Mode == directMode().off[0] {
		p.Mode = ""
	}
	for i := range p.Expose.Paths {
		lower(&p.Expose.Paths[i].Protocol)
	}
	for i := range p.Upstreams {
		u := &p.Upstreams[i]
		u.DestinationType = cmp.Or(u.DestinationType, destinationService)
		for _, tenant := range []*string{&u.DestinationNamespace, &u.DestinationPartition} {
			if *tenant == "default" {
				*tenant = ""
			}
		}
	}
}

const destinationService = "service"

func normalizeChecks(checks []CheckDefinition, serviceID, serviceName string) {
	for i := range checks {
		c := &checks[i]
		if c.ID == "" {
			c.ID = "service:" + serviceID
			if len(checks) > 1 {
				c.ID += ":" + strconv.Itoa(i+1)
			}
		}
		c.Name = cmp.Or(c.Name, "Service '"+serviceName+"' check")
		c.Status = cmp.Or(c.Status, catalog.Critical)
	}
}
