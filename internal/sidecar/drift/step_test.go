package drift

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// A timetable: at each time a look finds faults, and what follows from that.
func TestStep(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	a := Fault{Key: xds.Key{Type: xds.ClusterType, Name: "a"}, Told: "2", Runs: "1"}
	b := Fault{Key: xds.Key{Type: xds.ClusterType, Name: "a"}, Told: "3", Runs: "1"}
	stuck := func(s int) Fault { return Fault{Key: xds.Key{Type: xds.RouteType}, Sent: at(s)} }
	none := Fault{}
	type row struct {
		at    int
		found []Fault
		want  string // verb, and how many faults made it necessary
	}
	for _, tt := range []struct {
		name string
		rows []row
	}{
		{"sent again helps", []row{{0, []Fault{a}, ""}, {10, []Fault{a}, ""}, {20, []Fault{a}, ""}, {30, []Fault{a}, "sent again 1"}, {40, nil, "healed 1"}, {50, nil, ""}}},
		{"it takes a restart", []row{{0, []Fault{a}, ""}, {30, []Fault{a}, "sent again 1"}, {40, []Fault{a}, ""}, {60, []Fault{a}, "stream restarted 1"}, {70, nil, "healed 1"}}},
		{"nothing helps", []row{{0, []Fault{a}, ""}, {30, []Fault{a}, "sent again 1"}, {60, []Fault{a}, "stream restarted 1"}, {100, []Fault{a}, ""}, {350, []Fault{a}, ""}, {360, []Fault{a}, "stream restarted 1"}}},
		{"short", []row{{0, []Fault{a}, ""}, {20, []Fault{a}, ""}, {30, nil, ""}, {40, []Fault{a}, ""}, {60, []Fault{a}, ""}, {70, []Fault{a}, "sent again 1"}}},
		{"another version", []row{{0, []Fault{a}, ""}, {20, []Fault{b}, ""}, {30, []Fault{b}, ""}, {50, []Fault{b}, "sent again 1"}}},
		{"not answered", []row{{20, []Fault{stuck(0)}, ""}, {30, []Fault{stuck(0)}, "sent again 1"}, {40, []Fault{stuck(30)}, ""}, {60, []Fault{stuck(30)}, "stream restarted 1"}, {70, nil, "healed 1"}}},
		{"each answered in time", []row{{20, []Fault{stuck(0)}, ""}, {30, []Fault{stuck(20)}, ""}, {40, []Fault{stuck(35)}, ""}}},
		{"no stream", []row{{0, []Fault{none}, ""}, {30, []Fault{none}, "nothing 1"}, {60, []Fault{none}, ""}, {600, []Fault{none}, ""}, {610, nil, "healed 1"}}},
		{"two at once", []row{{0, []Fault{a}, ""}, {10, []Fault{a, stuck(0)}, ""}, {30, []Fault{a, stuck(0)}, "sent again 2"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var s State
			for _, r := range tt.rows {
				var act *Action
				s, act = s.Step(at(r.at), r.found, Timing{})
				got := ""
				if act != nil {
					got = fmt.Sprint(act.Verb, " ", len(act.Faults))
				}
				if got != r.want {
					t.Fatalf("at %d s: %q, want %q", r.at, got, r.want)
				}
			}
		})
	}
}

func TestFaultsInWords(t *testing.T) {
	k := xds.Key{Type: xds.ClusterType, Name: "a"}
	for _, tt := range []struct {
		fault Fault
		want  string
	}{
		{Fault{}, "Envoy has no stream"},
		{Fault{Key: xds.Key{Type: xds.RouteType}, Sent: time.Unix(0, 0)}, "Envoy has not answered a response of type RouteConfiguration sent at 1970-01-01T00:00:00Z"},
		{Fault{Key: k, Told: "2", Runs: "1"}, `Cluster "a": Envoy has acknowledged version 2 and runs 1`},
		{Fault{Key: k, Told: "2"}, `Cluster "a": Envoy has acknowledged version 2 and runs none`},
		{Fault{Key: k, Runs: "1"}, `Cluster "a": Envoy runs version 1 and was told of none`},
	} {
		if got := tt.fault.String(); got != tt.want {
			t.Errorf("%s\nwant %s", got, tt.want)
		}
	}
}

// What is on its way, and what can't be compared, is no fault.
func TestDiffers(t *testing.T) {
	for _, tt := range []struct {
		name string
		typ  xds.Type
		runs string
		want string
		yes  bool
	}{
		{"same", xds.ClusterType, "1", "1", false},
		{"older", xds.ClusterType, "1", "2", true},
		{"none", xds.ClusterType, "", "2", true},
		{"warming", xds.ListenerType, "1,2", "2", false},
		{"all clusters of endpoints", xds.EndpointType, "x,x", "x", false},
		{"one cluster of two", xds.EndpointType, "x,y", "x", true},
		{"no cluster", xds.EndpointType, "", "x", true},
	} {
		runs := strings.FieldsFunc(tt.runs, func(r rune) bool { return r == ',' })
		if _, yes := differs(tt.typ, runs, tt.want); yes != tt.yes {
			t.Errorf("%s: %v", tt.name, yes)
		}
	}
}
