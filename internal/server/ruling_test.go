package server_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/catalog/consulstore/consultest"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
)

// eventuallyHeld waits until a server holds the services, in order: each as "name" or "name kept".
func eventuallyHeld(t *testing.T, s *servertest.Server, want ...string) {
	t.Helper()
	meshtest.Eventually(t, fmt.Sprintf("held is %q", want), func() error {
		var got []string
		for _, h := range heldOf(t, s).Services {
			row := h.Service
			if h.KeptBy != "" {
				row += " kept"
			}
			got = append(got, row)
		}
		if strings.Join(got, ", ") != strings.Join(want, ", ") {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
}

// eventuallyTold waits until a server tells sidecars of a service, or no longer.
func eventuallyTold(t *testing.T, s *servertest.Server, service string, want bool) {
	t.Helper()
	meshtest.Eventually(t, fmt.Sprintf("%s is told: %v", service, want), func() error {
		_, b := s.Call(http.MethodGet, "/v1/crossfade/proxies?id="+service+"-proxy", nil)
		if strings.Contains(string(b), service+"-proxy") != want {
			return fmt.Errorf("%s", b)
		}
		return nil
	})
}

// What is decided on one server holds on all, on one that was away, too, and for what it was
// about alone: what is registered again and vanishes again is held again.
func TestDecisionsHoldOnAllServers(t *testing.T) {
	f := consultest.NewFake(t)
	come := func(services ...string) {
		for _, name := range services {
			consulCall(t, http.MethodPut, f.URL+"/v1/catalog/register", fmt.Sprintf(`{"Node":"node-%[1]s","Address":"10.0.0.1","Service":{"Kind":"connect-proxy","Service":"%[1]s-proxy","ID":"%[1]s-proxy","Port":80,
				"Proxy":{"DestinationServiceName":"%[1]s"}}}`, name))
		}
	}
	vanish := func(services ...string) {
		for _, name := range services {
			consulCall(t, http.MethodPut, f.URL+"/v1/catalog/deregister", fmt.Sprintf(`{"Node":"node-%s"}`, name))
		}
	}
	decide := func(s *servertest.Server, what string) {
		s.Call(http.MethodPut, "/v1/crossfade/catalog/"+what+"-proxy", nil)
	}
	come("a", "b", "c")
	dir := t.TempDir()
	s := sharingIn(t, f.URL, t.TempDir(), t.TempDir(), dir)
	for _, one := range s {
		eventuallyTold(t, one, "c", true)
	}
	s, away := s[:2], s[2]
	away.Stop() // and what it let through is on its disk
	if _, err := os.Stat(filepath.Join(dir, "catalog.lastgood")); err != nil {
		t.Fatal(err)
	}

	vanish("a", "b", "c")
	for _, one := range s {
		eventuallyHeld(t, one, "a-proxy", "b-proxy", "c-proxy")
	}
	decide(s[0], "release/a")
	decide(s[1], "keep/b")
	away = servertest.Start(t, server.Options{DataDir: dir, Consul: f.URL})
	for _, one := range append(s, away) {
		eventuallyHeld(t, one, "b-proxy kept", "c-proxy")
		eventuallyTold(t, one, "a", false)
		eventuallyTold(t, one, "b", true)
	}
	if _, trail := s[1].Call(http.MethodGet, "/v1/crossfade/audit", nil); !strings.Contains(string(trail), "/v1/crossfade/catalog/keep/b-proxy") {
		t.Errorf("the trail: %s", trail)
	}

	decide(s[0], "release/b")
	for _, one := range append(s, away) {
		eventuallyHeld(t, one, "c-proxy")
		eventuallyTold(t, one, "b", false)
	}

	come("a", "b", "c")
	for _, one := range append(s, away) {
		eventuallyHeld(t, one)
		eventuallyTold(t, one, "a", true)
		eventuallyTold(t, one, "b", true)
	}
	vanish("a", "b")
	for _, one := range append(s, away) {
		eventuallyHeld(t, one, "a-proxy", "b-proxy")
		eventuallyTold(t, one, "a", true)
	}

	// Without the Consul nothing is decided, for one server alone either.
	f.Down()
	meshtest.Eventually(t, "the server knows that Consul is away", func() error {
		if _, body := s[0].Call(http.MethodGet, "/v1/crossfade/health", nil); !strings.Contains(string(body), "the state that servers share") {
			return fmt.Errorf("%s", body)
		}
		return nil
	})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s[0].URL()+"/v1/crossfade/catalog/release/a-proxy", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s[0].OperatorClient().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusInternalServerError || !strings.Contains(string(text), f.URL) {
		t.Errorf("a release without the Consul: %s %s", resp.Status, text)
	}
	eventuallyHeld(t, s[0], "a-proxy", "b-proxy")
}
