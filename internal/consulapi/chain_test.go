package consulapi_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// chains writes entries to a fresh registry and returns it.
func chains(t *testing.T, entries ...string) *server {
	t.Helper()
	s, _ := newServer(t, "")
	must(t, s.store.Update(func(w *store.Writer) error {
		for _, text := range append(entries, `{"Kind":"proxy-defaults","Name":"global","Config":{"protocol":"http"}}`) {
			e, err := config.DecodeEntryJSON([]byte(text))
			if err != nil {
				return err
			}
			if err := w.PutEntry(e, store.Author{}); err != nil {
				return err
			}
		}
		return nil
	}))
	return s
}

// chain is the parts of an answer that tests look at.
type chain struct {
	Chain struct {
		StartNode, Protocol, Datacenter, CustomizationHash string
		Default                                            bool
		ServiceMeta                                        map[string]string
		Nodes                                              map[string]struct {
			Routes []struct{ NextNode string }
			Splits []struct {
				Definition config.ServiceSplit
				Weight     float64
				NextNode   string
			}
			Resolver *struct {
				ConnectTimeout string
				Failover       *struct{ Targets []string }
			}
			LoadBalancer *config.LoadBalancer
		}
		Targets map[string]struct {
			ConnectTimeout, SNI string
			Subset              config.ResolverSubset
		}
	}
}

func (s *server) chain(t *testing.T, method, path, body string) (out chain) {
	t.Helper()
	status, text := s.raw(t, method, "/v1/discovery-chain/"+path, body)
	if status != http.StatusOK {
		t.Fatalf("%s %s: %d %s", method, path, status, text)
	}
	must(t, json.Unmarshal([]byte(text), &out))
	return out
}

func (s *server) raw(t *testing.T, method, path, body string) (int, string) {
	t.Helper()
	_, whole := difference{request: strings.TrimSpace(method + " " + path + " " + body)}.ask(t, s.URL)
	status, text, _ := strings.Cut(whole, " ")
	var code int
	fmt.Sscan(status, &code)
	return code, strings.Trim(text, "`")
}

// TestChainThatCrashesConsul: two valid splitters, the outer leg removes a header and
// the inner one adds some.
func TestChainThatCrashesConsul(t *testing.T) {
	s := chains(t, `{"Kind":"service-splitter","Name":"inner","Splits":[{"Weight":100,"RequestHeaders":{"Add":{"x-a":"1"}},"ResponseHeaders":{"Remove":["x-b"]}}]}`,
		`{"Kind":"service-splitter","Name":"outer","Splits":[{"Weight":100,"Service":"inner","RequestHeaders":{"Remove":["x-old"]},"ResponseHeaders":{"Add":{"x-c":"1"}}}]}`)
	split := s.chain(t, "GET", "outer", "").Chain.Nodes["splitter:outer.default.default"].Splits[0]
	want := config.ServiceSplit{Weight: 100, RequestHeaders: &config.HeaderModifiers{Add: map[string]string{"x-a": "1"}, Remove: []string{"x-old"}},
		ResponseHeaders: &config.HeaderModifiers{Add: map[string]string{"x-c": "1"}, Remove: []string{"x-b"}}}
	if diff := cmp.Diff(want, split.Definition); diff != "" {
		t.Error(diff)
	}
}

// TestChainRounding: parts of nested splits add up, and are the same every time.
func TestChainRounding(t *testing.T) {
	s := chains(t, `{"Kind":"service-splitter","Name":"inner","Splits":[{"Weight":33.33},{"Weight":66.67,"Service":"other"}]}`,
		`{"Kind":"service-splitter","Name":"outer","Splits":[{"Weight":50,"Service":"inner"},{"Weight":50}]}`)
	for range 20 {
		var got []float64
		for _, split := range s.chain(t, "GET", "outer", "").Chain.Nodes["splitter:outer.default.default"].Splits {
			got = append(got, split.Weight)
		}
		if diff := cmp.Diff([]float64{16.67, 33.33, 50}, got); diff != "" {
			t.Fatal(diff)
		}
	}
}

// TestChainFailoverToItself: nobody stands in for themselves.
func TestChainFailoverToItself(t *testing.T) {
	s := chains(t, `{"Kind":"service-resolver","Name":"web","Failover":{"*":{"Targets":[{"Service":"old"},{"Service":"spare"}]}}}`, `{"Kind":"service-resolver","Name":"old","Redirect":{"Service":"web"}}`)
	r := s.chain(t, "GET", "web", "").Chain.Nodes["resolver:web.default.default.dc1"].Resolver
	if diff := cmp.Diff([]string{"spare.default.default.dc1"}, r.Failover.Targets); diff != "" {
		t.Error(diff)
	}
}

// TestChainBalancerOfNestedLeg: what hashes below a splitter hashes for its route.
func TestChainBalancerOfNestedLeg(t *testing.T) {
	s := chains(t, `{"Kind":"service-resolver","Name":"inner","LoadBalancer":{"Policy":"maglev"}}`, `{"Kind":"service-splitter","Name":"inner","Splits":[{"Weight":100}]}`,
		`{"Kind":"service-splitter","Name":"outer","Splits":[{"Weight":50},{"Weight":50,"Service":"inner"}]}`)
	if lb := s.chain(t, "GET", "outer", "").Chain.Nodes["splitter:outer.default.default"].LoadBalancer; lb == nil || lb.Policy != "maglev" {
		t.Errorf("balancer %v", lb)
	}
}

