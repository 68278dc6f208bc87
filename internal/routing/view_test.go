package routing_test

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// TestEffective is what legs of 50, 30, 20 and 0 get while only some have instances. The
// first has a failover.
func TestEffective(t *testing.T) {
	target := func(name string) routing.Target { return routing.Target{Service: name, Datacenter: "dc1"} }
	legs := []routing.Leg{leg(5000, target("a")), leg(3000, target("b")), leg(2000, target("c")), leg(0, target("d"))}
	legs[0].Failover = []routing.Target{target("spare")}
	never := &config.TrafficPolicy{Crossing: new(bool)}
	for _, tc := range []struct {
		name     string
		policy   *config.TrafficPolicy
		alive    []string
		requests []float64
		tcp      []float64
	}{
		{"all", nil, []string{"a", "b", "c", "d"}, []float64{5000, 3000, 2000, 0}, []float64{5000, 3000, 2000, 0}},
		{"not the second", nil, []string{"a", "c", "d"}, []float64{8000, 0, 2000, 0}, []float64{5000 * 10_000. / 7000, 0, 2000 * 10_000. / 7000, 0}},
		{"not the second, and none cross", never, []string{"a", "c", "d"}, []float64{5000, 0, 2000, 0}, []float64{5000 * 10_000. / 7000, 0, 2000 * 10_000. / 7000, 0}},
		{"the failover", nil, []string{"spare", "b", "c"}, []float64{5000, 3000, 2000, 0}, []float64{0, 6000, 4000, 0}},
		{"the failover alone", nil, []string{"spare"}, []float64{5000, 0, 0, 0}, []float64{10_000, 0, 0, 0}},
		{"one that gets nothing", nil, []string{"d"}, []float64{0, 0, 0, 0}, []float64{0, 0, 0, 0}},
		{"nobody", nil, nil, []float64{0, 0, 0, 0}, []float64{0, 0, 0, 0}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			healthy := func(t routing.Target) int {
				if slices.Contains(tc.alive, t.Service) {
					return 2
				}
				return 0
			}
			r := routing.Route{Policy: tc.policy, Legs: legs}
			if got := r.Effective(true, healthy); !slices.Equal(got, tc.requests) {
				t.Errorf("of requests %v, want %v", got, tc.requests)
			}
			if got := r.Effective(false, healthy); !slices.Equal(got, tc.tcp) {
				t.Errorf("of connections %v, want %v", got, tc.tcp)
			}
		})
	}
}

// TestPairOf is how a caller's requests and connections are divided while only some ways
// lead to anybody.
func TestPairOf(t *testing.T) {
	e := &config.TrafficShift{Source: "web", Destination: "api", Legacy: &config.LegacyWay{Address: "api.old:80"}, Shares: config.Shares{Legacy: 10, Direct: 20, Plain: 30, MTLS: 40}}
	bare := &config.TrafficShift{Source: "*", Destination: "api", Shares: config.Shares{Direct: 60, MTLS: 40}}
	dead := func(ways ...string) func(string) int {
		return func(way string) int {
			if slices.Contains(ways, way) {
				return 0
			}
			return 3
		}
	}
	for _, tc := range []struct {
		name     string
		entry    *config.TrafficShift
		protocol string
		healthy  func(string) int
		want     string
	}{
		{"all", e, config.HTTP, dead(), "web~api legacy 10 direct 20/3 plain 30/3 mtls 40/3"},
		{"not known", e, config.HTTP, nil, "web~api legacy 10 direct 20 plain 30 mtls 40"},
		{"nobody takes plaintext", e, config.GRPC, dead("plain"), "web~api legacy 40 direct 20/3 plain 0/0 mtls 40/3"},
		{"connections", e, config.TCP, dead("plain", "mtls"), "web~api legacy 33.33 direct 66.67/3 plain 0/0 mtls 0/0"},
		{"no old mesh", bare, config.HTTP, dead("mtls"), "*~api direct 100/3 plain 0/3 mtls 0/0"},
		{"nobody at all", bare, config.TCP, dead("mtls", "direct"), "*~api direct 0/0 plain 0/3 mtls 0/0"},
		{"no entry", nil, config.HTTP, dead(), " mtls 100/3"},
	} {
		c := routing.Chain{Service: "api", Datacenter: "dc1", Protocol: tc.protocol, Routes: []routing.Route{{Legs: []routing.Leg{leg(10_000, routing.Target{Service: "api", Datacenter: "dc1"})}}}}
		view := c.PairOf("web", tc.entry, tc.healthy)
		got := view.Entry
		for _, w := range view.Ways {
			got += fmt.Sprintf(" %s %v", w.Way, math.Round(w.Effective*100)/100)
			if w.Healthy != nil {
				got += fmt.Sprintf("/%d", *w.Healthy)
			}
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}
