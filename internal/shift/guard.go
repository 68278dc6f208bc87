package shift

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Telemetry is what was counted of one way of one pair in one stretch of time.
// It counts attempts, not outcomes: a request saved by a retry on another way
// still failed on this one.
type Telemetry struct {
	Attempts      uint64    `json:"attempts,omitempty"`
	First         uint64    `json:"first,omitempty"`          // of Attempts: the first of a request; the others are retries
	Failed        uint64    `json:"failed,omitempty"`         // of Attempts: no answer, or one that counts as failure
	ConnectFailed uint64    `json:"connect_failed,omitempty"` // of Failed: no connection was to be had
	Withheld      uint64    `json:"withheld,omitempty"`       // meant for this way and sent by another since it was unhealthy; not in Attempts
	Latency       Histogram `json:"latency,omitzero"`         // of attempts that were answered
}

// Merge adds two stretches.
func (t Telemetry) Merge(o Telemetry) Telemetry {
	return Telemetry{
		Attempts:      t.Attempts + o.Attempts,
		First:         t.First + o.First,
		Failed:        t.Failed + o.Failed,
		ConnectFailed: t.ConnectFailed + o.ConnectFailed,
		Withheld:      t.Withheld + o.Withheld,
		Latency:       t.Latency.Merge(o.Latency),
	}
}

// most bounds what one report may count: above it is no traffic but a mistake, and
// sums and logarithms would stop making sense.
const most = 1 << 30

// bounded is t with nothing beyond most, and a latency that is a histogram,
// whatever was reported.
func (t Telemetry) bounded() Telemetry {
	for _, n := range []*uint64{&t.Attempts, &t.First, &t.Failed, &t.ConnectFailed, &t.Withheld} {
		*n = min(*n, most)
	}
	sound := func(i int, b BinCount) bool {
		return b.Count > 0 && b.Count <= most && b.Bin >= zeroBin && b.Bin <= lastBin && (i == 0 || t.Latency.Bins[i-1].Bin < b.Bin)
	}
	for i, b := range t.Latency.Bins {
		if !sound(i, b) {
			t.Latency = mended(t.Latency)
			break
		}
	}
	return t
}

// mended sorts the bins, and bounds them and their counts.
func mended(h Histogram) Histogram {
	bins := make([]BinCount, len(h.Bins))
	for i, b := range h.Bins {
		bins[i] = BinCount{min(max(b.Bin, zeroBin), lastBin), min(b.Count, most)}
	}
	return FromBins(bins...)
}

// tried is how many requests wanted this way, and failed how many of them it failed.
func (t Telemetry) tried() int  { return int(t.Attempts + t.Withheld) }
func (t Telemetry) failed() int { return int(min(t.Failed, t.Attempts) + t.Withheld) }

// connectFailed never exceeds failed, whatever was reported.
func (t Telemetry) connectFailed() int { return int(min(t.ConnectFailed, t.Failed, t.Attempts)) }

// Limits say when a difference matters. Every zero value means the default.
type Limits struct {
	// FalseTrips is the most part of ramps of two equal ways that may be
	// stopped, each ramp as a whole. Default 0.01.
	FalseTrips float64 `json:"false_trips,omitempty"`
	// Failures is by how much more of its attempts the new way may fail, also
	// in connecting. Default 0.5 %.
	Failures Share `json:"failures,omitempty"`
	// Slower and SlowerBy are how much slower p50 and p99 may be; a breach
	// exceeds both. Defaults 20 % and 1 ms.
	Slower   Share         `json:"slower,omitempty"`
	SlowerBy time.Duration `json:"slower_by,omitempty"`
	// Attempts are needed on each way before a step is passed. Default 100.
	Attempts uint64 `json:"attempts,omitempty"`
	// Cluster is how many attempts may fail together by one stroke of chance: the
	// most attempts one request makes on a way. Whoever makes a plan sets it from
	// the pair's retries: too small a number breaks the promise of FalseTrips. Default 1.
	Cluster int `json:"cluster,omitempty"`
}