// TestChainOfConnections: a splitter divides connections too.
func TestChainOfConnections(t *testing.T) {
	s := chains(t, `{"Kind":"service-defaults","Name":"db","Protocol":"tcp","Meta":{"owner":"dba"}}`, `{"Kind":"service-defaults","Name":"db2","Protocol":"tcp"}`,
		`{"Kind":"service-splitter","Name":"db","Splits":[{"Weight":99},{"Weight":1,"Service":"db2"}]}`)
	c := s.chain(t, "GET", "db", "").Chain
	if c.StartNode != "splitter:db.default.default" || c.Protocol != "tcp" || c.ServiceMeta["owner"] != "dba" {
		t.Errorf("%+v", c)
	}
}

func TestChainOverrides(t *testing.T) {
	s := chains(t, `{"Kind":"service-defaults","Name":"rpc","Protocol":"grpc"}`, `{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":50},{"Weight":50,"Service":"api"}]}`,
		`{"Kind":"service-resolver","Name":"web","ConnectTimeout":"2s","Failover":{"*":{"Service":"api"}}}`)
	c := s.chain(t, "GET", "web?compile-dc=dc2", "").Chain
	if c.Datacenter != "dc2" || c.Targets["web.default.default.dc2"].ConnectTimeout != "2s" || c.CustomizationHash != "" {
		t.Errorf("%+v", c)
	}
	for _, body := range []string{`{"OverrideProtocol":"tcp","OverrideConnectTimeout":"7s","OverrideMeshGateway":{"Mode":"none"}}`, `{"override_protocol":"tcp","override_connect_timeout":7000000000}`} {
		c := s.chain(t, "POST", "web", body).Chain
		if c.StartNode != "resolver:web.default.default.dc1" || c.Protocol != "tcp" || c.Targets["api.default.default.dc1"].ConnectTimeout != "7s" || len(c.CustomizationHash) != 8 {
			t.Errorf("%s: %+v", body, c)
		}
	}
	for body, want := range map[string]string{
		`{"OverrideProtocol":"gopher"}`:            `OverrideProtocol: protocol "gopher" is unknown`,
		`{"OverrideMeshGateway":{"Mode":"local"}}`: `OverrideMeshGateway: "local": mesh gateways are not served`,
		`{"OverrideConnectTimeout":"-1s"}`:         "must not be negative",
		`{"OverrideConnectTimeout":"soon"}`:        "Request decoding failed",
		`[`:                                        "Request decoding failed",
	} {
		if status, text := s.raw(t, "POST", "/v1/discovery-chain/web", body); status != http.StatusBadRequest || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s", body, status, text)
		}
	}
	if status, text := s.raw(t, "GET", "/v1/discovery-chain/", ""); status != http.StatusBadRequest || text != "Missing chain name" {
		t.Errorf("no name: %d %s", status, text)
	}
	c = s.chain(t, "GET", "nobody", "").Chain
	if !c.Default || c.StartNode != "resolver:nobody.default.default.dc1" {
		t.Errorf("nobody: %+v", c)
	}
}

func TestChainThatIsBroken(t *testing.T) {
	s := chains(t, `{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":100,"ServiceSubset":"v1"}]}`)
	if status, text := s.raw(t, "GET", "/v1/discovery-chain/web", ""); status != http.StatusInternalServerError || !strings.Contains(text, `service "web" has no subset "v1"`) {
		t.Errorf("%d %s", status, text)
	}
}

// TestChainWaitsForItsEntriesAlone: a blocking query returns when the chain may have
// changed, and no sooner.
func TestChainWaitsForItsEntriesAlone(t *testing.T) {
	s := chains(t, `{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":50},{"Weight":50,"Service":"api"}]}`)
	index := func() string {
		r, err := http.Get(s.URL + "/v1/discovery-chain/web")
		must(t, err)
		defer r.Body.Close()
		return r.Header.Get("X-Consul-Index")
	}
	put := func(body string) {
		t.Helper()
		if status, text := s.raw(t, "PUT", "/v1/config", body); status != http.StatusOK {
			t.Fatalf("%s: %s", body, text)
		}
	}
	before := index()
	put(`{"Kind":"service-resolver","Name":"other","ConnectTimeout":"1s"}`)
	if now := index(); now != before {
		t.Errorf("index %s, then %s by what is nothing to it", before, now)
	}
	answered := make(chan chain)
	go func() { answered <- s.chain(t, "GET", "web?wait=1m&index="+before, "") }()
	put(`{"Kind":"service-resolver","Name":"api","ConnectTimeout":"1s"}`)
	if c := <-answered; c.Chain.Nodes["resolver:api.default.default.dc1"].Resolver.ConnectTimeout != "1s" {
		t.Errorf("%+v", c)
	}
}
