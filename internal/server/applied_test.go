package server_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/crossfade-mesh/crossfade/internal/catalog/consulstore/consultest"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// applied is what GET /v1/crossfade/applied says.
type applied struct {
	Told     bool
	Unheard  []string
	Sidecars []struct {
		Sidecar, State string
		Waiting        []string
		Refused        []struct{ Type, Name, Message string }
	}
}

// states is "admin-sidecar-proxy acked; web-sidecar-proxy waiting".
func (a applied) states() string {
	var out []string
	for _, sc := range a.Sidecars {
		out = append(out, sc.Sidecar+" "+sc.State)
	}
	return strings.Join(out, "; ")
}

// write writes an entry and returns its index, or "" when nothing changed.
func write(t *testing.T, s *servertest.Server, entry string) string {
	t.Helper()
	h, _ := s.Call(http.MethodPut, "/v1/config", []byte(entry))
	if h.Get("X-Crossfade-Unchanged") != "" {
		return ""
	}
	return h.Get("X-Crossfade-Index")
}

func whatBecameOf(t *testing.T, s *servertest.Server, index, wait string) (a applied) {
	t.Helper()
	_, b := s.Call(http.MethodGet, "/v1/crossfade/applied?index="+index+"&wait="+wait, nil)
	if err := json.Unmarshal(b, &a); err != nil {
		t.Fatal(err)
	}
	if !a.Told {
		t.Fatalf("index %s: not told", index)
	}
	return a
}

const intentions = `{"Kind":"service-intentions","Name":"admin","Sources":[{"Name":"web","Action":"deny"}]}`

func TestAppliedCountsWhomAChangeConcerns(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	s.Register("web.yaml", web)
	s.Register("admin.yaml", admin)
	caller := follow(t, s, "web-sidecar-proxy", true, endpoints(s, "catalog"), route("public_listener"))
	other := follow(t, s, "admin-sidecar-proxy", true, endpoints(s, "payments"), route("public_listener"))
	caller.until("the caller is in sync", func() bool { return len(caller.held) == 6 })
	other.until("the other is in sync", func() bool { return len(other.held) == 6 })

	if got := whatBecameOf(t, s, write(t, s, intentions), "20s").states(); got != "admin-sidecar-proxy acked" {
		t.Errorf("a change for one sidecar: %q", got)
	}
	if got := whatBecameOf(t, s, write(t, s, `{"Kind":"service-defaults","Name":"nobody","Protocol":"grpc"}`), "20s").states(); got != "" {
		t.Errorf("an entry that nobody reads: %q", got)
	}
	if got := whatBecameOf(t, s, write(t, s, `{"Kind":"proxy-defaults","Name":"global","Config":{"local_connect_timeout_ms":1234}}`), "20s").states(); got != "admin-sidecar-proxy acked; web-sidecar-proxy acked" {
		t.Errorf("a change for everybody: %q", got)
	}

	// The same again is no change, and nobody is sent a byte: what comes next is the
	// change after it.
	app := xds.Key{Type: xds.ClusterType, Name: "local_app"}
	for _, p := range []*peer{caller, other} {
		p.until("all is taken in", func() bool { return strings.Contains(p.body(app), `"1.234s"`) })
	}
	before := []int{caller.responses, other.responses}
	if index := write(t, s, intentions); index != "" {
		t.Errorf("the same entry again: index %s", index)
	}
	write(t, s, `{"Kind":"proxy-defaults","Name":"global","Config":{"local_connect_timeout_ms":4321}}`)
	for i, p := range []*peer{caller, other} {
		p.until("the change after it", func() bool { return strings.Contains(p.body(app), `"4.321s"`) })
		if p.responses != before[i]+1 {
			t.Errorf("%d responses, want one, for the change after it", p.responses-before[i])
		}
	}
}