// withDefaults replaces what is zero.
func (l Limits) withDefaults() Limits {
	if !(l.FalseTrips > 0) {
		l.FalseTrips = 0.01
	}
	if l.Failures <= 0 {
		l.Failures = 50
	}
	if l.Slower <= 0 {
		l.Slower = Percent(20)
	}
	if l.SlowerBy <= 0 {
		l.SlowerBy = time.Millisecond
	}
	if l.Attempts == 0 {
		l.Attempts = 100
	}
	if l.Cluster <= 0 {
		l.Cluster = 1
	}
	return l
}

// threshold is what a stake of 1 must have become to count as a breach: each of
// the comparisons may be wrong in an equal part of FalseTrips.
func (l Limits) threshold() float64 { return float64(len(metrics)) / l.FalseTrips }

// Metric is what is compared.
type Metric string

// What is compared, in the order in which breaches are looked for: what got no
// connection also failed, and says more.
const (
	Connect Metric = "connect"
	Success Metric = "success"
	P99     Metric = "p99"
	P50     Metric = "p50"
)

var metrics = [...]Metric{Connect, Success, P99, P50}

const (
	// batch is how many attempts, on both ways together, make a comparison. It
	// costs 1/batch of what the attempts could tell.
	batch = 20
	// Recent counts halve every so many seconds, or attempts if that is longer.
	halfSeconds  = 30.0
	halfAttempts = 1000.0
	// referenceLeast is how many answered attempts on the old way say what is slow.
	referenceLeast = 20
)

// Guard compares the new way of a pair with the old way of the same pair in the
// same stretches of time. Its zero value has seen nothing.
type Guard struct {
	Old      Recent                 `json:"old,omitzero"`
	New      Recent                 `json:"new,omitzero"`
	Evidence [len(metrics)]Evidence `json:"evidence"` // in the order connect, success, p99, p50
	// What was seen since the step began.
	OldAttempts uint64 `json:"old_attempts,omitempty"`
	NewAttempts uint64 `json:"new_attempts,omitempty"`
	// What waits for a comparison.
	PendingOld Telemetry     `json:"pending_old,omitzero"`
	PendingNew Telemetry     `json:"pending_new,omitzero"`
	PendingFor time.Duration `json:"pending_for,omitempty"`
	// For when the old way carries nothing any more.
	Past    Past              `json:"past,omitzero"`
	Block   Block             `json:"block,omitzero"` // of the old way, and of the new one once that is alone
	Strikes [len(metrics)]int `json:"strikes"`        // blocks running in which the new way, alone, was worse than Past
}

// Recent counts one way's attempts, the older the less. It says how large a
// difference is; whether there is one, [Evidence] says.
type Recent struct {
	Attempts      float64   `json:"attempts,omitempty"`
	Failed        float64   `json:"failed,omitempty"`
	ConnectFailed float64   `json:"connect_failed,omitempty"`
	Latency       Histogram `json:"latency,omitzero"`
}

// add forgets a part and adds a stretch.
func (r Recent) add(t Telemetry, keep float64) Recent {
	return Recent{
		Attempts:      r.Attempts*keep + float64(t.tried()),
		Failed:        r.Failed*keep + float64(t.failed()),
		ConnectFailed: r.ConnectFailed*keep + float64(t.connectFailed()),
		Latency:       r.Latency.faded(keep, t.Latency),
	}
}

// value is the metric in a way's recent attempts: a part of 1, or milliseconds.
func (r Recent) value(m Metric) float64 {
	switch {
	case m == P99:
		return r.Latency.Quantile(0.99)
	case m == P50:
		return r.Latency.Quantile(0.5)
	case r.Attempts <= 0:
		return 0
	case m == Connect:
		return r.ConnectFailed / r.Attempts
	}
	return r.Failed / r.Attempts
}

// beginStep lays a further part of every stake and starts counting anew. What
// waits for a comparison is dropped, since it was taken under other shares.
func (g Guard) beginStep() Guard {
	for i := range g.Evidence {
		g.Evidence[i] = g.Evidence[i].invest(investStep)
	}
	g.OldAttempts, g.NewAttempts = 0, 0
	g.PendingOld, g.PendingNew, g.PendingFor = Telemetry{}, Telemetry{}, 0
	g.Block, g.Strikes = Block{}, [len(metrics)]int{}
	return g
}

