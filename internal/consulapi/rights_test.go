package consulapi

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/access"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
)

// guarded is an API whose callers name themselves by a header.
func guarded(t *testing.T, who map[string]access.Principal) http.Handler {
	t.Helper()
	s, err := store.Open(store.Options{Datacenter: "dc1", NodeName: "node", NodeAddress: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return New(Options{Store: s, Authorize: func(r *http.Request, n access.Need) error {
		if r.Header.Get("Who") == "" {
			return nil // the test itself, arranging things
		}
		return access.Decide(who[r.Header.Get("Who")], n)
	}})
}

func ask(h http.Handler, who, method, path, body string) (int, string) {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Who", who)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func everybody() map[string]access.Principal {
	return map[string]access.Principal{
		"anonymous": {},
		"reader":    {Role: access.Reader},
		"auditor":   {Role: access.Auditor},
		"operator":  {Role: access.Operator},
		"owner":     {Role: access.Owner, Services: []string{"web"}},
		"web":       {Role: access.Service, Services: []string{"web"}},
		"joining":   {Role: access.Join, Services: []string{"web"}},
		"catalog":   {Role: access.Service, Services: []string{"catalog"}},
	}
}

const all, people = "anonymous reader auditor operator owner web joining catalog", "reader auditor operator owner"

// Each endpoint with each method, asked by everybody. What the table does not name
// is for people to read and for operators to write, so a new endpoint is closed
// until it says otherwise.
func TestRightsAtEveryEndpoint(t *testing.T) {
	known := strings.TrimPrefix(all, "anonymous ")
	own, ownWrite := people+" web joining", "operator owner web joining"
	table := map[string]struct{ path, body, may string }{
		"GET /v1/status/leader":          {may: all},
		"GET /v1/status/peers":           {may: all},
		"GET /v1/connect/ca/roots":       {may: all},
		"GET /v1/agent/connect/ca/roots": {may: all},
		"GET /v1/agent/self":             {may: known},
		"GET /v1/agent/version":          {may: known},
		"GET /v1/acl/":                   {may: known}, "PUT /v1/acl/": {may: known}, "DELETE /v1/acl/": {may: known},

		"GET /v1/agent/service/":             {path: "web-1", may: own},
		"GET /v1/agent/health/service/id/":   {path: "web-1", may: own},
		"PUT /v1/agent/service/register":     {body: `{"Name":"web","ID":"web-1"}`, may: ownWrite},
		"PUT /v1/agent/service/maintenance/": {path: "web-1?enable=true", may: ownWrite},
		"PUT /v1/agent/service/deregister/":  {path: "web-1", may: ownWrite},
		"PUT /v1/agent/check/register":       {body: `{"Name":"beat","ServiceID":"web-1","TTL":"1h"}`, may: ownWrite},
		"PUT /v1/agent/check/pass/":          {path: "beat", may: ownWrite},
		"PUT /v1/agent/check/warn/":          {path: "beat", may: ownWrite},
		"PUT /v1/agent/check/fail/":          {path: "beat", may: ownWrite},
		"PUT /v1/agent/check/update/":        {path: "beat", body: `{"Status":"passing"}`, may: ownWrite},
		"PUT /v1/agent/check/deregister/":    {path: "beat", may: ownWrite},

		"GET /v1/config/":    {path: "service-defaults/web", may: own},
		"PUT /v1/config":     {body: `{"Kind":"service-intentions","Name":"web","Sources":[{"Name":"catalog","Action":"allow"}]}`, may: "operator owner"},
		"DELETE /v1/config/": {path: "service-defaults/web", may: "operator owner"},

		"PUT /v1/crossfade/sidecars/":        {path: "web-1/connections", body: `{}`, may: ownWrite},
		"POST /v1/discovery-chain/":          {path: "web", body: `{}`, may: people},
		"POST /v1/crossfade/config/plan":     {body: `{}`, may: people},
		"GET /v1/crossfade/config/history/":  {path: "service-defaults/web", may: own},
		"PUT /v1/crossfade/config/rollback/": {path: "service-defaults/web", may: "operator owner"},

		"POST /v1/crossfade/shift":    {body: `{"pairs":[{"source":"web","destination":"catalog"}],"via":{"mtls":10}}`, may: "operator owner"},
		"GET /v1/crossfade/shift/log": {may: "operator"},
		"POST /v1/crossfade/revert":   {body: `{"pairs":[{"source":"web","destination":"catalog"}]}`, may: "operator owner"},

		"POST /v1/connect/intentions":         {body: `{"SourceName":"x","DestinationName":"web","Action":"allow"}`, may: "operator owner"},
		"PUT /v1/connect/intentions/exact":    {path: "?source=catalog&destination=web", body: `{"Action":"deny"}`, may: "operator owner"},
		"DELETE /v1/connect/intentions/exact": {path: "?source=catalog&destination=web", may: "operator owner"},

		"PUT /v1/kv/":    {path: "crossfade/web/catalog/mesh_percent", body: "10", may: "operator owner"},
		"DELETE /v1/kv/": {path: "crossfade/web/catalog/mesh_percent", may: "operator owner"},
	}
	who := everybody()
	h := guarded(t, who)
	used := map[string]bool{}
	for _, rt := range routes() {
		for method := range rt.methods() {
			key := method + " " + rt.path
			c, special := table[key]
			used[key] = used[key] || special
			switch {
			case special:
			case method == http.MethodGet:
				c.may = people
			default:
				c.may = "operator"
			}
			for name := range who {
				ask(h, "", "PUT", "/v1/agent/service/register", `{"Name":"web","ID":"web-1"}`)
				ask(h, "", "PUT", "/v1/agent/check/register", `{"Name":"beat","ServiceID":"web-1","TTL":"1h"}`)
				code, text := ask(h, name, method, rt.path+c.path, c.body)
				allowed := code != http.StatusForbidden
				if allowed != slices.Contains(strings.Fields(c.may), name) {
					t.Errorf("%s%s by %s: status %d, want allowed %v: %s", key, c.path, name, code, !allowed, text)
				}
			}
		}
	}
	for key := range table {
		if !used[key] {
			t.Errorf("%s: no such endpoint", key)
		}
	}
}

// Ways to another's things through what is one's own.
func TestNoWayToAnothersThings(t *testing.T) {
	who := everybody()
	h := guarded(t, who)
	arrange := func() {
		ask(h, "", "PUT", "/v1/agent/service/register?node=n&address=127.0.1.1", `{"Name":"catalog","ID":"catalog-1","Port":1,"Check":{"CheckID":"catalog-up","TTL":"1h"},"Connect":{"SidecarService":{"Port":2}}}`)
		ask(h, "", "PUT", "/v1/agent/service/register?node=n&address=127.0.1.1", `{"Name":"web","ID":"web-1","Port":3}`)
		ask(h, "", "PUT", "/v1/agent/check/register?node=n", `{"Name":"disk","TTL":"1h"}`)
	}
	const at = "?node=n&address=127.0.1.1"
	for _, c := range []struct{ name, request, body string }{
		{"another service", "PUT /v1/agent/service/register" + at, `{"Name":"catalog","ID":"catalog-2"}`},
		{"another's instance id", "PUT /v1/agent/service/register" + at, `{"Name":"web","ID":"catalog-1"}`},
		{"another's sidecar id", "PUT /v1/agent/service/register" + at, `{"Name":"web","ID":"catalog-1-sidecar-proxy"}`},
		{"an id whose sidecar is another's", "PUT /v1/agent/service/register" + at, `{"Name":"web","ID":"catalog-1","Connect":{"SidecarService":{}}}`},
		{"a proxy for another", "PUT /v1/agent/service/register" + at, `{"Name":"web-sidecar-proxy","ID":"p","Kind":"connect-proxy","Port":9,"Proxy":{"DestinationServiceName":"catalog"}}`},
		{"a proxy under another's name", "PUT /v1/agent/service/register" + at, `{"Name":"catalog","ID":"p","Kind":"connect-proxy","Port":9,"Proxy":{"DestinationServiceName":"web"}}`},
		{"another's check", "PUT /v1/agent/service/register" + at, `{"Name":"web","ID":"web-1","Check":{"CheckID":"catalog-up","TTL":"1h"}}`},
		{"another's check, by a sidecar's", "PUT /v1/agent/service/register" + at, `{"Name":"web","ID":"web-1","Connect":{"SidecarService":{"Check":{"CheckID":"catalog-up","TTL":"1h"}}}}`},
		{"the node's check", "PUT /v1/agent/service/register" + at, `{"Name":"web","ID":"web-1","Check":{"CheckID":"disk","TTL":"1h"}}`},
		{"the node from under another", "PUT /v1/agent/service/register?node=n&address=127.0.6.6", `{"Name":"web","ID":"web-1"}`},
		{"another's instance, gone", "PUT /v1/agent/service/deregister/catalog-1?node=n", ""},
		{"another's sidecar, gone", "PUT /v1/agent/service/deregister/catalog-1-sidecar-proxy?node=n", ""},
		{"another's maintenance", "PUT /v1/agent/service/maintenance/catalog-1?node=n&enable=true", ""},
		{"the node's maintenance", "PUT /v1/agent/maintenance?node=n&enable=true", ""},
		{"another's pulse", "PUT /v1/agent/check/fail/catalog-up?node=n", ""},
		{"the node's pulse", "PUT /v1/agent/check/fail/disk?node=n", ""},
		{"a check for another", "PUT /v1/agent/check/register?node=n", `{"Name":"x","ServiceID":"catalog-1","TTL":"1h"}`},
		{"a check of one's own in place of another's", "PUT /v1/agent/check/register?node=n", `{"Name":"catalog-up","ServiceID":"web-1","TTL":"1h"}`},
		{"a check of the node", "PUT /v1/agent/check/register?node=n", `{"Name":"x","TTL":"1h"}`},
		{"another's entry", "PUT /v1/config", `{"Kind":"service-defaults","Name":"catalog","Protocol":"http"}`},
		{"another's ways", "PUT /v1/config", `{"Kind":"traffic-shift","Source":"catalog","Destination":"web","Shares":{"mtls":100}}`},
		{"everybody's ways", "PUT /v1/config", `{"Kind":"traffic-shift","Source":"*","Destination":"web","Shares":{"mtls":100}}`},
		{"another's ways, deleted", "DELETE /v1/config/traffic-shift/catalog~web", ""},
		{"the mesh's entry", "PUT /v1/config", `{"Kind":"mesh"}`},
		{"everybody's intentions", "PUT /v1/config", `{"Kind":"service-intentions","Name":"*","Sources":[{"Name":"web","Action":"allow"}]}`},
		{"another's entry, as it was", "PUT /v1/crossfade/config/rollback/service-defaults/catalog", ""},
		{"another's intentions", "PUT /v1/connect/intentions/exact?source=web&destination=catalog", `{"Action":"allow"}`},
		{"everybody's intentions, exactly", "PUT /v1/connect/intentions/exact?source=web&destination=*", `{"Action":"allow"}`},
		{"another's share", "PUT /v1/kv/crossfade/catalog/web/mesh_percent", "1"},
		{"another's pair", "POST /v1/crossfade/shift", `{"pairs":[{"source":"catalog","destination":"web"}],"via":{"mtls":10}}`},
		{"another's pair beside one's own", "POST /v1/crossfade/shift", `{"pairs":[{"source":"web","destination":"x"},{"source":"catalog","destination":"web"}],"via":{"mtls":10}}`},
		{"another's pair in a name", "POST /v1/crossfade/shift", `{"pairs":[{"source":"web~x","destination":"catalog"},{"source":"catalog~web","destination":"x"}],"via":{"mtls":10}}`},
		{"everybody's pairs", "POST /v1/crossfade/shift", `{"pairs":[{"source":"*","destination":"web"}],"via":{"mtls":10}}`},
		{"all callers", "POST /v1/crossfade/shift", `{"service":"web","via":{"mtls":10}}`},
		{"a shift that cannot be read", "POST /v1/crossfade/shift", `{"pairs":[{"source":"web","destination":"catalog"}],"via":{"mtls":10}} {}`},
		{"no pairs", "POST /v1/crossfade/shift", `{}`},
		{"another's pair, back", "POST /v1/crossfade/revert", `{"pairs":[{"source":"catalog","destination":"web"}]}`},
		{"all callers, back", "POST /v1/crossfade/revert", `{"service":"web"}`},
		{"all, back", "POST /v1/crossfade/revert", `{"all":true,"pairs":[{"source":"web","destination":"catalog"}]}`},
		{"another key", "PUT /v1/kv/crossfade/web/catalog/mesh_percent/x", "1"},
		{"a tree of keys", "DELETE /v1/kv/crossfade/web/catalog/mesh_percent?recurse", ""},
		{"the whole catalog", "PUT /v1/catalog/register", `{"Node":"n","Address":"127.0.0.9"}`},
		{"another's node, gone", "PUT /v1/catalog/deregister", `{"Node":"n"}`},
	} {
		method, path, _ := strings.Cut(c.request, " ")
		for _, name := range []string{"web", "joining", "owner"} {
			arrange()
			if code, text := ask(h, name, method, path, c.body); code != http.StatusForbidden {
				t.Errorf("%s by %s: status %d: %s", c.name, name, code, text)
			}
		}
	}
	// What an instance does every day.
	for _, c := range []struct {
		request, body string
		want          int
	}{
		{"PUT /v1/agent/service/register" + at, `{"Name":"web","ID":"web-2","Check":{"CheckID":"web-2-up","TTL":"1h"},"Connect":{"SidecarService":{"Port":4}}}`, 200},
		{"PUT /v1/agent/check/update/web-2-up?node=n", `{"Status":"passing"}`, 200},
		{"GET /v1/agent/service/web-2-sidecar-proxy?node=n", "", 200},
		{"GET /v1/agent/service/nobody?node=n", "", 404},
		{"GET /v1/config/service-defaults/web", "", 404},
		{"PUT /v1/config?cas=0", `{"Kind":"service-defaults","Name":"web","Protocol":"http"}`, 200},
		{"PUT /v1/config?cas=0", `{"Kind":"service-defaults","Name":"web","Protocol":"http","MaxInboundConnections":1}`, 403},
		{"PUT /v1/config", `{"Kind":"service-defaults","Name":"web","Protocol":"tcp"}`, 403},
		{"GET /v1/catalog/services", "", 403},
		{"GET /v1/kv/secret", "", 403},
		{"PUT /v1/agent/service/register" + at, `{"Name":`, 400},
		{"PUT /v1/agent/service/register" + at, `{"Name":"web","Meta":{"x":"` + strings.Repeat("x", maxSmallBody) + `"}}`, 413},
		{"PUT /v1/agent/service/deregister/web-2?node=n", "", 200},
	} {
		method, path, _ := strings.Cut(c.request, " ")
		if code, text := ask(h, "web", method, path, c.body); code != c.want {
			t.Errorf("%s: status %d, want %d: %s", c.request, code, c.want, text)
		}
	}
}

// What strangers send is not even decoded.
func TestStrangersBodiesStayUnread(t *testing.T) {
	h := guarded(t, everybody())
	for _, path := range []string{"/v1/agent/service/register", "/v1/agent/check/register", "/v1/config"} {
		r := httptest.NewRequest("PUT", path, unreadable{})
		r.Header.Set("Who", "anonymous")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusForbidden {
			t.Errorf("%s: status %d: %s", path, w.Code, w.Body)
		}
	}
}

type unreadable struct{}

func (unreadable) Read([]byte) (int, error) { panic("a stranger's body was read") }
