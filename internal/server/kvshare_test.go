package server_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
)

// The key of the client convention moves a sidecar's pair too. What is no percent changes
// nothing and is said; of the key and the entry the one written later counts.
func TestSharesFollowKV(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	c := apiOf(t, s, "")
	s.Register("web.yaml", "service: web\nport: 8080\nprotocol: http\nupstreams: [\"catalog:7100\", \"other:7101\"]\n")
	s.Register("catalog.yaml", "service: catalog\nport: 8081\nprotocol: http\n")
	put := func(destination, value string) {
		s.Call(http.MethodPut, "/v1/kv/crossfade/web/"+destination+"/mesh_percent", []byte(value))
	}
	eventually := func(what string, want api.Shares, blocker string) {
		t.Helper()
		meshtest.Eventually(t, what, func() error {
			p, err := c.Pair(t.Context(), "web", "catalog")
			if err != nil || p.Shares != want || (blocker != "") != slices.ContainsFunc(p.Blockers, func(b string) bool { return strings.Contains(b, "mesh_percent") && strings.Contains(b, blocker) }) {
				return fmt.Errorf("%v %v %v", p.Shares, p.Blockers, err)
			}
			return nil
		})
	}
	s.Write(shiftEntry(config.Shares{Direct: 100}))
	put("catalog", "25\n")
	eventually("it follows", api.Shares{Direct: 75, MTLS: 25}, "")
	for _, bad := range []string{"a lot", "101", "-1", "1e1", ""} {
		put("catalog", bad)
		eventually(fmt.Sprintf("%q changes nothing", bad), api.Shares{Direct: 75, MTLS: 25}, "want a percentage")
		if _, b := s.Call(http.MethodGet, "/v1/crossfade/config/check", nil); !strings.Contains(string(b), `"subject":"key crossfade/web/catalog/mesh_percent"`) {
			t.Errorf("config check says nothing of %q: %s", bad, b)
		}
	}
	put("catalog", "0")
	eventually("back", api.Shares{Direct: 100}, "")
	s.Write(shiftEntry(config.Shares{Direct: 40, MTLS: 60}))
	eventually("what is written later counts", api.Shares{Direct: 40, MTLS: 60}, "")
	drop := func() { s.Call(http.MethodDelete, "/v1/kv/crossfade/web/catalog/mesh_percent", nil) }
	put("catalog", "70")
	eventually("over what is there", api.Shares{Direct: 30, MTLS: 70}, "")
	put("catalog", "80")
	eventually("more", api.Shares{Direct: 20, MTLS: 80}, "")
	put("catalog", "never")
	eventually("the last one holds", api.Shares{Direct: 20, MTLS: 80}, "want a percentage")
	drop()
	eventually("without the key, as it was", api.Shares{Direct: 40, MTLS: 60}, "")
	put("catalog", "70")
	eventually("again", api.Shares{Direct: 30, MTLS: 70}, "")
	s.Write(shiftEntry(config.Shares{Direct: 90, MTLS: 10}))
	drop()
	put("other", "what") // seen in the same look, or a later one
	meshtest.Eventually(t, "a look", func() error {
		if p, err := c.Pair(t.Context(), "web", "other"); err != nil || len(p.Blockers) == 0 || !strings.Contains(fmt.Sprint(p.Blockers), `"what"`) {
			return fmt.Errorf("%v %v", p.Blockers, err)
		}
		return nil
	})
	eventually("what was written after the key stays", api.Shares{Direct: 90, MTLS: 10}, "")
	e := shiftEntry(config.Shares{Direct: 100})
	e.Stage = config.StageClient
	s.Write(e)
	put("catalog", "50")
	eventually("no way is open", api.Shares{Direct: 100}, "opens no way besides direct")
	put("other", "50")
	meshtest.Eventually(t, "a pair without an entry", func() error {
		p, err := c.Pair(t.Context(), "web", "other")
		if err != nil || p.Shares != (api.Shares{MTLS: 100}) || !slices.ContainsFunc(p.Blockers, func(b string) bool { return strings.Contains(b, "has no traffic-shift") }) {
			return fmt.Errorf("%v %v %v", p.Shares, p.Blockers, err)
		}
		return nil
	})
}