// watch adds what both ways did in the same stretch of time, elapsed long, and
// compares once there is enough. The tables are what it compared, by metric.
func (g Guard) watch(old, new Telemetry, elapsed time.Duration, l Limits) (Guard, [len(metrics)]table) {
	var tables [len(metrics)]table
	g.OldAttempts += uint64(old.tried())
	g.NewAttempts += uint64(new.tried())
	g.PendingOld, g.PendingNew = g.PendingOld.Merge(old), g.PendingNew.Merge(new)
	g.PendingFor += elapsed
	n := g.PendingOld.tried() + g.PendingNew.tried()
	// How many there are may decide when to compare, how they went may not.
	if n < batch {
		return g, tables
	}
	power := 1 / float64(l.Cluster)
	for i, m := range metrics {
		tables[i] = g.table(m)
		g.Evidence[i] = g.Evidence[i].play(tables[i], power)
	}
	keep := math.Exp2(-min(g.PendingFor.Seconds()/halfSeconds, float64(n)/halfAttempts))
	g.Old, g.New = g.Old.add(g.PendingOld, keep), g.New.add(g.PendingNew, keep)
	g.PendingOld, g.PendingNew, g.PendingFor = Telemetry{}, Telemetry{}, 0
	return g, tables
}

// table makes the comparison of what is pending. For latencies a hit is an
// attempt slower than the old way's quantile was until now: what was known
// before the attempts, so that it cannot lean towards either way.
func (g Guard) table(m Metric) (t table) {
	old, new := g.PendingOld, g.PendingNew
	switch m {
	case Success:
		return table{new.failed(), new.tried(), old.failed(), old.tried()}
	case Connect:
		return table{new.connectFailed(), new.tried(), old.connectFailed(), old.tried()}
	}
	q := 0.5
	if m == P99 {
		q = 0.99
	}
	slow, _, ok := g.Old.Latency.quantileBin(q)
	if !ok || g.Old.Latency.Total() < referenceLeast {
		return t // no hits, which tells nothing
	}
	hits := func(h Histogram) (int, int) {
		total := int(math.Round(min(h.Total(), most)))
		return min(total, int(math.Round(min(h.above(slow), most)))), total
	}
	t.newHits, t.new = hits(new.Latency)
	t.oldHits, t.old = hits(old.Latency)
	return t
}

// worse says whether the difference between two values of a metric is large enough to matter.
func (l Limits) worse(m Metric, old, new float64) bool {
	if m == P50 || m == P99 {
		by := float64(l.SlowerBy) / float64(time.Millisecond)
		return new > old*(1+float64(l.Slower)/float64(Whole)) && new > old+by
	}
	return new-old > float64(l.Failures)/float64(Whole)
}

// leans names the first metric on which the new way looks worse: sure beyond
// the given part of the threshold, and large enough to matter.
func (g Guard) leans(l Limits, part float64) (Metric, float64, bool) {
	for i, m := range metrics {
		if w := g.Evidence[i].Worth(); w >= l.threshold()*part && l.worse(m, g.Old.value(m), g.New.value(m)) {
			return m, w, true
		}
	}
	return "", 0, false
}

// wait says what the guard still wants before a step is passed; "" is nothing.
// oldShare is what the old way carries now.
func (g Guard) wait(l Limits, oldShare Share) string {
	switch m, _, leans := g.leans(l, 0.05); {
	case g.NewAttempts < l.Attempts:
		return fmt.Sprintf("%d of %d attempts seen on the new way", g.NewAttempts, l.Attempts)
	case oldShare > 0 && g.OldAttempts < l.Attempts:
		return fmt.Sprintf("%d of %d attempts seen on the old way", g.OldAttempts, l.Attempts)
	case leans:
		return fmt.Sprintf("%s looks worse on the new way, not surely yet", m)
	}
	return g.struck()
}

// FailedRequest is one failing request as an example for people; it is passed
// through and decides nothing.
type FailedRequest struct {
	At     time.Time `json:"at,omitzero"`
	Way    Way       `json:"way,omitempty"`
	ID     string    `json:"id,omitempty"`
	Reason string    `json:"reason,omitempty"` // status, response flags, whatever the observer has
}

// Look is one comparison: hits are attempts that failed, or for p99 and p50 those
// slower than the old way's quantile until then.
type Look struct {
	NewHits int `json:"new_hits"`
	New     int `json:"new"`
	OldHits int `json:"old_hits"`
	Old     int `json:"old"`
}

