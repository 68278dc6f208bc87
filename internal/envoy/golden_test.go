package envoy_test

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// archetypes are the scenarios with full goldens.
const archetypes = "testdata/*.txtar"

func TestArchetypes(t *testing.T) {
	meshtest.Golden(t, archetypes, func(t *testing.T, input []txtar.File) []txtar.File {
		p := build(t, meshtest.Parse(t, input))
		r := resources(t, p)
		return []txtar.File{
			{Name: "proxy", Data: []byte(p.Describe())},
			{Name: "resources.json", Data: jsonOf(t, r)},
		}
	})
}

// build is the first sidecar's proxy, which must have no problem.
func build(t *testing.T, s meshtest.Scenario) *proxy.Proxy {
	t.Helper()
	p, problems := proxy.Build(input(s))
	for _, problem := range problems {
		t.Error(problem)
	}
	return p
}

func input(s meshtest.Scenario) proxy.Input {
	return proxy.Input{Instance: s.Sidecars[0], Config: s.Config, Datacenter: meshtest.Datacenter, TrustDomain: meshtest.TrustDomain, DefaultAllow: s.DefaultAllow,
		Known: func(service string) bool { return !slices.Contains(s.Unknown, service) }}
}

func resources(t *testing.T, p *proxy.Proxy) envoy.Resources {
	t.Helper()
	r, err := envoy.Build(p)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// messages lists all resources in the order in which they are sent.
func messages(r envoy.Resources) []proto.Message {
	var out []proto.Message
	for _, m := range r.Clusters {
		out = append(out, m)
	}
	for _, m := range r.Extensions {
		out = append(out, m)
	}
	for _, m := range r.Routes {
		out = append(out, m)
	}
	for _, m := range r.Listeners {
		out = append(out, m)
	}
	for _, m := range r.Runtimes {
		out = append(out, m)
	}
	return out
}

func jsonOf(t *testing.T, r envoy.Resources) []byte {
	t.Helper()
	var list []json.RawMessage
	for _, m := range messages(r) {
		raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, raw)
	}
	out, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(out, '\n')
}

func wire(t *testing.T, r envoy.Resources) []byte {
	t.Helper()
	var out []byte
	for _, m := range messages(r) {
		raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, raw...)
	}
	return out
}

// scenarios parses all archetypes by name.
func scenarios(t *testing.T) map[string][]txtar.File {
	t.Helper()
	paths, err := filepath.Glob(archetypes)
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s: %v", archetypes, err)
	}
	out := map[string][]txtar.File{}
	for _, path := range paths {
		a, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range a.Files {
			if !strings.HasPrefix(f.Name, "want/") {
				out[filepath.Base(path)] = append(out[filepath.Base(path)], f)
			}
		}
	}
	return out
}

func parse(t *testing.T, file string) meshtest.Scenario {
	t.Helper()
	return meshtest.Parse(t, scenarios(t)[file])
}

func TestByteStable(t *testing.T) {
	for name, files := range scenarios(t) {
		s := meshtest.Parse(t, files)
		want := wire(t, resources(t, build(t, s)))
		for range 5 {
			in := input(meshtest.Parse(t, files))
			ups := in.Instance.Service.Proxy.Upstreams
			rand.Shuffle(len(ups), func(i, j int) { ups[i], ups[j] = ups[j], ups[i] })
			for _, k := range in.Config.Keys() {
				if e, ok := in.Config.Get(k).(*config.ServiceIntentions); ok {
					rand.Shuffle(len(e.Sources), func(i, j int) { e.Sources[i], e.Sources[j] = e.Sources[j], e.Sources[i] })
				}
			}
			p, _ := proxy.Build(in)
			if !bytes.Equal(wire(t, resources(t, p)), want) {
				t.Fatalf("%s: shuffled input gives other bytes", name)
			}
		}
	}
}

// TestValidate lets real Envoy judge every archetype and both bootstraps.
func TestValidate(t *testing.T) {
	ca := meshtest.NewAuthority(t)
	bootstraps := map[string][]byte{}
	for name, files := range scenarios(t) {
		p := build(t, meshtest.Parse(t, files))
		var endpoints []*endpointv3.ClusterLoadAssignment
		for _, ref := range p.Endpoints() {
			made := proxy.Endpoints{ClusterName: ref.ClusterName}
			for _, part := range ref.Parts {
				made.Groups = append(made.Groups, proxy.EndpointGroup{Name: part.Name(), Weight: max(1, part.Weight), Endpoints: []proxy.Endpoint{{Address: "127.0.0.1", Port: 1, Weight: 1}}})
			}
			endpoints = append(endpoints, envoy.Endpoints(made))
		}
		cert, key := ca.Leaf(p.Identity)
		b, err := envoy.StaticBootstrap(envoy.BootstrapOptions{NodeID: p.ID, Service: p.Identity.Service, Datacenter: meshtest.Datacenter, AdminSocket: filepath.Join(meshtest.RunDir(t), "admin.sock")},
			resources(t, p), endpoints, envoy.LeafSecret(cert, key), envoy.RootsSecret(ca.PEM))
		if err != nil {
			t.Fatal(err)
		}
		bootstraps[name] = b
	}
	for name, o := range map[string]envoy.BootstrapOptions{
		"sidecar bootstrap": {NodeID: "storefront-1-sidecar-proxy", NodeName: "n1", Service: "storefront", Datacenter: "dc1", XDSSocket: "/tmp/xds.sock", AdminSocket: "/tmp/admin.sock", MaxDownstreamConnections: 1000, MaxHeapBytes: envoy.HeapLimit(128 << 20)},
		"direct bootstrap":  {NodeID: "storefront-1-sidecar-proxy", Service: "storefront", XDSAddress: "localhost:8502", AdminAddress: "127.0.0.1:19000"},
	} {
		b, err := envoy.Bootstrap(o)
		if err != nil {
			t.Fatal(err)
		}
		bootstraps[name] = b
	}
	meshtest.Validate(t, bootstraps)
}
