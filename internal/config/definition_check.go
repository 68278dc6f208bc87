package config

import (
	"cmp"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

// places are the paths of a definition's parts in the document it came from.
type places struct {
	name      string
	field     func(string) string // spells a field
	checks    []string
	side      []string // of the sidecar's checks
	proxy     string
	upstreams []string
	short     bool // the short form has no Config: what stands there is written beside it
}

// config is where something in the opaque Config of a proxy or upstream was written.
func (at places) config(owner, path string) string {
	switch {
	case !at.short && path == "":
		return owner + ".Config"
	case !at.short:
		return owner + ".Config." + path
	case owner == at.proxy:
		return "sidecar" + strings.TrimPrefix(path, sizingKey)
	default:
		return join(owner, snake(path))
	}
}

// consulPlaces are those of Consul's form.
func consulPlaces(d Definition, checks []string) places {
	at := places{name: "Name", field: func(s string) string { return s }, checks: checks, proxy: "Proxy"}
	p := d.Service.Proxy
	if d.Sidecar != nil {
		const sidecar = "Connect.SidecarService"
		at.proxy, p = sidecar+".Proxy", d.Sidecar.Service.Proxy
		for i := range d.Sidecar.Checks {
			at.side = append(at.side, index(sidecar+".Checks", i))
		}
	}
	if p != nil {
		for i := range p.Upstreams {
			at.upstreams = append(at.upstreams, index(at.proxy+".Upstreams", i))
		}
	}
	return at
}

// check reports what is wrong with a normalized definition.
func (d *Definition) check(r *report, at places) {
	s := &d.Service
	r.name(at.name, s.Name)
	if s.ID != s.Name && (len(s.ID) > maxID || !idShape.MatchString(s.ID)) {
		r.addf(at.field("ID"), "%q: want up to %d letters, digits and _.:@~+=,-", cut(s.ID), maxID)
	}
	if s.Kind != catalog.Typical && s.Kind != catalog.ConnectProxy {
		r.addf(at.field("Kind"), "kind %q is not served by this version", cut(string(s.Kind)))
	}
	r.listener(s, "", at)
	for i := range d.Checks {
		d.Checks[i].check(r, at.checks[i], at.field)
	}
	uniqueChecks(r, d.Checks, at.checks)
	proxy, declared := s, s.Proxy
	if d.Sidecar != nil {
		r.listener(&d.Sidecar.Service, "Connect.SidecarService", at)
		for i := range d.Sidecar.Checks {
			d.Sidecar.Checks[i].check(r, at.side[i], at.field)
		}
		uniqueChecks(r, d.Sidecar.Checks, at.side)
		proxy, declared = d.SidecarService(), d.Sidecar.Service.Proxy
		if d.Sidecar.Service.Name != "" {
			r.name("Connect.SidecarService.Name", proxy.Name)
		}
	} else if s.Kind != catalog.ConnectProxy {
		return
	} else {
		if s.Proxy == nil || s.Proxy.DestinationServiceName == "" {
			r.addf("Proxy.DestinationServiceName", "missing: the service this proxy stands for")
		}
		if s.Port == 0 && s.SocketPath == "" {
			r.addf("Port", "missing: a proxy needs a port or a socket_path")
		}
	}
	if p := proxy.Proxy; p != nil {
		app := endpoint{cmp.Or(p.LocalServiceAddress, loopback), p.LocalServicePort}
		public := endpoint{cmp.Or(proxy.Address, "0.0.0.0"), proxy.Port}
		if n := len(p.Upstreams); n > maxUpstreams {
			list, _, _ := strings.Cut(at.upstreams[0], "[")
			r.addf(list, "%d upstreams are more than the limit of %d", n, maxUpstreams)
			return
		}
		checkProxy(r, declared, at)
		checkBinds(r, p.Upstreams, binds{app, public, checkExpose(r, declared, binds{app: app, public: public}, at)}, at)
		if public.clashes(app) && proxy.SocketPath == "" && p.LocalServiceSocketPath == "" {
			r.addf(strings.TrimSuffix(at.proxy, "Proxy")+"Port", "%d is the service's own port", public.port)
		}
	}
}

// listener checks where a service or a sidecar is reached.
func (r *report) listener(s *catalog.Service, path string, at places) {
	where := func(name string) string { return join(path, at.field(name)) }
	r.host(where("Address"), s.Address)
	r.port(where("Port"), s.Port, true)
	r.socket(where("SocketPath"), s.SocketPath)
	if s.Port != 0 && s.SocketPath != "" {
		r.addf(where("SocketPath"), "port and socket_path exclude each other")
	}
	for _, tag := range sortedKeys(s.TaggedAddresses) {
		tagged := where("TaggedAddresses") + "[" + strconv.Quote(cut(tag)) + "]"
		r.host(tagged, s.TaggedAddresses[tag].Address)
		r.port(tagged, s.TaggedAddresses[tag].Port, true)
	}
	r.meta(where("Meta"), s.Meta)
	if s.Weights != (catalog.Weights{}) && (s.Weights.Passing < 1 || s.Weights.Warning < 0 || max(s.Weights.Passing, s.Weights.Warning) > maxPort) {
		r.addf(where("Weights"), "want passing 1 to %d and warning 0 to %d", maxPort, maxPort)
	}
}

func checkProxy(r *report, p *catalog.Proxy, at places) {
	if p.Mode != "" {
		r.addf(at.proxy+".Mode", "mode %q is not served by this version", cut(p.Mode))
	}
	if p.DestinationServiceName != "" {
		r.name(at.proxy+".DestinationServiceName", p.DestinationServiceName)
	}
	r.host(at.proxy+".LocalServiceAddress", p.LocalServiceAddress)
	r.port(at.proxy+".LocalServicePort", p.LocalServicePort, true)
	r.socket(at.proxy+".LocalServiceSocketPath", p.LocalServiceSocketPath)
	_, _, problems := decodeProxyConfig(p.Config)
	for _, found := range problems {
		r.addf(at.config(at.proxy, found.path), "%s", found.text)
	}
	for i := range p.Upstreams {
		u, path := &p.Upstreams[i], at.upstreams[i]
		if u.DestinationType != destinationService {
			r.addf(path, "destination type %q is not served by this version", cut(u.DestinationType))
		}
		r.name(join(path, at.field("DestinationName")), u.DestinationName)
		switch {
		case u.DestinationNamespace != "" || u.DestinationPartition != "":
			r.addf(path, "namespace and partition: %s", enterpriseOnly)
		case u.DestinationPeer != "":
			r.addf(path, "destination_peer is not served by this version")
		}
		if u.Datacenter != "" {
			r.name(join(path, at.field("Datacenter")), u.Datacenter)
		}
		r.host(path, u.LocalBindAddress)
		r.socket(path, u.LocalBindSocketPath)
		switch {
		case u.LocalBindPort == 0 && u.LocalBindSocketPath == "":
			r.addf(path, "no local port: want local_bind_port or local_bind_socket_path")
		case u.LocalBindPort != 0 && u.LocalBindSocketPath != "":
			r.addf(path, "local_bind_port and local_bind_socket_path exclude each other")
		default:
			r.port(path, u.LocalBindPort, true)
		}
		if mode, err := strconv.ParseUint(u.LocalBindSocketMode, 8, 32); u.LocalBindSocketMode != "" && (err != nil || mode > 0o777) {
			r.addf(path, `local_bind_socket_mode %q: want an octal mode such as "0600"`, cut(u.LocalBindSocketMode))
		}
		_, _, problems := decodeUpstreamSettings(u.Config)
		for _, found := range problems {
			r.addf(at.config(path, found.path), "%s", found.text)
		}
	}
}

// checkExpose reports what is wrong with exposed paths and returns where they listen.
func checkExpose(r *report, p *catalog.Proxy, taken binds, at places) []endpoint {
	list := at.proxy + ".Expose.Paths"
	if n := len(p.Expose.Paths); n > maxExposed {
		r.addf(list, "%d paths are more than the limit of %d", n, maxExposed)
		return nil
	}
	var out []endpoint
	for i, e := range p.Expose.Paths {
		path := index(list, i)
		if !exposable.MatchString(e.Path) {
			r.addf(path+".Path", "%q: want a path such as /metrics, without a query", cut(e.Path))
		}
		r.oneOf(path+".Protocol", e.Protocol, "", HTTP, HTTP2)
		r.port(path+".ListenerPort", e.ListenerPort, false)
		r.port(path+".LocalPathPort", e.LocalPathPort, true)
		here := endpoint{taken.public.address, e.ListenerPort}
		switch j := slices.IndexFunc(out, here.clashes); {
		case j >= 0:
			r.addf(path+".ListenerPort", "%d is already that of path %q", e.ListenerPort, cut(p.Expose.Paths[j].Path))
		case here.clashes(taken.app), here.clashes(endpoint{taken.app.address, e.LocalPathPort}):
			r.addf(path+".ListenerPort", "%d is the service's own port", e.ListenerPort)
		case here.clashes(taken.public):
			r.addf(path+".ListenerPort", "%d is the sidecar's own port", e.ListenerPort)
		}
		out = append(out, here)
	}
	return out
}

// exposable is a path as a request has it: no query, no fragment, no white space.
var exposable = regexp.MustCompile(`^/[!-"$->@-~]{0,511}$`)

// endpoint is an address and port on this host; port 0 is none.
type endpoint struct {
	address string
	port    int
}

// clashes reports whether two listeners cannot both be bound.
func (e endpoint) clashes(o endpoint) bool {
	every := func(host string) bool {
		ip, err := netip.ParseAddr(host)
		return err == nil && ip.IsUnspecified()
	}
	return e.port == o.port && e.port != 0 && (e.address == o.address || every(e.address) || every(o.address))
}

// binds are the ports that upstreams must leave alone.
type binds struct {
	app, public endpoint
	exposed     []endpoint
}

// checkBinds refuses upstreams that listen where something else does.
func checkBinds(r *report, upstreams []catalog.Upstream, taken binds, at places) {
	byPort := map[int][]int{}
	bySocket := map[string]string{}
	for i, u := range upstreams {
		e := endpoint{cmp.Or(u.LocalBindAddress, loopback), u.LocalBindPort}
		if name, again := bySocket[u.LocalBindSocketPath]; again && u.LocalBindSocketPath != "" {
			r.addf(at.upstreams[i], "local socket %q is already used by upstream %q", cut(u.LocalBindSocketPath), cut(name))
		}
		bySocket[u.LocalBindSocketPath] = u.DestinationName
		for _, j := range byPort[e.port] {
			o := upstreams[j]
			if e.clashes(endpoint{cmp.Or(o.LocalBindAddress, loopback), o.LocalBindPort}) {
				r.addf(at.upstreams[i], "local port %d is already used by upstream %q", e.port, cut(o.DestinationName))
				break
			}
		}
		byPort[e.port] = append(byPort[e.port], i)
		switch {
		case e.clashes(taken.app):
			r.addf(at.upstreams[i], "local port %d is the service's own port", e.port)
		case e.clashes(taken.public):
			r.addf(at.upstreams[i], "local port %d is the sidecar's own port", e.port)
		case slices.ContainsFunc(taken.exposed, e.clashes):
			r.addf(at.upstreams[i], "local port %d is already used by an exposed path", e.port)
		}
	}
}

func uniqueChecks(r *report, checks []CheckDefinition, paths []string) {
	seen := make(map[string]string, len(checks))
	for i, c := range checks {
		if other, again := seen[c.ID]; again {
			r.addf(paths[i], "id %q is already used by %s", cut(c.ID), other)
			continue
		}
		seen[c.ID] = paths[i]
	}
}

var methodShape = regexp.MustCompile(`^[A-Z]{1,32}$`)

func (c *CheckDefinition) check(r *report, path string, field func(string) string) {
	at := func(name string) string { return join(path, field(name)) }
	var kinds []string
	for _, k := range []struct {
		name string
		set  bool
	}{
		{"http", c.HTTP != ""}, {"tcp", c.TCP != ""}, {"udp", c.UDP != ""}, {"grpc", c.GRPC != ""}, {"h2ping", c.H2PING != ""},
		{"ttl", c.TTL != 0}, {"alias_service", c.AliasService != "" || c.AliasNode != ""},
	} {
		if k.set {
			kinds = append(kinds, k.name)
		}
	}
	switch {
	case len(kinds) == 0:
		r.addf(path, "want one of http, tcp, udp, grpc, h2ping, ttl and alias_service")
		return
	case len(kinds) > 1:
		r.addf(path, "%s exclude each other", strings.Join(kinds, " and "))
		return
	}
	switch kinds[0] {
	case "http":
		u, err := url.Parse(c.HTTP)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			r.addf(at("HTTP"), "%q: want a URL such as http://127.0.0.1:8080/health", cut(c.HTTP))
		}
	case "tcp":
		r.hostPort(at("TCP"), c.TCP)
	case "udp":
		r.hostPort(at("UDP"), c.UDP)
	case "h2ping":
		r.hostPort(at("H2PING"), c.H2PING)
	case "grpc":
		address, _, _ := strings.Cut(c.GRPC, "/")
		r.hostPort(at("GRPC"), address)
	}
	runs := c.Probes()
	switch {
	case runs && c.Interval <= 0:
		r.addf(at("Interval"), "a %s check needs an interval above 0", kinds[0])
	case !runs && c.Interval != 0:
		r.addf(at("Interval"), "a %s check has none", kinds[0])
	}
	r.notNegative(at("TTL"), c.TTL)
	r.notNegative(at("Timeout"), c.Timeout)
	r.notNegative(at("DeregisterCriticalServiceAfter"), c.DeregisterCriticalServiceAfter)
	r.count(at("OutputMaxSize"), c.OutputMaxSize)
	r.host(at("TLSServerName"), c.TLSServerName)
	r.count(at("SuccessBeforePassing"), c.SuccessBeforePassing)
	r.count(at("FailuresBeforeWarning"), c.FailuresBeforeWarning)
	r.count(at("FailuresBeforeCritical"), c.FailuresBeforeCritical)
	if c.FailuresBeforeWarning > c.FailuresBeforeCritical {
		r.addf(at("FailuresBeforeWarning"), "must not be above %s", field("FailuresBeforeCritical"))
	}
	r.oneOf(at("Status"), string(c.Status), string(catalog.Passing), string(catalog.Warning), string(catalog.Critical))
	if c.Method != "" && !methodShape.MatchString(c.Method) {
		r.addf(at("Method"), "%q: want a method such as GET", cut(c.Method))
	}
}
