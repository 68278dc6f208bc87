package drift

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// Fault is one thing that is not as it should be. Two looks that see the same fault give
// equal values.
type Fault struct {
	Key  xds.Key // without a name for a response that is not answered; the zero value for a stream that is not there
	Told string  // the version that Envoy has acknowledged; empty: it was told of nothing
	Runs string  // that it has instead; empty: nothing
	Sent time.Time
}

func (f Fault) String() string {
	switch {
	case f.Key == xds.Key{}:
		return "Envoy has no stream"
	case f.Key.Name == "":
		return fmt.Sprintf("Envoy has not answered a response of type %s sent at %s", f.Key.Type.Short(), f.Sent.UTC().Format(time.RFC3339))
	case f.Told == "":
		return fmt.Sprintf("%s: Envoy runs version %s and was told of none", f.Key, f.Runs)
	case f.Runs == "":
		return fmt.Sprintf("%s: Envoy has acknowledged version %s and runs none", f.Key, f.Told)
	default:
		return fmt.Sprintf("%s: Envoy has acknowledged version %s and runs %s", f.Key, f.Told, f.Runs)
	}
}

func (f Fault) stuck() bool { return f.Key.Name == "" }

// State is what is remembered between looks. The zero value is that of a new Envoy.
type State struct {
	first map[Fault]time.Time // of the faults of the last look
	since time.Time           // of the first fault of those that have been named; zero: none has
	named []Fault             // sorted
	last  Verb
	at    time.Time // of last
}

// Verb is what is to be done.
type Verb string

// The verbs, as the log and the status have them.
const (
	Resend  Verb = "sent again"       // the faults' resources
	Restart Verb = "stream restarted" // Envoy's
	Named   Verb = "nothing"          // Envoy has no stream, and is the one to open it
	Healed  Verb = "healed"           // nothing is left
)

// Action is to be done, and to be said.
type Action struct {
	Verb   Verb
	Faults []Fault // that made it necessary, sorted; of Healed those that were there
	Since  time.Time
}

// Timing says how long to wait. Zero values take the defaults.
type Timing struct {
	// Every is the time between looks, Idle that while nothing was changed since the last,
	// which found nothing. Default 10 s and 1 min.
	Every, Idle time.Duration
	// Patience is how long a fault must last to be named, and how long what was done about
	// it is given to help. Default 30 s.
	Patience time.Duration
	// Again is the time between restarts of the stream when these don't help. Default 5 min.
	Again time.Duration
	// Share is how many times longer than a look the pause after it is, at least. Default 500.
	Share int
}

func (t Timing) withDefaults() Timing {
	t.Every, t.Idle = cmp.Or(t.Every, 10*time.Second), cmp.Or(t.Idle, time.Minute)
	t.Patience, t.Again = cmp.Or(t.Patience, 30*time.Second), cmp.Or(t.Again, 5*time.Minute)
	t.Share = cmp.Or(t.Share, 500)
	return t
}

// Step takes in what a look has found. It returns the next state, and what to do: first the
// resources are sent again; where that has not helped in time, Envoy's stream is restarted.
func (s State) Step(now time.Time, found []Fault, t Timing) (State, *Action) {
	t = t.withDefaults()
	next := State{first: map[Fault]time.Time{}, since: s.since, named: s.named, last: s.last, at: s.at}
	var ripe []Fault
	var since time.Time
	for _, f := range found {
		at, known := s.first[f]
		switch {
		case !f.Sent.IsZero():
			at = f.Sent
		case !known:
			at = now
		}
		next.first[f] = at
		if now.Sub(at) >= t.Patience {
			ripe = append(ripe, f)
			if since.IsZero() || at.Before(since) {
				since = at
			}
		}
	}
	slices.SortFunc(ripe, compare)
	switch {
	case len(found) == 0 && !s.since.IsZero():
		return State{}, &Action{Healed, s.named, s.since}
	case len(ripe) == 0:
		return next, nil
	case s.since.IsZero() && ripe[0] == Fault{}:
		next.since, next.last = since, Named
	case s.since.IsZero():
		next.since, next.last = since, Resend
	case now.Sub(s.at) < t.Patience, s.last == Restart && now.Sub(s.at) < t.Again, ripe[0] == Fault{}:
		next.named = ripe
		return next, nil
	default:
		next.last = Restart
	}
	next.named, next.at = ripe, now
	return next, &Action{next.last, ripe, next.since}
}

func compare(a, b Fault) int {
	return cmp.Or(a.Key.Compare(b.Key), strings.Compare(a.Told, b.Told), strings.Compare(a.Runs, b.Runs), a.Sent.Compare(b.Sent))
}

// Faults are those that have been named and are still there, and since when there have been any.
func (s State) Faults() ([]Fault, time.Time) { return s.named, s.since }

// Calm reports whether the last look has found nothing.
func (s State) Calm() bool { return len(s.first) == 0 }
