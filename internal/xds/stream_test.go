package xds

import (
	"context"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// Whenever a stream has nothing to send it knows when to look again, however close that is.
func TestNothingComesDueUnseen(t *testing.T) {
	const linger = 10 * time.Second
	s := NewServer(Options{Linger: linger})
	res, err := NewResource(ClusterType, "a", &clusterv3.Cluster{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	s.Update(Update{Views: map[string]*View{"n": {Own: Own(res)}}})
	_, cancel := context.WithCancelCause(t.Context())
	st := &stream{server: s, node: "n", cancel: cancel, session: newSession(linger), sending: true, view: s.View("n")}
	s.streams["n"] = map[*stream]struct{}{st: {}}
	if err := st.handle(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(ClusterType)}); err != nil {
		t.Fatal(err)
	}
	now := time.Unix(100, 0)
	r, _ := st.pending(now)
	if r == nil || len(r.resources) != 1 {
		t.Fatalf("first %+v", r)
	}
	if err := st.handle(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(ClusterType), ResponseNonce: r.nonce}); err != nil {
		t.Fatal(err)
	}
	s.Update(Update{Views: map[string]*View{"n": {}}})
	r, at := st.pending(now)
	if r != nil || at != now.Add(linger) {
		t.Fatalf("%+v, and then at %v; want nothing until %v", r, at, now.Add(linger))
	}
	if r, again := st.pending(at.Add(-1)); r != nil || again != at {
		t.Errorf("just before: %+v, and then at %v; want nothing until %v", r, again, at)
	}
	if r, _ := st.pending(at); r == nil || len(r.removed) != 1 {
		t.Errorf("at that moment: %+v, want the cluster's removal", r)
	}
}
