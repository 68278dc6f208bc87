package server

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

const (
	// cutOver is over which time what is open is closed by default, maxCutOver the longest.
	cutOver    = 30 * time.Second
	maxCutOver = time.Hour
	// cutGrace is how long after its time a sidecar may tell of the order.
	cutGrace = 10 * time.Second
	// keptCuts are the orders that can be asked for.
	keptCuts = 100
)

// cut is an order to close what is open on ways that a revert has left. It is of the moment:
// sidecars are given it with their runtime layer, and a server that restarts knows none.
type cut struct {
	id      string
	at      time.Time
	over    time.Duration
	targets []cutTarget // sorted
}

// cutTarget is one sidecar and one pair of its.
type cutTarget struct {
	key  telemetry.Key
	pair api.PairName
	keep string // the way that is left alone
	part int
}

// live reports whether sidecars are given the order still.
func (c *cut) live(now time.Time) bool { return now.Before(c.at.Add(c.over + cutGrace)) }

// parts are among how many sidecars the order's time is divided.
func (c *cut) parts() int { return c.targets[len(c.targets)-1].part + 1 }

// cutTime reads over which time an order closes.
func cutTime(in api.RevertRequest) (time.Duration, error) {
	if in.Over == "" {
		return cutOver, nil
	}
	over, err := time.ParseDuration(in.Over)
	switch {
	case !in.Cut:
		return 0, refuse(http.StatusBadRequest, "revert: over %q: goes with cut", clipped(in.Over))
	case err != nil || over < 0 || over > maxCutOver:
		return 0, refuse(http.StatusBadRequest, "revert: over %q: want a duration of at most %v, such as 30s", clipped(in.Over), maxCutOver)
	}
	return over, nil
}

// cut orders the sidecars of reverted pairs to close what is open on other ways, and returns
// the order's ID.
func (s *Server) cut(b *books, reverted *api.Changed, over time.Duration, now time.Time) string {
	c := &cut{id: strconv.FormatUint(rand.Uint64(), 36), at: now, over: over}
	for _, done := range reverted.Pairs {
		for _, p := range b.meant(done.PairName) {
			for _, keep := range api.Ways() {
				if done.Refused == "" && done.After.Of(keep) == 100 {
					c.add(b, p, keep)
				}
			}
		}
	}
	slices.SortFunc(c.targets, func(x, y cutTarget) int {
		return cmp.Or(cmp.Compare(x.key.Service, y.key.Service), cmp.Compare(x.key.Sidecar, y.key.Sidecar), cmp.Compare(x.key.Node, y.key.Node), comparePairs(x.pair, y.pair))
	})
	c.targets = slices.CompactFunc(c.targets, func(x, y cutTarget) bool { return x.key == y.key && x.pair == y.pair })
	for i := 1; i < len(c.targets); i++ {
		if c.targets[i].part = c.targets[i-1].part; c.targets[i].key != c.targets[i-1].key {
			c.targets[i].part++
		}
	}
	s.mesh.order(c)
	return c.id
}

func (c *cut) add(b *books, p api.PairName, keep string) {
	of := b.declared()[p.Source]
	if of == nil {
		return
	}
	for _, in := range of.calls[p.Destination] {
		if in.Service.Kind == catalog.ConnectProxy {
			c.targets = append(c.targets, cutTarget{key: keyOf(in), pair: p, keep: keep})
		}
	}
}

// order hands out an order.
func (m *mesh) order(c *cut) {
	m.mu.Lock()
	m.cuts = append(m.cuts, c)
	m.cuts = slices.Clone(m.cuts[max(0, len(m.cuts)-keptCuts):])
	m.mu.Unlock()
	m.poke()
}

// liveCuts are the orders that sidecars are given, the oldest first.
func (m *mesh) liveCuts(now time.Time) (out []*cut) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.cuts {
		if c.live(now) && len(c.targets) > 0 {
			out = append(out, c)
		}
	}
	return out
}

// cutsOf are the orders to one sidecar: of each destination the last, sorted.
func cutsOf(live []*cut, in catalog.Instance) []proxy.Cut {
	if len(live) == 0 {
		return nil
	}
	key := keyOf(in)
	last := map[string]proxy.Cut{}
	for _, c := range live {
		for _, t := range c.targets {
			if t.key == key {
				last[t.pair.Destination] = proxy.Cut{Destination: t.pair.Destination, ID: c.id, Keep: t.keep, Over: c.over, Part: t.part, Parts: c.parts()}
			}
		}
	}
	var out []proxy.Cut
	for _, destination := range slices.Sorted(maps.Keys(last)) {
		out = append(out, last[destination])
	}
	return out
}

// cutState says how far an order is.
func (s *Server) cutState(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	s.mesh.mu.Lock()
	i := slices.IndexFunc(s.mesh.cuts, func(c *cut) bool { return c.id == id })
	var c *cut
	if i >= 0 {
		c = s.mesh.cuts[i]
	}
	s.mesh.mu.Unlock()
	if c == nil {
		http.Error(w, fmt.Sprintf("cut %q: this server has given no such order, or has restarted, or has given %d since", clipped(id), keptCuts), http.StatusNotFound)
		return
	}
	s.answer(w, s.mesh.cutTold(c, time.Now()))
}

// relayed are the sidecars with an open stream: true for those that are more than an Envoy.
func (m *mesh) relayed() map[telemetry.Key]bool {
	snap := m.snapshot()
	m.mu.Lock()
	connected := maps.Clone(m.connected)
	m.mu.Unlock()
	out := map[telemetry.Key]bool{}
	for _, n := range connected {
		if in, ok := snap.Proxy(n.id, n.name); ok && !n.observer {
			out[keyOf(in)] = out[keyOf(in)] || n.relayed
		}
	}
	return out
}

// cutTold is what sidecars have told of an order.
func (m *mesh) cutTold(c *cut, now time.Time) api.Cut {
	out := api.Cut{ID: c.id, Begun: c.at, Over: c.over.String(), Done: true, Sidecars: []api.CutSidecar{}}
	relayed := m.relayed()
	for _, t := range c.targets {
		row := api.CutSidecar{PairName: t.pair, Sidecar: t.key.Sidecar, Node: t.key.Node}
		said := m.book.Cut(t.key, t.pair.Destination)
		beside, connected := relayed[t.key]
		switch {
		case said.Order == c.id:
			row.State, row.Connections, row.Closed, row.Why = said.State, said.Connections, said.Closed, said.Why
		case !connected:
			row.State, row.Why = api.Disconnected, "no connection to this server"
		case !beside:
			row.State, row.Why = api.CutFailed, "a bare Envoy: no sidecar is beside it to close anything"
		default:
			row.State = api.CutWaiting
		}
		if row.State == api.CutWaiting || row.State == api.CutClosing {
			switch {
			case c.live(now):
				out.Done = false
			case row.Why == "":
				row.State, row.Why = api.CutFailed, "has told nothing of it: it may be too old to know how"
			default:
				row.State = api.CutFailed
			}
		}
		out.Closed += row.Closed
		out.Sidecars = append(out.Sidecars, row)
	}
	return out
}
