package server

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// Entries that make no chain any more leave the last ones that did in force, for that
// service alone.
func TestChainsKeepWhatWorked(t *testing.T) {
	http := &config.ProxyDefaults{Kind: config.KindProxyDefaults, Name: config.Global, Config: map[string]any{"protocol": "http"}}
	split := func(weights ...float64) *config.ServiceSplitter {
		e := &config.ServiceSplitter{Kind: config.KindServiceSplitter, Name: "web"}
		for i, w := range weights {
			e.Splits = append(e.Splits, config.ServiceSplit{Weight: w, Service: []string{"web", "other"}[i]})
		}
		return e
	}
	old := config.NewSet()
	c := newChains()
	compile := func(service string, set *config.Set) (string, []string) {
		c.forget(config.Changed(old, set))
		old = set
		chain, problems := c.compile(routing.Request{Config: set, Service: service, Datacenter: "dc1"})
		var out []string
		for _, p := range problems {
			out = append(out, p.String())
		}
		return chain.Describe(), out
	}
	good := config.NewSet(http, split(90, 10))
	want, problems := compile("web", good)
	if len(problems) > 0 || !strings.Contains(want, "10.00% other.dc1") {
		t.Fatalf("%s, %v", want, problems)
	}
	broken := good.With([]config.Entry{&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "other", Protocol: "tcp"}}, nil)
	got, problems := compile("web", broken)
	if got != want || len(problems) != 1 || !strings.Contains(problems[0], "the last entries that worked stay in force") {
		t.Errorf("%s, %v; want as before, and why", got, problems)
	}
	if got, problems = compile("other", broken); len(problems) > 0 || !strings.Contains(got, "tcp") {
		t.Errorf("the other service: %s, %v", got, problems)
	}
	// It is read again when what broke it changes.
	mended := broken.With([]config.Entry{split(50, 50)}, []config.Key{{Kind: config.KindServiceDefaults, Name: "other"}})
	if got, problems = compile("web", mended); len(problems) > 0 || !strings.Contains(got, "50.00% other.dc1") {
		t.Errorf("%s, %v", got, problems)
	}
	// Without anything that worked there is the service itself.
	if chain, _ := newChains().compile(routing.Request{Config: broken, Service: "web", Datacenter: "dc1"}); chain.Broken == "" || !strings.Contains(chain.Describe(), "100.00% web.dc1") {
		t.Errorf("%s", chain.Describe())
	}
}

// People are shown the chain that callers have, and why it is not that of the entries.
func TestTheChainInForceIsShown(t *testing.T) {
	m := newMesh("dc1", "test.consul", true, nil, slog.New(slog.DiscardHandler))
	http := &config.ProxyDefaults{Kind: config.KindProxyDefaults, Name: config.Global, Config: map[string]any{"protocol": "http"}}
	split := &config.ServiceSplitter{Kind: config.KindServiceSplitter, Name: "web", Splits: []config.ServiceSplit{{Weight: 90, Service: "web"}, {Weight: 10, Service: "other"}}}
	tcp := &config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "other", Protocol: "tcp"}
	side := &catalog.Service{ID: "shop-1", Name: "shop-proxy", Kind: catalog.ConnectProxy, Port: 21000, Proxy: &catalog.Proxy{
		DestinationServiceName: "shop", LocalServiceAddress: "127.0.0.1", LocalServicePort: 80, Upstreams: []catalog.Upstream{{DestinationName: "web", LocalBindPort: 7100}}}}
	m.setCatalog(catalog.NewSnapshot("dc1", 1, map[string]*catalog.Set{side.Name: catalog.NewSet(side.Name, []catalog.Instance{{Node: &catalog.Node{Name: "n", Address: "10.0.0.1"}, Service: side}})}))
	m.enterLocked("n/shop-1", node{id: "shop-1", name: "n", relayed: true, streams: 1})
	for i, tt := range []struct {
		entries  []config.Entry
		lastGood bool
		words    string
	}{
		{[]config.Entry{http, split}, false, "10.00% other.dc1"},
		{[]config.Entry{http, split, tcp}, true, "10.00% other.dc1"},
		{[]config.Entry{http}, false, "100.00% web.dc1"},
	} {
		m.setEntries(config.NewSet(tt.entries...), uint64(i+1))
		m.step(time.Now(), false)
		v, err := m.view(routing.Request{Service: "web", Datacenter: "dc1"}, "")
		if err != nil || v.LastGood != tt.lastGood || (v.Broken != "") != tt.lastGood || !strings.Contains(v.Words, tt.words) {
			t.Errorf("step %d: %+v, %v", i, v, err)
		}
	}
}
