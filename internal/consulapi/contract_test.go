package consulapi_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/check"
	"github.com/crossfade-mesh/crossfade/internal/consulapi"
)

// server is a registry with its API and running checks.
type server struct {
	store *store.Store
	agent *consulapi.Agent
	api.Client
	URL string
}

// newServer starts one over dir ("" in memory); stop ends it before the test does.
func newServer(t *testing.T, dir string) (s *server, stop func()) {
	t.Helper()
	st, err := store.Open(store.Options{Dir: dir, NodeName: "self", NodeAddress: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	agent := consulapi.NewAgent(st, nil)
	runner := check.New(check.Options{
		Report: func(node, id string, r check.Result) {
			if err := agent.Report(node, id, r.Status, r.Output); err != nil {
				t.Error(err)
			}
		},
		Alias:      agent.Alias,
		Deregister: func(node, id string) { agent.Deregister(node, id) },
	})
	agent.Start(runner)
	hs := httptest.NewServer(consulapi.New(consulapi.Options{Store: st, Agent: agent, GRPCAddr: "127.0.0.1:8502", EnvoyVersions: []string{"1.40.0"}}))
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			runner.Close()
			st.Close()
			hs.Close()
		}
	}
	t.Cleanup(stop)
	return &server{st, agent, *newClient(t, hs.URL), hs.URL}, stop
}

func newClient(t *testing.T, url string) *api.Client {
	t.Helper()
	client, err := api.NewClient(&api.Config{Address: url})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func TestContract(t *testing.T) {
	testContract(t, func(t *testing.T) string { s, _ := newServer(t, ""); return s.URL })
}

// testContract holds for crossfade and for Consul. start gives the URL of a fresh one
// whose node is called self.
func testContract(t *testing.T, start func(*testing.T) string) {
	for _, c := range slices.Concat(contract(), sessionContract()) {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.run(t, newClient(t, start(t)))
		})
	}
	for _, c := range transcripts() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			url := start(t)
			for _, s := range c.steps {
				s.run(t, url)
			}
		})
	}
}

// step is one request and what must come back.
type step struct {
	request string // method and path, as "GET /v1/kv/x"
	body    string
	status  int
	want    string // the whole answer, JSON without spaces; "" for any, "…text…" for one that holds text
}

