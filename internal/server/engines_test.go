package server_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/crossfade-mesh/crossfade/internal/catalog/consul"
	"github.com/crossfade-mesh/crossfade/internal/catalog/consulstore"
	"github.com/crossfade-mesh/crossfade/internal/catalog/consulstore/consultest"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/migrate"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
)

// entryFiles are a folder's files of entries of most kinds.
var entryFiles = map[string]string{
	"global.hcl":   `Kind = "proxy-defaults"` + "\n" + `Name = "global"` + "\n" + `Config { protocol = "http" }`,
	"mesh.json":    `{"Kind":"mesh","Meta":{"of":"shop"}}`,
	"catalog.yaml": "kind: service-defaults\nname: catalog\nprotocol: http\n",
	"resolver.hcl": "Kind = \"service-resolver\"\nName = \"catalog\"\nSubsets = { v1 = { Filter = \"Service.Meta.version == v1\" } }\nConnectTimeout = \"3s\"\n",
	"router.hcl":   "Kind = \"service-router\"\nName = \"catalog\"\nRoutes = [{ Match { HTTP { PathPrefix = \"/admin\" } }, Destination { NumRetries = 3 } }]\n",
	"split.json":   `{"Kind":"service-splitter","Name":"catalog","Splits":[{"Weight":90},{"Weight":10,"ServiceSubset":"v1"}]}`,
	"who.json":     `{"Kind":"service-intentions","Name":"catalog","Sources":[{"Name":"web","Action":"allow"},{"Name":"*","Action":"deny"}]}`,
	"policy.yaml":  "kind: traffic-policy\nname: catalog\nsticky: {header: user}\n",
	"shift.yaml":   "kind: traffic-shift\nsource: web\ndestination: catalog\nshares: {direct: 30, mtls: 70}\n",
}

// TestSameFilesOnBothEngines takes the same files into the embedded store and into a Consul, and
// moves the state from one to the other and back.
func TestSameFilesOnBothEngines(t *testing.T) { testSameFiles(t, consultest.NewFake(t).URL) }

func testSameFiles(t *testing.T, url string) {
	entries, first := t.TempDir(), t.TempDir()
	for name, text := range entryFiles {
		if err := os.WriteFile(filepath.Join(entries, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	webCallsCatalog(t, url)
	s := servertest.Start(t, server.Options{DataDir: first, ConfigDir: entries, DefaultAllow: true})
	for _, body := range webAndCatalog() {
		s.Call("PUT", "/v1/agent/service/register", []byte(body))
	}
	embedded := look(t, s)
	fingerprint := s.Fingerprint()
	s.Stop()

	second := t.TempDir()
	operator(t, first, second)
	e := engine(t, url)
	done, err := migrate.ToConsul(t.Context(), first, e, false)
	if err != nil || done.Entries != len(entryFiles) || !done.CA || done.Tokens != 1 {
		t.Fatalf("moved %+v, %v", done, err)
	}
	if _, err := migrate.ToConsul(t.Context(), first, e, false); err == nil {
		t.Error("what was moved is moved again")
	}
	s = servertest.Start(t, server.Options{DataDir: second, Consul: url, ConfigDir: entries, DefaultAllow: true})
	shared := look(t, s)
	if s.Fingerprint() != fingerprint {
		t.Error("the CA is another")
	}
	if diff := cmp.Diff(embedded, shared); diff != "" {
		t.Errorf("on the two engines (-embedded +Consul):\n%s", diff)
	}
	if _, err := migrate.ToDir(t.Context(), e, t.TempDir()); err == nil || !strings.Contains(err.Error(), "stop all servers") {
		t.Errorf("state is moved that a server is using: %v", err)
	}
	s.Stop()

	// Each engine refuses the other's directory, and says how to move it.
	alone := t.TempDir()
	servertest.Start(t, server.Options{DataDir: alone}).Stop()
	for _, o := range []server.Options{{DataDir: second}, {DataDir: alone, Consul: url}} {
		if _, err := server.New(o); err == nil || !strings.Contains(err.Error(), "crossfade migrate store") {
			t.Errorf("a server with Consul %q starts in the directory of another kind: %v", o.Consul, err)
		}
	}

	third := t.TempDir()
	operator(t, first, third)
	if done, err := migrate.ToDir(t.Context(), e, third); err != nil || done.Entries != len(entryFiles) || !done.CA || done.Tokens != 1 {
		t.Fatalf("moved back %+v, %v", done, err)
	}
	s = servertest.Start(t, server.Options{DataDir: third, DefaultAllow: true})
	for _, body := range webAndCatalog() {
		s.Call("PUT", "/v1/agent/service/register", []byte(body))
	}
	if diff := cmp.Diff(embedded, look(t, s)); diff != "" || s.Fingerprint() != fingerprint {
		t.Errorf("after the way back (-before +after):\n%s", diff)
	}
}

func engine(t *testing.T, url string) *consulstore.Engine {
	t.Helper()
	c, err := consul.NewClient(consul.Options{Address: url})
	if err != nil {
		t.Fatal(err)
	}
	return consulstore.New(consulstore.Options{Client: c, Address: url})
}

// operator copies the operator's token.
func operator(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(from, "operator.token"))
	if err == nil {
		err = os.WriteFile(filepath.Join(to, "operator.token"), text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// seen is what a server shows: entries with the versions of their history, and what two sidecars
// are told.
type seen struct {
	Entries map[string]string
	Past    map[string]int
	Told    map[string]string
}

func look(t *testing.T, s *servertest.Server) seen {
	t.Helper()
	out := seen{map[string]string{}, map[string]int{}, map[string]string{}}
	meshtest.Eventually(t, "all entries are there", func() error {
		_, body := s.Call("GET", "/v1/config/", nil)
		var all []map[string]any
		if err := json.Unmarshal(body, &all); err != nil {
			return err
		}
		for _, e := range all {
			name, _ := e["Name"].(string)
			key := e["Kind"].(string) + "/" + name
			delete(e, "CreateIndex")
			delete(e, "ModifyIndex")
			text, err := json.Marshal(e)
			if err != nil {
				return err
			}
			out.Entries[key] = string(text)
		}
		if len(all) < len(entryFiles) {
			_, problems := s.Call("GET", "/v1/crossfade/config/check", nil)
			return fmt.Errorf("%d of %d: %s", len(all), len(entryFiles), problems)
		}
		return nil
	})
	for key := range out.Entries {
		path := strings.TrimSuffix(key, "/")
		if path == "mesh" {
			path = "mesh/mesh"
		}
		_, body := s.Call("GET", "/v1/crossfade/config/history/"+path, nil)
		out.Past[key] = strings.Count(string(body), `"index"`)
	}
	// Clusters come first, then what leads to them.
	for id, last := range map[string][]string{"web-sidecar-proxy": {"RouteConfiguration catalog ", "Listener catalog:", "Listener public_listener:"}, "catalog-sidecar-proxy": {"Listener public_listener:"}} {
		told := versions(t, s, id)
		meshtest.Eventually(t, "a sidecar is told all", func() error {
			out.Told[id] = told()
			for _, name := range last {
				if !strings.Contains(out.Told[id], name) {
					return fmt.Errorf("no %s in\n%s", name, out.Told[id])
				}
			}
			return nil
		})
	}
	return out
}
