package shift

import "time"

// Watch is for how long a callee has taken no plaintext, in time in which every one of its
// instances was watched. Plain data, as [State] is.
type Watch struct {
	Quiet time.Duration `json:"quiet,omitempty"` // since Last, or since it began
	Last  time.Time     `json:"last,omitzero"`   // when plaintext was last seen; zero: never
	From  string        `json:"from,omitempty"`  // who sent it
	Seen  time.Time     `json:"seen,omitzero"`   // when it was last looked at
}

// Step looks once more: watched says that every instance is being watched now, last and from
// are of the newest plaintext known. Time in which nobody looked, or not all were watched,
// counts for nothing: neither for silence nor against it.
func (w Watch) Step(now time.Time, watched bool, last time.Time, from string) Watch {
	elapsed := now.Sub(w.Seen)
	if w.Seen.IsZero() || elapsed < 0 || elapsed > maxGap {
		elapsed = 0
	}
	w.Seen = now.Round(0)
	switch {
	case last.After(w.Last):
		w.Last, w.From, w.Quiet = last.Round(0), from, 0
	case watched:
		w.Quiet += elapsed
	}
	return w
}
