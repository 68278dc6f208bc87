package server

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/shift"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

const (
	// stepEvery is how often shifts are looked at.
	stepEvery = time.Second
	// saveEvery is how often what the guard has learnt is saved. Shares, statuses and
	// generations are saved at once.
	saveEvery = 5 * time.Second
	// settleFor is for how long after its callers have new shares nothing of a pair is
	// compared: counts from before would be among them. A sidecar that could not report tells of
	// a longer stretch than usualOver at once, which takes as much longer.
	settleFor = 2 * time.Second
	usualOver = time.Second
	// orderWithin is how long a command waits for a look that is under way.
	orderWithin = time.Second
	// stateName is under which the store remembers the shifts.
	stateName = "shifts"
)

// stepper moves shares by time and evidence: it observes, asks [shift.Step] what is to be
// done, and does it. A look lasts as long as the store's disk takes: only commands wait for
// it, and not for long; whoever reads has what was so last.
type stepper struct {
	s   *Server
	log *slog.Logger
	// runs reports whether all callers run the entries of an index; [mesh.runs].
	runs func(b *books, source string, index uint64) bool

	seen atomic.Pointer[sight] // never nil

	turn    chan struct{} // holds one: whoever steps, who has the following to itself
	row     []byte        // what was last seen, or put, in the store
	state   shift.State
	saved   []byte    // what the store has, but for the guard's memory
	savedAt time.Time // when all of it was
	settled map[shift.Pair]settled
	steps   []shift.LogEntry       // the newest
	heavy   int                    // pairs in them
	start   shift.State            // before the first of them
	watches map[string]shift.Watch // of permissive callees
	kvWrong map[shift.Pair]string  // keys that can't be followed
	ordered chan struct{}          // capacity 1: another server has commands

	overMu sync.Mutex
	over   []shift.Command // that nobody waits for, guarded by overMu
}

// sight is what others may read of a stepper. Nothing in it changes any more.
type sight struct {
	shifts  []shift.Shift
	watches map[string]shift.Watch
	kvWrong map[shift.Pair]string
	steps   []shift.LogEntry
	start   shift.State
	row     []byte // of the store, that it was made from
}

// show lets others read what is so now. Of what it shows maps and lists are replaced when they
// change, and steps are only added. The caller has the turn.
func (p *stepper) show() {
	p.seen.Store(&sight{p.state.Shifts, p.watches, p.kvWrong, slices.Clip(p.steps), p.start, p.row})
}

// settled is since when all callers of a pair run a generation.
type settled struct {
	generation uint64
	since      time.Time
}

func newStepper(s *Server) *stepper {
	p := &stepper{s: s, log: s.opts.Log, runs: s.mesh.runs, settled: map[shift.Pair]settled{}, turn: make(chan struct{}, 1), ordered: make(chan struct{}, 1)}
	p.show()
	return p
}

// open reads what was remembered.
func (p *stepper) open() error {
	var raw []byte
	p.s.store.Read(context.Background(), 0, func(r *store.Reader) { raw = r.State(stateName) })
	return p.recall(raw)
}

// recall goes on from what the store has.
func (p *stepper) recall(raw []byte) error {
	if raw == nil {
		return nil
	}
	var was remembered
	if err := json.Unmarshal(raw, &was); err != nil {
		return fmt.Errorf("shifts that were under way can't be read: %w", err)
	}
	p.row, p.state, p.watches = raw, was.State, was.Watches
	p.state.Seen = time.Time{} // the time since then is no time that anybody watched
	p.show()
	return nil
}

func (p *stepper) run(ctx context.Context) {
	tick := time.NewTicker(stepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.ordered:
			if err := isolated(func() error { p.obey(time.Now()); return nil }); err != nil {
				p.log.Error("commands can't be obeyed", "reason", err)
			}
		case now := <-tick.C:
			err := isolated(func() error { p.tick(now); return nil })
			if err != nil {
				p.log.Error("shifts can't be looked at, shares stay as they are", "reason", err)
			}
		}
	}
}

// order gives commands, one of a pair at most, and says by pair why one is not obeyed.
func (p *stepper) order(list []shift.Command) map[shift.Pair]string {
	refused := map[shift.Pair]string{}
	if len(list) == 0 {
		return refused
	}
	if !p.s.store.Holds(lockShifts) {
		return p.forward(list)
	}
	late := time.NewTimer(orderWithin)
	defer late.Stop()
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-late.C:
		for _, c := range list {
			refused[c.Pair] = fmt.Sprintf("not within %v: shifts wait for the server's store: try again, or revert, which does not wait for them", orderWithin)
		}
		return refused
	}
	for _, a := range p.look(time.Now(), list, false) {
		if a.Kind == shift.Refused {
			refused[a.Pair] = a.Reason
		}
	}
	return refused
}

