package shift

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
)

// Books is what the ledger is made of. All lists may be in any order and name
// pairs that others do not.
type Books struct {
	Now       time.Time
	Declared  []Pair // that a service's definition names
	Seen      []Seen // that had traffic
	Wanted    []Wanted
	Stages    []PairStage
	Telemetry []PairTelemetry // of the newest stretch
	Proofs    []Proof         // that a way works, by probing it
	Shifts    []Shift
}

// Seen is when a pair's traffic was first and last seen.
type Seen struct {
	Pair        Pair
	First, Last time.Time
}

// Wanted is what a pair's shares are to be.
type Wanted struct {
	Pair       Pair
	Shares     Shares
	Generation uint64
	OldWay     Way // to which a revert returns; none if nothing was ever shifted
	Since      time.Time
}

// PairStage is a pair's stage, and how many of the callee's instances have a sidecar.
type PairStage struct {
	Pair         Pair
	Stage        Stage
	Since        time.Time
	Ready, Total int
}

// PairTelemetry is what one way of a pair did.
type PairTelemetry struct {
	Pair          Pair
	Way           Way
	Telemetry     Telemetry
	LastPlaintext time.Time // when the callee last took plaintext from the source; zero is never
}

// Proof says whether a way of a pair works, since when, and why not.
type Proof struct {
	Pair  Pair
	Way   Way
	Works bool
	Since time.Time
	Why   string
}

// Row is a pair in the ledger.
type Row struct {
	Pair          Pair          `json:"pair"`
	Declared      bool          `json:"declared"`
	Seen          bool          `json:"seen"`
	LastSeen      time.Time     `json:"last_seen,omitzero"`
	Stage         Stage         `json:"stage,omitempty"`
	StageAge      time.Duration `json:"stage_age,omitempty"` // how long it is in this stage
	Ready         int           `json:"ready,omitempty"`     // instances of the callee with a sidecar
	Total         int           `json:"total,omitempty"`
	Wanted        Shares        `json:"wanted"`
	WantedAge     time.Duration `json:"wanted_age,omitempty"`
	Measured      Shares        `json:"measured"` // nothing if there were no requests
	Ways          []RowWay      `json:"ways,omitempty"`
	LastPlaintext time.Time     `json:"last_plaintext,omitzero"`
	Status        Status        `json:"status,omitempty"`   // of its shift, if there is one
	Blockers      []string      `json:"blockers,omitempty"` // what keeps the pair from going on, sorted
	Revertible    Revertible    `json:"revertible"`
}

// RowWay is one way of a row, of those that carried or are to carry something.
type RowWay struct {
	Way      Way     `json:"way"`
	Attempts uint64  `json:"attempts,omitempty"`
	Success  float64 `json:"success"` // a part of 1; 1 without attempts
	P99      float64 `json:"p99,omitempty"`
}

// Revertible says whether a revert would work.
type Revertible struct {
	Yes   bool      `json:"yes"`
	Since time.Time `json:"since,omitzero"`
	Why   string    `json:"why"`
}

// drift is by how much measured shares may miss what is wanted: one point, once
// that much can be told apart from chance.
const (
	drift      = 100
	driftLeast = 10_000
)

// page is all that the books say of one pair.
type page struct {
	row    Row
	wanted Wanted
	ways   [4]Telemetry // in the order of Ways
	proofs [4]Proof
	shift  *Shift
}

// Ledger makes a row of every pair that the books name, sorted by pair. Of
// things that are said twice the later in its list counts; telemetry adds up.
func Ledger(b Books) []Row {
	pages := make(map[Pair]*page, len(b.Declared))
	of := func(p Pair) *page {
		g := pages[p]
		if g == nil {
			g = &page{row: Row{Pair: p}}
			pages[p] = g
		}
		return g
	}
	for _, p := range b.Declared {
		of(p).row.Declared = true
	}
	for _, s := range b.Seen {
		g := of(s.Pair)
		g.row.Seen, g.row.LastSeen = true, s.Last
	}
	for _, w := range b.Wanted {
		of(w.Pair).wanted = w
	}
	for _, s := range b.Stages {
		r := &of(s.Pair).row
		r.Stage, r.StageAge, r.Ready, r.Total = s.Stage, age(b.Now, s.Since), s.Ready, s.Total
	}
	for _, t := range b.Telemetry {
		g := of(t.Pair)
		if i := slices.Index(Ways(), t.Way); i >= 0 {
			g.ways[i] = g.ways[i].Merge(t.Telemetry)
		}
		if t.LastPlaintext.After(g.row.LastPlaintext) {
			g.row.LastPlaintext = t.LastPlaintext
		}
	}
	for _, p := range b.Proofs {
		if i := slices.Index(Ways(), p.Way); i >= 0 {
			of(p.Pair).proofs[i] = p
		}
	}
	for i := range b.Shifts {
		of(b.Shifts[i].Pair).shift = &b.Shifts[i]
	}
	rows := make([]Row, 0, len(pages))
	for _, g := range pages {
		rows = append(rows, g.finish(b.Now))
	}
	slices.SortFunc(rows, func(a, b Row) int { return a.Pair.Compare(b.Pair) })
	return rows
}

