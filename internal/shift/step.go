package shift

import (
	"fmt"
	"slices"
	"time"
)

// Step takes one step in time: it obeys the commands, feeds the shift guards,
// takes back what breaches, and moves whatever may move. Call it about once a
// second; a gap of more than ten seconds adds nothing to a dwell.
//
// now is in the location that windows are meant in. Neither argument is changed.
// Actions are sorted by pair.
func Step(now time.Time, s State, o Observed) (State, []Action) {
	now = now.Round(0) // a replay has no monotonic clock either
	r := run{now: now, state: s.clone(), pairs: map[Pair]PairObserved{}, callees: map[string]Callee{}}
	for _, p := range o.Pairs {
		if _, twice := r.pairs[p.Pair]; !twice {
			r.pairs[p.Pair] = p
		}
	}
	for _, c := range o.Callees {
		r.callees[c.Service] = c
	}
	r.elapsed = now.Sub(s.Seen)
	if r.elapsed < 0 || r.elapsed > maxGap {
		r.elapsed, r.jumped = 0, !s.Seen.IsZero()
	}
	r.state.Seen = now
	for i := range r.state.Shifts { // first, so that no command acts on an older stage
		if o := r.pairs[r.state.Shifts[i].Pair]; o.Stage != "" {
			r.state.Shifts[i].Stage = o.Stage
		}
	}
	for _, c := range o.Commands {
		r.command(c)
	}
	for i := range r.state.Shifts {
		r.observe(&r.state.Shifts[i])
	}
	r.advance()
	slices.SortStableFunc(r.actions, func(a, b Action) int { return a.Pair.Compare(b.Pair) })
	return r.state, r.actions
}

// run is one call of Step. Its state is a copy, so shifts are changed in place.
type run struct {
	now     time.Time
	elapsed time.Duration
	jumped  bool
	state   State
	pairs   map[Pair]PairObserved
	callees map[string]Callee
	actions []Action
}

// command obeys, or refuses with a reason.
func (r *run) command(c Command) {
	if c.Verb == CommandStart {
		r.start(c)
		return
	}
	found, refused := false, ""
	for i := range r.state.Shifts {
		s := &r.state.Shifts[i]
		if !c.matches(s.Pair) {
			continue
		}
		if why := r.obey(s, c); why != "" {
			refused = why
			continue
		}
		found = true
	}
	switch {
	case found: // a command for many does what it can
	case refused != "":
		r.refuse(c, refused)
	default:
		r.refuse(c, "no such shift")
	}
}

// start queues a shift, or replaces one that has ended.
func (r *run) start(c Command) {
	if c.Pair.Source == "*" || c.Pair.Destination == "*" || c.Pair.Source == "" || c.Pair.Destination == "" {
		r.refuse(c, "a shift is started for one pair by name")
		return
	}
	if err := c.Plan.Validate(c.Pair); err != nil {
		r.refuse(c, err.Error())
		return
	}
	s := Shift{Pair: c.Pair, Plan: c.Plan, Status: Queued, Fresh: true, By: c.By, Started: r.now, Changed: r.now}
	i, there := r.state.index(c.Pair)
	if there {
		old := r.state.Shifts[i]
		if !old.ended() && !old.Plan.Hold {
			r.refuse(c, fmt.Sprintf("a shift of the pair is %s: revert it, or wait until it is done", old.Status))
			return
		}
		s.Generation, s.Stage = old.Generation, old.Stage
		r.state.Shifts[i] = s
	} else {
		r.state.Shifts = slices.Insert(r.state.Shifts, i, s)
	}
	r.report(&r.state.Shifts[i])
}

// obey does what a command says to one shift; what it returns is why not.
func (r *run) obey(s *Shift, c Command) string {
	switch c.Verb {
	case CommandPause:
		if s.Status != Queued && s.Status != Running {
			return fmt.Sprintf("the shift is %s: only a queued or running one pauses", s.Status)
		}
		r.become(s, Paused, "paused by "+c.By)
	case CommandResume:
		if s.Status != Paused && s.Status != "" {
			return fmt.Sprintf("the shift is %s: only a paused one resumes", s.Status)
		}
		if s.Breach != nil {
			s.Guard, s.Breach, s.Stuck = s.Guard.anew(), nil, false // a new ramp as to false trips
		}
		s.Dwelt = 0
		if s.Fresh {
			r.become(s, Queued, "resumed by "+c.By)
		} else {
			r.become(s, Running, "resumed by "+c.By)
		}
	case CommandRevert, CommandAbort:
		if s.Status == Reverting || s.Status == Reverted || s.Status == Aborted {
			return fmt.Sprintf("the shift is %s already", s.Status)
		}
		end := Reverted
		if c.Verb == CommandAbort {
			end = Aborted
		}
		r.revert(s, end, string(c.Verb)+" by "+c.By)
	default:
		return fmt.Sprintf("no such verb: %q", c.Verb)
	}
	s.By = c.By
	return ""
}

