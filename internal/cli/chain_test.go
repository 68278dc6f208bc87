package cli

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// TestPicturesAreWellFormed draws chains of all kinds, and one whose texts are hostile.
func TestPicturesAreWellFormed(t *testing.T) {
	hostile := routing.Chain{Service: `a"b\c` + "\n", Datacenter: "</text><script>alert(1)</script>", Protocol: "\x00http\xff", Routed: true, Routes: []routing.Route{{
		Rule: &config.ServiceRoute{Match: &config.RouteMatch{HTTP: &config.HTTPMatch{PathPrefix: `/"]; n1 [label="` + strings.Repeat("<é>&", 100)}}},
		Legs: []routing.Leg{{Weight: routing.TotalWeight, Resolver: routing.Resolver{Target: routing.Target{Service: "x"}}}},
	}}}
	set := config.NewSet(
		&config.ProxyDefaults{Kind: config.KindProxyDefaults, Name: config.Global, Config: map[string]any{"protocol": "http"}},
		&config.ServiceRouter{Kind: config.KindServiceRouter, Name: "shop", Routes: []config.ServiceRoute{
			{Destination: &config.RouteDestination{Service: "api"}}, {Destination: &config.RouteDestination{Service: "api", ServiceSubset: "v1"}}, {},
		}},
		&config.ServiceSplitter{Kind: config.KindServiceSplitter, Name: "api", Splits: []config.ServiceSplit{{Weight: 95, ServiceSubset: "v1"}, {Weight: 5, ServiceSubset: "v2"}}},
		&config.ServiceResolver{Kind: config.KindServiceResolver, Name: "api", Subsets: map[string]config.ResolverSubset{"v1": {}, "v2": {}},
			Failover: map[string]config.ResolverFailover{"v2": {ServiceSubset: "v1"}, "v1": {Targets: []config.FailoverTarget{{ServiceSubset: "v2"}, {Service: "spare"}, {Datacenter: "dc2"}}}}},
		&config.ServiceResolver{Kind: config.KindServiceResolver, Name: "broken", DefaultSubset: "none"},
	)
	chains := []routing.Chain{hostile}
	for _, service := range []string{"shop", "api", "broken", "nobody"} {
		c, _ := routing.Compile(routing.Request{Config: set, Service: service, Datacenter: "dc1"})
		chains = append(chains, c)
	}
	for _, c := range chains {
		for _, healthy := range []func(routing.Target) int{nil, func(t routing.Target) int { return len(t.Subset) }} {
			view := c.View(healthy)
			picture := graphOf(view).svg()
			d := xml.NewDecoder(strings.NewReader(picture))
			for {
				token, err := d.Token()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatalf("%v:\n%s", err, picture)
				}
				if e, ok := token.(xml.StartElement); ok && !strings.Contains(" svg title defs marker path rect text ", " "+e.Name.Local+" ") {
					t.Fatalf("element %q:\n%s", e.Name.Local, picture)
				}
			}
			if again := graphOf(view).svg(); again != picture {
				t.Fatal("two pictures of one chain")
			}
			for line := range strings.Lines(graphOf(view).dot()) {
				if n := strings.Count(strings.ReplaceAll(strings.ReplaceAll(line, `\\`, ""), `\"`, ""), `"`); n%2 != 0 {
					t.Fatalf("a quote is open: %s", line)
				}
			}
		}
	}
}
