package meshtest

import (
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// What every scenario has in common.
const (
	Datacenter  = "dc1"
	TrustDomain = "11111111-2222-3333-4444-555555555555.consul"
	// firstSidecarPort is given to the first sidecar that names none; the next take
	// the following ones, in the order of the files.
	firstSidecarPort = 21000
)

// Scenario is a catalog and configuration entries.
type Scenario struct {
	Config       *config.Set
	Snapshot     *catalog.Snapshot
	DefaultAllow bool
	Unknown      []string           // services that nobody ever registered
	Sidecars     []catalog.Instance // in the order of the files
}

// Parse reads a scenario: each "services/…" is a file of service definitions, all
// registered on node n1 at 127.0.0.1; each "config/…" is a configuration entry;
// "default-intention-policy", when there, says "deny"; "unknown-services" names
// services that nobody ever registered. Other names fail the test.
func Parse(t testing.TB, files []txtar.File) Scenario {
	t.Helper()
	out := Scenario{DefaultAllow: true}
	node := &catalog.Node{Name: "n1", Address: "127.0.0.1", Datacenter: Datacenter}
	instances := map[string][]catalog.Instance{}
	var entries []config.Entry
	add := func(s *catalog.Service, checks []config.CheckDefinition) catalog.Instance {
		in := catalog.Instance{Node: node, Service: s}
		for _, c := range checks {
			in.Checks = append(in.Checks, &catalog.Check{Node: node.Name, CheckID: c.ID, Status: c.Status, ServiceID: s.ID, ServiceName: s.Name})
		}
		instances[s.Name] = append(instances[s.Name], in)
		return in
	}
	for _, f := range files {
		switch {
		case strings.HasPrefix(f.Name, "services/"):
			defs, err := config.DecodeDefinitions(f.Name, f.Data)
			if err != nil {
				t.Fatal(err)
			}
			for i := range defs {
				d := &defs[i]
				in := add(&d.Service, d.Checks)
				if side := d.SidecarService(); side != nil {
					if side.Port == 0 {
						side.Port = firstSidecarPort + len(out.Sidecars)
					}
					out.Sidecars = append(out.Sidecars, add(side, nil))
				} else if in.Service.Kind == catalog.ConnectProxy {
					out.Sidecars = append(out.Sidecars, in)
				}
			}
		case strings.HasPrefix(f.Name, "config/"):
			e, err := config.DecodeEntry(f.Name, f.Data)
			if err != nil {
				t.Fatal(err)
			}
			entries = append(entries, e)
		case f.Name == "default-intention-policy":
			out.DefaultAllow = strings.TrimSpace(string(f.Data)) != "deny"
		case f.Name == "unknown-services":
			out.Unknown = strings.Fields(string(f.Data))
		default:
			t.Fatalf("section %q: want services/…, config/…, unknown-services, default-intention-policy or %s…", f.Name, wanted)
		}
	}
	sets := map[string]*catalog.Set{}
	for name, list := range instances {
		sets[name] = catalog.NewSet(name, list)
	}
	out.Config = config.NewSet(entries...)
	out.Snapshot = catalog.NewSnapshot(Datacenter, 1, sets)
	return out
}
