package server

import (
	"cmp"
	"context"
	"reflect"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

const (
	// deadAfter is how long a server may say nothing that is told of each second: then it is taken for dead, and
	// nobody waits for it.
	deadAfter = 3 * tellEvery
	// becameFor is how long other servers are told what became of a change.
	becameFor = time.Minute
	// maxBecame bounds how many sidecars that is said of, but for the newest change.
	maxBecame = 5000
	// maxRefusal bounds what is told of an Envoy's reason, in bytes.
	maxRefusal = 1000
	// maxWaiting bounds what is told of what a sidecar has not answered for.
	maxWaiting = 3
)

// became is what the sidecars of one server made of a change of entries.
type became struct {
	Index    uint64           `json:"index"`
	Sidecars []appliedSidecar `json:"sidecars,omitempty"`
}

// becoming follows what sidecars here make of the newest changes, for other servers.
type becoming struct {
	done, floor uint64 // up to which index streams are told; up to which nothing is remembered
	list        []became
	following   map[uint64]*following // by the index of the change
}

// following is one change.
type following struct {
	settled map[string]xds.Verdict // of sidecars: what they are told later is another change's
	rows    []appliedSidecar
	over    bool // all have settled
}

// look brings it up to date, and reports whether there is anything new.
func (b *becoming) look(m *mesh, now time.Time) (news bool) {
	m.mu.Lock()
	done, floor, changes := m.changes.done, m.changes.floor, slices.Clone(m.changes.list)
	m.mu.Unlock()
	news = b.done != done
	was := b.following
	b.done, b.floor, b.list, b.following = done, floor, nil, map[uint64]*following{}
	rows := 0
	for _, c := range slices.Backward(changes) {
		if rows += len(c.sidecars); now.Sub(c.at) > becameFor || rows > maxBecame && len(b.list) > 0 {
			b.floor = c.index
			break
		}
		f, known := was[c.index]
		if !known {
			f, news = &following{settled: map[string]xds.Verdict{}}, true
		}
		if !f.over && f.look(c, m) {
			news = true
		}
		b.following[c.index] = f
		b.list = append(b.list, became{c.index, f.rows})
	}
	slices.Reverse(b.list)
	return news
}

func (f *following) look(c change, m *mesh) (news bool) {
	verdicts := map[string]xds.Verdict{}
	f.over = true
	for key, of := range c.sidecars {
		if len(of.keys) == 0 {
			continue
		}
		v, ok := f.settled[key]
		if !ok {
			v = m.xds.Verdict(key, of.keys)
		}
		if verdicts[key] = v; v.Settled() {
			f.settled[key] = v
		} else {
			f.over = false
		}
	}
	rows := briefly(sidecarsOf(c, verdicts))
	news = !reflect.DeepEqual(rows, f.rows)
	f.rows = rows
	return news
}

// briefly leaves out what is too much to be told to others.
func briefly(list []appliedSidecar) []appliedSidecar {
	for i := range list {
		list[i].Waiting = list[i].Waiting[:min(len(list[i].Waiting), maxWaiting)]
		for j := range list[i].Refused {
			said := &list[i].Refused[j].Message
			*said = (*said)[:min(len(*said), maxRefusal)]
		}
	}
	return list
}

// whatBecameOf is a mesh's, of all servers that share a Consul.
func (s *Server) whatBecameOf(ctx context.Context, index uint64) (answer appliedAnswer, known bool) {
	answer, known = s.mesh.whatBecameOf(ctx, index)
	if !known || !answer.Told {
		return answer, known
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	here := answer.Sidecars
	var grace *time.Timer
	dead := time.NewTimer(deadAfter)
	defer dead.Stop()
	for {
		moments, newer := s.others.moments()
		answer.Sidecars, answer.Unheard = everywhere(here, moments, index)
		settled, refused := len(answer.Unheard) == 0, false
		for _, row := range answer.Sidecars {
			settled = settled && (row.State == api.Acked || row.State == api.Refused)
			refused = refused || row.State == api.Refused
		}
		if settled {
			break
		}
		if refused && grace == nil {
			grace = time.AfterFunc(afterRefusal, cancel)
		}
		select {
		case <-newer:
			continue
		case <-dead.C:
			if len(answer.Unheard) == 0 {
				continue // those who are heard have sidecars that are slow
			}
			answer.Unheard = nil // its sidecars, if they are nowhere else, are named as not connected
		case <-ctx.Done():
		}
		break
	}
	if grace != nil {
		grace.Stop()
	}
	return answer, true
}

// everywhere adds what sidecars of other servers made of a change to what those here did, and
// names the servers that have not said it yet.
func everywhere(here []appliedSidecar, moments []moment, index uint64) (all []appliedSidecar, unheard []string) {
	type key struct{ sidecar, node string }
	rows := map[key]appliedSidecar{}
	add := func(row appliedSidecar) {
		k := key{row.Sidecar, row.Node}
		if was, ok := rows[k]; !ok || was.State == api.Disconnected {
			rows[k] = row
		}
	}
	for _, row := range here {
		add(row)
	}
	for _, m := range moments {
		switch {
		case m.Done == 0 || len(m.Streams) == 0 && m.Done < index:
			continue // it tells nothing of changes, or nobody
		case m.Done < index:
			unheard = append(unheard, m.Node)
			continue
		}
		if i := slices.IndexFunc(m.Became, func(b became) bool { return b.Index >= index }); i >= 0 && index > m.Floor {
			for _, row := range m.Became[i].Sidecars {
				add(row)
			}
		}
		for _, st := range m.Streams { // who has come to it since was told all at once
			row, ok := rows[key{st.Sidecar, st.Node}]
			if ok && row.State == api.Disconnected && st.Behind == "" {
				add(appliedSidecar{Sidecar: st.Sidecar, Node: st.Node, State: api.Acked})
			}
		}
	}
	all = make([]appliedSidecar, 0, len(rows))
	for _, row := range rows {
		all = append(all, row)
	}
	slices.SortFunc(all, func(a, b appliedSidecar) int {
		return cmp.Or(cmp.Compare(a.Sidecar, b.Sidecar), cmp.Compare(a.Node, b.Node))
	})
	slices.Sort(unheard)
	return all, unheard
}
