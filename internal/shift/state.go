package shift

import (
	"slices"
	"time"
)

// State is all that [Step] remembers. It is plain data: it survives JSON, and a
// field that an older encoding lacks holds shifts still, it never moves one.
type State struct {
	Seen   time.Time `json:"seen,omitzero"`    // when Step last ran
	Shifts []Shift   `json:"shifts,omitempty"` // by pair, one each
}

// Status is where a shift stands. Its zero value acts as paused.
type Status string

// The statuses. Revert and abort both lead back over reverting.
const (
	Queued    Status = "queued"    // has not moved anything yet
	Running   Status = "running"   // takes steps
	Paused    Status = "paused"    // keeps its shares until somebody says otherwise; still guarded
	Done      Status = "done"      // dwelt on its last step
	Reverting Status = "reverting" // not every caller has proven to be back on the old way
	Reverted  Status = "reverted"  // every caller is back
	Aborted   Status = "aborted"   // the same, by abort
)

// Wait is what keeps a shift from its next step.
type Wait string

// The waits, in the order in which they are looked at.
const (
	WaitUnseen   Wait = "unseen"   // nothing is known of the pair
	WaitStage    Wait = "stage"    // the stage, or the shares that are there, do not allow the step
	WaitCallee   Wait = "callee"   // another shift of the same callee is under way
	WaitClock    Wait = "clock"    // the clock jumped
	WaitCallers  Wait = "callers"  // not every caller runs the present step
	WaitDwell    Wait = "dwell"    // the step has not lasted long enough
	WaitGuard    Wait = "guard"    // too few attempts, or the new way looks worse
	WaitWindow   Wait = "window"   // outside the windows
	WaitCapacity Wait = "capacity" // the callee would not bear it
)

// Shift is one change of shares of one pair.
type Shift struct {
	Pair       Pair          `json:"pair"`
	Plan       Plan          `json:"plan"`
	Status     Status        `json:"status"`
	Shares     Shares        `json:"shares"`               // that the pair is to have
	Generation uint64        `json:"generation,omitempty"` // of Shares; rises with every change
	Fresh      bool          `json:"fresh,omitempty"`      // has written no shares yet
	Stage      Stage         `json:"stage,omitempty"`      // last observed
	Dwelt      time.Duration `json:"dwelt,omitempty"`      // on this step, since every caller ran it
	Wait       Wait          `json:"wait,omitempty"`
	Reason     string        `json:"reason,omitempty"` // of the wait or of the status
	By         string        `json:"by,omitempty"`     // who gave the last command
	EndAs      Status        `json:"end_as,omitempty"` // what reverting ends as; zero is reverted
	Started    time.Time     `json:"started,omitzero"`
	Changed    time.Time     `json:"changed,omitzero"` // when shares or status last changed
	Guard      Guard         `json:"guard,omitzero"`
	Breach     *Breach       `json:"breach,omitempty"` // the last one; never changed once made
	Stuck      bool          `json:"stuck,omitempty"`  // paused, and reverts once the old way takes requests
}

// ended says whether nothing more comes of the shift by itself.
func (s Shift) ended() bool { return s.Status == Done || s.Status == Reverted || s.Status == Aborted }

// holds says whether the shift keeps others from its callee. One that takes no steps does not.
func (s Shift) holds() bool {
	return !s.ended() && !(s.Fresh && s.Status != Reverting) && (!s.Plan.Hold || s.Status == Reverting)
}

// Verb is what a command does.
type Verb string

// The verbs. Revert and abort are the same but for the word that remains.
const (
	CommandStart  Verb = "start"
	CommandPause  Verb = "pause"
	CommandResume Verb = "resume"
	CommandRevert Verb = "revert"
	CommandAbort  Verb = "abort"
)

// Command is a person's word. Source and destination may each be "*" for any,
// except in a start, so that a pair, a service or everything reverts in one.
type Command struct {
	Verb Verb   `json:"verb"`
	Pair Pair   `json:"pair"`
	Plan Plan   `json:"plan,omitzero"` // of a start
	By   string `json:"by,omitempty"`
}

// matches says whether the command is meant for the pair.
func (c Command) matches(p Pair) bool {
	return (c.Pair.Source == "*" || c.Pair.Source == p.Source) &&
		(c.Pair.Destination == "*" || c.Pair.Destination == p.Destination)
}

