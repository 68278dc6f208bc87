package shift

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Plan is what one shift is to do. Every zero value but the ways means the default.
type Plan struct {
	From     Way           `json:"from"`                // the old way, to which a revert returns
	To       Way           `json:"to"`                  // the new way
	Steps    []Share       `json:"steps,omitempty"`     // of the new way, rising; default 1, 5, 25, 50, 100 %
	Dwell    time.Duration `json:"dwell,omitempty"`     // on each step; default 5 minutes, at least 30 seconds
	Windows  []Window      `json:"windows,omitempty"`   // in which steps may run; none: always
	OnBreach Policy        `json:"on_breach,omitempty"` // default revert
	Hold     bool          `json:"hold,omitempty"`      // takes no steps: shares are set by people, and guarded; ends when only one way has a share
	Limits   Limits        `json:"limits,omitzero"`     // of the shift guard
	Off      bool          `json:"off,omitempty"`       // the shift guard is: nothing is compared, and no step waits for it
	Headroom Share         `json:"headroom,omitempty"`  // most load of an instance that takes the new way, of an instance's mean; default [Headroom]
}

// Terms are what the shift guard of a pair goes by. They may change while a shift is under way.
type Terms struct {
	Off      bool   `json:"off,omitempty"`
	OnBreach Policy `json:"on_breach,omitempty"`
	Limits   Limits `json:"limits,omitzero"`
}

// Policy says what a breach does.
type Policy string

// The policies. The zero value reverts.
const (
	Revert Policy = "revert" // all shares back on the old way
	Pause  Policy = "pause"  // shares stay, nobody steps further
)

const (
	// maxGap is the longest time between two calls of [Step] that counts as time
	// passed. Anything longer is a clock that jumped, or an outage: it adds
	// nothing to a dwell.
	maxGap = 10 * time.Second
	// minDwell is longer, so that no jump can skip a dwell.
	minDwell = 30 * time.Second
)

// Headroom is how much load of an instance's mean one that takes the new way may get.
const Headroom Share = 150_00

// withDefaults replaces what is zero.
func (p Plan) withDefaults() Plan {
	if len(p.Steps) == 0 {
		p.Steps = []Share{Percent(1), Percent(5), Percent(25), Percent(50), Percent(100)}
	}
	if p.Dwell <= 0 {
		p.Dwell = 5 * time.Minute
	}
	p.Dwell = max(p.Dwell, minDwell)
	if p.Headroom <= 0 {
		p.Headroom = Headroom
	}
	p.Limits = p.Limits.withDefaults()
	return p
}

// Validate says all that is wrong with a plan for a pair.
func (p Plan) Validate(pair Pair) error {
	var errs []error
	refuse := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("shift of %q: "+format, append([]any{pair.String()}, args...)...))
	}
	for _, w := range []Way{p.From, p.To} {
		if !slices.Contains(Ways(), w) {
			refuse("no such way: %q: the ways are %v", w, Ways())
		}
	}
	if p.From == p.To {
		refuse("from and to are both %q: nothing would move", p.From)
	}
	last := Share(0)
	for _, s := range p.Steps {
		if s <= last || s > Whole {
			refuse("step %v after %v: steps rise, to 100%% at most", s, last)
		}
		last = s
	}
	if p.Dwell != 0 && p.Dwell < minDwell {
		refuse("dwell %v: at least %v", p.Dwell, minDwell)
	}
	if p.OnBreach != "" && p.OnBreach != Revert && p.OnBreach != Pause {
		refuse("no such policy: %q: a breach does %q or %q", p.OnBreach, Revert, Pause)
	}
	if l := p.Limits; !(l.FalseTrips >= 0 && l.FalseTrips < 1) || l.Failures < 0 || l.Slower < 0 || l.SlowerBy < 0 || l.Cluster < 0 {
		refuse("limits: none is negative, and false trips are a part of 1")
	}
	for _, w := range p.Windows {
		if err := w.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("shift of %q: %w", pair, err))
		}
	}
	return errors.Join(errs...)
}

// next is the least step above a share; false after the last.
func (p Plan) next(share Share) (Share, bool) {
	for _, s := range p.Steps {
		if s > share {
			return s, true
		}
	}
	return 0, false
}

// shares puts a share on the new way and the rest on the old.
func (p Plan) shares(to Share) Shares {
	return Shares{}.With(p.From, Whole-to).With(p.To, to)
}