func (r *run) refuse(c Command, why string) {
	r.actions = append(r.actions, Action{Kind: Refused, Pair: c.Pair, Reason: fmt.Sprintf("%s %q: %s", c.Verb, c.Pair, why)})
}

// become changes the status and says so.
func (r *run) become(s *Shift, status Status, reason string) {
	s.Status, s.Reason, s.Wait, s.Changed = status, reason, "", r.now
	r.report(s)
}

func (r *run) report(s *Shift) {
	r.actions = append(r.actions, Action{Kind: Report, Pair: s.Pair, Status: s.Status, Wait: s.Wait, Reason: s.Reason, Breach: s.Breach})
}

// waits notes why a shift does not step; it is told once per kind of wait.
func (r *run) waits(s *Shift, w Wait, reason string) {
	changed := s.Wait != w
	s.Wait, s.Reason = w, reason
	if changed {
		r.report(s)
	}
}

// revert begins the way back. It is finished by [run.back] once the callers prove it.
func (r *run) revert(s *Shift, end Status, reason string) {
	s.EndAs, s.Stuck = end, false
	back := AllOn(s.Plan.From)
	o, seen := r.pairs[s.Pair]
	there := s.Shares
	if seen {
		there = o.Shares
	}
	if s.Fresh && there.Of(s.Plan.To) == 0 {
		r.become(s, end, reason+": nothing had moved") // what others wrote stays
		return
	}
	if !slices.Contains(Ways(), s.Plan.From) {
		r.become(s, Paused, reason+": the old way is not known")
		return
	}
	s.Generation = max(s.Generation, o.Generation) + 1
	s.Shares, s.Fresh = back, false
	r.become(s, Reverting, reason)
	r.set(s)
}

// set asks for the shift's shares, unless that would put a share on a closed way.
func (r *run) set(s *Shift) {
	if err := s.Shares.Validate(s.Pair, s.Stage); err != nil {
		if s.Status == Reverting {
			r.waits(s, WaitStage, err.Error())
		}
		return
	}
	for i := range r.actions { // of this very call, with an older generation
		if a := &r.actions[i]; a.Kind == SetShares && a.Pair == s.Pair {
			r.actions = slices.Delete(r.actions, i, i+1)
			break
		}
	}
	r.actions = append(r.actions, Action{Kind: SetShares, Pair: s.Pair, Shares: s.Shares, Generation: s.Generation,
		Back: s.Status == Reverting, Reason: s.Reason})
}

// observe takes in what is known of a shift's pair, and reacts to what is bad.
func (r *run) observe(s *Shift) {
	o, ok := r.pairs[s.Pair]
	if !ok || s.ended() {
		return
	}
	if o.Stage != "" {
		s.Stage = o.Stage
	}
	if o.Terms != nil {
		s.take(*o.Terms)
	}
	if s.Fresh && s.Plan.Hold && s.Status != Reverting {
		r.adopt(s, o)
	} else if s.Fresh {
		s.Shares, s.Generation = o.Shares, max(s.Generation, o.Generation)
	} else if o.Generation > s.Generation || o.Generation == s.Generation && o.Shares != s.Shares && (o.Shares != Shares{}) {
		r.overruled(s, o)
	}
	switch {
	case s.ended():
		return
	case s.Status == Reverting:
		r.back(s, o)
		return
	case !s.Fresh && o.Generation < s.Generation:
		r.set(s) // a restart lost it, or it is still under way
	}
	r.guard(s, o)
	if s.Status == Running && !r.jumped && o.Generation == s.Generation && o.Applied >= s.Generation {
		s.Dwelt += r.elapsed
	}
	if s.Plan.Hold && s.Status == Running && s.alone() && s.Dwelt >= s.Plan.withDefaults().Dwell && s.Guard.struck() == "" {
		r.become(s, Done, s.Reason)
	}
}