// Observed is what happened since the last [Step].
type Observed struct {
	Commands []Command      `json:"commands,omitempty"` // in the order given
	Pairs    []PairObserved `json:"pairs,omitempty"`    // the first of a pair counts
	Callees  []Callee       `json:"callees,omitempty"`
}

// PairObserved is what is known of a pair now, and what it did since the last [Step].
type PairObserved struct {
	Pair       Pair   `json:"pair"`
	Stage      Stage  `json:"stage,omitempty"`
	Shares     Shares `json:"shares"`               // as written down
	Generation uint64 `json:"generation,omitempty"` // of those
	Applied    uint64 `json:"applied,omitempty"`    // the generation that every caller has proven to run, or a higher one
	// Rate is the pair's requests a second, on all ways.
	Rate float64 `json:"rate,omitempty"`
	// NoWayBack is why a revert would lead nowhere: nobody takes the old way's requests. Empty:
	// somebody does, or it is not known.
	NoWayBack string `json:"no_way_back,omitempty"`
	// Terms hold for the pair's shift from now on. None: those that it has.
	Terms *Terms `json:"terms,omitempty"`
	// Ways is what the callers that run the newest generation counted, all over
	// the same time. A stretch in which a caller changed is left out.
	Ways    []WayTelemetry  `json:"ways,omitempty"`
	Failing []FailedRequest `json:"failing,omitempty"` // a few examples
}

// WayTelemetry is one way's [Telemetry].
type WayTelemetry struct {
	Way Way `json:"way"`
	Telemetry
}

// way is what was counted of a way.
func (o PairObserved) way(w Way) (out Telemetry) {
	for _, t := range o.Ways {
		if t.Way == w {
			out = out.Merge(t.bounded())
		}
	}
	return out
}

// ActionKind is what an action asks for.
type ActionKind string

// The kinds.
const (
	SetShares ActionKind = "shares"  // write the shares; repeated until they are observed
	Report    ActionKind = "report"  // tell people: a status or a wait changed
	Refused   ActionKind = "refused" // tell whoever gave the command
)

// Action is what others carry out.
type Action struct {
	Kind       ActionKind `json:"kind"`
	Pair       Pair       `json:"pair"`
	Shares     Shares     `json:"shares,omitzero"`
	Generation uint64     `json:"generation,omitempty"`
	Back       bool       `json:"back,omitempty"` // these shares are a revert
	Status     Status     `json:"status,omitempty"`
	Wait       Wait       `json:"wait,omitempty"`
	Reason     string     `json:"reason,omitempty"`
	Breach     *Breach    `json:"breach,omitempty"`
}

// Setting is a pair's shares as a store or a host holds them.
type Setting struct {
	Shares     Shares `json:"shares"`
	Generation uint64 `json:"generation,omitempty"`
	Back       bool   `json:"back,omitempty"`
}

// Newer is which of two settings holds: the higher generation; of the same one
// the revert, since a host reverts by itself when it reaches no server; else
// what is held already.
func Newer(held, offered Setting) Setting {
	switch {
	case offered.Generation > held.Generation:
		return offered
	case offered.Generation == held.Generation && offered.Back && !held.Back:
		return offered
	}
	return held
}

// LogEntry is one call of [Step], for a log.
type LogEntry struct {
	Now      time.Time `json:"now"`
	Observed Observed  `json:"observed"`
}

// Replay runs a log and returns the state after it and the actions of each entry.
func Replay(s State, log []LogEntry) (State, [][]Action) {
	out := make([][]Action, 0, len(log))
	for _, e := range log {
		var actions []Action
		s, actions = Step(e.Now, s, e.Observed)
		out = append(out, actions)
	}
	return s, out
}

// Find is the shift of a pair.
func (s State) Find(p Pair) (Shift, bool) {
	if i, ok := s.index(p); ok {
		return s.Shifts[i], true
	}
	return Shift{}, false
}

func (s State) index(p Pair) (int, bool) {
	return slices.BinarySearchFunc(s.Shifts, p, func(s Shift, p Pair) int { return s.Pair.Compare(p) })
}

// clone is a copy whose list may be changed; what shifts point to never is.
func (s State) clone() State {
	s.Shifts = slices.Clone(s.Shifts)
	slices.SortStableFunc(s.Shifts, func(a, b Shift) int { return a.Pair.Compare(b.Pair) })
	return s
}
