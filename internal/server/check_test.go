package server_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

func TestCheckFindsWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(file, []byte("Kind: nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := servertest.Start(t, server.Options{DefaultAllow: true, ConfigDir: dir})
	check := func() (entries, sidecars int, problems []string) {
		t.Helper()
		var got struct {
			Entries, Sidecars int
			Problems          []struct {
				Subject, Service, Problem string
				Sidecars                  []string
			}
		}
		_, b := s.Call(http.MethodGet, "/v1/crossfade/config/check", nil)
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		for _, p := range got.Problems {
			reason, _, _ := strings.Cut(p.Problem, ";")
			problems = append(problems, strings.Join([]string{p.Subject, p.Service, strings.Join(p.Sidecars, ","), reason}, " | "))
		}
		return got.Entries, got.Sidecars, problems
	}
	s.Register("web.yaml", web)
	s.Register("admin.yaml", admin)
	meshtest.Eventually(t, "both are in the catalog", func() error {
		if _, sidecars, _ := check(); sidecars != 2 {
			return fmt.Errorf("%d sidecars", sidecars)
		}
		return nil
	})
	bad := file + `:1 |  |  | unknown kind "nonsense"`
	if entries, sidecars, problems := check(); entries != 2 || sidecars != 2 || !cmp.Equal(problems, []string{bad}) {
		t.Errorf("%d entries, %d sidecars: %q", entries, sidecars, problems)
	}

	// Something that one sidecar has to leave out, though it is not connected.
	write(t, s, `{"Kind":"service-defaults","Name":"admin","Protocol":"http","UpstreamConfig":{"Overrides":[{"Name":"payments","EnvoyClusterJSON":"{}"}]}}`)
	// Something that another's Envoy refuses.
	c := s.Stream("web-sidecar-proxy", true)
	send := func(r xds.Request) {
		t.Helper()
		if err := c.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	answer := func(verdict string) {
		t.Helper()
		r, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		send(xds.Request{Type: r.Type, Nonce: r.Nonce, Error: verdict})
	}
	for _, r := range []xds.Request{{Type: xds.ClusterType}, {Type: xds.ListenerType}, {Type: xds.RouteType, Subscribe: []string{"public_listener"}}} {
		send(r)
		answer("")
	}
	index := write(t, s, `{"Kind":"service-intentions","Name":"web","Sources":[{"Name":"admin","Action":"deny"}]}`)
	answer(`RouteConfiguration "public_listener": no good`)
	if got := whatBecameOf(t, s, index, "20s").states(); got != "web-sidecar-proxy refused" {
		t.Fatalf("applied: %q", got)
	}
	_, _, problems := check()
	want := []string{
		bad,
		`RouteConfiguration "public_listener" |  | web-sidecar-proxy | refused by Envoy, which keeps the version before: no good`,
		`upstream "payments" port 7200 | admin | admin-sidecar-proxy | envoy_cluster_json: escape hatches are off, it has no effect: start the servers with --allow-escape-hatches`,
	}
	if diff := cmp.Diff(want, problems); diff != "" {
		t.Error(diff)
	}
}
