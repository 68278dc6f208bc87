package telemetry

import (
	"cmp"
	"slices"

	"github.com/crossfade-mesh/crossfade/internal/shift"
)

// tally is one destination's counts.
type tally struct {
	ways    map[shift.Way]*shift.Telemetry
	failing map[Failing]uint64 // by Failing without its Count
}

func tallyOf(all map[string]*tally, destination string) *tally {
	t := all[destination]
	if t == nil {
		t = &tally{ways: map[shift.Way]*shift.Telemetry{}, failing: map[Failing]uint64{}}
		all[destination] = t
	}
	return t
}

func (t *tally) way(w shift.Way) *shift.Telemetry {
	if t.ways[w] == nil {
		t.ways[w] = &shift.Telemetry{}
	}
	return t.ways[w]
}

func (t *tally) attempts(w shift.Way, n uint64, o outcome) {
	c := t.way(w)
	c.Attempts += n
	failed, unconnected := o.judge()
	if failed {
		c.Failed += n
		t.failing[Failing{Way: w, What: o.String()}] += n
	}
	if unconnected {
		c.ConnectFailed += n
	}
}

// nobody counts requests of a way for which there was nobody anywhere: each is an attempt that
// found no connection.
func (t *tally) nobody(w shift.Way, n uint64) {
	c := t.way(w)
	c.Attempts, c.First, c.Failed, c.ConnectFailed = c.Attempts+n, c.First+n, c.Failed+n, c.ConnectFailed+n
	t.failing[Failing{Way: w, What: nobodyThere}] += n
}

// connection counts connections of tcp. Those that reached nobody count by host, where each
// attempt is one; but for those that found no host. told says that the way is known.
func (t *tally) connection(w shift.Way, told bool, n uint64, flags string) {
	o := outcome{flags: flags, connection: true}
	switch {
	case flags == "-":
		t.way(w).First += n
		t.attempts(w, n, o)
	case o.has("UF"):
	case told:
		t.way(w).First += n
		t.attempts(w, n, o)
	default:
		t.failing[Failing{What: o.String()}] += n
	}
}

func (t *tally) outbound(destination string) Outbound {
	out := Outbound{Destination: destination}
	for _, w := range shift.Ways() {
		if c := t.ways[w]; c != nil {
			out.Ways = append(out.Ways, shift.WayTelemetry{Way: w, Telemetry: *c})
		}
	}
	for f, n := range t.failing {
		f.Count = n
		out.Failing = append(out.Failing, f)
	}
	out.Failing = foremost(out.Failing)
	return out
}

// foremost keeps the most frequent kinds of failure.
func foremost(list []Failing) []Failing {
	slices.SortFunc(list, func(a, b Failing) int {
		return cmp.Or(-cmp.Compare(a.Count, b.Count), cmp.Compare(a.Way, b.Way), cmp.Compare(a.What, b.What))
	})
	return list[:min(len(list), maxFailing)]
}
