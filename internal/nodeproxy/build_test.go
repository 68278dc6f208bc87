package nodeproxy

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

var layout = Layout{
	Node: "a", Front: "127.0.0.1:4140", Peer: "127.0.0.1:4141", Domain: "old",
	TCP: []TCP{{Service: "payments", Front: 5140, Peer: 5141}},
}

// at is an instance on a node, with a check in that state.
func at(service, id, node, address, app string, port int, status catalog.Status) catalog.Instance {
	return catalog.Instance{
		Node:    &catalog.Node{Name: node, Address: address},
		Service: &catalog.Service{ID: id, Name: service, Address: app, Port: port},
		Checks:  []*catalog.Check{{Status: status}},
	}
}

func snapshot(index uint64, all ...catalog.Instance) *catalog.Snapshot {
	byName := map[string][]catalog.Instance{}
	for _, in := range all {
		byName[in.Service.Name] = append(byName[in.Service.Name], in)
	}
	sets := map[string]*catalog.Set{}
	for name, group := range byName {
		sets[name] = catalog.NewSet(name, group)
	}
	return catalog.NewSnapshot("dc1", index, sets)
}

func TestBuild(t *testing.T) {
	proxy := at("catalog-sidecar-proxy", "p", "a", "127.0.0.1", "", 21000, catalog.Passing)
	proxy.Service.Kind = catalog.ConnectProxy
	all := snapshot(1,
		at("catalog", "1", "a", "127.0.0.1", "", 8081, catalog.Passing),
		at("catalog", "2", "b", "127.0.0.2", "127.0.0.3", 8081, catalog.Passing),
		at("catalog", "3", "b", "127.0.0.2", "", 8082, catalog.Warning),
		at("catalog", "4", "c", "127.0.0.4", "", 8082, catalog.Critical),
		at("payments", "1", "b", "127.0.0.2", "", 9000, catalog.Critical),
		at("odd name", "1", "a", "127.0.0.1", "", 1, catalog.Passing),
		at("far", "1", "a", "127.0.0.1", "far.example", 1, catalog.Passing),
		proxy,
	)
	files, problems := Build(layout, "/d", all)
	want := []string{
		`service "far": instance "1" on node "a": address "far.example" port 1, node's address "127.0.0.1": want IP addresses and a port`,
		`service "odd name": its name cannot be one of a Host`,
	}
	if !slices.Equal(problems, want) {
		t.Errorf("problems: %q", problems)
	}
	names := []string{"cds.json", "eds-front~catalog.json", "eds-front~payments.json", "eds-peer~catalog.json", "eds-peer~payments.json", "front.json", "peer.json"}
	if got := slices.Sorted(maps.Keys(files)); !slices.Equal(got, names) {
		t.Fatalf("files: %v", got)
	}
	for file, has := range map[string][]string{
		// One with two healthy instances gets twice as much; the one with none gets nothing.
		"eds-front~catalog.json": {`"address": "127.0.0.1", "port_value": 4141 } } }, "load_balancing_weight": 1`, `"address": "127.0.0.2", "port_value": 4141 } } }, "load_balancing_weight": 2`},
		"eds-peer~catalog.json":  {`"address": "127.0.0.1", "port_value": 8081 }`},
		// A service that is critical everywhere is asked all the same.
		"eds-front~payments.json": {`"address": "127.0.0.2", "port_value": 5141 }`},
		"eds-peer~payments.json":  {`"lb_endpoints": []`},
		"front.json":              {`"domains": [ "catalog", "catalog.old" ]`, `"cluster": "front~catalog"`},
		"peer.json":               {`"cluster": "peer~catalog"`},
	} {
		text := strings.Join(strings.Fields(string(files[file])), " ")
		for _, part := range has {
			if !strings.Contains(text, part) {
				t.Errorf("%s has no %s:\n%s", file, part, text)
			}
		}
	}
	if n := strings.Count(string(files["eds-front~catalog.json"]), `"address": "`); n != 2 {
		t.Errorf("%d hosts have catalog", n)
	}
	if strings.Contains(string(files["front.json"]), "payments") {
		t.Error("payments has no Host")
	}
	again, _ := Build(layout, "/d", all)
	for name := range files {
		if string(files[name]) != string(again[name]) {
			t.Errorf("%s differs from one time to the next", name)
		}
	}
	if none, problems := Build(layout, "/d", nil); len(none) != 5 || problems != nil {
		t.Errorf("of nothing: %v, %v", slices.Sorted(maps.Keys(none)), problems)
	}
}

func TestLayoutsAreChecked(t *testing.T) {
	for want, change := range map[string]func(*Layout){
		`node: it has no name`:                              func(l *Layout) { l.Node = "" },
		`front address "localhost:1": want IP:PORT`:         func(l *Layout) { l.Front = "localhost:1" },
		`peer address "127.0.0.1:0": want IP:PORT`:          func(l *Layout) { l.Peer = "127.0.0.1:0" },
		`peer address "127.0.0.1:4140": it is that of fron`: func(l *Layout) { l.Peer = l.Front },
		`TCP service "payments": it is there twice`:         func(l *Layout) { l.TCP = append(slices.Clone(l.TCP), l.TCP[0]) },
		`peer of x address "127.0.0.1:5141": it is that of`: func(l *Layout) { l.TCP = append(slices.Clone(l.TCP), TCP{"x", 5142, 5141}) },
	} {
		l := layout
		change(&l)
		if err := l.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if err := layout.Validate(); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "a", "a=1", "a=1:", "a=0:1", "a=1:70000", "a b=1:2", "=1:2", "../x=1:2"} {
		if got, err := ParseTCP(bad); err == nil {
			t.Errorf("%q is %+v", bad, got)
		}
	}
	if got, err := ParseTCP("payments=5140:5141"); err != nil || got != layout.TCP[0] {
		t.Errorf("%+v, %v", got, err)
	}
}
