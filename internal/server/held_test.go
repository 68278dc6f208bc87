package server_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/api"
	cat "github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
)

// holding is a server with a data directory, whose registry has lost the services.
func holding(t *testing.T, services ...string) *servertest.Server {
	t.Helper()
	dir := t.TempDir()
	sets := map[string]*cat.Set{}
	for _, name := range services {
		sets[name] = cat.NewSet(name, []cat.Instance{{Node: &cat.Node{Name: "n1", Address: "10.0.0.1"}, Service: &cat.Service{ID: name + "-1", Name: name, Port: 80}}})
	}
	var b bytes.Buffer
	if err := cat.WriteSaved(&b, cat.NewSnapshot("dc1", 7, sets), nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "catalog.lastgood"), b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	s := servertest.Start(t, server.Options{DataDir: dir})
	meshtest.Eventually(t, "the services are held", func() error {
		if held := heldOf(t, s); len(held.Services) != len(services) {
			return fmt.Errorf("%+v", held)
		}
		return nil
	})
	return s
}

func heldOf(t *testing.T, s *servertest.Server) (held api.CatalogHeld) {
	t.Helper()
	_, b := s.Call(http.MethodGet, "/v1/crossfade/catalog/held", nil)
	if err := json.Unmarshal(b, &held); err != nil {
		t.Fatal(err)
	}
	return held
}

// An embedded registry that has lost services since the last run holds them; metrics and API
// say so; an operator decides and is recorded, and nobody else may.
func TestHeldOverTheAPI(t *testing.T) {
	s := holding(t, "old", "older")
	_, metrics := s.Call(http.MethodGet, "/v1/crossfade/metrics", nil)
	for _, want := range []string{`crossfade_catalog_held_instances{service="old"} 1`, "crossfade_catalog_held_services 2", "crossfade_catalog_holds_total 2"} {
		if !strings.Contains(string(metrics), want+"\n") {
			t.Errorf("metrics lack %q:\n%s", want, metrics)
		}
	}
	if _, health := s.Call(http.MethodGet, "/v1/crossfade/health", nil); !strings.Contains(string(health), `service \"older\": 1 of 1 instances are gone`) {
		t.Errorf("health does not say it: %s", health)
	}
	_, reader := s.Token(`{"role":"reader"}`)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s.URL()+"/v1/crossfade/catalog/release/old", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.HTTPClient(servertest.Caller{Token: reader}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("a reader releases: status %d", resp.StatusCode)
	}
	s.Call(http.MethodPut, "/v1/crossfade/catalog/keep/old", nil)
	s.Call(http.MethodPut, "/v1/crossfade/catalog/release/older", nil)
	held := heldOf(t, s)
	if len(held.Services) != 1 || !held.Guard.On || held.Services[0].Service != "old" || !strings.Contains(held.Services[0].KeptBy, "operator") || len(held.Services[0].Gone) != 1 {
		t.Errorf("held %+v", held)
	}
	_, audit := s.Call(http.MethodGet, "/v1/crossfade/audit", nil)
	for _, want := range []string{`"target":"keep old"`, `"target":"release older"`, `"target":"release old","outcome":"refused"`} {
		if !strings.Contains(string(audit), want) {
			t.Errorf("the audit trail lacks %s:\n%s", want, audit)
		}
	}
}

// What the embedded registry is asked to take out goes at once, the last instance too, and is
// explained over a restart; so does what is registered under another name.
func TestDeregistrationExplains(t *testing.T) {
	dir := t.TempDir()
	s := servertest.Start(t, server.Options{DataDir: dir})
	s.Register("catalog.yaml", catalog)
	listed := func(s *servertest.Server) bool {
		_, b := s.Call(http.MethodGet, "/v1/crossfade/proxies?sidecar-for=catalog", nil)
		return strings.Contains(string(b), "catalog-sidecar-proxy")
	}
	meshtest.Eventually(t, "it is told", func() error {
		if !listed(s) {
			return fmt.Errorf("it is not")
		}
		return nil
	})
	s.Call(http.MethodPut, "/v1/agent/service/deregister/catalog", nil)
	meshtest.Eventually(t, "it is gone", func() error {
		if listed(s) {
			return fmt.Errorf("it is there: %+v", heldOf(t, s))
		}
		return nil
	})
	s.Stop()
	s = servertest.Start(t, server.Options{DataDir: dir})
	s.Register("web.yaml", web)
	meshtest.Eventually(t, "the catalog is read", func() error {
		_, b := s.Call(http.MethodGet, "/v1/crossfade/proxies", nil)
		if !strings.Contains(string(b), "web-sidecar-proxy") {
			return fmt.Errorf("%s", b)
		}
		return nil
	})
	if held := heldOf(t, s); len(held.Services) != 0 {
		t.Errorf("held %+v", held)
	}
}
