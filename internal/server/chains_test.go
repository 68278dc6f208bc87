package server

import (
	"strings"
	"testing"

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
