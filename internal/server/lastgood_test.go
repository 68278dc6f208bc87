package server_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// picky is an Envoy that refuses routes which lead to somebody.
type picky struct {
	*peer
	refused chan string
}

// pick subscribes as Envoy does, and refuses routes that contain a word.
func pick(t *testing.T, c *xds.Client, word string, names ...xds.Key) *picky {
	t.Helper()
	refused := make(chan string, 100)
	refusal := func(r xds.Response) string {
		for _, res := range r.Resources {
			if b, err := res.Body(); err == nil && r.Type == xds.RouteType && strings.Contains(string(b), word) {
				refused <- word
				return "route to " + word
			}
		}
		return ""
	}
	return &picky{followBut(t, c, refusal, names...), refused}
}

// The last good routes need the clusters of before, and these their endpoints: for those
// that run them, and for who is new.
func TestTheLastGoodRoutesLeadSomewhere(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	for i := 1; i <= 3; i++ {
		s.Register("web.yaml", fmt.Sprintf("service: web\nid: web-%d\nport: %d\nprotocol: http\nupstreams: [catalog:7100]\n", i, 8080+i))
	}
	s.Register("catalog.yaml", catalog)
	s.Register("orders.yaml", "service: orders\nport: 8082\nprotocol: http\n")
	s.Register("parts.yaml", "service: parts\nport: 8083\nprotocol: http\n")
	lead := func(to string) string {
		return write(t, s, `{"Kind":"service-resolver","Name":"catalog","Redirect":{"Service":"`+to+`"}}`)
	}
	for _, name := range []string{"catalog", "orders", "parts"} {
		write(t, s, `{"Kind":"service-defaults","Name":"`+name+`","Protocol":"http"}`)
	}
	lead("orders")
	cluster := func(service string) xds.Key { return xds.Key{Type: xds.ClusterType, Name: endpoints(s, service).Name} }
	ask := []xds.Key{endpoints(s, "orders"), endpoints(s, "parts"), route("catalog"), route("public_listener")}
	complete := func(p *picky) func() bool {
		return func() bool {
			return p.held[cluster("orders")] != nil && strings.Contains(p.body(endpoints(s, "orders")), `"port_value"`) && strings.Contains(p.body(route("catalog")), "orders.default")
		}
	}
	first := pick(t, s.Stream("web-1-sidecar-proxy", true), "parts.default", ask...)
	first.until("the first is in sync", complete(first))

	index := lead("parts")
	<-first.refused
	if got := whatBecameOf(t, s, index, "20s").states(); got != "web-1-sidecar-proxy refused" {
		t.Errorf("applied: %s", got)
	}
	first.until("it has what is new, too", func() bool { return first.held[cluster("parts")] != nil })
	next := pick(t, s.Stream("web-2-sidecar-proxy", true), "parts.default", ask...)
	next.until("a new one has what leads somewhere", complete(next))
	<-next.refused
	var status []struct {
		Node  string
		Types map[string]struct {
			Refused map[string]struct{ Version, Message, Runs string }
		}
	}
	good := next.held[route("catalog")].Version
	meshtest.Eventually(t, "the server says what it runs, and why", func() error {
		_, b := s.Call(http.MethodGet, "/v1/crossfade/sidecars", nil)
		if err := json.Unmarshal(b, &status); err != nil {
			return err
		}
		n := 0
		for _, row := range status {
			if r := row.Types["RouteConfiguration"].Refused["catalog"]; r.Message == "route to parts.default" && r.Runs == good {
				n++
			}
		}
		if n != 2 {
			return fmt.Errorf("%s", b)
		}
		return nil
	})
	if first.held[cluster("orders")] == nil {
		t.Error("the first has lost the cluster that its routes lead to")
	}

	// It is mended: everybody gets the new.
	write(t, s, `{"Kind":"service-resolver","Name":"catalog","ConnectTimeout":"3s"}`)
	for _, p := range []*picky{first, next} {
		p.ask(xds.Request{Type: xds.EndpointType, Subscribe: []string{endpoints(s, "catalog").Name}})
		p.until("the mended routes", func() bool { return strings.Contains(p.body(route("catalog")), "catalog.default") })
	}
	third := pick(t, s.Stream("web-3-sidecar-proxy", true), "parts.default", append(ask, endpoints(s, "catalog"))...)
	third.until("the mended routes alone", func() bool { return strings.Contains(third.body(route("catalog")), "catalog.default") })
	if third.held[cluster("orders")] != nil {
		t.Errorf("somebody new has %v", third.names())
	}
}

