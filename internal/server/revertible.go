package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

// revertible says whether the old way of an entry takes the pair's requests: by the word of
// the callers, who try it all the time, and where none has one by what the server sees.
func (b *books) revertible(p api.PairName, e *config.TrafficShift) api.Revertible {
	if e == nil {
		return api.Revertible{State: api.No, Why: "nothing was shifted: no traffic-shift decides for it"}
	}
	way := oldWay(e)
	said := b.saidOf(p, e)
	out := b.seen(p, e, said)
	out.Way = way
	if said.Fails > 0 && out.State != api.No {
		out.State, out.Since = api.No, said.Since
		out.Why = fmt.Sprintf("%d of %d callers cannot reach it: %s", said.Fails, said.Fails+said.Works, clipped(said.Why))
		if way == api.Legacy {
			out.Why = fmt.Sprintf("legacy address %s: %s", e.Legacy.Address, out.Why)
		}
	}
	return out
}

// saidOf is what callers say of the old way of an entry.
func (b *books) saidOf(p api.PairName, e *config.TrafficShift) telemetry.Probed {
	address := ""
	switch {
	case b.probed == nil:
		return telemetry.Probed{}
	case e.Legacy != nil:
		address = e.Legacy.Address
	}
	return b.probed(p, oldWay(e), address)
}

// noWayBack is why no caller of a pair would get anywhere by the old way; "" when some would, or
// nobody knows.
func (b *books) noWayBack(p api.PairName, e *config.TrafficShift) string {
	if b.saidOf(p, e).Works > 0 {
		return ""
	}
	if r := b.revertible(p, e); r.State == api.No {
		return r.Why
	}
	return ""
}

// seen is what the server knows itself, beside what callers say.
func (b *books) seen(p api.PairName, e *config.TrafficShift, said telemetry.Probed) api.Revertible {
	out := api.Revertible{State: api.Yes}
	heard := said.Works > 0 && said.Fails == 0
	if heard {
		out.Since = said.Since
	}
	if oldWay(e) == api.Direct {
		c := b.callee(p.Destination)
		out.Why = fmt.Sprintf("%d of %d instances of %q are healthy", c.Healthy, c.Instances, p.Destination)
		switch {
		case c.Instances == 0:
			out.State, out.Why, out.Since = api.No, fmt.Sprintf("no instance of %q is registered", p.Destination), time.Time{}
		case c.Healthy == 0:
			out.State, out.Why, out.Since = api.No, fmt.Sprintf("none of %d instances of %q is healthy", c.Instances, p.Destination), time.Time{}
		default:
			switch closed, why := b.closedTo(p); {
			case closed >= c.Healthy:
				out.State, out.Why, out.Since = api.No, why, time.Time{}
			case closed > 0:
				out.Why += fmt.Sprintf("; %d take no connections from other hosts", closed)
			}
		}
		if heard && out.State == api.Yes {
			out.Why += fmt.Sprintf("; %d callers connect", said.Works)
		}
		return out
	}
	address := e.Legacy.Address
	err, asked := b.legacy[address]
	var since, last time.Time
	if b.history != nil {
		since, last = b.history(address)
	}
	switch failed := asked && err != nil && !errors.Is(err, errNotProbed); {
	case failed && (!heard || time.Since(last) < stale): // callers may not know yet
		out.State, out.Since = api.No, since
		out.Why = fmt.Sprintf("legacy address %s: cannot be connected to from the server: %v", address, err)
	case heard:
		out.Why = fmt.Sprintf("legacy address %s answers %d callers", address, said.Works)
		if failed {
			out.Why += ", and not the server"
		}
	case !asked || err != nil:
		out.State, out.Why = api.Unknown, fmt.Sprintf("legacy address %s: not probed in time", address)
	default:
		out.Why, out.Since = fmt.Sprintf("legacy address %s takes connections", address), since
	}
	return out
}

// stale is how old the word of callers may be: when an address has answered the server inside
// it, and does not now, they may not have tried since. Each tries every five seconds.
const stale = 15 * time.Second

// watchOldWaysEvery is how often it is looked whether all pairs could go back.
const watchOldWaysEvery = 5 * time.Second

// watchOldWays says when a revert of a pair would fail, and when it would no longer, until ctx
// ends.
func (s *Server) watchOldWays(ctx context.Context) {
	tick := time.NewTicker(watchOldWaysEvery)
	defer tick.Stop()
	stuck := map[api.PairName]bool{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := isolated(func() error { stuck = s.lookAtOldWays(ctx, stuck); return nil }); err != nil {
			s.opts.Log.Error("it is not known whether pairs could go back", "reason", err)
		}
	}
}

// lookAtOldWays returns the pairs that could not go back, given those of before.
func (s *Server) lookAtOldWays(ctx context.Context, before map[api.PairName]bool) map[api.PairName]bool {
	stuck := map[api.PairName]bool{}
	entries := s.mesh.config()
	if len(before) == 0 && !slices.ContainsFunc(entries.Keys(), func(k config.Key) bool {
		e, ok := entries.Get(k).(*config.TrafficShift)
		return ok && e.Shares != allOn(oldWay(e))
	}) {
		return stuck
	}
	b := s.books(ctx)
	var names []api.PairName
	for _, name := range slices.Sorted(maps.Keys(b.shifts)) {
		if e, ok := b.shifts[name].Entry.(*config.TrafficShift); ok && e.Shares != allOn(oldWay(e)) {
			names = append(names, b.decided(name)...)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*probeTimeout)
	defer cancel()
	addresses := b.addresses(names)
	b.legacy = s.probes.all(ctx, addresses, 0, len(addresses))
	for _, p := range names {
		e, _ := b.deciding(p)
		r := b.revertible(p, e)
		if r.State == api.No {
			stuck[p] = true
		}
		switch {
		case r.State == api.No && !before[p]:
			s.opts.Log.Warn("a revert of this pair would fail: its old way takes no requests", "pair", p.String(), "way", r.Way, "reason", r.Why)
		case r.State == api.Yes && before[p]:
			s.opts.Log.Info("the pair can go back again", "pair", p.String(), "way", r.Way)
		case r.State == api.Unknown && before[p]:
			stuck[p] = true
		}
	}
	return stuck
}
