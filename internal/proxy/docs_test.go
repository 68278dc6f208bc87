package proxy_test

import (
	"os"
	"regexp"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

const guide = "../../docs/intentions.md"

// TestGuide writes every entry that the guide shows, and decides for every service
// in it: nothing is refused, and nothing cannot be honoured.
func TestGuide(t *testing.T) {
	text, err := os.ReadFile(guide)
	if err != nil {
		t.Fatal(err)
	}
	var entries []config.Entry
	for _, block := range regexp.MustCompile("(?s)```hcl\n(.*?)```").FindAllSubmatch(text, -1) {
		e, err := config.DecodeEntry("guide.hcl", block[1])
		if err != nil {
			t.Errorf("%s: %v\n%s", guide, err, block[1])
			continue
		}
		entries = append(entries, e)
	}
	if len(entries) < 5 {
		t.Fatalf("%s: %d entries, it is not read", guide, len(entries))
	}
	for _, e := range entries {
		intentions, ok := e.(*config.ServiceIntentions)
		if !ok {
			continue
		}
		in := sidecar(catalog.Service{Port: 20000, Proxy: &catalog.Proxy{DestinationServiceName: intentions.Name, LocalServicePort: 80}})
		in.Config = config.NewSet(append(entries, &config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: intentions.Name, Protocol: "http"})...)
		p, problems := proxy.Build(in)
		for _, problem := range problems {
			t.Errorf("%s: %s", guide, problem)
		}
		if in := p.Inbound.Intentions; len(in.Callers) != 1 {
			t.Errorf("%s: intentions of %q: %+v", guide, intentions.Name, in)
		}
	}
}