func (s step) run(t *testing.T, url string) {
	t.Helper()
	method, path, _ := strings.Cut(s.request, " ")
	r, err := http.NewRequestWithContext(t.Context(), method, url+path, strings.NewReader(s.body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	got := string(raw)
	var compact bytes.Buffer
	if json.Compact(&compact, raw) == nil { // Consul in its development mode indents
		got = compact.String()
	}
	if resp.StatusCode != s.status {
		t.Errorf("%s %s: status %d, want %d: %s", s.request, s.body, resp.StatusCode, s.status, got)
	}
	inner, contains := strings.CutPrefix(s.want, "…")
	inner = strings.TrimSuffix(inner, "…")
	if s.want != "" && got != s.want && !(contains && strings.Contains(got, inner)) {
		t.Errorf("%s %s: answer %q, want %q", s.request, s.body, got, s.want)
	}
}

type contractCase struct {
	name string
	run  func(t *testing.T, c *api.Client)
}

func ok[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits for what an agent does in the background.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	within(t, 15*time.Second, what, holds)
}

func within(t *testing.T, limit time.Duration, what string, holds func() bool) {
	t.Helper()
	again, deadline := time.NewTicker(20*time.Millisecond), time.After(limit)
	defer again.Stop()
	for !holds() {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

func entries(t *testing.T, c *api.Client, name string, passing bool) []*api.ServiceEntry {
	t.Helper()
	out, _, err := c.Health().Service(name, "", passing, nil)
	must(t, err)
	return out
}

func contract() []contractCase {
	return []contractCase{
		{"a service with its sidecar", func(t *testing.T, c *api.Client) {
			must(t, c.Agent().ServiceRegister(&api.AgentServiceRegistration{
				Name: "web", Port: 8080, Tags: []string{"v1"}, Meta: map[string]string{"team": "shop"},
				Check: &api.AgentServiceCheck{TTL: "1h"},
				Connect: &api.AgentServiceConnect{SidecarService: &api.AgentServiceRegistration{Proxy: &api.AgentServiceConnectProxyConfig{
					Upstreams: []api.Upstream{{DestinationName: "db", LocalBindPort: 9191}}}}},
			}))
			eventually(t, "both are in the catalog", func() bool {
				names, _, err := c.Catalog().Services(nil)
				return err == nil && names["web"] != nil && names["web-sidecar-proxy"] != nil
			})
			side, _, err := c.Agent().Service("web-sidecar-proxy", nil)
			must(t, err)
			p := side.Proxy
			got := []any{side.Kind, side.Port, side.Meta["team"], p.DestinationServiceName, p.DestinationServiceID, p.LocalServiceAddress, p.LocalServicePort, p.Upstreams[0].DestinationName}
			want := []any{api.ServiceKindConnectProxy, 21000, "shop", "web", "web", "127.0.0.1", 8080, "db"}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("sidecar (-want +got):\n%s", diff)
			}
			checks := ok[map[string]*api.AgentCheck](t)(c.Agent().Checks())
			for id, want := range map[string]string{"service:web": "ttl", "service:web-sidecar-proxy:1": "tcp", "service:web-sidecar-proxy:2": "alias"} {
				if checks[id] == nil || checks[id].Type != want {
					t.Errorf("check %s is %+v, want type %s", id, checks[id], want)
				}
			}
			if got := entries(t, c, "web", true); len(got) != 0 {
				t.Errorf("%d passing before the first pulse", len(got))
			}
			must(t, c.Agent().UpdateTTL("service:web", "fine", api.HealthPassing))
			eventually(t, "passing, seen by the alias", func() bool {
				a := ok[map[string]*api.AgentCheck](t)(c.Agent().Checks())["service:web-sidecar-proxy:2"]
				return len(entries(t, c, "web", true)) == 1 && a.Status == api.HealthPassing && a.Output == "All checks passing."
			})
			connect, _, err := c.Health().Connect("web", "", false, nil)
			must(t, err)
			if len(connect) != 1 || connect[0].Service.ID != "web-sidecar-proxy" {
				t.Errorf("connect instances: %+v", connect)
			}
			must(t, c.Agent().ServiceDeregister("web"))
			eventually(t, "both are gone", func() bool {
				names, _, err := c.Catalog().Services(nil)
				return err == nil && names["web"] == nil && names["web-sidecar-proxy"] == nil
			})
			if left := ok[map[string]*api.AgentCheck](t)(c.Agent().Checks()); len(left) != 0 {
				t.Errorf("checks left: %v", left)
			}
		}},
		{"catalog registration", func(t *testing.T, c *api.Client) {
			for _, node := range []string{"n1", "n2"} {
				_, err := c.Catalog().Register(&api.CatalogRegistration{
					Node: node, Address: "10.0.0.1", NodeMeta: map[string]string{"rack": node},
					Service: &api.AgentService{Service: "api", Port: 80, Tags: []string{"A", node}},
					Checks:  api.HealthChecks{{CheckID: "c", Name: "c", ServiceID: "api", Status: api.HealthPassing}},
				}, nil)
				must(t, err)
			}
			for _, q := range []struct {
				tags  []string
				query api.QueryOptions
				want  string
			}{
				{nil, api.QueryOptions{}, "n1 n2"},
				{[]string{"a"}, api.QueryOptions{}, "n1 n2"},
				{[]string{"A", "n2"}, api.QueryOptions{}, "n2"},
				{[]string{"A", "n3"}, api.QueryOptions{}, ""},
				{nil, api.QueryOptions{NodeMeta: map[string]string{"rack": "n1"}}, "n1"},
				{nil, api.QueryOptions{Filter: `"n2" in Service.Tags`}, "n2"},
				{nil, api.QueryOptions{Filter: `Node.Meta.rack == n1 and Service.Port == 80`}, "n1"},
				{nil, api.QueryOptions{Near: "_agent", AllowStale: true}, "n1 n2"},
			} {
				list, meta, err := c.Health().ServiceMultipleTags("api", q.tags, true, &q.query)
				must(t, err)
				var nodes []string
				for _, e := range list {
					nodes = append(nodes, e.Node.Node)
				}
				slices.Sort(nodes)
				if got := strings.Join(nodes, " "); got != q.want || meta.LastIndex == 0 || !meta.KnownLeader {
					t.Errorf("%v %+v: %q at %+v, want %q", q.tags, q.query, got, meta, q.want)
				}
			}
			_, err := c.Catalog().Deregister(&api.CatalogDeregistration{Node: "n1"}, nil)
			must(t, err)
			if list := entries(t, c, "api", false); len(list) != 1 || list[0].Node.Node != "n2" {
				t.Errorf("after a node is gone: %+v", list)
			}
		}},
		{"blocking queries", func(t *testing.T, c *api.Client) {
			register := func(name string, port int) {
				_, err := c.Catalog().Register(&api.CatalogRegistration{Node: "n", Address: "10.0.0.1", Service: &api.AgentService{Service: name, Port: port}}, nil)
				must(t, err)
			}
			register("api", 1)
			_, first, err := c.Health().Service("api", "", false, nil)
			must(t, err)
			register("api", 1)
			register("other", 2)
			_, same, err := c.Health().Service("api", "", false, &api.QueryOptions{WaitIndex: first.LastIndex, WaitTime: 300 * time.Millisecond})
			must(t, err)
			if same.LastIndex != first.LastIndex {
				t.Errorf("index rose from %d to %d by writes that change nothing here", first.LastIndex, same.LastIndex)
			}
			answer := make(chan int, 1)
			go func() {
				list, _, err := c.Health().Service("api", "", false, &api.QueryOptions{WaitIndex: first.LastIndex, WaitTime: time.Minute})
				if err != nil || len(list) != 1 {
					answer <- -1
					return
				}
				answer <- list[0].Service.Port
			}()
			register("api", 3)
			if got := <-answer; got != 3 {
				t.Errorf("woken with port %d, want 3", got)
			}
			_, err = c.Catalog().Deregister(&api.CatalogDeregistration{Node: "n", ServiceID: "api"}, nil)
			must(t, err)
			_, gone, err := c.Health().Service("api", "", false, &api.QueryOptions{WaitIndex: first.LastIndex, WaitTime: time.Minute})
			must(t, err)
			if gone.LastIndex <= first.LastIndex {
				t.Errorf("index of the deregistered service is %d, before it was %d", gone.LastIndex, first.LastIndex)
			}
		}},
		{"configuration entries", func(t *testing.T, c *api.Client) {
			e := &api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "web", Protocol: "http"}
			if wrote, _, err := c.ConfigEntries().Set(e, nil); err != nil || !wrote {
				t.Fatal(wrote, err)
			}
			got, _, err := c.ConfigEntries().Get(api.ServiceDefaults, "web", nil)
			must(t, err)
			index := got.GetModifyIndex()
			if got.(*api.ServiceConfigEntry).Protocol != "http" || index == 0 {
				t.Errorf("read back %+v", got)
			}
			_, _, err = c.ConfigEntries().Set(e, nil)
			must(t, err)
			if again, _, err := c.ConfigEntries().Get(api.ServiceDefaults, "web", nil); err != nil || again.GetModifyIndex() != index {
				t.Errorf("same entry again: index %d, want %d (%v)", again.GetModifyIndex(), index, err)
			}
			for _, cas := range []struct {
				index    uint64
				protocol string
				want     bool
			}{{0, "grpc", false}, {index + 7, "grpc", false}, {index, "grpc", true}, {index, "http2", false}} {
				e.Protocol = cas.protocol
				if wrote, _, err := c.ConfigEntries().CAS(e, cas.index, nil); err != nil || wrote != cas.want {
					t.Errorf("cas %d: %v %v, want %v", cas.index, wrote, err, cas.want)
				}
			}
			list, _, err := c.ConfigEntries().List(api.ServiceDefaults, nil)
			must(t, err)
			if len(list) != 1 || list[0].GetName() != "web" {
				t.Errorf("list: %+v", list)
			}
			_, err = c.ConfigEntries().Delete(api.ServiceDefaults, "web", nil)
			must(t, err)
		}},
		{"intentions", func(t *testing.T, c *api.Client) {
			_, err := c.Connect().IntentionUpsert(&api.Intention{SourceName: "*", DestinationName: "db", Action: api.IntentionActionDeny}, nil)
			must(t, err)
			_, err = c.Connect().IntentionUpsert(&api.Intention{SourceName: "web", DestinationName: "db", Action: api.IntentionActionAllow, Description: "d"}, nil)
			must(t, err)
			list, _, err := c.Connect().Intentions(nil)
			must(t, err)
			var got []string
			for _, in := range list {
				got = append(got, in.String())
			}
			if diff := cmp.Diff([]string{"web => db (allow)", "* => db (deny)"}, got); diff != "" {
				t.Errorf("list (-want +got):\n%s", diff)
			}
			for source, want := range map[string]bool{"web": true, "else": false} {
				allowed, _, err := c.Connect().IntentionCheck(&api.IntentionCheck{Source: source, Destination: "db"}, nil)
				if err != nil || allowed != want {
					t.Errorf("%s => db: %v %v, want %v", source, allowed, err, want)
				}
			}
			e, _, err := c.ConfigEntries().Get(api.ServiceIntentions, "db", nil)
			must(t, err)
			if s := e.(*api.ServiceIntentionsConfigEntry).Sources; len(s) != 2 || s[0].Precedence != 9 || s[1].Precedence != 8 {
				t.Errorf("entry: %+v", s)
			}
			for _, source := range []string{"web", "*"} {
				_, err = c.Connect().IntentionDeleteExact(source, "db", nil)
				must(t, err)
			}
			if _, _, err := c.ConfigEntries().Get(api.ServiceIntentions, "db", nil); err == nil || !strings.Contains(err.Error(), "404") {
				t.Errorf("entry without sources: %v, want it gone", err)
			}
		}},
	}
}
