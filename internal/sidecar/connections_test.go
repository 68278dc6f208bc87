package sidecar

import (
	"testing"
	"time"
)

func TestWhenConnectionsAreReported(t *testing.T) {
	at := time.Unix(1000, 0)
	open := map[string]int64{"public_listener": 3}
	for _, tt := range []struct {
		name string
		told toldConnections
		now  time.Time
		want bool
	}{
		{"never told", toldConnections{}, at, true},
		{"told just so", toldConnections{at, map[string]int64{"public_listener": 3}}, at.Add(5 * time.Second), false},
		{"told otherwise", toldConnections{at, map[string]int64{"public_listener": 4}}, at.Add(5 * time.Second), true},
		{"told of another", toldConnections{at, map[string]int64{"other": 3}}, at.Add(5 * time.Second), true},
		{"told long ago", toldConnections{at, open}, at.Add(time.Minute), true},
	} {
		if got := tt.told.due(tt.now, open); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
