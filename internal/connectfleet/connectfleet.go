// Package connectfleet says beforehand what would differ if sidecars that a Consul
// configures were served by crossfade.
//
// In: a [Fleet], the entries and registrations of one Consul as its API gives them. Out:
// [Finding] values, sorted, one line each. What a server would refuse or report about the
// same entries and sidecars is found with the same code; the rest is what no code of a
// server looks at: kinds of proxies, and fields of registrations that are passed over.
//
// It leaves reading Consul to package catalog/consul. Pure: no I/O, no clock, no log.
package connectfleet

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// Fleet is what one datacenter of a Consul holds.
type Fleet struct {
	Datacenter  string
	TrustDomain string
	Node        string // of the agent that was asked
	// DefaultAllow is what Consul does with a caller that no intention mentions.
	DefaultAllow bool
	// Entries are configuration entries and Instances elements of /v1/health/service/:name,
	// as JSON.
	Entries   []json.RawMessage
	Instances []json.RawMessage
}

// Options are how the server would be started.
type Options struct {
	DefaultAllow       bool
	AllowEscapeHatches bool
}

// How much a finding matters.
const (
	Breaks  = "breaks"  // something that is asked for would not happen
	Differs = "differs" // it works, and not in the same way
)

// Finding is one thing that would not be as it is.
type Finding struct {
	Severity string `json:"severity"`
	Subject  string `json:"subject"` // "service-defaults/web", "sidecar web-1-sidecar-proxy on n1"
	Problem  string `json:"problem"`
}

// Report is all that was found, and in how much.
type Report struct {
	Entries  int       `json:"entries"`
	Sidecars int       `json:"sidecars"`
	Findings []Finding `json:"findings"`
}

// Broken reports whether anything would break.
func (r Report) Broken() bool {
	return slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Severity == Breaks })
}

// Check finds what would differ.
func Check(f Fleet, o Options) Report {
	c := &checker{fleet: f, options: o, seen: map[Finding]bool{}}
	entries := c.entries()
	snap := c.registrations()
	for _, in := range snap.Proxies() {
		c.sidecar(in, entries, snap)
	}
	if f.DefaultAllow != o.DefaultAllow {
		c.add(Breaks, "intentions", "Consul's default is %s: start the server with --default-intention-policy %s", word(f.DefaultAllow), word(f.DefaultAllow))
	}
	out := Report{Entries: len(f.Entries), Sidecars: len(snap.Proxies()), Findings: []Finding{}}
	for finding := range c.seen {
		out.Findings = append(out.Findings, finding)
	}
	slices.SortFunc(out.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Severity, b.Severity), cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Problem, b.Problem))
	})
	return out
}

func word(allow bool) string {
	if allow {
		return "allow"
	}
	return "deny"
}

type checker struct {
	fleet   Fleet
	options Options
	seen    map[Finding]bool
}

func (c *checker) add(severity, subject, format string, args ...any) {
	c.seen[Finding{severity, subject, strings.Join(strings.Fields(fmt.Sprintf(format, args...)), " ")}] = true
}

// lines adds an error's lines, each without the subject that it begins with.
func (c *checker) lines(subject string, prefixes []string, err error) {
	for line := range strings.Lines(err.Error()) {
		line = strings.TrimSpace(line)
		for _, p := range prefixes {
			line = strings.TrimPrefix(line, p)
		}
		c.add(Breaks, subject, "%s", line)
	}
}

// gateways are kinds of entries and proxies that keep being served by Consul, and whether
// sidecars of ours need something of them that they would not get.
func gateways() map[string]struct{ severity, problem string } {
	own := "stays with Consul, whose Envoys go on; sidecars of both kinds take its calls by their intentions"
	return map[string]struct{ severity, problem string }{
		"ingress-gateway":         {Differs, own},
		"api-gateway":             {Differs, own},
		"bound-api-gateway":       {Differs, own},
		"http-route":              {Differs, "belongs to an API gateway, which " + own},
		"tcp-route":               {Differs, "belongs to an API gateway, which " + own},
		"inline-certificate":      {Differs, "belongs to an API gateway, which " + own},
		"file-system-certificate": {Differs, "belongs to an API gateway, which " + own},
		"terminating-gateway":     {Breaks, "services behind it can't be called through a sidecar of ours: there are no gateways to destinations outside the mesh"},
		"mesh-gateway":            {Breaks, "other datacenters and peers can't be called through a sidecar of ours: mesh gateways are not used"},
		"exported-services":       {Breaks, "cluster peering is not served: callers of another cluster reach Consul's own sidecars alone"},
		"sameness-group":          {Breaks, "sameness groups are a feature of Consul Enterprise and not served"},
	}
}

// entries decodes them as a server does; those that it would not take are left out.
func (c *checker) entries() *config.Set {
	var all []config.Entry
	for _, raw := range c.fleet.Entries {
		var head struct {
			Kind, Name      string
			EnvoyExtensions []struct{ Name string }
		}
		if err := json.Unmarshal(raw, &head); err != nil {
			c.add(Breaks, "entry", "not Consul's JSON: %v", err)
			continue
		}
		subject := head.Kind + "/" + cmp.Or(head.Name, config.MeshName)
		if g, ok := gateways()[head.Kind]; ok {
			c.add(g.severity, subject, "%s", g.problem)
			continue
		}
		var one bytes.Buffer // on one line, so that no line is named
		if err := json.Compact(&one, raw); err != nil {
			c.add(Breaks, subject, "not Consul's JSON: %v", err)
			continue
		}
		e, err := config.DecodeEntryJSON(one.Bytes())
		if err != nil {
			c.lines(subject, []string{fmt.Sprintf("%s %q: ", head.Kind, head.Name), head.Kind + ": "}, err)
			for _, x := range head.EnvoyExtensions {
				c.add(Breaks, subject, "EnvoyExtensions: %s is not served", x.Name)
			}
			continue
		}
		all = append(all, e)
	}
	return config.NewSet(all...)
}