func TestARefusalReachesTheWriter(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	s.Register("admin.yaml", admin)
	s.Register("web.yaml", web)
	follow(t, s, "web-sidecar-proxy", true)

	c := s.Stream("admin-sidecar-proxy", true)
	ask := func(r xds.Request) {
		t.Helper()
		if err := c.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	answer := func(verdict string) xds.Response {
		t.Helper()
		r, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		ask(xds.Request{Type: r.Type, Nonce: r.Nonce, Error: verdict})
		return r
	}
	for _, typ := range []xds.Type{xds.ClusterType, xds.ListenerType} {
		ask(xds.Request{Type: typ})
		answer("")
	}
	ask(xds.Request{Type: xds.RouteType, Subscribe: []string{"public_listener"}})
	answer("")

	index := write(t, s, intentions)
	if got := whatBecameOf(t, s, index, "500ms"); got.states() != "admin-sidecar-proxy waiting" || !cmp.Equal(got.Sidecars[0].Waiting, []string{`RouteConfiguration "public_listener"`}) {
		t.Errorf("before an answer: %+v", got)
	}
	answer(`RouteConfiguration "public_listener": Envoy's own words`)
	got := whatBecameOf(t, s, index, "20s")
	if got.states() != "admin-sidecar-proxy refused" || got.Sidecars[0].Refused[0].Message != "Envoy's own words" || got.Sidecars[0].Refused[0].Name != "public_listener" {
		t.Errorf("after a refusal: %+v", got)
	}

	// The version before is what it runs: going back settles.
	h, _ := s.Call(http.MethodDelete, "/v1/config/service-intentions/admin", nil)
	if r := answer(""); r.Type != xds.RouteType {
		t.Errorf("sent a %s", r.Type.Short())
	}
	if got := whatBecameOf(t, s, h.Get("X-Crossfade-Index"), "20s").states(); got != "admin-sidecar-proxy acked" {
		t.Errorf("after going back: %q", got)
	}
}

func TestAppliedRefusesBadQuestions(t *testing.T) {
	s := servertest.Start(t, server.Options{})
	for query, want := range map[string]int{"": 400, "?index=0": 400, "?index=x": 400, "?index=1&wait=y": 400, "?index=1&wait=20s": http.StatusGone} {
		resp, err := http.Get("http://" + s.HTTPAddr() + "/v1/crossfade/applied" + query)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%q: status %d, want %d", query, resp.StatusCode, want)
		}
	}
}

// Of several servers any may be asked what became of a change: sidecars of the others are waited
// for and named too, and so is a server that cannot say.
func TestAppliedOnAllServers(t *testing.T) {
	f := consultest.NewFake(t)
	webCallsCatalog(t, f.URL)
	var s []*servertest.Server
	for _, name := range []string{"first", "second", "third"} {
		s = append(s, servertest.Start(t, server.Options{Consul: f.URL, DefaultAllow: true, NodeName: name}))
	}
	versions(t, s[0], "web-sidecar-proxy") // acknowledges all
	versions(t, s[1], "catalog-sidecar-proxy")
	// Each hears of the others, of their sidecars first.
	for i, one := range s {
		meshtest.Eventually(t, fmt.Sprintf("server %d knows who is connected", i), func() error {
			_, b := one.Call(http.MethodGet, "/v1/crossfade/pairs", nil)
			if !strings.Contains(string(b), `"connected":1,"acknowledged":1`) {
				return fmt.Errorf("%s", b)
			}
			return nil
		})
	}
	meshtest.Eventually(t, "all name both sidecars", func() error {
		index := write(t, s[2], fmt.Sprintf(`{"Kind":"proxy-defaults","Name":"global","Config":{"protocol":"http","local_connect_timeout_ms":%d}}`, 1000+rand.IntN(1000)))
		if got := whatBecameOf(t, s[2], index, "10s"); len(got.Sidecars) != 2 {
			return fmt.Errorf("%s", got.states())
		}
		return nil
	})
	for i, protocol := range []string{"http2", "grpc", "tcp"} {
		index := write(t, s[i], `{"Kind":"proxy-defaults","Name":"global","Config":{"protocol":"`+protocol+`"}}`)
		for j := range s {
			if got := whatBecameOf(t, s[j], index, "10s"); got.states() != "catalog-sidecar-proxy acked; web-sidecar-proxy acked" || len(got.Unheard) > 0 {
				t.Errorf("written on server %d, and server %d says: %s, unheard %q", i, j, got.states(), got.Unheard)
			}
		}
	}
}
