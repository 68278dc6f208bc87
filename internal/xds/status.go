package xds

import (
	"maps"
	"slices"
	"time"
)

// StreamStatus is what one stream was told and holds.
type StreamStatus struct {
	Node  string                `json:"node"`
	Since time.Time             `json:"since"`
	Types map[string]TypeStatus `json:"types"` // by Type.Short
}

// TypeStatus counts the resources of one type on one stream.
type TypeStatus struct {
	Sent    int  `json:"sent"`
	Acked   int  `json:"acked"`   // of those sent, at their present version
	Pending bool `json:"pending"` // a response is not answered yet
	// PendingSince is when that response was sent; zero without one.
	PendingSince time.Time          `json:"pending_since,omitzero"`
	Refused      map[string]Refusal `json:"refused,omitempty"`
}

// Status reports all streams, sorted by node.
func (s *Server) Status() []StreamStatus {
	s.mu.RLock()
	var list []*stream
	for _, node := range slices.Sorted(maps.Keys(s.streams)) {
		list = slices.AppendSeq(list, maps.Keys(s.streams[node]))
	}
	s.mu.RUnlock()
	out := make([]StreamStatus, 0, len(list))
	for _, st := range list {
		out = append(out, st.status())
	}
	return out
}

func (st *stream) status() StreamStatus {
	st.mu.Lock()
	defer st.mu.Unlock()
	out := StreamStatus{Node: st.node, Since: st.since, Types: map[string]TypeStatus{}}
	for t, sub := range st.session.all() {
		ts := TypeStatus{Pending: sub.flight != nil}
		if sub.flight != nil {
			ts.PendingSince = sub.flight.sent
		}
		for name, v := range sub.told.all() {
			if v == absentVersion {
				continue
			}
			ts.Sent++
			if sub.acked(name) == v {
				ts.Acked++
			}
		}
		if sub.refused.size() > 0 {
			ts.Refused = maps.Collect(sub.refused.all())
			for name, r := range ts.Refused {
				r.Runs = sub.acked(name)
				ts.Refused[name] = r
			}
		}
		out.Types[t.Short()] = ts
	}
	return out
}
