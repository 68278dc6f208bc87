package envoy_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// startAPI is service api, of protocol http, whose app answers 200 to all.
func startAPI(t *testing.T) (l *live, address string) {
	t.Helper()
	app := httptest.NewServer(http.HandlerFunc(catalogApp))
	t.Cleanup(app.Close)
	port := meshtest.FreePorts(t, 1)[0]
	l = startLive(t, fmt.Sprintf(`
-- services/api.hcl --
service {
  name = "api"
  port = %d
  connect { sidecar_service { port = %d } }
}
-- config/api.hcl --
Kind = "service-defaults"
Name = "api"
Protocol = "http"
`, app.Listener.Addr().(*net.TCPAddr).Port, port), meshtest.NewAuthority(t))
	return l, fmt.Sprintf("127.0.0.1:%d", port)
}

func rule(action config.Action, p config.HTTPPermission) *config.Permission {
	return &config.Permission{Action: action, HTTP: &p}
}

// header is a permission's only condition.
func header(h config.HeaderPermission) config.HTTPPermission {
	return config.HTTPPermission{Header: []config.HeaderPermission{h}}
}

// TestPermissions asks real Envoy about single permissions, each followed by one
// that decides the other way about everything.
func TestPermissions(t *testing.T) {
	l, address := startAPI(t)
	client := l.mesh.client(l.mesh.ca.Client(spiffe("web")))
	type req struct {
		method, path string
		header       http.Header
		met          bool
	}
	h := func(values ...string) http.Header { return http.Header{"X-Role": values} }
	for _, tc := range []struct {
		name     string
		http     config.HTTPPermission
		requests []req
	}{
		{"path exact", config.HTTPPermission{PathExact: "/admin"}, []req{
			{path: "/admin", met: true}, {path: "/admin?x=/y", met: true}, {path: "/admin?", met: true}, {path: "//admin", met: true}, {path: "/a/../admin", met: true}, {path: "/%61dmin", met: true},
			{path: "/admin/"}, {path: "/ADMIN"}, {path: "/admi"}, {path: "/?/admin"}, {path: "/admin%3fx"}}},
		{"path prefix", config.HTTPPermission{PathPrefix: "/v1/"}, []req{
			{path: "/v1/", met: true}, {path: "/v1/a?b", met: true}, {path: "/v2/../v1/a", met: true}, {path: "/v1/./a", met: true}, {path: "/v1/..//v1/", met: true},
			{path: "/v1"}, {path: "/v1/../v2"}, {path: "/?/v1/"}}},
		{"path regex", config.HTTPPermission{PathRegex: `.*\.js`}, []req{
			{path: "/a.js", met: true}, {path: "/a.js?v=1", met: true}, {path: "/a?x=.js"}, {path: "/a.jsx"}}},
		{"path regex with anchors", config.HTTPPermission{PathRegex: `^/a[0-9]+$`}, []req{
			{path: "/a12", met: true}, {path: "/a12?b", met: true}, {path: "/a"}, {path: "/b/a1"}, {path: "/a1/b"}}},
		{"path regex is of the whole", config.HTTPPermission{PathRegex: `/a`}, []req{{path: "/a", met: true}, {path: "/ab"}, {path: "/b/a"}}},
		{"methods", config.HTTPPermission{Methods: []string{"PUT", "DELETE"}}, []req{
			{method: "PUT", path: "/", met: true}, {method: "DELETE", path: "/", met: true}, {method: "GET", path: "/"}, {method: "HEAD", path: "/"}}},
		{"header exact", header(config.HeaderPermission{Name: "X-Role", Exact: "admin"}), []req{
			{path: "/", header: h("admin"), met: true}, {path: "/", header: h("Admin")}, {path: "/", header: h("admins")}, {path: "/", header: h("")}, {path: "/"}}},
		{"header exact, any case", header(config.HeaderPermission{Name: "x-role", Exact: "aDmin", IgnoreCase: true}), []req{
			{path: "/", header: h("ADMIN"), met: true}, {path: "/", header: h("admin"), met: true}, {path: "/", header: h("admins")}}},
		{"header prefix", header(config.HeaderPermission{Name: "x-role", Prefix: "adm"}), []req{{path: "/", header: h("admin"), met: true}, {path: "/", header: h("xadm")}, {path: "/"}}},
		{"header suffix", header(config.HeaderPermission{Name: "x-role", Suffix: "min"}), []req{{path: "/", header: h("admin"), met: true}, {path: "/", header: h("minx")}, {path: "/"}}},
		{"header contains", header(config.HeaderPermission{Name: "x-role", Contains: "dmi"}), []req{
			{path: "/", header: h("admin"), met: true}, {path: "/", header: h("x", "admin"), met: true}, {path: "/", header: h("DMI")}, {path: "/"}}},
		{"header contains, any case", header(config.HeaderPermission{Name: "x-role", Contains: "DMI", IgnoreCase: true}), []req{{path: "/", header: h("admin"), met: true}}},
		{"header regex", header(config.HeaderPermission{Name: "x-role", Regex: "a[a-m]+in"}), []req{{path: "/", header: h("admin"), met: true}, {path: "/", header: h("xadmin")}, {path: "/", header: h("adminx")}, {path: "/"}}},
		{"header regex, any case", header(config.HeaderPermission{Name: "x-role", Regex: "^admin$", IgnoreCase: true}), []req{{path: "/", header: h("ADMIN"), met: true}, {path: "/", header: h("ADMINs")}}},
		{"header present", header(config.HeaderPermission{Name: "x-role", Present: true}), []req{{path: "/", header: h("a"), met: true}, {path: "/", header: h(""), met: true}, {path: "/"}}},
		{"header absent", header(config.HeaderPermission{Name: "x-role", Present: true, Invert: true}), []req{{path: "/", header: h("a")}, {path: "/", header: h("")}, {path: "/", met: true}}},
		{"header not exact", header(config.HeaderPermission{Name: "x-role", Exact: "admin", Invert: true}), []req{{path: "/", header: h("admin")}, {path: "/", header: h("user"), met: true}, {path: "/", met: true}}},
		{"host", header(config.HeaderPermission{Name: "Host", Prefix: "127.0.0.1"}), []req{{path: "/", met: true}}},
		{"all of several", config.HTTPPermission{PathPrefix: "/a", Methods: []string{"GET"}, Header: []config.HeaderPermission{{Name: "x-role", Exact: "a"}, {Name: "x-other", Present: true}}}, []req{
			{path: "/a", header: http.Header{"X-Role": {"a"}, "X-Other": {"b"}}, met: true}, {path: "/a", header: h("a")}, {path: "/b", header: http.Header{"X-Role": {"a"}, "X-Other": {"b"}}},
			{method: "POST", path: "/a", header: http.Header{"X-Role": {"a"}, "X-Other": {"b"}}}}},
		{"none", config.HTTPPermission{}, []req{{path: "/", met: true}}},
	} {
		for _, action := range []config.Action{config.Allow, config.Deny} {
			t.Run(tc.name+" "+string(action), func(t *testing.T) {
				other := config.Allow
				if action == config.Allow {
					other = config.Deny
				}
				l.write(intentions("api", &config.SourceIntention{Name: "web", Permissions: []*config.Permission{rule(action, tc.http), rule(other, config.HTTPPermission{})}}))
				for _, r := range tc.requests {
					if got := send(t, client, address, r.method, r.path, r.header) == 200; got != ((action == config.Allow) == r.met) {
						t.Errorf("%s %s %v: let through is %v", r.method, r.path, r.header, got)
					}
				}
			})
		}
	}
	l.untouched()
}

