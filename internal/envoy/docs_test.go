package envoy_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

const table = "../../docs/envoy.md"

// row is one line of the table: | knob | where | value | reason |.
type row struct {
	line               int
	knob, where, value string
}

// setting is a leaf of a resource: the dotted path to it, without list indexes,
// and its JSON; strings stand without quotes.
type setting struct{ path, value string }

// TestTableMatchesCode holds docs/envoy.md to what is generated, in both directions.
func TestTableMatchesCode(t *testing.T) {
	generated := places(t)
	rows := readTable(t)
	if len(rows) < 50 {
		t.Fatalf("%s: %d rows, the table is not read", table, len(rows))
	}
	documented := map[string][]string{} // where -> knobs
	for _, r := range rows {
		for where := range strings.SplitSeq(r.where, ", ") {
			settings, ok := generated[where]
			if !ok {
				t.Errorf("%s:%d: there is no place %q", table, r.line, where)
				continue
			}
			documented[where] = append(documented[where], r.knob)
			got := find(settings, r.knob)
			if r.value == "absent" && len(got) == 0 || slices.Equal(got, []string{r.value}) {
				continue
			}
			t.Errorf("%s:%d: %s in %s: the table says %q, the code %q", table, r.line, r.knob, where, r.value, got)
		}
	}
	// Of these only what differs is in the table.
	documented["grpc outbound listener"] = append(documented["grpc outbound listener"], documented["outbound listener"]...)
	documented["exposed listener"] = append(documented["exposed listener"], documented["outbound listener"]...)
	documented["judging route"] = append(documented["judging route"], documented["inbound route"]...)
	documented["exposed app cluster"] = append(documented["exposed app cluster"], documented["app cluster"]...)
	documented["shifted route"] = append(documented["shifted route"], documented["outbound route"]...)
	for _, where := range []string{"direct cluster", "legacy cluster", "grpc legacy cluster", "repeating upstream cluster"} {
		documented[where] = append(documented[where], documented["upstream cluster"]...)
	}
	documented["divided tcp cluster"] = append(documented["divided tcp cluster"], documented["tcp upstream cluster"]...)
	for where, settings := range generated {
		for _, s := range settings {
			last := s.path[strings.LastIndexByte(s.path, '.')+1:]
			if slices.Contains(identities, last) || slices.ContainsFunc(documented[where], func(knob string) bool { return covers(knob, s.path) }) {
				continue
			}
			t.Errorf("%s has no row for %s = %s in %s", table, s.path, s.value, where)
		}
	}
}

// identities name things or say where they are; they are no choices.
var identities = []string{
	"@type", "name", "address", "port_value", "cluster", "cluster_name", "stat_prefix", "route_config_name", "sni", "exact", "prefix",
	"domains", "inline_string", "flags", "type_urls", "resource_api_version", "san_type", "id", "path", "op",
	"default_value", "runtime_key", "fixed_value", "tag_name", "regex", "suffix", "partition", "namespace", "node_name", "object_key",
	"ads", "type", "source_code", "default_host_for_http_10", "header_name", "key", "filter", "provider_name", "issuer",
	"hostname", "part", "service_name", "weight", "way",
	"value_format", "value_fixed", "unit", "types", // what is counted, and when: docs/telemetry.md
}

