package sidecar

import (
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
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
		{"told just so", toldConnections{at, map[string]int64{"public_listener": 3}, nil}, at.Add(5 * time.Second), false},
		{"told otherwise", toldConnections{at, map[string]int64{"public_listener": 4}, nil}, at.Add(5 * time.Second), true},
		{"told of another", toldConnections{at, map[string]int64{"other": 3}, nil}, at.Add(5 * time.Second), true},
		{"told long ago", toldConnections{at, open, nil}, at.Add(time.Minute), true},
		{"told before of drift", toldConnections{at, open, &api.Drift{Drifts: 1}}, at.Add(5 * time.Second), true},
	} {
		if got := tt.told.due(tt.now, open, nil); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
