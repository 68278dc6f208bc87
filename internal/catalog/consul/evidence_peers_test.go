//go:build peers

package consul

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

// What a real Consul says of an instance that is gone: its agent took it out, somebody did so
// behind the agent's back, its node is no longer reachable, or is another one.
func TestRealConsulExplains(t *testing.T) {
	a := startAgent(t)
	s, err := New(Options{Address: a.address(), Settle: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	f := runFeed(t, s)
	there := func(name string) catalog.Instance {
		t.Helper()
		snap := f.await(t, name, func(s *catalog.Snapshot) bool { return s.Set(name) != nil && len(s.Set(name).Instances) > 0 })
		return snap.Set(name).Instances[0]
	}
	gone := func(name string) {
		t.Helper()
		f.await(t, "no "+name, func(s *catalog.Snapshot) bool { return s.Set(name) == nil || len(s.Set(name).Instances) == 0 })
	}
	why := func(in catalog.Instance) string {
		return s.Explain(t.Context(), []catalog.Instance{in})[catalog.KeyOf(in)]
	}
	const explained = "its node is there, reachable, and without it"

	a.put("/v1/agent/service/register", map[string]any{"Name": "web", "ID": "web-1", "Port": 8080})
	web := there("web")
	if got := why(web); got != "" {
		t.Errorf("it is there: %q", got)
	}
	a.put("/v1/agent/service/deregister/web-1", nil)
	gone("web")
	if got := why(web); got != explained {
		t.Errorf("its agent took it out: %q", got)
	}
	s.Doubt()
	if got := why(web); got != "" {
		t.Errorf("in doubt: %q", got)
	}
	<-time.After(1100 * time.Millisecond)
	if got := why(web); got != explained {
		t.Errorf("after the doubt: %q", got)
	}

	far := func(status string) map[string]any {
		return map[string]any{"Node": "far", "Address": "10.0.0.9", "Service": map[string]any{"ID": "db-1", "Service": "db", "Port": 1},
			"Checks": []any{map[string]any{"CheckID": "serfHealth", "Name": "x", "Status": status}}}
	}
	a.put("/v1/catalog/register", far("passing"))
	db := there("db")
	a.put("/v1/catalog/deregister", map[string]any{"Node": "far", "ServiceID": "db-1"})
	gone("db")
	if got := why(db); got != explained {
		_, body := a.try(http.MethodGet, "/v1/catalog/node-services/far", nil)
		t.Errorf("a node with no other service: %q; %s", got, body)
	}

	a.put("/v1/catalog/register", far("critical"))
	db = there("db")
	a.put("/v1/catalog/deregister", map[string]any{"Node": "far", "ServiceID": "db-1"})
	gone("db")
	if got := why(db); got != "" {
		t.Errorf("a node that nobody hears: %q", got)
	}

	a.put("/v1/catalog/register", far("passing"))
	db = there("db")
	a.put("/v1/catalog/deregister", map[string]any{"Node": "far"})
	gone("db")
	if got := why(db); got != "" {
		t.Errorf("a node that is gone: %q", got)
	}
	back := far("passing")
	delete(back, "Service")
	a.put("/v1/catalog/register", back)
	if _, body := a.try(http.MethodGet, "/v1/catalog/node-services/far", nil); !strings.Contains(string(body), `"far"`) {
		t.Fatalf("the node is not back: %s", body)
	}
	if got := why(db); got != "" {
		t.Errorf("a node that came back as a new one: %q", got)
	}
}
