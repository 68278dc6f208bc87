package server

import (
	"bytes"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// A write that leaves a subset without anybody and leads requests elsewhere keeps its
// endpoints until routes have moved; the catalog's word on who is there holds meanwhile.
func TestEndpointsAreEmptiedAfterRoutesMoved(t *testing.T) {
	m := newMesh("dc1", "test.consul", true, nil, slog.New(slog.DiscardHandler))
	now, index := time.Unix(1000, 0), uint64(0)
	entry := func(text string) config.Entry {
		e, err := config.DecodeEntryJSON([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	entries := config.NewSet(entry(`{"Kind":"proxy-defaults","Name":"global","Config":{"protocol":"http"}}`),
		entry(`{"Kind":"service-router","Name":"api","Routes":[{"Match":{"HTTP":{"PathPrefix":"/old"}},"Destination":{"ServiceSubset":"v1"}}]}`))
	step := func() {
		index++
		m.setEntries(entries, index)
		m.step(now, false)
	}
	write := func(chosen, v1, v2 string) {
		entries = entries.With([]config.Entry{entry(fmt.Sprintf(`{"Kind":"service-resolver","Name":"api","DefaultSubset":%q,"Subsets":{"v1":{"Filter":"Service.Meta.version == %s"},"v2":{"Filter":"Service.Meta.version == %s"}}}`, chosen, v1, v2))}, nil)
		step()
	}
	instances := func(addresses ...string) {
		sets := map[string]*catalog.Set{}
		add := func(s *catalog.Service, nodes ...string) {
			var list []catalog.Instance
			for _, n := range nodes {
				list = append(list, catalog.Instance{Node: &catalog.Node{Name: n, Address: n}, Service: s})
			}
			sets[s.Name] = catalog.NewSet(s.Name, list)
		}
		add(&catalog.Service{ID: "web-1", Name: "web-proxy", Kind: catalog.ConnectProxy, Port: 21000, Proxy: &catalog.Proxy{
			DestinationServiceName: "web", LocalServiceAddress: "127.0.0.1", LocalServicePort: 80,
			Upstreams: []catalog.Upstream{{DestinationName: "api", LocalBindPort: 7100}}}}, "10.0.0.1")
		add(&catalog.Service{ID: "api-1", Name: "api-proxy", Kind: catalog.ConnectProxy, Port: 21001, Meta: map[string]string{"version": "1"}, Proxy: &catalog.Proxy{
			DestinationServiceName: "api", LocalServiceAddress: "127.0.0.1", LocalServicePort: 80}}, addresses...)
		m.setCatalog(catalog.NewSnapshot("dc1", index+1, sets))
		step()
	}
	// there reports whether an address is among the endpoints of a subset.
	there := func(subset, address string) bool {
		t.Helper()
		e := m.endpoints.byName[subset+".api.default.dc1.internal.test.consul"]
		if e == nil {
			return false
		}
		body, err := e.resource.Body()
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Contains(body, []byte(address))
	}
	m.enterLocked("1/web-1", node{id: "web-1", name: "10.0.0.1", relayed: true, streams: 1})
	write("v1", "1", "none")
	instances("10.0.0.2", "10.0.0.3")
	if !there("v1", "10.0.0.2") {
		t.Fatal("nobody is in v1")
	}

	write("v2", "none", "1")
	if !there("v2", "10.0.0.2") || !there("v1", "10.0.0.2") {
		t.Error("want the instances in v2, and in v1 as long as requests go there")
	}
	instances("10.0.0.3")
	if there("v1", "10.0.0.2") || there("v2", "10.0.0.2") || !there("v1", "10.0.0.3") {
		t.Error("want who left out of both, and who is there in both")
	}
	now = now.Add(linger)
	step()
	if there("v1", "10.0.0.3") || !there("v2", "10.0.0.3") {
		t.Error("want nobody in v1 any more")
	}

	// Going back before the time is over leaves everything as it is.
	write("v1", "1", "none")
	if !there("v2", "10.0.0.3") || !there("v1", "10.0.0.3") {
		t.Error("want the instances in v1, and in v2 as long as requests go there")
	}
	write("v2", "none", "1")
	write("v1", "1", "none")
	now = now.Add(linger)
	step()
	if there("v2", "10.0.0.3") || !there("v1", "10.0.0.3") {
		t.Error("want everybody in v1")
	}

	// A write that changes endpoints alone holds at once.
	write("v1", "none", "none")
	if there("v1", "10.0.0.3") {
		t.Error("want nobody in v1, since no request goes elsewhere")
	}
}
