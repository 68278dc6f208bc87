package server_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// planned is what POST /v1/crossfade/config/plan says.
type planned struct {
	Sidecars, Changing, Listeners, Connections, Unknown int
	Entries                                             []struct{ Kind, Name, Action string }
	Changes                                             []struct {
		Type, Name, Action, Diff string
		Sidecars                 []string
		Drains                   bool
		Chains                   []string
	}
	Problems []string
}

func plan(t *testing.T, s *servertest.Server, body string) (p planned) {
	t.Helper()
	_, b := s.Call(http.MethodPost, "/v1/crossfade/config/plan", []byte(body))
	if err := json.Unmarshal(b, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// short is a plan without what differs by run, one line per change.
func (p planned) short() (out []string) {
	out = append(out, fmt.Sprintf("%d of %d, %d listeners drain %d and %d unknown", p.Changing, p.Sidecars, p.Listeners, p.Connections, p.Unknown))
	for _, e := range p.Entries {
		out = append(out, e.Action+" "+e.Kind+"/"+e.Name)
	}
	for _, c := range p.Changes {
		name, _, _ := strings.Cut(c.Name, ".")
		name, _, _ = strings.Cut(name, ":")
		out = append(out, fmt.Sprintf("%s %s %s on %v", c.Action, c.Type, name, c.Sidecars))
	}
	return out
}

func TestPlanShowsWhatWouldChangeAndChangesNothing(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	s.Register("web.yaml", web)
	s.Register("admin.yaml", admin)
	s.Register("catalog.yaml", catalog)
	caller := follow(t, s, "web-sidecar-proxy", true, endpoints(s, "catalog"), route("public_listener"), route("catalog"))
	caller.until("in sync", func() bool {
		return len(caller.held) == 7 && strings.Contains(caller.body(endpoints(s, "catalog")), `"port_value"`)
	})
	before := caller.responses

	const tcp = `{"entries":[{"Kind":"service-defaults","Name":"catalog","Protocol":"tcp"},{"Kind":"service-defaults","Name":"web","Protocol":"http"}]}`
	got := plan(t, s, tcp)
	want := []string{
		"2 of 3, 2 listeners drain 0 and 2 unknown",
		"change service-defaults/catalog", "unchanged service-defaults/web",
		"changed Cluster catalog on [web-sidecar-proxy]",
		"changed Cluster local_app on [catalog-sidecar-proxy]",
	}
	if diff := cmp.Diff(want, got.short()[:len(want)]); diff != "" {
		t.Errorf("%s\nall: %s", diff, strings.Join(got.short(), "\n"))
	}
	for _, c := range got.Changes {
		if c.Drains != (c.Type == "Listener") || c.Action == "changed" && (!strings.Contains(c.Diff, "\n-") || !strings.HasPrefix(c.Diff, "--- "+c.Type+` "`)) {
			t.Errorf("%s %s: drains %v, diff %s", c.Type, c.Name, c.Drains, c.Diff)
		}
	}

	// What sidecars say of their connections.
	listener := ""
	for k := range caller.held {
		if k.Type == xds.ListenerType && strings.HasPrefix(k.Name, "catalog:") {
			listener = k.Name
		}
	}
	s.Call(http.MethodPut, "/v1/crossfade/sidecars/web-sidecar-proxy/connections", []byte(`{"listeners":{"`+listener+`":7}}`))
	if got := plan(t, s, tcp).short()[0]; got != "2 of 3, 2 listeners drain 7 and 1 unknown" {
		t.Errorf("with one report: %s", got)
	}
	if _, b := s.Call(http.MethodGet, "/v1/crossfade/sidecars", nil); !strings.Contains(string(b), `"connections":{"`+listener+`":7}`) {
		t.Errorf("the report is not shown: %s", b)
	}

	balance := plan(t, s, `{"entries":[{"Kind":"service-defaults","Name":"catalog","Protocol":"http","BalanceInboundConnections":"exact_balance"}]}`)
	if got, want := balance.short(), []string{"1 of 3, 1 listeners drain 0 and 1 unknown", "change service-defaults/catalog", "changed Listener public_listener on [catalog-sidecar-proxy]"}; !cmp.Equal(got, want) || !balance.Changes[0].Drains {
		t.Errorf("another balance: %v, want %v", got, want)
	}
	if got := plan(t, s, `{"delete":[{"kind":"service-intentions","name":"nobody"}]}`).short(); !cmp.Equal(got, []string{"0 of 3, 0 listeners drain 0 and 0 unknown", "unchanged service-intentions/nobody"}) {
		t.Errorf("nothing to delete: %v", got)
	}
	_, b := s.Call(http.MethodGet, "/v1/config/service-defaults/catalog", nil)
	if !strings.Contains(string(b), `"Protocol":"http"`) {
		t.Errorf("the plan was carried out: %s", b)
	}
	write(t, s, `{"Kind":"service-intentions","Name":"web","Sources":[{"Name":"admin","Action":"deny"}]}`)
	caller.until("its own intentions reach it", func() bool { return strings.Contains(caller.body(route("public_listener")), "svc/admin") })
	if caller.responses != before+1 {
		t.Errorf("%d responses, want one: plans send nothing", caller.responses-before)
	}
}

func TestPlanIsCarriedOutAsPlanned(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	s.Register("web.yaml", web)
	caller := follow(t, s, "web-sidecar-proxy", true, route("public_listener"))
	caller.until("in sync", func() bool { return len(caller.held) == 5 })
	const entry = `{"Kind":"service-intentions","Name":"web","Sources":[{"Name":"admin","Action":"deny"}]}`
	p := plan(t, s, `{"entries":[`+entry+`]}`)
	if p.Changing != 1 || len(p.Changes) != 1 || p.Changes[0].Type != "RouteConfiguration" || p.Listeners != 0 {
		t.Fatalf("plan %v", p.short())
	}
	before := caller.responses
	write(t, s, entry)
	caller.until("the change", func() bool { return strings.Contains(caller.body(route("public_listener")), "svc/admin") })
	if caller.responses != before+1 {
		t.Errorf("%d responses, planned was one resource", caller.responses-before)
	}
	for line := range strings.Lines(p.Changes[0].Diff) {
		if text, added := strings.CutPrefix(line, "+  "); added && !strings.Contains(indent(t, caller.body(route("public_listener"))), text) {
			t.Errorf("planned, but not there: %s", line)
		}
	}
}

func indent(t *testing.T, text string) string {
	t.Helper()
	var out bytes.Buffer
	if err := json.Indent(&out, []byte(text), "", "  "); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestPlansAndReportsThatAreRefused(t *testing.T) {
	s := servertest.Start(t, server.Options{})
	s.Register("web.yaml", web)
	const report = "PUT /v1/crossfade/sidecars/web-sidecar-proxy/connections"
	for _, tt := range []struct{ request, body, want string }{
		{"POST /v1/crossfade/config/plan", `{`, "can't be read"},
		{"POST /v1/crossfade/config/plan", `{}`, "got 0 entries, want 1 to 1000"},
		{"POST /v1/crossfade/config/plan", `{"entries":[{"Kind":"nonsense"}]}`, `unknown kind "nonsense"`},
		{"POST /v1/crossfade/config/plan", `{"delete":[{"kind":"mesh","name":"mesh"},{"kind":"mesh","name":"mesh"}]}`, `mesh "mesh": given twice`},
		{"POST /v1/crossfade/config/plan", `{"entries":["` + strings.Repeat("x", 9<<20) + `"]}`, "too large"},
		{report, `{"listeners":{"x":-1}}`, `listener "x": -1 connections`},
		{report, `{"listeners":{"` + strings.Repeat("x", 600) + `":1}}`, "at most 512 bytes"},
		{report, `[]`, "cannot be read"},
		{strings.Replace(report, "web-", "nobody-", 1), `{}`, `sidecar "nobody-sidecar-proxy": not registered`},
	} {
		method, path, _ := strings.Cut(tt.request, " ")
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.HTTPAddr()+path, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode < 400 || resp.StatusCode >= 500 || !strings.Contains(string(text), tt.want) {
			t.Errorf("%s %.60s: status %d: %s; want %q", tt.request, tt.body, resp.StatusCode, text, tt.want)
		}
	}
}

// Entries that say which instances there are change endpoints alone.
func TestChangesOfEndpointsByEntriesCount(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	s.Register("web.yaml", web)
	s.Register("catalog.yaml", catalog)
	resolver := func(filter string) string {
		return `{"Kind":"service-resolver","Name":"catalog","DefaultSubset":"v1","Subsets":{"v1":{"Filter":"` + filter + `"}}}`
	}
	write(t, s, resolver("Service.Port != 1"))
	subset := xds.Key{Type: xds.EndpointType, Name: "v1." + endpoints(s, "catalog").Name}
	caller := follow(t, s, "web-sidecar-proxy", true, subset)
	caller.until("the subset has an instance", func() bool { return strings.Contains(caller.body(subset), `"port_value"`) })

	next := resolver("Service.Port == 1")
	p := plan(t, s, `{"entries":[`+next+`]}`)
	if len(p.Changes) != 1 || p.Changes[0].Type != "ClusterLoadAssignment" || !strings.Contains(p.Changes[0].Diff, "\n-") {
		t.Errorf("plan %q", p.short())
	}
	if got := whatBecameOf(t, s, write(t, s, next), "20s").states(); got != "web-sidecar-proxy acked" {
		t.Errorf("applied: %q", got)
	}
	caller.until("the subset is empty", func() bool { return !strings.Contains(caller.body(subset), `"port_value"`) })
}

// A mode is told in place: what came by mTLS stays.
func TestPlanOfAModeNamesPlaintext(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	s.Register("catalog.yaml", catalog)
	s.Call(http.MethodPut, "/v1/config", []byte(`{"Kind":"mesh","AllowEnablingPermissiveMutualTLS":true}`))
	for _, tc := range []struct{ protocol, to, chains string }{
		{"http", "permissive", ""},
		{"http", "strict", "plaintext"},
		{"tcp", "permissive", "mtls, any other"},
		{"tcp", "strict", "plaintext"},
	} {
		from := map[string]string{"permissive": "strict", "strict": "permissive"}[tc.to]
		entry := `{"Kind":"service-defaults","Name":"catalog","Protocol":"` + tc.protocol + `","MutualTLSMode":"%s"}`
		if from == "strict" {
			s.Call(http.MethodPut, "/v1/config", fmt.Appendf(nil, entry, ""))
			if _, err := apiOf(t, s, "").Shift(t.Context(), api.ShiftRequest{Service: "catalog", Stage: "strict", Force: true}); err != nil {
				t.Fatal(err)
			}
		} else {
			s.Call(http.MethodPut, "/v1/config", fmt.Appendf(nil, entry, from))
		}
		found := false
		for _, c := range plan(t, s, `{"entries":[`+fmt.Sprintf(entry, tc.to)+`]}`).Changes {
			if c.Type != "Listener" {
				continue
			}
			found = true
			if got := strings.Join(c.Chains, "; "); got != tc.chains || c.Drains != (tc.chains != "") {
				t.Errorf("%s to %s: drains %v, of filter chains %q, want %q", tc.protocol, tc.to, c.Drains, got, tc.chains)
			}
		}
		if !found {
			t.Errorf("%s to %s: no listener changes", tc.protocol, tc.to)
		}
	}
}
