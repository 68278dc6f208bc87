package proxy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// Endpoints is where the sidecars of one target are, or its apps, or what divides
// connections among it. It is the same for all who ask for one name.
type Endpoints struct {
	ClusterName string // of the [EndpointsRef]
	Groups      []EndpointGroup
	// Problems are instances that were left out for their address, and filters that
	// cannot be applied.
	Problems []Problem
}

// EndpointGroup is the endpoints of one target.
type EndpointGroup struct {
	// Name is that of the [Part] in a split, else empty.
	Name     string
	Weight   uint32 // of [Part], in a split; else 0
	Priority uint32 // of [Part]
	Way      string // of [Part]
	// Legacy is that of [Part] where it is a name, which the endpoints stand for.
	Legacy string
	// Endpoints are sorted by address, then port; no two share both. Empty when
	// no instance is in service.
	Endpoints []Endpoint
}

// Endpoint is one sidecar, or one instance that speaks mTLS itself; on an old way an
// app, or where it is told of.
type Endpoint struct {
	Address string // an IP
	Port    int
	Weight  int // relative to its peers, 1 or more
}

// Filters remembers compiled filters of subsets, which cost much more than their
// use. Not safe for concurrent use; nil remembers nothing.
type Filters struct {
	made map[string]config.Filter
}

func (f *Filters) compile(text string) (config.Filter, error) {
	if f == nil {
		return config.CompileFilter(text)
	}
	if made, ok := f.made[text]; ok {
		return made, nil
	}
	made, err := config.CompileFilter(text)
	if err != nil {
		return made, err
	}
	if f.made == nil || len(f.made) >= maxFilters {
		f.made = map[string]config.Filter{}
	}
	f.made[text] = made
	return made, nil
}

// Names are the addresses that names in legacy addresses stand for, sorted. A cluster of
// endpoints takes no names: who makes endpoints resolves them.
type Names map[string][]netip.Addr

// maxFilters are remembered; then all are forgotten.
const maxFilters = 10_000

// BuildEndpoints finds the sidecars that ref asks for in snap's datacenter. An
// instance is left out when it, or the service instance that it stands for, is
// critical.
func BuildEndpoints(snap *catalog.Snapshot, ref EndpointsRef, names Names, filters *Filters) Endpoints {
	out := Endpoints{ClusterName: ref.ClusterName}
	for _, p := range ref.Parts {
		if p.Weight == 0 && len(ref.Parts) > 1 {
			continue
		}
		g := EndpointGroup{Weight: p.Weight, Priority: p.Priority}
		if p.Weight > 0 {
			g.Name = p.Name()
		}
		var problems []Problem
		switch p.Way {
		case config.WayLegacy:
			g.Endpoints, g.Legacy, problems = places(p, names)
		case config.WayDirect:
			g.Endpoints, problems = appsOf(snap, p.Target.Service)
		case config.WayPlain:
			g.Endpoints, problems = endpointsOf(snap, p.Target, filters, catalog.Instance.PlaintextPort)
		default:
			g.Endpoints, problems = endpointsOf(snap, p.Target, filters, registeredPort)
		}
		g.Way = p.Way
		out.Groups = append(out.Groups, g)
		out.Problems = append(out.Problems, problems...)
	}
	out.apart(ref)
	slices.SortFunc(out.Problems, Problem.Compare)
	return out
}

// places are the ends of a legacy address, and what they stand for where it is a name.
func places(p Part, names Names) (out []Endpoint, of string, problems []Problem) {
	host, port := p.legacy()
	if at, err := netip.ParseAddr(host); err == nil {
		return []Endpoint{{Address: at.String(), Port: port, Weight: 1}}, "", nil
	}
	for _, at := range names[host] {
		out = append(out, Endpoint{Address: at.String(), Port: port, Weight: 1})
	}
	if len(out) == 0 {
		problems = []Problem{{Service: p.Target.Service, Subject: "legacy way", Reason: fmt.Sprintf("address %q: it is not known what this name stands for: its share goes to the other ways", p.Legacy)}}
	}
	return out, p.Legacy, problems
}

// apart takes from plain what has the address of an instance of mtls beside it: of two
// endpoints at one address a cluster keeps the first, and mTLS would not be spoken to it.
func (e *Endpoints) apart(ref EndpointsRef) {
	taken := map[Endpoint]bool{}
	place := func(ep Endpoint) Endpoint { return Endpoint{Address: ep.Address, Port: ep.Port} }
	for _, g := range e.Groups {
		if g.Way == "" && len(e.Groups) > 1 {
			for _, ep := range g.Endpoints {
				taken[place(ep)] = true
			}
		}
	}
	for i, g := range e.Groups {
		if g.Way != config.WayPlain {
			continue
		}
		kept := slices.DeleteFunc(slices.Clone(g.Endpoints), func(ep Endpoint) bool { return taken[place(ep)] })
		if lost := len(g.Endpoints) - len(kept); lost > 0 {
			e.Groups[i].Endpoints = kept
			at := slices.IndexFunc(ref.Parts, func(p Part) bool { return p.Way == config.WayPlain })
			service := ref.Parts[at].Target.Service
			e.Problems = append(e.Problems, Problem{Service: service, Subject: "plain way", Reason: fmt.Sprintf("%d of its sidecars take plaintext on the port of mTLS alone, and connections cannot be divided between the two there: they get what mtls gets", lost)})
		}
	}
}