// take goes by other terms from now on. A guard that was off begins anew.
func (s *Shift) take(t Terms) {
	if t.Off || s.Plan.Off {
		s.Guard = Guard{}
	}
	s.Stuck = s.Stuck && !t.Off && t.OnBreach != Pause
	s.Plan.Off, s.Plan.OnBreach, s.Plan.Limits = t.Off, t.OnBreach, t.Limits
}

// overruled yields to shares that somebody else wrote, with the same or a higher generation.
func (r *run) overruled(s *Shift, o PairObserved) {
	back := AllOn(s.Plan.From)
	s.Generation, s.Stuck = o.Generation, false
	switch {
	case s.Status == Reverting && o.Shares != back:
		s.Generation++ // a revert is not overruled, it goes on top
		r.set(s)
	case s.Status == Reverting:
	case o.Shares == back:
		s.Shares = o.Shares
		r.become(s, Reverted, fmt.Sprintf("reverted elsewhere, generation %d", o.Generation))
	case s.Plan.Hold:
		r.adopt(s, o)
	default:
		s.Shares, s.Guard = o.Shares, s.Guard.anew()
		r.become(s, Paused, fmt.Sprintf("somebody else wrote %s, generation %d", o.Shares, o.Generation))
	}
}

// adopt takes over shares that people have set, for a shift that holds.
func (r *run) adopt(s *Shift, o PairObserved) {
	watched := s.Guard.Past.Blocks > 0
	s.Shares, s.Generation, s.Fresh, s.Breach, s.Dwelt = o.Shares, o.Generation, false, nil, 0
	s.Guard = s.Guard.beginStep()
	status := Running
	if (s.Shares.Of(s.Plan.From) == 0 || s.Shares.Of(s.Plan.To) == 0) && !(watched && s.alone()) {
		status = Done
	}
	r.become(s, status, fmt.Sprintf("%s, set by hand, generation %d", s.Shares, s.Generation))
}

// back finishes a revert, or asks for it again.
func (r *run) back(s *Shift, o PairObserved) {
	switch {
	case o.Generation < s.Generation:
		r.set(s)
	case o.Applied >= s.Generation && o.Shares == s.Shares:
		end := s.EndAs
		if end == "" {
			end = Reverted
		}
		r.become(s, end, s.Reason)
	}
}

// guard feeds the shift guard, and pauses or reverts.
func (r *run) guard(s *Shift, o PairObserved) {
	p := s.Plan.withDefaults()
	if s.Shares.Of(p.To) > 0 && s.Stage != "" && !s.Stage.Opens(p.To) {
		r.trip(s, p, fmt.Sprintf("way %s was closed under its %v: %s", p.To, s.Shares.Of(p.To), s.Stage.whyClosed(p.To)))
		return
	}
	switch {
	case p.Off:
		return
	case s.Stuck && s.noWayBack(o) == "":
		r.revert(s, Reverted, "the shift guard: "+s.Breach.line())
		return
	case s.Breach != nil:
		return // tripped and paused; it starts anew when resumed
	}
	guard, tables := s.Guard.watch(o.way(p.From), o.way(p.To), r.elapsed, p.Limits)
	b := guard.breach(p.Limits, tables)
	if s.alone() {
		guard, b = guard.alone(o.way(p.To), r.elapsed, p.Limits)
	} else {
		guard = guard.remember(o.way(p.From), r.elapsed)
	}
	s.Guard = guard
	if b == nil || s.Fresh {
		return
	}
	b.At, b.Pair, b.OldWay, b.NewWay, b.Share = r.now, s.Pair, p.From, p.To, s.Shares.Of(p.To)
	b.Failing = samples(o.Failing, p.To)
	s.Breach = b
	if why := s.noWayBack(o); why != "" && p.OnBreach != Pause {
		s.Stuck = true
		r.become(s, Paused, fmt.Sprintf("the shift guard: %s; it stays, since way %s takes no requests: %s", b.line(), p.From, why))
		return
	}
	r.trip(s, p, "the shift guard: "+b.line())
}

// alone says whether the new way carries everything.
func (s *Shift) alone() bool { return !s.Fresh && s.Shares.Of(s.Plan.To) == Whole }

// noWayBack is why the old way would take no request; "" when it would, for all that is known.
func (s *Shift) noWayBack(o PairObserved) string {
	if s.Stage != "" && !s.Stage.Opens(s.Plan.From) {
		return s.Stage.whyClosed(s.Plan.From)
	}
	return o.NoWayBack
}

