package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// revertTries is how often a revert looks again when somebody has changed a pair that it has
// just looked at.
const revertTries = 3

// revert puts pairs back on the old way, but for those of which it says why not.
func (s *Server) revert(w http.ResponseWriter, r *http.Request) {
	var in api.RevertRequest
	err := decode(w, r, "revert", &in)
	switch {
	case err != nil:
	case in.All && (in.Service != "" || len(in.Pairs) > 0):
		err = refuse(http.StatusBadRequest, "revert: want either all, or pairs, or a service")
	case !in.All:
		err = checkPairs("revert", in.Service, in.Pairs)
	}
	var over time.Duration
	if err == nil {
		over, err = cutTime(in)
	}
	if err != nil {
		s.fail(w, "revert", err)
		return
	}
	by := store.Author{Who: s.door.author(r), Time: time.Now(), Reverted: true}
	for range revertTries {
		b := s.books(r.Context())
		out, overtaken, err := s.revertOnce(r.Context(), b, in, by)
		switch {
		case err != nil:
			s.fail(w, "revert", err)
			return
		case !overtaken:
			s.steps.reverted(out.Pairs, by.Who)
			b.conclude(out)
			if in.Cut {
				out.Cut = s.cut(b, out, over, time.Now())
			}
			s.answer(w, out)
			return
		}
	}
	s.fail(w, "revert", refuse(http.StatusConflict, "revert: nothing is changed: pairs are being changed again and again meanwhile: try again"))
}

// back is what is to become of one pair, or of an entry with "*".
type back struct {
	api.PairName
	old    *config.TrafficShift
	index  uint64 // of old
	reason string // why not, or empty
}

// revertOnce is one try. It does nothing, and says so, when a pair is no longer what it looked at.
func (s *Server) revertOnce(ctx context.Context, b *books, in api.RevertRequest, by store.Author) (out *api.Changed, overtaken bool, err error) {
	plan := b.backs(in)
	if len(plan) == 0 && in.Service != "" {
		return nil, false, refuse(http.StatusNotFound, "revert: service %q: no traffic-shift decides for a caller of it: nothing was shifted", clipped(in.Service))
	}
	if !in.Force {
		if b.legacy, err = s.probeFor(ctx, plan); err != nil {
			return nil, false, err
		}
		plan = b.judged(plan)
	}
	out, overtaken, err = s.putBack(plan, by)
	if diskFailed(err) {
		return s.putBackUnsaved(plan, by, err), false, nil
	}
	if _, refused := errors.AsType[*store.Refusal](err); refused {
		return s.putBackEach(plan, by)
	}
	return out, overtaken, err
}

// putBack writes all that is planned, or nothing when a pair is no longer what it was.
func (s *Server) putBack(plan []back, by store.Author) (out *api.Changed, overtaken bool, err error) {
	out = &api.Changed{}
	index, err := s.change(func(w *store.Writer) error {
		*out, overtaken = api.Changed{Pairs: []api.PairChanged{}}, false
		for _, t := range plan {
			_, row := decidingOf(t.PairName, w.Entry)
			if entryIndex(row) != t.index {
				overtaken = true
				return nil
			}
		}
		for _, t := range plan {
			done, err := t.write(w, by)
			if err != nil {
				return err
			}
			out.Pairs = append(out.Pairs, done)
		}
		return nil
	})
	out.Index = index
	return out, overtaken, err
}

// putBackEach writes pair by pair, where some do not go with other entries: those are named,
// and the others do not wait for them.
func (s *Server) putBackEach(plan []back, by store.Author) (*api.Changed, bool, error) {
	out := &api.Changed{Pairs: make([]api.PairChanged, len(plan))}
	indexes := make([]uint64, len(plan))
	errs := make([]error, len(plan))
	var wg sync.WaitGroup
	for i, t := range plan { // those that wait for the disk do so together
		wg.Go(func() {
			one, overtaken, err := s.putBack([]back{t}, by)
			switch _, refused := errors.AsType[*store.Refusal](err); {
			case refused:
				t.reason = oneLine(err)
			case overtaken:
				t.reason = "it is being changed by somebody else: try again"
			case err != nil:
				errs[i] = err
				return
			default:
				out.Pairs[i], indexes[i] = one.Pairs[0], one.Index
				return
			}
			shares := api.Shares(sharesBefore(t.old))
			out.Pairs[i] = api.PairChanged{PairName: t.PairName, Before: shares, After: shares, Index: t.index, Refused: t.reason}
		})
	}
	wg.Wait()
	out.Index = slices.Max(indexes)
	return out, false, errors.Join(errs...)
}

