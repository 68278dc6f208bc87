package server

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/shift"
)

// reach is how much of a callee each way reaches.
func (b *books) reach(service string, rate map[shift.Way]float64) shift.Callee {
	c := b.callee(service)
	way := func(w shift.Way, ready int) shift.Reach {
		return shift.Reach{Way: w, Ready: ready, Total: max(c.Healthy, ready), Rate: rate[w]}
	}
	plain, sided := 0, 0
	for _, in := range b.snap.Connect(service) {
		if in.Weight() == 0 {
			continue
		}
		sided++
		if in.Service.Kind == catalog.ConnectProxy && in.PlaintextPort() != 0 {
			plain++
		}
	}
	return shift.Callee{Service: service, Ways: []shift.Reach{
		way(shift.Legacy, max(c.Healthy, 1)), way(shift.Direct, c.Healthy), way(shift.Plain, min(plain, c.Healthy)), way(shift.MTLS, min(sided, c.Healthy)),
	}}
}

// proxies counts the sidecars of a service that are in service.
func (b *books) proxies(service string) (n int) {
	for _, in := range b.snap.Connect(service) {
		if in.Service.Kind == catalog.ConnectProxy && in.Weight() > 0 {
			n++
		}
	}
	return n
}

// cramped refuses shares that callees cannot bear, as far as that is known: of one without an
// instance in service it is not. Sidecars of a callee that takes plaintext are about to, if they
// do not yet.
func (s *Server) cramped(b *books, pairs []api.PairChanged, now time.Time) error {
	rates := ratesOf(s.mesh.book.Rates(now))
	moves := map[string][]shift.Move{}
	for _, done := range pairs {
		for _, p := range b.meant(done.PairName) {
			before, after := sharesOfEntry(config.Shares(done.Before)), sharesOfEntry(config.Shares(done.After))
			moves[p.Destination] = append(moves[p.Destination], shift.Move{Rate: rates.pairs[shift.Pair{Source: p.Source, Destination: p.Destination}], Before: before, After: after})
		}
	}
	for _, service := range slices.Sorted(maps.Keys(moves)) {
		callee := b.reach(service, rates.callees[service])
		if b.callee(service).Healthy == 0 {
			continue
		}
		for i := range callee.Ways {
			if r := &callee.Ways[i]; r.Way == shift.Plain {
				r.Ready = min(b.proxies(service), r.Total)
			}
		}
		if err := callee.Room(shift.Headroom, moves[service]...); err != nil {
			return refuse(http.StatusConflict, "shift: %v: move less, or get more instances to take that way first; --force does it all the same", err)
		}
	}
	return nil
}

// tooLarge says of shifts that begin at which step they will wait, since the callee does not bear it
// as it is now.
func (s *Server) tooLarge(b *books, out *api.Changed, to string, now time.Time) {
	rates := ratesOf(s.mesh.book.Rates(now))
	for _, done := range out.Pairs {
		entry, err := config.DecodeEntryJSON(done.Entry)
		e, ok := entry.(*config.TrafficShift)
		if err != nil || !ok || done.Refused != "" || b.callee(done.Destination).Healthy == 0 || len(out.Warnings) >= maxWarnings {
			continue
		}
		plan, err := planOf(s.mesh.config(), e, shift.Way(to))
		if err != nil {
			continue // it was refused for that
		}
		pair := shift.Pair{Source: done.Source, Destination: done.Destination}
		if why := b.reach(done.Destination, rates.callees[done.Destination]).Stops(plan, rates.pairs[pair], sharesOfEntry(e.Shares)); why != nil {
			out.Warnings = append(out.Warnings, fmt.Sprintf("pair %q: the shift will wait before %v", clipped(pair.String()), why))
		}
	}
}
