package load

import (
	"context"
	"maps"
	"sync"
	"time"
)

// maxFailures bounds how many failures keep their particulars; all are counted.
const maxFailures = 50_000

// Failure is one request that got no right answer.
type Failure struct {
	Number uint64
	Sent   time.Time // when the request was really sent
	Ended  time.Time
	Reason string
}

// Totals is what a recorder counted up to one moment. Values are never changed.
type Totals struct {
	Requests       uint64 // answered or failed
	Failed         uint64
	NewConnections uint64 // right answers on a connection of their own
	From           map[string]uint64
	Ways           map[string]uint64 // answers that say by which way their request came
}

// Since is what was counted after earlier.
func (t Totals) Since(earlier Totals) Totals {
	d := Totals{
		Requests:       t.Requests - earlier.Requests,
		Failed:         t.Failed - earlier.Failed,
		NewConnections: t.NewConnections - earlier.NewConnections,
		From:           Since(t.From, earlier.From),
		Ways:           Since(t.Ways, earlier.Ways),
	}
	return d
}

// Since is what was counted by key after earlier.
func Since(now, earlier map[string]uint64) map[string]uint64 {
	out := map[string]uint64{}
	for key, n := range now {
		if n > earlier[key] {
			out[key] = n - earlier[key]
		}
	}
	return out
}

// Recorder counts the requests of one or more generators.
type Recorder struct {
	mu       sync.Mutex // guards all below
	next     uint64
	open     map[uint64]time.Time // unanswered requests and when they were sent
	totals   Totals               // its maps are copied when read
	failures []Failure
	latency  Histogram
	late     time.Duration
	lastSent map[string]time.Time // by way, of answers that say it
}

// NewRecorder is an empty recorder.
func NewRecorder() *Recorder {
	return &Recorder{open: map[uint64]time.Time{}, totals: Totals{From: map[string]uint64{}, Ways: map[string]uint64{}}, lastSent: map[string]time.Time{}}
}

func (r *Recorder) begin(now time.Time) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next++
	r.open[r.next] = now
	return r.next
}

func (r *Recorder) end(id uint64, due time.Time, a Answer, err error) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	sent := r.open[id]
	delete(r.open, id)
	r.totals.Requests++
	r.latency.Add(now.Sub(due))
	r.late = max(r.late, sent.Sub(due))
	if err != nil {
		r.totals.Failed++
		if len(r.failures) < maxFailures {
			r.failures = append(r.failures, Failure{Number: id, Sent: sent, Ended: now, Reason: err.Error()})
		}
		return
	}
	if a.NewConnection {
		r.totals.NewConnections++
	}
	if a.From != "" {
		r.totals.From[a.From]++
	}
	if a.Way != "" {
		r.totals.Ways[a.Way]++
		if sent.After(r.lastSent[a.Way]) {
			r.lastSent[a.Way] = sent
		}
	}
}

// LastSent is when the newest request was sent that is answered and went by a way.
func (r *Recorder) LastSent(way string) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lastSent[way]
}

// Totals is what was counted so far.
func (r *Recorder) Totals() Totals {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.totals
	t.From, t.Ways = maps.Clone(t.From), maps.Clone(t.Ways)
	return t
}

// Failures are the particulars of the failures so far, in the order they ended;
// after the first 50,000 none are kept.
func (r *Recorder) Failures() []Failure {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Failure(nil), r.failures...)
}

// Latency is a copy of the histogram of all requests, failed ones too, each from
// when it was due.
func (r *Recorder) Latency() *Histogram {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.latency
	return &h
}

// Late is the longest that a request was sent after it was due. The service has no
// part in it: it shows how short of CPU the generator was.
func (r *Recorder) Late() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.late
}

// Outstanding is how many requests are unanswered.
func (r *Recorder) Outstanding() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.open)
}

// Settle waits until every request sent before it was called has ended.
func (r *Recorder) Settle(ctx context.Context) error {
	begun := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for r.anyOpenSince(begun) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

func (r *Recorder) anyOpenSince(t time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, sent := range r.open {
		if !sent.After(t) {
			return true
		}
	}
	return false
}