// A server that starts gives nobody less than the one before: who runs the last good
// routes keeps the clusters that these lead to, and who is new gets both.
func TestTheLastGoodOutlivesTheServer(t *testing.T) {
	o := server.Options{DefaultAllow: true, DataDir: t.TempDir()}
	s := servertest.Start(t, o)
	for i := 1; i <= 2; i++ {
		s.Register("web.yaml", fmt.Sprintf("service: web\nid: web-%d\nport: %d\nprotocol: http\nupstreams: [catalog:7100]\n", i, 8080+i))
	}
	s.Register("catalog.yaml", catalog)
	s.Register("orders.yaml", "service: orders\nport: 8082\nprotocol: http\n")
	s.Register("parts.yaml", "service: parts\nport: 8083\nprotocol: http\n")
	for _, name := range []string{"catalog", "orders", "parts"} {
		write(t, s, `{"Kind":"service-defaults","Name":"`+name+`","Protocol":"http"}`)
	}
	lead := func(to string) string {
		return write(t, s, `{"Kind":"service-resolver","Name":"catalog","Redirect":{"Service":"`+to+`"}}`)
	}
	lead("orders")
	cluster := xds.Key{Type: xds.ClusterType, Name: endpoints(s, "orders").Name}
	ask := []xds.Key{endpoints(s, "orders"), endpoints(s, "parts"), route("catalog"), route("public_listener")}
	complete := func(p *picky) func() bool {
		return func() bool {
			return p.held[cluster] != nil && strings.Contains(p.body(endpoints(s, "orders")), `"port_value"`) && strings.Contains(p.body(route("catalog")), "orders.default")
		}
	}
	_, token := s.Token(`{"role":"join","services":["web"]}`)
	leaf := s.Leaf("web", token)
	as := func(id string) *xds.Client { return s.StreamAs(servertest.Caller{Leaf: leaf}, id) }
	first := pick(t, as("web-1-sidecar-proxy"), "parts.default", ask...)
	first.until("it is in sync", complete(first))
	index := lead("parts")
	<-first.refused
	if got := whatBecameOf(t, s, index, "20s").states(); got != "web-1-sidecar-proxy refused" {
		t.Fatalf("applied: %s", got)
	}
	first.until("it has what is new, too", func() bool {
		return first.held[xds.Key{Type: xds.ClusterType, Name: endpoints(s, "parts").Name}] != nil
	})
	meshtest.Eventually(t, "it is on the disk", func() error {
		_, err := os.Stat(filepath.Join(o.DataDir, "lastgood.json"))
		return err
	})
	s.Stop()

	s = servertest.Start(t, o)
	next := pick(t, as("web-2-sidecar-proxy"), "parts.default", ask...)
	next.until("a new one has what leads somewhere", complete(next))

	// The first comes back with what it holds, and loses nothing.
	c := as("web-1-sidecar-proxy")
	r := xds.Request{Type: xds.ClusterType, Initial: map[string]string{}}
	for k, res := range first.held {
		if k.Type == xds.ClusterType {
			r.Initial[k.Name] = res.Version
		}
	}
	for _, r := range []xds.Request{r, {Type: xds.RouteType, Subscribe: []string{"public_listener"}}} {
		if err := c.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	got, err := c.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if got.Type != xds.RouteType {
		t.Errorf("it is told of a %s first: removed %v", got.Type.Short(), got.Removed)
	}

	// It is mended: nothing is kept any longer.
	write(t, s, `{"Kind":"service-resolver","Name":"catalog","ConnectTimeout":"3s"}`)
	next.ask(xds.Request{Type: xds.EndpointType, Subscribe: []string{endpoints(s, "catalog").Name}})
	next.until("the mended routes", func() bool { return strings.Contains(next.body(route("catalog")), "catalog.default") })
}
