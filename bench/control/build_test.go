// Package control has the Go benchmarks of the control plane's parts.
//
// In: made-up fleets. Out: what `go test -bench` prints. bench/README.md says what
// each benchmark is of.
package control

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/proto"

	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/routing"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// fleet is a service "web" with so many upstreams, each with its own defaults and
// intentions. An upstream has one instance, but the first has as many as asked for.
func fleet(t testing.TB, upstreams, instances int) meshtest.Scenario {
	t.Helper()
	file := func(name, format string, args ...any) txtar.File {
		return txtar.File{Name: name, Data: fmt.Appendf(nil, format, args...)}
	}
	var web strings.Builder
	web.WriteString("service: web\nport: 8080\nprotocol: http\nupstreams:\n")
	var files []txtar.File
	for i := range upstreams {
		name := fmt.Sprintf("s%04d", i)
		fmt.Fprintf(&web, "  - %s:%d\n", name, 10000+i)
		files = append(files,
			file("config/"+name+".hcl", "Kind = \"service-defaults\"\nName = %q\nProtocol = \"http\"\n", name),
			file("config/"+name+"-intentions.hcl", "Kind = \"service-intentions\"\nName = %q\nSources = [{ Name = \"web\", Action = \"allow\" }]\n", name))
		count := 1
		if i == 0 {
			count = instances
		}
		for j := range count {
			files = append(files, file(fmt.Sprintf("services/%s-%d.hcl", name, j),
				"service {\n  id = \"%s-%d\"\n  name = %q\n  port = 9000\n  connect { sidecar_service { port = %d } }\n}\n", name, j, name, 30000+j))
		}
	}
	files = append(files, file("services/web.yaml", "%s", web.String()),
		file("config/web.hcl", "Kind = \"service-defaults\"\nName = \"web\"\nProtocol = \"http\"\n"))
	return meshtest.Parse(t, files)
}

// input is what the sidecar of web is made from.
func input(t testing.TB, s meshtest.Scenario) proxy.Input {
	t.Helper()
	in, ok := s.Snapshot.Proxy("web-sidecar-proxy", "n1")
	if !ok {
		t.Fatal("web has no sidecar")
	}
	return proxy.Input{
		Instance: in, Config: s.Config, Datacenter: meshtest.Datacenter, TrustDomain: meshtest.TrustDomain, DefaultAllow: true,
		Known: func(string) bool { return true },
	}
}

// encoded decides, builds and encodes all that a sidecar is told but its endpoints.
func encoded(t testing.TB, in proxy.Input) (bytes, resources int) {
	p, problems := proxy.Build(in)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	made, err := envoy.Build(p)
	if err != nil {
		t.Fatal(err)
	}
	add := func(typ xds.Type, name string, m proto.Message) {
		r, err := xds.NewResource(typ, name, m)
		if err != nil {
			t.Fatal(err)
		}
		bytes, resources = bytes+r.Size(), resources+1
	}
	for _, m := range made.Clusters {
		add(xds.ClusterType, m.Name, m)
	}
	for _, m := range made.Listeners {
		add(xds.ListenerType, m.Name, m)
	}
	for _, m := range made.Routes {
		add(xds.RouteType, m.Name, m)
	}
	for _, m := range made.Runtimes {
		add(xds.RuntimeType, m.Name, m)
	}
	return bytes, resources
}

// cpuTime reports, when its result is called, the time on CPU of the whole process per
// operation: unlike ns/op it hardly depends on what else the machine does.
func cpuTime(b *testing.B) (report func()) {
	used := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N)/1000, "cpu-us/op") }
}

// BenchmarkSidecar: from a registration and entries to the bytes of one sidecar with 50 upstreams.
func BenchmarkSidecar(b *testing.B) {
	in := input(b, fleet(b, 50, 1))
	var bytes, resources int
	b.ReportAllocs()
	report := cpuTime(b)
	for b.Loop() {
		bytes, resources = encoded(b, in)
	}
	report()
	b.ReportMetric(float64(bytes), "wire-bytes")
	b.ReportMetric(float64(resources), "resources")
}

// BenchmarkEndpoints: from a snapshot to the bytes of one service's 172 endpoints.
func BenchmarkEndpoints(b *testing.B) {
	s := fleet(b, 1, 172)
	b.ReportAllocs()
	size := 0
	report := cpuTime(b)
	for b.Loop() {
		size = endpoints(b, s).Size()
	}
	report()
	b.ReportMetric(float64(size), "wire-bytes")
}

func endpoints(t testing.TB, s meshtest.Scenario) *xds.Resource {
	made := proxy.BuildEndpoints(s.Snapshot, proxy.EndpointsOf(routing.Target{Service: "s0000", Datacenter: meshtest.Datacenter}, meshtest.TrustDomain), nil, nil)
	r, err := xds.NewResource(xds.EndpointType, made.ClusterName, envoy.Endpoints(made))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// What the benchmarks measure is what they say.
func TestFleet(t *testing.T) {
	s := fleet(t, 50, 172)
	// Per upstream a cluster, a listener and a route; those of the app; the runtime.
	if bytes, resources := encoded(t, input(t, s)); resources != 3*51+1 || bytes < 50_000 {
		t.Errorf("%d resources of %d bytes", resources, bytes)
	}
	if made := proxy.BuildEndpoints(s.Snapshot, proxy.EndpointsOf(routing.Target{Service: "s0000", Datacenter: meshtest.Datacenter}, meshtest.TrustDomain), nil, nil); len(made.Groups[0].Endpoints) != 172 {
		t.Errorf("%d endpoints, want 172", len(made.Groups[0].Endpoints))
	}
}