// send is the status of a request whose path is sent as it is.
func send(t *testing.T, c *http.Client, address, method, path string, h http.Header) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://"+address, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.URL.Opaque = "//" + address + path
	if h != nil {
		req.Header = h.Clone()
	}
	status, _, _ := do(t, c, req)
	return status
}

// TestSeveralValues sends a header that a rule is about in ways in which some app may
// still find what the rule is about. It decides for the stricter side.
func TestSeveralValues(t *testing.T) {
	l, address := startAPI(t)
	client := l.mesh.client(l.mesh.ca.Client(spiffe("web")))
	long := strings.Repeat("x", 1000)
	evil := [][]string{{"evil"}, {"good", "evil"}, {"evil", "good"}, {"good,evil"}, {"good, evil ,x"}, {" evil"}, {"evil,"}, {",evil"}, {"", "evil"}, {"evil", "evil"}, {"a", "b", "evil"}}
	for _, c := range []config.HeaderPermission{
		{Exact: "evil"}, {Exact: "EVIL", IgnoreCase: true}, {Prefix: "evi"}, {Suffix: "vil"}, {Prefix: "EV", IgnoreCase: true}, {Suffix: "IL", IgnoreCase: true},
		{Contains: "vi"}, {Regex: "evil"}, {Regex: "^evil$"}, {Regex: "e.{2}l"}, {Regex: "(?i)^(EVIL|worse)$"}, {Regex: `\Aev[a-z]+\z`},
	} {
		c.Name = "x-Role"
		l.write(intentions("api", &config.SourceIntention{Name: "web", Permissions: []*config.Permission{rule(config.Deny, header(c)), rule(config.Allow, config.HTTPPermission{})}}))
		for _, values := range evil {
			if status := send(t, client, address, "GET", "/", http.Header{"X-ROLE": values}); status != 403 {
				t.Errorf("deny %+v: %q: %d", c, values, status)
			}
		}
		for _, values := range [][]string{{"good"}, {"goo", "d"}, nil} {
			if status := send(t, client, address, "GET", "/", http.Header{"X-Role": values}); status != 200 {
				t.Errorf("deny %+v: %q: %d", c, values, status)
			}
		}
		c.Invert = true
		l.write(intentions("api", &config.SourceIntention{Name: "web", Permissions: []*config.Permission{rule(config.Allow, header(c))}}))
		for _, values := range evil {
			if status := send(t, client, address, "GET", "/", http.Header{"X-Role": values}); status != 403 {
				t.Errorf("allow but for %+v: %q: %d", c, values, status)
			}
		}
		if status := send(t, client, address, "GET", "/", http.Header{"X-Role": {"good"}}); status != 200 {
			t.Errorf("allow but for %+v: good: %d", c, status)
		}
	}
	// What allows looks at all of it.
	l.write(intentions("api", &config.SourceIntention{Name: "web", Permissions: []*config.Permission{rule(config.Allow, header(config.HeaderPermission{Name: "x-role", Exact: "good"}))}}))
	for _, values := range [][]string{{"good", "evil"}, {"good, evil"}, {"evil", "good"}, {"good", "good"}} {
		if status := send(t, client, address, "GET", "/", http.Header{"X-Role": values}); status != 403 {
			t.Errorf("allow good: %q: %d", values, status)
		}
	}
	// A method in another case is refused by what denies it, and allowed by nothing.
	for _, permissions := range [][]*config.Permission{
		{rule(config.Deny, config.HTTPPermission{Methods: []string{"DELETE"}}), rule(config.Allow, config.HTTPPermission{PathPrefix: "/"})},
		{rule(config.Allow, config.HTTPPermission{Methods: []string{"DELETE"}, PathExact: "/x"})},
	} {
		l.write(intentions("api", &config.SourceIntention{Name: "web", Permissions: permissions}))
		if status := send(t, client, address, "delete", "/", nil); status != 403 {
			t.Errorf("delete: %d", status)
		}
	}
	// An expression that long is still taken.
	l.write(intentions("api", &config.SourceIntention{Name: "web", Permissions: []*config.Permission{rule(config.Deny, header(config.HeaderPermission{Name: "x-role", Exact: long})), rule(config.Allow, config.HTTPPermission{})}}))
	if status := send(t, client, address, "GET", "/", http.Header{"X-Role": {"a", long}}); status != 403 {
		t.Errorf("a long value: %d", status)
	}
}

