package config

import "testing"

// The most specific entry counts.
func TestTrafficShift(t *testing.T) {
	shift := func(source, destination string) *TrafficShift {
		e := &TrafficShift{Source: source, Destination: destination, Shares: Shares{MTLS: 100}}
		e.Normalize()
		return e
	}
	all := []Entry{shift("web", "api"), shift("*", "api"), shift("web", "*"), shift("*", "*")}
	for i, want := range all {
		if got := NewSet(all[i:]...).TrafficShift("web", "api"); got != want {
			t.Errorf("of %d: %+v", len(all)-i, got)
		}
	}
	if got := NewSet(all[:3]...).TrafficShift("app", "db"); got != nil {
		t.Errorf("%+v is for another pair", got)
	}
}