// oneLine is what is wrong, without line breaks.
func oneLine(err error) string { return strings.Join(strings.Split(err.Error(), "\n"), "; ") }

func entryIndex(row *store.Entry) uint64 {
	if row == nil {
		return 0
	}
	return row.ModifyIndex
}

// write puts the pair's own entry back on the old way.
func (t back) write(w *store.Writer, by store.Author) (api.PairChanged, error) {
	e, done, err := t.entry()
	if e == nil || err != nil {
		return done, err
	}
	return done, w.PutEntry(e, by)
}

// entry is the pair's own entry, back on the old way; nil where there is nothing to write.
func (t back) entry() (*config.TrafficShift, api.PairChanged, error) {
	done := api.PairChanged{PairName: t.PairName, Before: api.Shares(sharesBefore(t.old)), Index: t.index, Refused: t.reason}
	done.After = done.Before
	if t.reason != "" {
		return nil, done, nil
	}
	e := next(t.PairName, t.old)
	e.Shares = allOn(oldWay(t.old))
	done.After = api.Shares(e.Shares)
	if e.Shares == t.old.Shares {
		return nil, done, nil
	}
	if err := checked(e); err != nil {
		return nil, done, fmt.Errorf("%q: %w", clipped(t.String()), err)
	}
	raw, err := config.EncodeEntry(e)
	if err != nil {
		return nil, done, err
	}
	done.Entry = raw
	return e, done, nil
}

// backs lists what a request means, sorted.
func (b *books) backs(in api.RevertRequest) (out []back) {
	add := func(p api.PairName) {
		t := back{PairName: p}
		e, row := b.deciding(p)
		if e == nil {
			t.reason = "nothing was shifted: no traffic-shift decides for it"
		} else {
			t.old, t.index = e, row.ModifyIndex
		}
		out = append(out, t)
	}
	for _, p := range in.Pairs {
		add(p)
	}
	for _, row := range b.shifts {
		e, ok := row.Entry.(*config.TrafficShift)
		if !ok || !in.All && e.Destination != in.Service {
			continue
		}
		if in.All || in.Service != "" {
			add(api.PairName{Source: e.Source, Destination: e.Destination})
		}
	}
	if in.Service != "" {
		// Callers that an entry of their own, or of all, decides for: those of others stay.
		for _, p := range b.names(func(p api.PairName) bool { return p.Destination == in.Service }) {
			if e, _ := b.deciding(p); e != nil && e.Destination == config.Wildcard {
				add(p)
			}
		}
	}
	slices.SortFunc(out, func(a, b back) int { return comparePairs(a.PairName, b.PairName) })
	return out
}

// probeFor asks at the old mesh's addresses whether anything takes connections there.
func (s *Server) probeFor(ctx context.Context, plan []back) (map[string]error, error) {
	var addresses []string
	for _, t := range plan {
		if t.old != nil && t.old.Legacy != nil {
			addresses = append(addresses, t.old.Legacy.Address)
		}
	}
	found := s.probes.all(ctx, addresses, 0, len(addresses))
	return found, ctx.Err()
}

// judged says of each whether the old way takes its requests. An entry with "*" goes back
// whole or, where some of its pairs cannot, pair by pair.
func (b *books) judged(plan []back) (out []back) {
	for _, t := range plan {
		if t.reason != "" || t.old.Shares == allOn(oldWay(t.old)) {
			out = append(out, t)
			continue
		}
		if t.Destination != config.Wildcard {
			if r := b.revertible(t.PairName, t.old); r.State != api.Yes {
				t.reason = r.Why
			}
			out = append(out, t)
			continue
		}
		var can, cannot []back
		var why []string
		for _, p := range b.decided(config.PairName(t.Source, t.Destination)) {
			one := back{PairName: p, old: t.old, index: t.index}
			if r := b.revertible(p, t.old); r.State != api.Yes {
				one.reason = r.Why
				why = append(why, fmt.Sprintf("%q", p.String()))
				cannot = append(cannot, one)
				continue
			}
			can = append(can, one)
		}
		if len(cannot) > 0 {
			t.reason = "it decides for " + clipped(strings.Join(why, ", ")) + ", which cannot go back"
			out = append(append(out, can...), cannot...)
		}
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b back) int { return comparePairs(a.PairName, b.PairName) })
	return out
}
