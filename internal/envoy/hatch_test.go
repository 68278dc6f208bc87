package envoy_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

const hatchScenario = `
-- services/catalog.hcl --
service {
  name = "catalog"
  port = %[1]d
  connect { sidecar_service {
    port = %[2]d
    proxy { config { envoy_public_listener_json = %[5]q envoy_local_cluster_json = %[6]q } }
  } }
}
-- services/storefront.hcl --
service {
  name = "storefront"
  port = 1
  connect { sidecar_service {
    port = %[3]d
    proxy { upstreams = [{
      destination_name = "catalog" local_bind_port = %[4]d
      config { envoy_listener_json = %[7]q envoy_cluster_json = %[8]q }
    }] }
  } }
}
-- config/global.hcl --
Kind = "proxy-defaults"
Name = "global"
Config { protocol = "http" }
-- config/catalog.hcl --
Kind = "service-intentions"
Name = "catalog"
Sources = [{ Name = "reports", Action = "deny" }]
`

// handMade is a listener that adds the response header x-%[1]s; %[2]s is how it
// routes, %[3]s more of its filter chain.
const handMade = `{"name": "mine", "filter_chains": [{%[3]s "filters": [{
  "name": "http", "typed_config": {
    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "stat_prefix": "mine", %[2]s,
    "http_filters": [
      {"name": "lua", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
        "default_source_code": {"inline_string": "function envoy_on_response(h) h:headers():add('x-%[1]s', 'yes') end"}}},
      {"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}
    ]}}]}]}`

type hatches struct{ public, local, listener, cluster string }

// parse gives a scenario in which the hatches stand; the ports are arbitrary.
func (h hatches) parse(t *testing.T, app int) (s meshtest.Scenario, catalogSide, toCatalog string) {
	t.Helper()
	free := meshtest.FreePorts(t, 3)
	s = meshtest.Parse(t, txtar.Parse(fmt.Appendf(nil, hatchScenario, app, free[0], free[1], free[2], h.public, h.local, h.listener, h.cluster)).Files)
	return s, fmt.Sprintf("127.0.0.1:%d", free[0]), fmt.Sprintf("127.0.0.1:%d", free[2])
}

// What is written is in force, and the mesh's TLS and intentions all the same.
func TestEscapeHatches(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(catalogApp))
	t.Cleanup(app.Close)
	h := hatches{
		public: fmt.Sprintf(handMade, "public", `"route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "local_app"}}]}]}`, `"transport_socket": {"name": "plaintext"},`),
		local: fmt.Sprintf(`{"name": "other", "connect_timeout": "3s", "type": "STATIC", "load_assignment": {"cluster_name": "other", "endpoints": [{"lb_endpoints":
			[{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": %d}}}}]}]}}`, portOf(app)),
		listener: fmt.Sprintf(handMade, "outbound", `"rds": {"route_config_name": "catalog", "config_source": {"ads": {}}}`, ""),
		cluster:  `{"name": "x", "type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}}, "connect_timeout": "7s", "lb_policy": "RANDOM"}`,
	}
	m := &mesh{t: t, ca: meshtest.NewAuthority(t), hatches: true}
	var catalogSide, toCatalog string
	// The app's own port is wrong: only the written cluster reaches it.
	m.scenario, catalogSide, toCatalog = h.parse(t, 1)
	m.start("catalog-sidecar-proxy")
	storefront := m.start("storefront-sidecar-proxy")

	status, header, body := get(t, toCatalog)
	if status != 200 || header.Get("X-Public") != "yes" || header.Get("X-Outbound") != "yes" {
		t.Errorf("%d %v %q, want both listeners' headers", status, header, body)
	}
	if dump := storefront.Admin("/config_dump?resource=static_clusters"); !strings.Contains(dump, `"connect_timeout": "7s"`) || !strings.Contains(dump, `"sni"`) {
		t.Errorf("the written cluster is not in force with the mesh's TLS:\n%s", dump)
	}
	for name, config := range map[string]*tls.Config{"no certificate": {InsecureSkipVerify: true}, "denied": m.ca.Client(spiffe("reports"))} {
		if resp, err := m.client(config).Get("https://" + catalogSide); err == nil {
			resp.Body.Close()
			t.Errorf("%s: %s, want nothing", name, resp.Status)
		}
	}
	if resp, err := m.client(m.ca.Client(spiffe("other"))).Get("https://" + catalogSide); err != nil || resp.StatusCode != 200 {
		t.Errorf("allowed: %v, %v", resp, err)
	} else {
		resp.Body.Close()
	}
}