// instance is an element of /v1/health/service/:name.
type instance struct {
	Node    *catalog.Node
	Service json.RawMessage
	Checks  []*catalog.Check
}

// registrations joins the instances into the snapshot that a server would have.
func (c *checker) registrations() *catalog.Snapshot {
	sets := map[string][]catalog.Instance{}
	for _, raw := range c.fleet.Instances {
		var row instance
		var s catalog.Service
		var head struct{ Namespace, Partition, PeerName string }
		if err := json.Unmarshal(raw, &row); err != nil || row.Node == nil {
			c.add(Breaks, "registration", "not Consul's JSON: %v", err)
			continue
		}
		if err := cmp.Or(json.Unmarshal(row.Service, &s), json.Unmarshal(row.Service, &head)); err != nil {
			c.add(Breaks, "registration on node "+row.Node.Name, "not Consul's JSON: %v", err)
			continue
		}
		subject := fmt.Sprintf("service %s on %s", s.ID, row.Node.Name)
		for _, tenant := range []string{head.Namespace, head.Partition} {
			if tenant != "" && tenant != "default" {
				c.add(Breaks, subject, "%q: namespaces and partitions are features of Consul Enterprise and not served", tenant)
			}
		}
		switch s.Kind {
		case catalog.ConnectProxy:
			c.declared("sidecar "+s.ID+" on "+row.Node.Name, s, row.Service)
			if s.Proxy != nil {
				s.Proxy.Upstreams = catalog.Declared(s.Proxy.Upstreams)
			}
		case catalog.Typical:
			s.Proxy = nil
		default:
			g, ok := gateways()[string(s.Kind)]
			if !ok {
				g.severity, g.problem = Breaks, fmt.Sprintf("kind %q is not served", s.Kind)
			}
			c.add(g.severity, string(s.Kind)+" "+s.ID+" on "+row.Node.Name, "%s", g.problem)
			continue
		}
		delete(s.TaggedAddresses, "consul-virtual")
		sets[s.Name] = append(sets[s.Name], catalog.Instance{Node: row.Node, Service: &s, Checks: row.Checks})
	}
	made := map[string]*catalog.Set{}
	for name, list := range sets {
		made[name] = catalog.NewSet(name, list)
	}
	return catalog.NewSnapshot(c.fleet.Datacenter, 1, made)
}

// declared names what a sidecar's registration says and nobody would read.
func (c *checker) declared(subject string, s catalog.Service, raw json.RawMessage) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		c.add(Breaks, subject, "not Consul's JSON: %v", err)
		return
	}
	var own map[string]any
	if err := json.Unmarshal(fields["Proxy"], &own); err != nil || own == nil {
		return // what is missing is found where the sidecar is built
	}
	upstreams, _ := own["Upstreams"].([]any)
	own["Upstreams"] = slices.DeleteFunc(upstreams, judged)
	text, err := json.Marshal(map[string]any{"Kind": s.Kind, "ID": s.ID, "Name": s.Name, "Port": s.Port, "Proxy": own})
	if err == nil {
		_, err = config.DecodeRegistration(text)
	}
	if err != nil {
		c.lines(subject, []string{fmt.Sprintf("service %q: ", s.Name)}, err)
	}
	if s.Proxy != nil && s.Proxy.Expose.Checks {
		c.add(Differs, subject, "Proxy.Expose.Checks: Consul's agent asks for the listeners of its checks, and a sidecar of ours opens those of Expose.Paths alone")
	}
}

// judged reports whether an upstream was declared by nobody, or is refused for what it leads
// to where the sidecar is built.
func judged(upstream any) bool {
	u, _ := upstream.(map[string]any)
	set := func(key string) bool { v, ok := u[key]; return ok && v != "" && v != 0.0 }
	kind, _ := u["DestinationType"].(string)
	return !set("LocalBindPort") && !set("LocalBindSocketPath") || set("DestinationPeer") || kind != "" && kind != "service"
}

// sidecar builds what a server would tell it.
func (c *checker) sidecar(in catalog.Instance, entries *config.Set, snap *catalog.Snapshot) {
	subject := "sidecar " + in.Service.ID + " on " + in.Node.Name
	p, problems := proxy.Build(proxy.Input{
		Instance: in, Config: entries, Datacenter: c.fleet.Datacenter, TrustDomain: c.fleet.TrustDomain,
		AllowEscapeHatches: c.options.AllowEscapeHatches, DefaultAllow: c.options.DefaultAllow, BindAny: true, ConsulCallers: true,
		Addresses: snap.Addresses,
	})
	for _, pr := range problems {
		severity := Breaks
		if strings.HasSuffix(pr.Reason, config.WhyUnknown("")) {
			severity = Differs // Consul passes over it too
		}
		c.add(severity, subject, "%s: %s", pr.Subject, pr.Reason)
	}
	for _, cluster := range p.Clusters {
		if cluster.Unreachable != "" {
			c.add(Breaks, subject, "%s: %s", cluster.Name, cluster.Unreachable)
		}
	}
	for _, route := range p.Routes {
		for _, rule := range route.Rules {
			if rule.Unreachable != "" {
				c.add(Breaks, subject, "upstream %q: %s", route.Name, rule.Unreachable)
			}
		}
	}
	for _, ref := range p.Endpoints() {
		for _, pr := range proxy.BuildEndpoints(snap, ref, nil, nil).Problems {
			c.add(Breaks, "service "+pr.Service, "%s: %s", pr.Subject, pr.Reason)
		}
	}
}