// trip does what the plan's policy says.
func (r *run) trip(s *Shift, p Plan, reason string) {
	if p.OnBreach == Pause {
		if s.Status != Paused || s.Reason != reason {
			r.become(s, Paused, reason)
		}
		return
	}
	r.revert(s, Reverted, reason)
}

// samples keeps at most five examples, those of the new way first.
func samples(in []FailedRequest, way Way) []FailedRequest {
	const keep = 5
	var out []FailedRequest
	for _, own := range []bool{true, false} {
		for _, f := range in {
			if (f.Way == way) == own && len(out) < keep {
				out = append(out, f)
			}
		}
	}
	return out
}

// advance steps what may step, the longest started first, one per callee.
func (r *run) advance() {
	held := map[string]Pair{}
	var order []int
	for i, s := range r.state.Shifts {
		if s.holds() {
			// One that was done may be reverted beside another; that one waits then.
			if _, taken := held[s.Pair.Destination]; !taken || s.Status == Reverting {
				held[s.Pair.Destination] = s.Pair
			}
		}
		if (s.Status == Running || s.Status == Queued) && !s.Plan.Hold {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return r.state.Shifts[a].Started.Compare(r.state.Shifts[b].Started)
	})
	for _, i := range order {
		s := &r.state.Shifts[i]
		holder, taken := held[s.Pair.Destination]
		if taken && holder != s.Pair {
			r.waits(s, WaitCallee, fmt.Sprintf("the shift %s of the same callee is under way", holder))
			continue
		}
		r.tryStep(s)
		if s.holds() {
			held[s.Pair.Destination] = s.Pair
		} else {
			delete(held, s.Pair.Destination)
		}
	}
}

// tryStep takes the next step, ends the shift, or notes what it waits for.
func (r *run) tryStep(s *Shift) {
	p := s.Plan.withDefaults()
	next, more := p.next(s.Shares.Of(p.To))
	if wait, why := r.blocked(s, p); wait != "" {
		r.waits(s, wait, why)
		return
	}
	if !more {
		r.become(s, Done, fmt.Sprintf("%s, generation %d", s.Shares, s.Generation))
		return
	}
	shares := p.shares(next)
	if err := shares.Validate(s.Pair, s.Stage); err != nil {
		r.waits(s, WaitStage, err.Error())
		return
	}
	if !open(p.Windows, r.now) {
		r.waits(s, WaitWindow, fmt.Sprintf("%s lies outside the windows %v", r.now.Format("Mon 15:04"), p.Windows))
		return
	}
	if err := r.callees[s.Pair.Destination].named(s.Pair).Room(p.Headroom, Move{r.pairs[s.Pair].Rate, s.Shares, shares}); err != nil {
		r.waits(s, WaitCapacity, err.Error())
		return
	}
	s.Shares, s.Fresh, s.Dwelt = shares, false, 0
	s.Generation = max(s.Generation, r.pairs[s.Pair].Generation) + 1
	s.Guard = s.Guard.beginStep()
	r.become(s, Running, fmt.Sprintf("step to %s, generation %d", shares, s.Generation))
	r.set(s)
}

// blocked is what keeps a shift from leaving where it is, wherever it would go.
func (r *run) blocked(s *Shift, p Plan) (Wait, string) {
	o, seen := r.pairs[s.Pair]
	switch {
	case !seen:
		return WaitUnseen, "nothing is known of the pair now"
	case s.Stage == "" || s.Shares.Of(p.From)+s.Shares.Of(p.To) != Whole:
		if err := s.Shares.Validate(s.Pair, s.Stage); err != nil {
			return WaitStage, err.Error()
		}
		return WaitStage, fmt.Sprintf("the pair has %s: a shift from %s to %s wants all of it on these two", s.Shares, p.From, p.To)
	case r.jumped:
		return WaitClock, "the clock jumped, or nobody looked for a while"
	case s.Fresh:
		return "", ""
	case o.Generation != s.Generation || o.Applied < s.Generation:
		return WaitCallers, fmt.Sprintf("not every caller runs generation %d yet", s.Generation)
	case s.Dwelt < p.Dwell:
		return WaitDwell, fmt.Sprintf("%v of %v on this step", s.Dwelt.Truncate(time.Second), p.Dwell)
	}
	if why := s.Guard.wait(p.Limits, s.Shares.Of(p.From)); why != "" && !p.Off {
		return WaitGuard, why
	}
	return "", ""
}