// places are the parts of the archetypes that the table speaks of.
func places(t *testing.T) map[string][]setting {
	t.Helper()
	all := scenarios(t)
	of := func(file string) envoy.Resources { return resources(t, build(t, meshtest.Parse(t, all[file]))) }
	exposed, shifted := of("exposed.txtar"), of("shifted_caller.txtar")
	http, tcp, server := of("http_caller.txtar"), of("tcp_caller.txtar"), of("tcp_callee.txtar")
	repeats := build(t, meshtest.Parse(t, all["http_caller.txtar"]))
	for i := range repeats.Clusters {
		repeats.Clusters[i].Limits.RetryBudget = true
	}
	repeating := resources(t, repeats)
	grpc, judging := of("grpc_caller.txtar"), of("judging_callee.txtar")
	boot, err := envoy.Bootstrap(envoy.BootstrapOptions{NodeID: "x", NodeName: "n", Service: "x", Datacenter: "dc1", XDSSocket: "/x", AdminSocket: "/a", MaxDownstreamConnections: 1000, MaxHeapBytes: envoy.HeapLimit(128 << 20)})
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]setting{
		"upstream cluster":           leaves(t, http.Clusters[0]),
		"repeating upstream cluster": leaves(t, repeating.Clusters[0]),
		"tcp upstream cluster":       leaves(t, tcp.Clusters[1]),
		"app cluster":                leaves(t, http.Clusters[1]),
		"grpc app cluster":           leaves(t, grpc.Clusters[1]),
		"tcp app cluster":            leaves(t, tcp.Clusters[0]),
		"outbound listener":          leaves(t, http.Listeners[0]),
		"tcp outbound listener":      leaves(t, tcp.Listeners[0]),
		"inbound listener":           leaves(t, http.Listeners[1]),
		"tcp inbound listener":       leaves(t, tcp.Listeners[1]),
		"grpc outbound listener":     leaves(t, grpc.Listeners[0]),
		"exposed listener":           leaves(t, exposed.Listeners[0]),
		"exposed app cluster":        leaves(t, exposed.Clusters[1]),
		"outbound route":             leaves(t, http.Routes[0]),
		"shifted route":              leaves(t, shifted.Routes[0]),
		"direct cluster":             leaves(t, clusterNamed(t, shifted, "direct~catalog")),
		"legacy cluster":             leaves(t, clusterNamed(t, shifted, "legacy~catalog")),
		"grpc legacy cluster":        leaves(t, clusterNamed(t, shifted, "legacy~chat")),
		"divided tcp cluster":        leaves(t, shifted.Clusters[0]),
		"inbound route":              leaves(t, http.Routes[1]),
		"extensions":                 append(leaves(t, server.Extensions[0]), leaves(t, server.Extensions[1])...),
		"judging route":              leaves(t, judging.Routes[0]),
		"tokens":                     leaves(t, judging.Extensions[0]),
		"bootstrap":                  leavesOf(t, boot),
		"runtime":                    leaves(t, http.Runtimes[0]),
	}
}

func clusterNamed(t *testing.T, r envoy.Resources, prefix string) proto.Message {
	t.Helper()
	for _, c := range r.Clusters {
		if strings.HasPrefix(c.GetName(), prefix) {
			return c
		}
	}
	t.Fatalf("no cluster %s", prefix)
	return nil
}

func leaves(t *testing.T, m proto.Message) []setting {
	t.Helper()
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return leavesOf(t, raw)
}

func leavesOf(t *testing.T, raw []byte) []setting {
	t.Helper()
	var doc any
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	var out []setting
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			if len(v) == 0 {
				out = append(out, setting{path, "{}"})
			}
			// A socket option is called by its description.
			if name, ok := v["description"].(string); ok {
				walk(path+"."+name, v["int_value"])
				return
			}
			// As is an action of the overload manager, by the end of its name.
			if name, ok := v["name"].(string); ok && v["triggers"] != nil {
				path += name[strings.LastIndexByte(name, '.'):]
			}
			for key, child := range v {
				walk(path+"."+key, child)
			}
		case []any:
			// A list of strings is one setting.
			if len(v) > 0 {
				if _, ok := v[0].(string); ok {
					raw, _ := json.Marshal(v)
					out = append(out, setting{path, string(raw)})
					return
				}
			}
			for _, child := range v {
				walk(path, child)
			}
		case string:
			out = append(out, setting{path, v})
		default:
			raw, _ := json.Marshal(v)
			out = append(out, setting{path, string(raw)})
		}
	}
	walk("", doc)
	return out
}

func covers(knob, path string) bool { return strings.HasSuffix(path, "."+knob) }

// find is the values of a knob, each once.
func find(settings []setting, knob string) []string {
	var out []string
	for _, s := range settings {
		if covers(knob, s.path) && !slices.Contains(out, s.value) {
			out = append(out, s.value)
		}
	}
	return out
}

func readTable(t *testing.T) []row {
	t.Helper()
	text, err := os.ReadFile(table)
	if err != nil {
		t.Fatal(err)
	}
	var out []row
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		cells := strings.Split(lines.Text(), "|")
		if len(cells) != 6 || !strings.HasPrefix(cells[1], " `") {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if cells[4] == "" {
			t.Errorf("%s:%d: no reason", table, n)
		}
		out = append(out, row{n, strings.Trim(cells[1], "`"), cells[2], strings.Trim(cells[3], "`")})
	}
	return out
}