// TestPathCorpus spells a path that is denied, and everything else allowed, in every
// way in which apps were ever made to serve it. Each is refused or reaches the app
// as another path.
func TestPathCorpus(t *testing.T) {
	l, address := startAPI(t)
	l.write(intentions("api", &config.SourceIntention{Name: "web", Permissions: []*config.Permission{
		rule(config.Deny, config.HTTPPermission{PathPrefix: "/admin"}), rule(config.Allow, config.HTTPPermission{PathPrefix: "/"}),
	}}))
	spellings := []string{
		"/admin", "/admin/", "/admin?a", "/admin/x", "/admin;x=1", "//admin", "///admin", "/./admin", "/x/../admin", "/x//../admin", "/%61dmin", "/%61%64%6D%69%6e",
		"/%2e/admin", "/x/%2e%2e/admin", "/x/.%2e/admin", "/x/..;/admin", "/x/..;a=b/admin", "/.;/admin", `/\admin`, `\admin`, `/x\..\admin`, "/%2fadmin", "/x%2f..%2fadmin", "/%5cadmin", "/..%2fadmin",
		"/../admin", "/../../admin", "/admin#x", "/#/../admin", "/admin%00", "/admin%2f", "/admin%3fx", "/admin%23", "/x/y/../../admin", "/admin/../admin", "/admin/.", "/%252e/../admin",
		"http://evil/admin", "http://evil//admin", "http://evil/x/../admin", "HTTP://evil/%61dmin", "https://evil/admin",
	}
	config := l.mesh.ca.Client(spiffe("web"))
	config.NextProtos = []string{"http/1.1"}
	for _, path := range spellings {
		for _, method := range []string{"GET", "POST", "OPTIONS"} {
			c, err := tls.Dial("tcp", address, config)
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(5 * time.Second))
			fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: api\r\nX-Original-URL: /ok\r\nX-Envoy-Original-Path: /ok\r\nContent-Length: 0\r\n\r\n", method, path)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			seen, err := io.ReadAll(resp.Body)
			c.Close()
			if err != nil {
				t.Fatal(err)
			}
			// The app says which path it was asked for, see catalogApp.
			if words := strings.Fields(string(seen)); resp.StatusCode == 200 && strings.HasPrefix(words[3], "/admin") || resp.StatusCode >= 500 {
				t.Errorf("%s %s: %s: the app got %q", method, path, resp.Status, seen)
			}
		}
	}
	if status := send(t, l.mesh.client(l.mesh.ca.Client(spiffe("web"))), address, "GET", "/user?/admin", nil); status != 200 {
		t.Errorf("what is allowed: %d", status)
	}
}
