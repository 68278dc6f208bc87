package xds

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"
)

// Refused is a resource that a client will not take.
type Refused struct {
	Key
	Refusal
}

// Verdict is how far a node's streams are with the present versions of some resources.
type Verdict struct {
	Connected bool // the node has a stream
	// Waiting are those not answered yet, Refused those that were not taken; sorted.
	Waiting []Key
	Refused []Refused
}

// Settled reports whether the node has answered for everything.
func (v Verdict) Settled() bool { return v.Connected && len(v.Waiting) == 0 }

// judgeEvery bounds how often a waiting [Server.Await] looks at streams.
const judgeEvery = 5 * time.Millisecond

// Await calls look with how far each node is with its resources, at once and
// whenever that may have changed, until look returns true or ctx ends. A node that has
// settled is not looked at again: what it is told later is somebody else's.
func (s *Server) Await(ctx context.Context, wanted map[string][]Key, look func(map[string]Verdict) bool) error {
	verdicts := make(map[string]Verdict, len(wanted))
	for {
		s.mu.Lock()
		if s.news == nil {
			s.news = make(chan struct{})
		}
		news := s.news
		s.mu.Unlock()
		for node, keys := range wanted {
			if !verdicts[node].Settled() {
				verdicts[node] = s.judge(node, keys)
			}
		}
		if look(maps.Clone(verdicts)) {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		}
		pause := time.NewTimer(judgeEvery) // many answers come at once
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
		pause.Stop()
	}
}

// Verdict is how far a node is with its resources now.
func (s *Server) Verdict(node string, keys []Key) Verdict { return s.judge(node, keys) }

func (s *Server) judge(node string, keys []Key) Verdict {
	s.mu.RLock()
	streams := slices.Collect(maps.Keys(s.streams[node]))
	told := s.views[node] != nil
	s.mu.RUnlock()
	v := Verdict{Connected: len(streams) > 0}
	if !told {
		v.Waiting = slices.Clone(keys)
	}
	for _, st := range streams {
		if told {
			st.judge(keys, &v)
		}
	}
	slices.SortFunc(v.Waiting, Key.Compare)
	v.Waiting = slices.Compact(v.Waiting)
	slices.SortFunc(v.Refused, func(a, b Refused) int { return a.Compare(b.Key) })
	v.Refused = slices.CompactFunc(v.Refused, func(a, b Refused) bool { return a.Key == b.Key })
	return v
}

// judge adds what the stream makes of each resource to v. What the client never asked
// for by name needs no answer of it.
func (st *stream) judge(keys []Key, v *Verdict) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.session.of(ListenerType) == nil {
		v.Waiting = append(v.Waiting, keys...) // it has not begun
		return
	}
	for _, k := range keys {
		sub := st.session.of(k.Type)
		if sub == nil {
			continue
		}
		if !sub.names.has(k.Name) && !sub.wildcard {
			continue
		}
		res := st.get(k.Type, k.Name)
		switch {
		case res == nil:
			// A cluster lingers when nothing refers to it any more, which others of the keys say.
			if sub.acked(k.Name) != "" && k.Type != ClusterType {
				v.Waiting = append(v.Waiting, k)
			}
		case sub.refused.get(k.Name).Version == res.Version:
			r := sub.refused.get(k.Name)
			r.Message = strings.TrimPrefix(r.Message, k.String()+": ") // a relay's
			v.Refused = append(v.Refused, Refused{k, r})
		case !sub.has(k.Name, res.Version):
			v.Waiting = append(v.Waiting, k)
		}
	}
}
