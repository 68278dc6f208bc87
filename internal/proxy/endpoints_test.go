package proxy_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// fleet collects instances of a catalog.
type fleet map[string][]catalog.Instance

func (f fleet) add(node string, s catalog.Service, status catalog.Status) {
	in := catalog.Instance{Node: &catalog.Node{Name: node, Address: "10.0.0.1"}, Service: &s}
	if status != "" {
		in.Checks = []*catalog.Check{{Node: node, Status: status, ServiceID: s.ID}}
	}
	f[s.Name] = append(f[s.Name], in)
}

// pair is an instance of "web" with its sidecar, on port.
func (f fleet) pair(id string, port int, app, side catalog.Status, appWeights, sideWeights catalog.Weights) {
	f.add("n1", catalog.Service{ID: id, Name: "web", Port: port - 1000, Weights: appWeights}, app)
	f.add("n1", catalog.Service{Kind: catalog.ConnectProxy, ID: id + "-sidecar-proxy", Name: "web-sidecar-proxy", Port: port, Weights: sideWeights,
		Proxy: &catalog.Proxy{DestinationServiceName: "web", DestinationServiceID: id}}, side)
}

func (f fleet) snapshot() *catalog.Snapshot {
	sets := map[string]*catalog.Set{}
	for name, list := range f {
		rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		sets[name] = catalog.NewSet(name, list)
	}
	return catalog.NewSnapshot("dc1", 1, sets)
}

func describe(e proxy.Endpoints) string {
	var b strings.Builder
	for _, g := range e.Groups {
		if g.Name != "" {
			fmt.Fprintf(&b, "%s=%d: ", g.Name, g.Weight)
		}
		for _, ep := range g.Endpoints {
			fmt.Fprintf(&b, "%s:%d/%d ", ep.Address, ep.Port, ep.Weight)
		}
	}
	for _, p := range e.Problems {
		fmt.Fprintf(&b, "[%s] ", p)
	}
	return strings.TrimSpace(b.String())
}

func TestBuildEndpoints(t *testing.T) {
	none := catalog.Weights{}
	ones := catalog.Weights{Passing: 1, Warning: 1}
	heavy := catalog.Weights{Passing: 10, Warning: 2}
	for _, tc := range []struct {
		name string
		make func(fleet)
		want string
	}{
		{"nobody", func(fleet) {}, ""},
		{"healthy", func(f fleet) {
			f.pair("a", 2001, "passing", "passing", none, none)
			f.pair("b", 2000, "", "", none, none)
		}, "10.0.0.1:2000/1 10.0.0.1:2001/1"},
		{"sidecar critical", func(f fleet) { f.pair("a", 2000, "passing", "critical", none, none) }, ""},
		{"app critical", func(f fleet) { f.pair("a", 2000, "critical", "passing", none, none) }, ""},
		{"app's weight", func(f fleet) { f.pair("a", 2000, "passing", "passing", heavy, ones) }, "10.0.0.1:2000/10"},
		{"sidecar's weight", func(f fleet) { f.pair("a", 2000, "passing", "passing", ones, heavy) }, "10.0.0.1:2000/10"},
		{"app warns", func(f fleet) { f.pair("a", 2000, "warning", "passing", heavy, ones) }, "10.0.0.1:2000/2"},
		{"sidecar warns", func(f fleet) { f.pair("a", 2000, "passing", "warning", heavy, ones) }, "10.0.0.1:2000/2"},
		{"app on another node", func(f fleet) {
			f.pair("a", 2000, "passing", "passing", none, none)
			f.add("n2", catalog.Service{ID: "a", Name: "web"}, "critical")
		}, "10.0.0.1:2000/1"},
		{"sidecar alone", func(f fleet) {
			f.add("n1", catalog.Service{Kind: catalog.ConnectProxy, ID: "p", Name: "web-proxy", Port: 2000, Weights: heavy, Proxy: &catalog.Proxy{DestinationServiceName: "web"}}, "")
		}, "10.0.0.1:2000/10"},
		{"native", func(f fleet) {
			f.add("n1", catalog.Service{ID: "a", Name: "web", Port: 2000, Connect: catalog.Connect{Native: true}}, "")
		}, "10.0.0.1:2000/1"},
		{"no sidecar", func(f fleet) { f.add("n1", catalog.Service{ID: "a", Name: "web", Port: 80}, "") }, ""},
		{"one address twice", func(f fleet) {
			f.pair("old", 2000, "passing", "passing", none, none)
			f.pair("new", 2000, "passing", "passing", heavy, none)
		}, "10.0.0.1:2000/10"},
		{"host name", func(f fleet) {
			f.pair("a", 2000, "passing", "passing", none, none)
			f.add("n1", catalog.Service{ID: "b", Name: "web", Address: "web.internal", Port: 1, Connect: catalog.Connect{Native: true}}, "")
			f.add("n1", catalog.Service{ID: "c", Name: "web", Connect: catalog.Connect{Native: true}}, "")
		}, `10.0.0.1:2000/1 [service "web": instance "b" on node "n1": address "web.internal" is no IP address: register it with one, nobody can reach it] ` +
			`[service "web": instance "c" on node "n1": port 0 is out of range: nobody can reach it]`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := fleet{}
			tc.make(f)
			got := proxy.BuildEndpoints(f.snapshot(), proxy.EndpointsOf(routing.Target{Service: "web", Datacenter: "dc1"}, "td.consul"), nil, nil)
			if describe(got) != tc.want {
				t.Errorf("got  %s\nwant %s", describe(got), tc.want)
			}
			if got.ClusterName != "web.default.dc1.internal.td.consul" {
				t.Errorf("made for %q", got.ClusterName)
			}
		})
	}
}