// reverted tells of pairs that people have put back. It never waits: what has moved
// anything yields by itself to the entry of a higher generation, and what has not, as it waits
// for its window, ends in the next step.
func (p *stepper) reverted(pairs []api.PairChanged, who string) {
	p.overMu.Lock()
	defer p.overMu.Unlock()
	for _, done := range pairs {
		if done.Refused == "" && len(p.over) < api.MaxPairs {
			p.over = append(p.over, shift.Command{Verb: shift.CommandRevert, Pair: shift.Pair{Source: done.Source, Destination: done.Destination}, By: who})
		}
	}
}

// overruled takes what [stepper.reverted] was told, of shifts that would go on. The caller
// has the turn.
func (p *stepper) overruled() []shift.Command {
	p.overMu.Lock()
	list := p.over
	p.over = nil
	p.overMu.Unlock()
	return slices.DeleteFunc(list, func(c shift.Command) bool {
		at, ok := p.state.Find(c.Pair)
		return !ok || !underWay(at) || !at.Fresh && at.Status != shift.Queued
	})
}

// underWay says whether a shift moves shares by itself, or may go on to.
func underWay(at shift.Shift) bool {
	return !at.Plan.Hold && (at.Status == shift.Queued || at.Status == shift.Running || at.Status == shift.Paused || at.Status == shift.Reverting)
}

// find is the shift of a pair.
func (p *stepper) find(pair shift.Pair) (shift.Shift, bool) {
	return shift.State{Shifts: p.shifts()}.Find(pair)
}

// shifts are all there are, not to be changed.
func (p *stepper) shifts() []shift.Shift { return p.sight().shifts }

// step looks once, in its turn.
func (p *stepper) step(now time.Time, commands []shift.Command, count bool) []shift.Action {
	p.turn <- struct{}{}
	defer func() { <-p.turn }()
	return p.look(now, commands, count)
}

// look does what is to be done now. Only with count is what sidecars counted taken, so that it
// is compared once. The caller has the turn.
func (p *stepper) look(now time.Time, commands []shift.Command, count bool) []shift.Action {
	defer p.show()
	p.refresh()
	b := p.s.books(context.Background())
	commands = append(p.overruled(), commands...)
	if count {
		p.watch(now, b)
		p.s.saveUnsaved()
		p.followKV(now, b)
	}
	if len(b.shifts) == 0 && len(p.state.Shifts) == 0 && len(commands) == 0 {
		p.save(now)
		return nil
	}
	observed := p.observe(now, b, count, commands)
	observed.Commands = append(observed.Commands, commands...)
	if len(observed.Pairs) == 0 && len(p.state.Shifts) == 0 && len(commands) == 0 {
		p.save(now)
		return nil
	}
	p.remember(shift.LogEntry{Now: now.Round(0), Observed: observed})
	state, actions := shift.Step(now, p.state, observed)
	p.state = state
	p.show()
	if !p.save(now) { // first: what is written to entries is to be known after a restart
		return nil
	}
	for _, a := range actions {
		p.act(now, a)
	}
	return actions
}

