package config

import (
	"cmp"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

// DecodeDefinitions reads a file of service definitions: Consul's form (service
// and services, and check and checks with a service_id, in HCL, JSON or YAML), or the short form, whose service is just a
// name. The language is chosen as in [DecodeEntry]. Definitions are normalized and
// valid, in the file's order, or the error holds every problem by line.
//
// The short form always gets a Sidecar. In it a check's http may be a bare path,
// and an interval left out is 10s.
func DecodeDefinitions(filename string, data []byte) ([]Definition, error) {
	r := &report{file: filename}
	root := parse(formatOf(filename, data), data, r)
	if root == nil {
		return nil, r.err()
	}
	if n := root.get("service"); n != nil && n.kind == textNode {
		d := decodeShort(r, root)
		if err := r.err(); err != nil {
			return nil, err
		}
		return []Definition{d}, nil
	}
	var out []Definition
	ids := map[string]int{}
	for _, n := range services(r, root) {
		var d Definition
		if name := n.get("service"); name != nil && name.kind == textNode {
			d = decodeShort(r, n)
		} else {
			d = decodeService(r, n)
			d.refuseUnknownKeys(r)
		}
		if first, again := ids[d.Service.ID]; again && d.Service.ID != "" {
			r.at(n.line, "", "id %q is already used by the service on line %d", cut(d.Service.ID), first)
		} else {
			ids[d.Service.ID] = n.line
		}
		out = append(out, d)
	}
	r.subject, r.root = "", root
	if len(out) == 0 && len(r.list) == 0 {
		r.at(0, "", `no service: want "service" or "services"`)
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	return out, nil
}

// services are the objects under service and services, each with those of the checks
// beside them that name it.
func services(r *report, root *node) []*node {
	var out []*node
	known := []string{"service", "services", "check", "checks"}
	var checks []field
	for _, f := range root.fields {
		list := []*node{f.value}
		key := canonical(f.name)
		if !slices.Contains(known, key) {
			r.at(f.line, shown(f.name), "unknown field%s", didYouMean(f.name, known))
			continue
		}
		if f.value.kind == listNode {
			list = f.value.items
		}
		if strings.HasPrefix(key, "check") {
			for i, n := range list {
				checks = append(checks, field{name: index(f.name, i), line: n.line, value: n})
			}
			continue
		}
		for i, n := range list {
			if n.labelled() {
				r.at(f.line, f.name, "a block label is not read here; write name = %q inside", cut(n.fields[0].name))
				continue
			}
			if n.kind != objectNode {
				r.at(n.line, index(f.name, i), "want an object, got %s", n.describe())
				continue
			}
			out = append(out, n)
		}
	}
	for _, c := range checks {
		attachCheck(r, c, out)
	}
	return out
}

// attachCheck moves a check that stands beside the services into the one it names.
func attachCheck(r *report, check field, services []*node) {
	id := check.value.str("service_id")
	if id == "" {
		r.at(check.line, check.name, "no service_id: a check of the node itself is not served, say which service it is for")
		return
	}
	i := slices.IndexFunc(services, func(n *node) bool { return cmp.Or(n.str("id"), n.str("name"), n.str("service")) == id })
	if i < 0 {
		r.at(check.line, check.name, "service_id %q: no service of this file has that id", cut(id))
		return
	}
	inner := *check.value
	inner.fields = slices.DeleteFunc(slices.Clone(inner.fields), func(f field) bool { return canonical(f.name) == "serviceid" })
	checks := services[i].get("checks")
	switch {
	case checks == nil:
		checks = &node{kind: listNode, line: inner.line}
		services[i].fields = append(services[i].fields, field{name: "checks", line: inner.line, value: checks})
	case checks.kind == nullNode:
		checks.kind = listNode
	case checks.kind == objectNode:
		only := *checks
		*checks = node{kind: listNode, line: only.line, items: []*node{&only}}
	}
	checks.items = append(checks.items, &inner)
}

// refuseUnknownKeys reports what a file says in opaque maps to no effect.
func (d *Definition) refuseUnknownKeys(r *report) {
	at := consulPlaces(*d, nil)
	p := d.Service.Proxy
	if d.Sidecar != nil {
		p = d.Sidecar.Service.Proxy
	}
	if p == nil {
		return
	}
	_, unknown, _ := decodeProxyConfig(p.Config)
	r.unknownKeys(at.proxy+".Config", unknown)
	for i, u := range p.Upstreams {
		_, unknown, _ := decodeUpstreamSettings(u.Config)
		r.unknownKeys(at.upstreams[i]+".Config", unknown)
	}
}

// shortBody is the form that teams write by hand.
type shortBody struct {
	Service   string            `json:"service"`
	ID        string            `json:"id"`
	Address   string            `json:"address"`
	Port      int               `json:"port"`
	Protocol  string            `json:"protocol"`
	Tags      []string          `json:"tags"`
	Meta      map[string]string `json:"meta"`
	Upstreams []shortUpstream   `json:"upstreams"`
	Sidecar   Sizing            `json:"sidecar"`
	Checks    []CheckDefinition `json:"checks"`
}

// shortUpstream is also written name:port.
type shortUpstream struct {
	Name           string          `json:"name"`
	Address        string          `json:"address"`
	Port           int             `json:"port"`
	ConnectTimeout Duration        `json:"connect_timeout"` // in milliseconds
	Limits         *UpstreamLimits `json:"limits"`
}

// config is what Consul's form says in the upstream's Config.
func (u shortUpstream) config() map[string]any {
	out := map[string]any{}
	if ms := time.Duration(u.ConnectTimeout).Milliseconds(); ms > 0 {
		out["connect_timeout_ms"] = float64(ms)
	}
	if l := u.Limits; l != nil {
		limits := map[string]any{}
		for key, value := range map[string]*int{
			"max_connections": l.MaxConnections, "max_pending_requests": l.MaxPendingRequests, "max_concurrent_requests": l.MaxConcurrentRequests,
		} {
			if value != nil {
				limits[key] = float64(*value)
			}
		}
		out["limits"] = limits
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

const shortInterval = Duration(10 * time.Second)

func decodeShort(r *report, n *node) Definition {
	r.subject, r.root = subject("service", n.str("service")), n
	before := len(r.list)
	at := places{name: "service", field: snake, proxy: "proxy", short: true}
	if ups := n.get("upstreams"); ups != nil && ups.kind == listNode {
		for i, item := range ups.items {
			path := index("upstreams", i)
			if item.kind == textNode {
				path += " " + strconv.Quote(cut(item.text))
				ups.items[i] = splitUpstream(r, path, item)
			}
			at.upstreams = append(at.upstreams, path)
		}
	}
	var body shortBody
	d := decoder{r: r, snake: true}
	d.decode(n, reflect.ValueOf(&body).Elem(), "")
	if len(r.list) > before {
		return Definition{}
	}
	out := body.definition()
	for i := range out.Checks {
		at.checks = append(at.checks, index("checks", i))
	}
	for i, u := range body.Upstreams {
		if t := time.Duration(u.ConnectTimeout); t < 0 || t%time.Millisecond != 0 {
			r.addf(join(at.upstreams[i], "connect_timeout"), `%s: want whole milliseconds, such as "500ms"`, t)
		}
	}
	r.protocol("protocol", body.Protocol)
	if body.Port == 0 && len(body.Upstreams) == 0 {
		r.addf("port", "missing: a service without upstreams needs a port")
	}
	out.normalize()
	out.check(r, at)
	return out
}

// splitUpstream makes an object of "name:port".
func splitUpstream(r *report, path string, n *node) *node {
	name, port, _ := strings.Cut(n.text, ":")
	out := &node{kind: objectNode, line: n.line}
	if p, err := strconv.Atoi(port); err != nil || p < 1 || p > maxPort || name == "" {
		r.at(n.line, path, "want name:port, such as catalog:7100")
		return out
	}
	out.fields = []field{
		{name: "name", line: n.line, value: &node{kind: textNode, line: n.line, text: name}},
		{name: "port", line: n.line, value: &node{kind: numberNode, line: n.line, text: port}},
	}
	return out
}

func (b *shortBody) definition() Definition {
	d := Definition{
		Service: catalog.Service{
			ID: b.ID, Name: b.Service, Tags: b.Tags, Meta: b.Meta, Address: b.Address, Port: b.Port,
		},
		Protocol: strings.ToLower(b.Protocol),
		Sidecar:  &Definition{Service: catalog.Service{Proxy: &catalog.Proxy{}}},
		Checks:   b.Checks,
	}
	for _, u := range b.Upstreams {
		d.Sidecar.Service.Proxy.Upstreams = append(d.Sidecar.Service.Proxy.Upstreams, catalog.Upstream{
			DestinationName: u.Name, LocalBindAddress: u.Address, LocalBindPort: u.Port, Config: u.config(),
		})
	}
	if b.Sidecar != (Sizing{}) {
		d.Sidecar.Service.Proxy.Config = map[string]any{sizingKey: b.Sidecar.opaque()}
	}
	for i := range d.Checks {
		c := &d.Checks[i]
		if strings.HasPrefix(c.HTTP, "/") && b.Port != 0 {
			host := b.Address
			if host == "" {
				host = loopback
			}
			if strings.Contains(host, ":") {
				host = "[" + host + "]" // IPv6
			}
			c.HTTP = "http://" + host + ":" + strconv.Itoa(b.Port) + c.HTTP
		}
		if c.Interval == 0 && c.TTL == 0 && c.AliasService == "" && c.AliasNode == "" {
			c.Interval = shortInterval
		}
	}
	return d
}
