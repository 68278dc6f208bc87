package server

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// What is remembered of changes of entries, so that whoever made one can ask what
// became of it. The newest change is always remembered.
const (
	maxChanges     = 64
	maxChangedKeys = 200_000
	// afterRefusal is how long others are still waited for once a sidecar has refused.
	afterRefusal = time.Second
	// maxProblemsTold bounds the problems in one answer.
	maxProblemsTold = 50
)

// change is what one step made of changed entries.
type change struct {
	at       time.Time
	index    uint64 // of the entries
	sidecars map[string]concern
}

// concern is a sidecar that reads a changed entry.
type concern struct {
	node
	keys []xds.Key // what differs for it; none when it is told nothing
}

// note enters a sidecar that was built anew, if changed entries may be why. shared is
// what changed of the endpoints.
func (c *change) note(key string, n node, old, made *sidecar, changed map[entryKey]struct{}, shared map[xds.Key]*xds.Resource) {
	if n.observer || old == nil || made == nil || !old.readsAny(changed) && !made.readsAny(changed) {
		return
	}
	of := concern{node: n}
	if old != made {
		of.keys = xds.Changes(&xds.View{Own: old.own, Shared: old.shared}, &xds.View{Own: made.own, Shared: made.shared})
		for _, ref := range changedRefs(old.calls, made.calls) {
			if k := (xds.Key{Type: xds.EndpointType, Name: ref.ClusterName}); shared[k] != nil {
				of.keys = append(of.keys, k)
			}
		}
		slices.SortFunc(of.keys, xds.Key.Compare)
	}
	c.sidecars[key] = of
}

// changedRefs lists the endpoints of the second that the first has, too, but made otherwise.
func changedRefs(before, after []proxy.EndpointsRef) (out []proxy.EndpointsRef) {
	for _, ref := range after {
		i := slices.IndexFunc(before, func(b proxy.EndpointsRef) bool { return b.ClusterName == ref.ClusterName })
		if i >= 0 && !before[i].Equal(ref) {
			out = append(out, ref)
		}
	}
	return out
}

func (c *change) size() (n int) {
	for _, of := range c.sidecars {
		n += len(of.keys)
	}
	return n
}

// changes is the newest changes, oldest first. The zero value has none.
type changes struct {
	begun bool
	floor uint64 // what happened up to it is not remembered
	done  uint64 // index of the entries that streams are told of
	list  []change
	keys  int
}

// add takes in what a step did. The first step tells everybody everything, and is no change.
func (c *changes) add(n change) {
	switch {
	case !c.begun:
		c.begun, c.floor = true, n.index
	case n.index > c.done:
		c.list = append(c.list, n)
		c.keys += n.size()
	}
	c.done = max(c.done, n.index)
	for len(c.list) > maxChanges || len(c.list) > 1 && c.keys > maxChangedKeys {
		c.floor = c.list[0].index
		c.keys -= c.list[0].size()
		c.list = slices.Delete(c.list, 0, 1)
	}
}

// find is the change that brought the entries of an index to the streams. Writes that
// came together share one.
func (c *changes) find(index uint64) (change, bool) {
	if index <= c.floor {
		return change{}, false
	}
	i := slices.IndexFunc(c.list, func(n change) bool { return n.index >= index })
	if i < 0 {
		return change{}, false
	}
	return c.list[i], true
}

// awaitChange waits until streams are told of the entries of an index. told is false
// when ctx ended first, known when what it concerns is not remembered.
func (m *mesh) awaitChange(ctx context.Context, index uint64) (c change, told, known bool) {
	for {
		m.mu.Lock()
		done, progress := m.changes.done, m.progress
		c, known = m.changes.find(index)
		m.mu.Unlock()
		if done >= index {
			return c, true, known
		}
		select {
		case <-progress:
		case <-ctx.Done():
			return change{}, false, true
		}
	}
}

// What is said of a change on sidecars.
type (
	appliedAnswer   = api.Applied
	appliedSidecar  = api.AppliedSidecar
	refusedResource = api.RefusedResource
)