// age is how long ago something began; 0 if that is not known or lies ahead.
func age(now, since time.Time) time.Duration {
	if since.IsZero() {
		return 0
	}
	return max(0, now.Sub(since))
}

// finish works out what follows from a page.
func (g *page) finish(now time.Time) Row {
	r := g.row
	r.Wanted, r.WantedAge = g.wanted.Shares, age(now, g.wanted.Since)
	var counts, first [4]int
	for i, w := range Ways() {
		t := g.ways[i]
		counts[i], first[i] = t.tried(), int(t.First)
		if t.tried() == 0 && r.Wanted.Of(w) == 0 {
			continue
		}
		way := RowWay{Way: w, Attempts: uint64(t.tried()), Success: 1, P99: round(t.Latency.Quantile(0.99))}
		if t.tried() > 0 {
			way.Success = 1 - float64(t.failed())/float64(t.tried())
		}
		r.Ways = append(r.Ways, way)
	}
	if first != [4]int{} { // retries and what was withheld say nothing of shares
		counts = first
	}
	r.Measured = measured(counts)
	if g.shift != nil {
		r.Status = g.shift.Status
	}
	r.Blockers = g.blockers(r, counts)
	r.Revertible = g.revertible(r)
	return r
}

// measured turns counts into shares that add to 100 %; what rounding leaves goes
// to the largest remainders, the earlier way first.
func measured(counts [4]int) (out Shares) {
	sum := 0
	for _, n := range counts {
		sum += n
	}
	if sum == 0 {
		return out
	}
	type part struct {
		way  Way
		rest float64
	}
	left := Whole
	var parts []part
	for i, w := range Ways() {
		exact := float64(counts[i]) / float64(sum) * float64(Whole)
		share := Share(math.Floor(exact))
		out, left = out.With(w, share), left-share
		parts = append(parts, part{w, exact - float64(share)})
	}
	slices.SortStableFunc(parts, func(a, b part) int { return cmp.Compare(b.rest, a.rest) })
	for _, p := range parts[:min(int(left), len(parts))] {
		out = out.With(p.way, out.Of(p.way)+1)
	}
	return out
}

// blockers says what keeps the pair from going on.
func (g *page) blockers(r Row, counts [4]int) []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if !r.Declared {
		add("not declared: %s does not name %s as an upstream", r.Pair.Source, r.Pair.Destination)
	}
	if !r.Seen {
		add("no traffic was ever seen")
	}
	switch r.Stage {
	case "":
		add("stage not known")
	case Outside:
		add("%s is not on its sidecar", r.Pair.Source)
	}
	sum := 0
	for i, w := range Ways() {
		if n := r.Wanted.Of(w); n > 0 && r.Stage != "" && !r.Stage.Opens(w) {
			add("way %s is wanted for %v: %s", w, n, r.Stage.whyClosed(w))
		}
		sum += counts[i]
	}
	if r.Total > 0 && r.Ready < r.Total {
		add("%d of %d instances of %s have a sidecar", r.Ready, r.Total, r.Pair.Destination)
	}
	if r.Stage == Permissive && r.Wanted == AllOn(MTLS) && r.LastPlaintext.After(g.wanted.Since) {
		add("plaintext was seen at %s, after all was to go by mtls", r.LastPlaintext.UTC().Format(time.RFC3339))
	}
	if r.Wanted != (Shares{}) && sum >= driftLeast {
		for _, w := range Ways() {
			if d := r.Measured.Of(w) - r.Wanted.Of(w); d > drift || d < -drift {
				add("way %s carries %v, wanted %v", w, r.Measured.Of(w), r.Wanted.Of(w))
			}
		}
	}
	if s := g.shift; s != nil && (s.Status == Paused || s.Wait != "" && s.Wait != WaitDwell) {
		add("shift %s: %s", cmp.Or(string(s.Wait), string(s.Status)), s.Reason)
	}
	slices.Sort(out)
	return out
}

// revertible says whether all could go back to the old way now.
func (g *page) revertible(r Row) Revertible {
	old := g.wanted.OldWay
	i := slices.Index(Ways(), old)
	switch {
	case i < 0:
		return Revertible{Why: "nothing was shifted"}
	case !r.Stage.Opens(old):
		return Revertible{Why: fmt.Sprintf("way %s: %s", old, r.Stage.whyClosed(old))}
	case g.proofs[i].Way == "":
		return Revertible{Why: fmt.Sprintf("way %s was not probed", old)}
	}
	p := g.proofs[i]
	why := p.Why
	if why == "" && p.Works {
		why = fmt.Sprintf("way %s was probed and works", old)
	} else if why == "" {
		why = fmt.Sprintf("way %s was probed and fails", old)
	}
	return Revertible{Yes: p.Works, Since: p.Since, Why: why}
}