// A cluster keeps the endpoints that it can reach until another one takes its place:
// those of other parts have another name, and weights alone change hot.
func TestEndpointsOfASplitAreNamedByItsParts(t *testing.T) {
	part := func(sni string, weight, priority uint32) proxy.Part {
		return proxy.Part{SNI: sni, Weight: weight, Priority: priority}
	}
	name := func(parts ...proxy.Part) string { return proxy.Cluster{Name: "payments", Split: parts}.EndpointsName() }
	split := name(part("a", 9000, 0), part("b", 1000, 0))
	if got := name(part("a", 1000, 0), part("b", 9000, 0)); got != split {
		t.Errorf("other weights: %s, want %s", got, split)
	}
	for what, got := range map[string]string{
		"another part":     name(part("a", 9000, 0), part("c", 1000, 0)),
		"one part less":    name(part("a", 10000, 0)),
		"another priority": name(part("a", 9000, 0), part("b", 1000, 1)),
	} {
		if got == split {
			t.Errorf("%s has the same name, %s", what, got)
		}
	}
}

// A legacy address is one end, or those that its name stands for.
func TestEndpointsOfALegacyAddress(t *testing.T) {
	web := routing.Target{Service: "web", Datacenter: "dc1"}
	names := proxy.Names{"old": {netip.MustParseAddr("10.0.0.8"), netip.MustParseAddr("::1")}}
	for address, want := range map[string]string{
		"10.0.0.9:80": "legacy=5000: 10.0.0.9:80/1",
		"[0::1]:80":   "legacy=5000: ::1:80/1",
		"old:80":      "legacy=5000: 10.0.0.8:80/1 ::1:80/1",
		"lost:80":     `legacy=5000: [service "web": legacy way: address "lost:80": it is not known what this name stands for: its share goes to the other ways]`,
	} {
		ref := proxy.EndpointsRef{ClusterName: "ways", Parts: []proxy.Part{{Target: web, Weight: 5000, Way: config.WayLegacy, Legacy: address}, {Target: web, SNI: "web"}}}
		got := proxy.BuildEndpoints(fleet{}.snapshot(), ref, names, nil)
		if describe(got) != want {
			t.Errorf("%s: %s, want %s", address, describe(got), want)
		}
		named := strings.HasPrefix(address, "old") || strings.HasPrefix(address, "lost")
		if (got.Groups[0].Legacy == address) != named || ref.Reads([]string{"lost", "old"}) != named {
			t.Errorf("%s stands for %q, reads a name: %v", address, got.Groups[0].Legacy, ref.Reads([]string{"lost", "old"}))
		}
	}
}

// Of connections, a sidecar that takes plaintext on the port of mTLS alone is reached by one
// of the two, and that is mtls wherever it has a share.
func TestPlaintextBesideMTLS(t *testing.T) {
	f := fleet{}
	for i, port := range []string{"2000", "3001", ""} { // on the port of mTLS, on its own, nowhere
		f.add("n1", catalog.Service{
			Kind: catalog.ConnectProxy, ID: fmt.Sprint("p", i), Name: "web-proxy", Port: 2000 + i, Meta: map[string]string{catalog.PlaintextMeta: port},
			Proxy: &catalog.Proxy{DestinationServiceName: "web"},
		}, "")
	}
	web := routing.Target{Service: "web", Datacenter: "dc1"}
	const lost = `[service "web": plain way: 1 of its sidecars take plaintext on the port of mTLS alone, and connections cannot be divided between the two there: they get what mtls gets]`
	for _, tc := range []struct {
		plain, mtls uint32
		want        string
	}{
		{5000, 5000, "plain=5000: 10.0.0.1:3001/1 web=5000: 10.0.0.1:2000/1 10.0.0.1:2001/1 10.0.0.1:2002/1 " + lost},
		{10_000, 0, "plain=10000: 10.0.0.1:2000/1 10.0.0.1:3001/1"},
		{0, 10_000, "web=10000: 10.0.0.1:2000/1 10.0.0.1:2001/1 10.0.0.1:2002/1"},
	} {
		ref := proxy.EndpointsRef{ClusterName: "ways", Parts: []proxy.Part{{Target: web, Weight: tc.plain, Way: config.WayPlain}, {Target: web, SNI: "web", Weight: tc.mtls}}}
		if got := describe(proxy.BuildEndpoints(f.snapshot(), ref, nil, nil)); got != tc.want {
			t.Errorf("plain %d, mtls %d: %s, want %s", tc.plain, tc.mtls, got, tc.want)
		}
	}
}
