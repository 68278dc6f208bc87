package routing_test

import (
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