// observe is what is known now of pairs whose requests are divided, or that have a shift or a
// command.
func (p *stepper) observe(now time.Time, b *books, count bool, commands []shift.Command) (out shift.Observed) {
	asked := map[shift.Pair]bool{}
	for _, c := range commands {
		asked[c.Pair] = true
	}
	entries := p.s.mesh.config()
	windows := map[shift.Pair]telemetry.Window{}
	if count {
		for _, w := range p.s.mesh.book.Drain() {
			windows[w.Pair] = w
		}
	}
	rates := ratesOf(p.s.mesh.book.Rates(now))
	callees := map[string]bool{}
	for _, name := range b.names(func(api.PairName) bool { return true }) {
		pair := shift.Pair{Source: name.Source, Destination: name.Destination}
		e, row := b.deciding(name)
		_, under := p.state.Find(pair)
		if e == nil {
			continue
		}
		from, to, divided := waysOf(e)
		divided = divided && e.Shares.Hundredths(string(from)) > 0
		if !under && !divided && !asked[pair] {
			continue
		}
		o := shift.PairObserved{
			Pair: pair, Stage: openStage(entries, name.Destination, e), Shares: sharesOfEntry(e.Shares), Generation: e.Generation,
			Applied: e.Generation, Rate: rates.pairs[pair], Terms: termsOf(entries, e, name.Destination),
		}
		if under {
			o.NoWayBack = b.noWayBack(name, e)
		}
		if !p.runs(b, name.Source, row.ModifyIndex) {
			o.Applied = 0
		}
		if w, ok := windows[pair]; p.quiet(pair, o, now, w.Over) && ok {
			o.Ways, o.Failing = w.Ways, examples(now, w.Failing)
		}
		out.Pairs = append(out.Pairs, o)
		if !callees[name.Destination] {
			callees[name.Destination] = true
			out.Callees = append(out.Callees, b.reach(name.Destination, rates.callees[name.Destination]))
		}
		if divided && p.wantsHold(pair, e, from, to) {
			hold := shift.Plan{From: from, To: to, Hold: true, Dwell: duration(e.Dwell), OnBreach: o.Terms.OnBreach, Limits: o.Terms.Limits}
			out.Commands = append(out.Commands, shift.Command{Verb: shift.CommandStart, Pair: pair, By: "shift guard", Plan: hold})
		}
	}
	return out
}

// quiet reports whether callers had the pair's present shares for all of a stretch that they
// have just told of, and for a while before.
func (p *stepper) quiet(pair shift.Pair, o shift.PairObserved, now time.Time, over time.Duration) bool {
	if o.Applied != o.Generation {
		delete(p.settled, pair)
		return false
	}
	s, ok := p.settled[pair]
	if !ok || s.generation != o.Generation {
		p.settled[pair] = settled{o.Generation, now}
		return false
	}
	return now.Sub(s.since) >= settleFor+max(0, over-usualOver)
}

// wantsHold reports whether shares that people have set are to be watched from now on, or
// otherwise than they are.
func (p *stepper) wantsHold(pair shift.Pair, e *config.TrafficShift, from, to shift.Way) bool {
	if e.Guard != nil && e.Guard.Off {
		return false
	}
	s, ok := p.state.Find(pair)
	switch {
	case !ok:
		return true
	case s.Status == shift.Done || s.Status == shift.Reverted || s.Status == shift.Aborted:
		return e.Generation > s.Generation || s.Status == shift.Done && !s.Plan.Hold && sharesOfEntry(e.Shares) == s.Shares
	case s.Plan.Hold && s.Status != shift.Reverting:
		return s.Plan.From != from || s.Plan.To != to
	}
	return false
}

// termsOf are what the shift guard of a pair goes by, as its entry says now.
func termsOf(entries *config.Set, e *config.TrafficShift, destination string) *shift.Terms {
	out := &shift.Terms{OnBreach: shift.Revert, Limits: limitsOf(e.Guard, attemptsOf(entries, destination))}
	if e.Guard != nil {
		out.Off = e.Guard.Off
		if e.Guard.OnBreach == config.OnBreachPause {
			out.OnBreach = shift.Pause
		}
	}
	return out
}

// act carries an action out.
func (p *stepper) act(now time.Time, a shift.Action) {
	args := []any{"pair", a.Pair.String()}
	switch a.Kind {
	case shift.SetShares:
		if err := p.write(now, a); err != nil {
			p.log.Error("shares can't be written, it is tried again", append(args, "shares", a.Shares.String(), "reason", err)...)
		}
	case shift.Report:
		args = append(args, "status", string(a.Status), "wait", string(a.Wait), "reason", a.Reason)
		if a.Breach != nil && (a.Status == shift.Reverting || a.Status == shift.Paused) {
			p.log.Warn("the shift guard has stopped a shift", args...)
			return
		}
		p.log.Info("shift", args...)
	}
}

// write writes a pair's shares, unless somebody has written a newer generation meanwhile.
func (p *stepper) write(now time.Time, a shift.Action) error {
	by := store.Author{Who: "shift", Time: now, What: "stepped"}
	if a.Back {
		by = store.Author{Who: "shift guard", Time: now, Reverted: true}
	}
	name := api.PairName{Source: a.Pair.Source, Destination: a.Pair.Destination}
	var written *config.TrafficShift
	_, err := p.s.change(func(w *store.Writer) error {
		old, _ := decidingOf(name, w.Entry)
		if old != nil && old.Generation >= a.Generation {
			return nil // the next step sees it
		}
		e := next(name, old)
		e.Shares, e.Generation = entryShares(a.Shares), a.Generation
		w.Holding(lockShifts)
		if err := checked(e); err != nil {
			return err
		}
		written = e
		return w.PutEntry(e, by)
	})
	if a.Back && written != nil && diskFailed(err) {
		p.s.mesh.over([]unsaved{{written, by, oneLine(err)}}) // a revert waits for no disk
	}
	return err
}