// endpointsOf are the endpoints of one target. port says where an instance takes what is
// sent; where that is nowhere, the instance is left out.
func endpointsOf(snap *catalog.Snapshot, t routing.Target, filters *Filters, port func(catalog.Instance) int) (out []Endpoint, problems []Problem) {
	matches := func(catalog.Instance) bool { return true }
	if t.Filter != "" {
		f, err := filters.compile(t.Filter)
		if err != nil {
			// Nobody is better than somebody who was not meant.
			return nil, []Problem{{Service: t.Service, Subject: fmt.Sprintf("service-resolver/%s subset %q", t.Service, t.Subset), Reason: "nobody is in it: filter: " + err.Error()}}
		}
		matches = f.Match
	}
	apps := instancesByID(snap.Set(t.Service))
	for _, in := range snap.Connect(t.Service) {
		weight := in.Weight()
		passing := in.Status() == catalog.Passing
		if in.Service.Kind == catalog.ConnectProxy {
			if app, ok := apps[instanceKey{in.Node.Name, in.Service.Proxy.DestinationServiceID}]; ok {
				weight = behind(in, app)
				passing = passing && app.Status() == catalog.Passing
			}
		}
		if weight == 0 || t.OnlyPassing && !passing || !matches(in) || in.Service.Port != 0 && port(in) == 0 {
			continue
		}
		if ep, reason := endpointAt(in, port(in), weight); reason != "" {
			problems = append(problems, Problem{Service: t.Service, Subject: subjectOfInstance(in), Reason: reason})
		} else {
			out = append(out, ep)
		}
	}
	return sorted(out), problems
}

// registeredPort is where an instance is registered, or 0 where it takes nothing of the kind.
func registeredPort(in catalog.Instance) int { return in.Service.Port }

// appsOf are the instances of a service themselves, past their sidecars. Those that
// speak mTLS themselves have no port for anything else.
func appsOf(snap *catalog.Snapshot, service string) (out []Endpoint, problems []Problem) {
	set := snap.Set(service)
	if set == nil {
		return nil, nil
	}
	for _, in := range set.Instances {
		weight := in.Weight()
		if weight == 0 || in.Service.Kind == catalog.ConnectProxy || in.Service.Connect.Native {
			continue
		}
		if ep, reason := endpointAt(in, in.Service.Port, weight); reason != "" {
			problems = append(problems, Problem{Service: service, Subject: subjectOfInstance(in), Reason: "direct way: " + reason})
		} else {
			out = append(out, ep)
		}
	}
	return sorted(out), problems
}

func subjectOfInstance(in catalog.Instance) string {
	return fmt.Sprintf("instance %q on node %q", in.Service.ID, in.Node.Name)
}

// endpointAt is a port of an instance, or why nobody can reach it.
func endpointAt(in catalog.Instance, port, weight int) (Endpoint, string) {
	addr, err := netip.ParseAddr(in.Address())
	if err != nil {
		return Endpoint{}, fmt.Sprintf("address %q is no IP address: register it with one, nobody can reach it", in.Address())
	}
	if port < 1 || port > 65535 {
		return Endpoint{}, fmt.Sprintf("port %d is out of range: nobody can reach it", port)
	}
	return Endpoint{Address: addr.String(), Port: port, Weight: weight}, ""
}

// sorted is by address. Of two registrations of one address the heavier stays: the
// other is most likely what a previous owner of the port left behind.
func sorted(out []Endpoint) []Endpoint {
	slices.SortFunc(out, func(x, y Endpoint) int {
		return cmp.Or(cmp.Compare(x.Address, y.Address), cmp.Compare(x.Port, y.Port), -cmp.Compare(x.Weight, y.Weight))
	})
	return slices.CompactFunc(out, func(x, y Endpoint) bool { return x.Address == y.Address && x.Port == y.Port })
}

type instanceKey struct{ node, id string }

func instancesByID(set *catalog.Set) map[instanceKey]catalog.Instance {
	if set == nil {
		return nil
	}
	out := make(map[instanceKey]catalog.Instance, len(set.Instances))
	for _, in := range set.Instances {
		out[instanceKey{in.Node.Name, in.Service.ID}] = in
	}
	return out
}

// behind is the weight of a sidecar whose app is known: the worse of both states
// counts, and the app's own weights unless the sidecar was given other than
// Consul's defaults.
func behind(sidecar, app catalog.Instance) int {
	if sidecar.Status() == catalog.Critical || app.Status() == catalog.Critical {
		return 0
	}
	w := sidecar.Service.Weights
	if w == (catalog.Weights{}) || w == (catalog.Weights{Passing: 1, Warning: 1}) {
		w = app.Service.Weights
	}
	if sidecar.Status() == catalog.Warning || app.Status() == catalog.Warning {
		return max(1, w.Warning)
	}
	return max(1, w.Passing)
}