// What cannot be read is named, and everything is as it would be without.
func TestEscapeHatchesUnread(t *testing.T) {
	one := func(h hatches, allow bool) (r [2]envoy.Resources, problems []proxy.Problem) {
		s, _, _ := h.parse(t, 1)
		for i, side := range s.Sidecars {
			side.Service.Port = 21000 + i
			for j := range side.Service.Proxy.Upstreams {
				side.Service.Proxy.Upstreams[j].LocalBindPort = 7100
			}
			in := input(s)
			in.Instance, in.AllowEscapeHatches = side, allow
			p, more := proxy.Build(in)
			r[i] = resources(t, p)
			problems = append(append(problems, more...), r[i].Problems...)
		}
		return r, problems
	}
	bare, problems := one(hatches{}, true)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	long := `{"filter_chains": [{}], "no_such_field": 1}`
	for name, tc := range map[string]struct {
		hatches
		want []string
	}{
		"no JSON":       {hatches{"{", "{", "{", "{"}, []string{"envoy_local_cluster_json: it has no effect: unexpected EOF", "envoy_public_listener_json: it has", "envoy_cluster_json: it has", "envoy_listener_json: it has"}},
		"unknown field": {hatches{public: long, listener: long}, []string{`unknown field "no_such_field"`, `unknown field "no_such_field"`}},
		"unknown type":  {hatches{listener: `{"filter_chains": [{"filters": [{"name": "a", "typed_config": {"@type": "type.googleapis.com/a.B"}}]}]}`}, []string{`unable to resolve "type.googleapis.com/a.B"`}},
		"invalid":       {hatches{cluster: `{"connect_timeout": "0s"}`}, []string{"ConnectTimeout: value must be greater than 0s"}},
		"no way in":     {hatches{public: `{}`}, []string{"it has no filter chain"}},
		"no TCP":        {hatches{public: `{"filter_chains": [{}], "api_listener": {}}`}, []string{"want a listener for TCP"}},
	} {
		got, problems := one(tc.hatches, true)
		if len(problems) != len(tc.want) {
			t.Errorf("%s: problems %v, want %q", name, problems, tc.want)
			continue
		}
		for i, p := range problems {
			if !strings.Contains(p.Reason, tc.want[i]) {
				t.Errorf("%s: %s, want %q", name, p, tc.want[i])
			}
		}
		for i := range got {
			if !bytes.Equal(wire(t, got[i]), wire(t, bare[i])) {
				t.Errorf("%s: sidecar %d has other resources than without the hatch", name, i)
			}
		}
	}
	if got, problems := one(hatches{"{}", "{}", "{}", "{}"}, false); len(problems) != 4 || !bytes.Equal(wire(t, got[0]), wire(t, bare[0])) {
		t.Errorf("hatches that are off: %v", problems)
	}
}

// A written public listener can judge connections only: whoever would be judged by
// request is denied there, and a problem says so.
func TestEscapeHatchDeniesWhatItCannotJudge(t *testing.T) {
	s, _, _ := hatches{public: `{"filter_chains": [{}]}`}.parse(t, 1)
	in := input(s)
	in.AllowEscapeHatches = true
	in.Config = in.Config.With([]config.Entry{intentions("catalog",
		&config.SourceIntention{Name: "web", Permissions: []*config.Permission{rule(config.Allow, config.HTTPPermission{PathPrefix: "/"})}},
		&config.SourceIntention{Name: "batch", Action: config.Allow},
	)}, nil)
	p, _ := proxy.Build(in)
	r := resources(t, p)
	if len(r.Problems) != 1 || !strings.Contains(r.Problems[0].Reason, "those with permissions or tokens deny") {
		t.Errorf("problems %v", r.Problems)
	}
	e := &evaluator{}
	for caller, want := range map[string]bool{"web": false, "batch": true, "other": true} {
		if _, allowed, _ := e.connection(r, asked{caller: caller}); allowed != want {
			t.Errorf("%s: allowed is %v", caller, allowed)
		}
	}
}
