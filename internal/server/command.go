package server

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/shift"
)

// commands are what a request may ask of a shift that is under way.
var commands = map[string]shift.Verb{api.Pause: shift.CommandPause, api.Resume: shift.CommandResume, api.Abort: shift.CommandAbort}

// checkShift refuses requests that nobody means.
func checkShift(in api.ShiftRequest) error {
	kinds := 0
	for _, given := range []bool{len(in.Via) > 0 || in.Legacy != nil && in.To == "", in.To != "", in.Do != ""} {
		if given {
			kinds++
		}
	}
	switch {
	case kinds == 0:
		return refuse(http.StatusBadRequest, "shift: neither shares, nor a way to move to, nor a legacy address are given: nothing would change")
	case kinds > 1:
		return refuse(http.StatusBadRequest, "shift: want one of shares, a way to move to, and a command")
	case in.Do != "" && commands[in.Do] == "":
		return refuse(http.StatusBadRequest, "shift: %.40q: no such command: want %s, %s or %s", in.Do, api.Pause, api.Resume, api.Abort)
	case in.To != "" && !slices.Contains(api.Ways(), in.To):
		return refuse(http.StatusBadRequest, "shift: to %.40q: no such way: want one of %v", in.To, api.Ways())
	case in.To == "" && in.Plan != nil:
		return refuse(http.StatusBadRequest, "shift: steps, dwell, windows and on_breach belong to a way to move to")
	}
	return nil
}

// taken is why shares of a pair are not to be set by hand now, or nil.
func (s *Server) taken(t target, in api.ShiftRequest) error {
	if in.Force || len(in.Via) == 0 {
		return nil
	}
	at, ok := s.steps.find(shift.Pair{Source: t.Source, Destination: t.Destination})
	if ok && underWay(at) && at.Status != shift.Paused {
		return refuse(http.StatusConflict, "%s: a shift to %s is %s: pause or abort it first, or force", t.what("shift"), at.Plan.To, at.Status)
	}
	return nil
}

// command pauses, resumes or aborts shifts of pairs, each by itself.
func (s *Server) command(b *books, in api.ShiftRequest, who string) *api.Changed {
	targets := b.targets(in)
	if in.Service != "" {
		targets = nil
		for _, at := range s.steps.shifts() {
			if at.Pair.Destination == in.Service && underWay(at) {
				targets = append(targets, target{PairName: api.PairName{Source: at.Pair.Source, Destination: at.Pair.Destination}})
			}
		}
	}
	out := &api.Changed{Pairs: []api.PairChanged{}}
	var list []shift.Command
	for _, t := range targets {
		list = append(list, shift.Command{Verb: commands[in.Do], Pair: shift.Pair{Source: t.Source, Destination: t.Destination}, By: who})
	}
	refused := map[shift.Pair]string{}
	if !in.DryRun {
		refused = s.steps.order(list)
	}
	for _, t := range targets {
		e, _ := b.deciding(t.PairName)
		done := api.PairChanged{PairName: t.PairName, Before: api.Shares(sharesBefore(e))}
		done.After = done.Before
		pair := shift.Pair{Source: t.Source, Destination: t.Destination}
		done.Refused = refused[pair]
		if at, ok := s.steps.find(pair); ok {
			done.Status = string(at.Status)
		} else if done.Refused == "" {
			done.Refused = "no shift of the pair is under way"
		}
		out.Pairs = append(out.Pairs, done)
	}
	return out
}

// start writes the plan into the pair's entry, and begins to move by it.
func (s *Server) start(t target, in api.ShiftRequest, from *store.Reader) (api.PairChanged, *config.TrafficShift, error) {
	old, row := decidingOf(t.PairName, from.Entry)
	done := api.PairChanged{PairName: t.PairName, Before: api.Shares(sharesBefore(old)), Index: entryIndex(row)}
	done.After = done.Before
	if t.index != nil && *t.index != done.Index {
		return done, nil, lost(t, done.Index, row, from)
	}
	if t.Source == config.Wildcard || t.Destination == config.Wildcard {
		return done, nil, refuse(http.StatusBadRequest, "%s: shares move by themselves for one pair by name", t.what("shift"))
	}
	if at, ok := s.steps.find(shift.Pair{Source: t.Source, Destination: t.Destination}); ok && underWay(at) {
		return done, nil, refuse(http.StatusConflict, "%s: a shift to %s is %s: abort it, or wait until it is done", t.what("shift"), at.Plan.To, at.Status)
	}
	e := next(t.PairName, old)
	if in.Legacy != nil {
		e.Legacy = &config.LegacyWay{Address: in.Legacy.Address, Host: in.Legacy.Host}
	}
	if old == nil { // nothing was shifted: all goes by mtls
		return done, nil, refuse(http.StatusConflict, "%s: the pair is on mtls, nothing was shifted: put it on its old way first, as with --via legacy=100 --legacy-address", t.what("shift"))
	}
	if p := in.Plan; p != nil {
		if err := planned(e, *p); err != nil {
			return done, nil, refuse(http.StatusBadRequest, "%s: %v", t.what("shift"), err)
		}
	}
	if err := checked(e); err != nil {
		return done, nil, refuse(http.StatusBadRequest, "%s: %v", t.what("shift"), err)
	}
	plan, err := planOf(s.mesh.config(), e, shift.Way(in.To))
	if err == nil {
		err = plan.Validate(shift.Pair{Source: t.Source, Destination: t.Destination})
	}
	if err != nil {
		return done, nil, refuse(http.StatusBadRequest, "%s: %v", t.what("shift"), err)
	}
	done.Entry, err = config.EncodeEntry(e)
	return done, e, err
}

// planned puts a request's plan in place of an entry's.
func planned(e *config.TrafficShift, p api.Plan) error {
	if len(p.Steps) > 0 {
		e.Steps = p.Steps
	}
	if p.Dwell != "" {
		d, err := time.ParseDuration(p.Dwell)
		if err != nil {
			return fmt.Errorf("dwell %.40q: want a duration such as 10m", p.Dwell)
		}
		e.Dwell = config.Duration(d)
	}
	if len(p.Windows) > 0 {
		e.Windows = p.Windows
	}
	if p.OnBreach != "" {
		g := config.ShiftGuard{}
		if e.Guard != nil {
			g = *e.Guard
		}
		g.OnBreach, e.Guard = p.OnBreach, &g
	}
	return nil
}

// begin starts what start has written.
func (s *Server) begin(out *api.Changed, in api.ShiftRequest, who string) {
	var list []shift.Command
	for i := range out.Pairs {
		done := &out.Pairs[i]
		if done.Refused != "" {
			continue
		}
		var e *config.TrafficShift
		if entry, err := config.DecodeEntryJSON(done.Entry); err == nil {
			e, _ = entry.(*config.TrafficShift)
		}
		if e == nil {
			done.Refused = "its traffic-shift can't be read"
			continue
		}
		plan, err := planOf(s.mesh.config(), e, shift.Way(in.To))
		if err != nil {
			done.Refused = err.Error()
			continue
		}
		list = append(list, shift.Command{Verb: shift.CommandStart, Pair: shift.Pair{Source: done.Source, Destination: done.Destination}, Plan: plan, By: who})
	}
	refused := s.steps.order(list)
	for i := range out.Pairs {
		done := &out.Pairs[i]
		pair := shift.Pair{Source: done.Source, Destination: done.Destination}
		done.Refused = cmp.Or(done.Refused, refused[pair])
		if at, ok := s.steps.find(pair); ok {
			done.Status = string(at.Status)
		}
	}
}