// Breach is why a shift was stopped, in numbers.
type Breach struct {
	At          time.Time       `json:"at,omitzero"`
	Pair        Pair            `json:"pair"`
	OldWay      Way             `json:"old_way"`
	NewWay      Way             `json:"new_way"`
	Share       Share           `json:"share"`           // of the new way then
	Alone       bool            `json:"alone,omitempty"` // the old way carried nothing: Old is the worst that it was before, Odds and Last say nothing
	Metric      Metric          `json:"metric"`
	Old         float64         `json:"old"` // a part of 1, or milliseconds for p50 and p99
	New         float64         `json:"new"`
	OldAttempts float64         `json:"old_attempts"` // recent ones, which the two values are of
	NewAttempts float64         `json:"new_attempts"`
	Last        Look            `json:"last"`
	Limit       string          `json:"limit"`
	Odds        float64         `json:"odds"`      // equal ways look so at most once in so many ramps
	Threshold   float64         `json:"threshold"` // of Odds
	Failing     []FailedRequest `json:"failing,omitempty"`
}

// String is the record in a line, and a line for each failing request.
func (b Breach) String() string {
	var out strings.Builder
	out.WriteString(b.line())
	for _, f := range b.Failing {
		fmt.Fprintf(&out, "\n  %s %s %s: %s", f.At.UTC().Format(time.RFC3339), f.Way, f.ID, f.Reason)
	}
	return out.String()
}

// line is the record without the failing requests.
func (b Breach) line() string {
	value := func(v float64) string {
		if b.Metric == P50 || b.Metric == P99 {
			return fmt.Sprintf("%s %.4g ms", b.Metric, v)
		}
		what := "failed"
		if b.Metric == Connect {
			what = "failed to connect"
		}
		return fmt.Sprintf("%s %.4g%%", what, v*100)
	}
	if b.Alone {
		return fmt.Sprintf("%s at %s %s: %s: %s of the last %.0f attempts on %s, and as bad twice before; at worst %s on %s while that carried requests; limit %s",
			b.Pair, b.NewWay, b.Share, b.Metric, value(b.New), b.NewAttempts, b.NewWay, value(b.Old), b.OldWay, b.Limit)
	}
	return fmt.Sprintf("%s at %s %s: %s: %s of %.0f attempts on %s, %s of %.0f on %s in the same time; limit %s; last look %d of %d against %d of %d; equal ways look so once in %.4g ramps, limit %.4g",
		b.Pair, b.NewWay, b.Share, b.Metric, value(b.New), b.NewAttempts, b.NewWay, value(b.Old), b.OldAttempts, b.OldWay, b.Limit, b.Last.NewHits, b.Last.New, b.Last.OldHits, b.Last.Old, b.Odds, b.Threshold)
}

// breach makes the record, if there is a breach. The tables are those of the look
// that found it.
func (g Guard) breach(l Limits, tables [len(metrics)]table) *Breach {
	m, worth, is := g.leans(l, 1)
	if !is {
		return nil
	}
	b := &Breach{
		Metric: m, Old: round(g.Old.value(m)), New: round(g.New.value(m)),
		OldAttempts: math.Round(g.Old.Attempts), NewAttempts: math.Round(g.New.Attempts),
		Odds: round(worth / float64(len(metrics))), Threshold: round(1 / l.FalseTrips), Limit: l.text(m),
	}
	t := tables[slices.Index(metrics[:], m)]
	b.Last = Look{t.newHits, t.new, t.oldHits, t.old}
	return b
}

// text is the limit of a metric in words.
func (l Limits) text(m Metric) string {
	if m == P50 || m == P99 {
		return fmt.Sprintf("%s and %s slower", l.Slower, l.SlowerBy)
	}
	return fmt.Sprintf("%s more", l.Failures)
}

// round keeps four digits: more would be noise in a record.
func round(v float64) float64 {
	if v == 0 || math.IsInf(v, 0) || math.IsNaN(v) {
		return v
	}
	p := math.Pow10(3 - int(math.Floor(math.Log10(math.Abs(v)))))
	return math.Round(v*p) / p
}