// applied waits until every sidecar whose resources a change of entries has changed
// has answered for them, and says how each did.
func (s *Server) applied(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	index, err := strconv.ParseUint(q.Get("index"), 10, 64)
	if err != nil || index == 0 {
		http.Error(w, fmt.Sprintf("applied: index %.40q: want the index of a write", q.Get("index")), http.StatusBadRequest)
		return
	}
	wait := time.Duration(0)
	if raw := q.Get("wait"); raw != "" {
		if wait, err = time.ParseDuration(raw); err != nil || wait < 0 {
			http.Error(w, fmt.Sprintf("applied: wait %.40q: want a duration such as 10s", raw), http.StatusBadRequest)
			return
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), min(wait, maxWait))
	defer cancel()
	answer, known := s.whatBecameOf(ctx, index)
	if !known {
		http.Error(w, fmt.Sprintf("applied: index %d: not remembered by this server: it has started since, or too much has changed", index), http.StatusGone)
		return
	}
	s.answer(w, answer)
}

func (m *mesh) whatBecameOf(ctx context.Context, index uint64) (answer appliedAnswer, known bool) {
	answer = appliedAnswer{Index: index, Sidecars: []appliedSidecar{}}
	c, told, known := m.awaitChange(ctx, index)
	if !told || !known {
		return answer, known
	}
	answer.Told = true
	wanted := map[string][]xds.Key{}
	for key, of := range c.sidecars {
		if len(of.keys) > 0 {
			wanted[key] = of.keys
		}
		for _, p := range m.problemsOf(key) {
			answer.Problems = append(answer.Problems, p.String())
		}
	}
	slices.Sort(answer.Problems)
	answer.Problems = slices.Compact(answer.Problems)
	if len(answer.Problems) > maxProblemsTold {
		answer.Problems = answer.Problems[:maxProblemsTold]
	}
	answer.Sidecars = sidecarsOf(c, m.await(ctx, wanted))
	return answer, true
}

// await returns once everybody has answered, ctx has ended, or a while after the first refusal.
func (m *mesh) await(ctx context.Context, wanted map[string][]xds.Key) (last map[string]xds.Verdict) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var grace *time.Timer
	err := m.xds.Await(ctx, wanted, func(now map[string]xds.Verdict) bool {
		last = now
		settled := true
		for _, v := range now {
			settled = settled && v.Settled()
			if len(v.Refused) > 0 && grace == nil {
				grace = time.AfterFunc(afterRefusal, cancel)
			}
		}
		return settled
	})
	if err != nil {
		m.log.Debug("not every sidecar has answered for a change", "reason", err)
	}
	if grace != nil {
		grace.Stop()
	}
	return last
}

func sidecarsOf(c change, verdicts map[string]xds.Verdict) []appliedSidecar {
	out := make([]appliedSidecar, 0, len(verdicts))
	for key, v := range verdicts {
		row := appliedSidecar{Sidecar: c.sidecars[key].id, Node: c.sidecars[key].name}
		for _, r := range v.Refused {
			row.Refused = append(row.Refused, refusedResource{Type: r.Type.Short(), Name: r.Name, Message: r.Message})
		}
		for _, k := range v.Waiting {
			row.Waiting = append(row.Waiting, k.String())
		}
		switch {
		case len(row.Refused) > 0:
			row.State = api.Refused
		case !v.Connected:
			row.State = api.Disconnected
		case len(row.Waiting) > 0:
			row.State = api.Waiting
		default:
			row.State = api.Acked
		}
		out = append(out, row)
	}
	slices.SortFunc(out, func(a, b appliedSidecar) int {
		return cmp.Or(cmp.Compare(a.Sidecar, b.Sidecar), cmp.Compare(a.Node, b.Node))
	})
	return out
}

// answered reports whether every sidecar of a service that a change concerns has taken it.
func (m *mesh) answered(c change, service string) bool {
	snap := m.snapshot()
	for key, of := range c.sidecars {
		in, ok := snap.Proxy(of.id, of.name)
		if len(of.keys) == 0 || !ok || in.Service.Proxy.DestinationServiceName != service {
			continue
		}
		if v := m.xds.Verdict(key, of.keys); v.Connected && (!v.Settled() || len(v.Refused) > 0) {
			return false
		}
	}
	return true
}