// save remembers the shifts: at once when anything but the guard's memory has changed. It is false
// when another server moves shares now: then its state counts.
func (p *stepper) save(now time.Time) bool {
	bare := p.state
	bare.Seen, bare.Shifts = time.Time{}, slices.Clone(bare.Shifts)
	if len(bare.Shifts)+len(p.watches) == 0 && p.saved == nil {
		return true // nothing was ever shifted
	}
	active := len(p.watches) > 0
	for i := range bare.Shifts {
		s := &bare.Shifts[i]
		active = active || s.Status == shift.Running || s.Status == shift.Paused
		s.Guard, s.Dwelt, s.Reason = shift.Guard{}, 0, ""
	}
	head, err := json.Marshal(bare)
	if err == nil && string(head) == string(p.saved) && (!active || now.Sub(p.savedAt) < saveEvery && now.After(p.savedAt)) {
		return true
	}
	full, err2 := json.Marshal(remembered{p.state, p.watches})
	if err := errors.Join(err, err2); err != nil {
		p.log.Error("shifts can't be saved", "reason", err)
		return true
	}
	err = p.s.store.Update(func(w *store.Writer) error {
		if !bytes.Equal(w.State(stateName), p.row) {
			return &store.LockLost{Lock: lockShifts}
		}
		w.Holding(lockShifts)
		return w.PutState(stateName, full)
	})
	if _, lost := errors.AsType[*store.LockLost](err); lost {
		p.refresh()
		return false
	}
	if err != nil {
		p.log.Error("shifts can't be saved: after a restart they go on from where they were", "reason", err)
		return true
	}
	p.row, p.saved, p.savedAt = full, head, now
	return true
}

// share is a percent in hundredths, duration one of the standard library's.
func share(percent float64) shift.Share        { return shift.Share(math.Round(percent * 100)) }
func duration(d config.Duration) time.Duration { return time.Duration(d) }

// planOf is the plan that an entry holds, towards a way.
func planOf(entries *config.Set, e *config.TrafficShift, to shift.Way) (shift.Plan, error) {
	terms := termsOf(entries, e, e.Destination)
	out := shift.Plan{From: shift.Way(oldWay(e)), To: to, Dwell: duration(e.Dwell), OnBreach: terms.OnBreach, Limits: terms.Limits, Off: terms.Off}
	for _, s := range e.Steps {
		out.Steps = append(out.Steps, share(s))
	}
	for _, text := range e.Windows {
		w, err := shift.ParseWindow(text)
		if err != nil {
			return out, err
		}
		out.Windows = append(out.Windows, w)
	}
	return out, nil
}

// runs reports whether all connected sidecars of a source run what the entries of an index
// mean for them, and none of those registered is away.
func (m *mesh) runs(b *books, source string, index uint64) bool {
	of := b.declared()[source]
	if of == nil || len(of.sidecars) == 0 {
		return false
	}
	for _, in := range of.sidecars {
		if _, connected := b.connected(in); !connected {
			return false
		}
		if there, ok := b.runsThere[in.Service]; ok && there[source] < index {
			return false
		}
	}
	m.mu.Lock()
	done := m.changes.done
	c, known := m.changes.find(index)
	m.mu.Unlock()
	if done < index {
		return false
	}
	if !known {
		return true // so long ago that all who are connected have been told
	}
	return m.answered(c, source)
}

// config are the entries in force.
func (m *mesh) config() *config.Set {
	m.mu.Lock()
	defer m.mu.Unlock()
	return cmp.Or(m.entries, config.NewSet())
}

// examples are kinds of failure, for people.
func examples(now time.Time, list []telemetry.Failing) (out []shift.FailedRequest) {
	for _, f := range list {
		out = append(out, shift.FailedRequest{At: now.UTC().Truncate(time.Second), Way: f.Way, Reason: fmt.Sprintf("%s, %d times", f.What, f.Count)})
	}
	return out
}
