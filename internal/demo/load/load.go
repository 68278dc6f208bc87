// Package load offers requests to a service at a constant rate, whatever the
// service does, and counts what came of them.
//
// In: a rate and a [Call] that makes one request and checks its answer. Out: a
// [Recorder] with requests, failures (each with its reason and times), latencies
// and who answered. The load is open-loop: request n is due at start + n/rate, is
// sent then however many are still unanswered, and its latency counts from when
// it was due, so that a stalled service cannot hide its stall by being asked less.
//
// It never repeats a request. What a request looks like, and which answers are
// right, it leaves to the Call.
package load

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Answer is what a Call learned from a right answer.
type Answer struct {
	From          string // the instance that answered; "" when the answer does not say
	Way           string // by which way the request came there; "" when the answer does not say
	NewConnection bool   // the request opened its own connection
}

// Call makes request n, gives up at deadline, and fails unless the answer is
// right. It must be safe for concurrent use.
type Call func(n uint64, deadline time.Time) (Answer, error)

// errOverload is the failure of a request that was due but not sent.
var errOverload = errors.New("not sent: too many requests are still unanswered")

// Generator is one constant-rate stream of requests.
type Generator struct {
	Rate        int           // requests per second, above 0
	Timeout     time.Duration // of one request, from when it is sent
	Outstanding int           // bound of unanswered requests; one that is due beyond it fails unsent
	// Patient makes a request that is due beyond Outstanding wait until it may be
	// sent, and count from then. The load is then not open-loop: it is for counting
	// answers, not for timing them.
	Patient bool
	Call    Call
	Record  *Recorder
}

// Run sends requests until ctx ends, then waits for the answers still due.
func (g *Generator) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, g.Outstanding)
	start := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for n := uint64(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		for now := time.Now(); ; n++ {
			due := dueAt(start, n, g.Rate)
			if due.After(now) {
				timer.Reset(time.Until(due))
				break
			}
			select {
			case slots <- struct{}{}:
			default:
				if !g.Patient {
					g.Record.end(g.Record.begin(now), due, Answer{}, errOverload)
					continue
				}
				select {
				case slots <- struct{}{}:
					due = time.Now()
				case <-ctx.Done():
					return
				}
			}
			wg.Go(func() {
				g.one(due)
				<-slots
			})
		}
	}
}

// one makes a request under the recorder's next number, so that streams which
// share a recorder never share a number.
func (g *Generator) one(due time.Time) {
	sent := time.Now()
	id := g.Record.begin(sent)
	a, err := g.Call(id, sent.Add(g.Timeout))
	g.Record.end(id, due, a, err)
}

// dueAt is when request n of a stream is to be sent. It is computed from the
// start, never from the request before, so that lateness does not add up.
func dueAt(start time.Time, n uint64, rate int) time.Time {
	whole, rest := n/uint64(rate), n%uint64(rate)
	return start.Add(time.Duration(whole)*time.Second + time.Duration(rest)*time.Second/time.Duration(rate))
}
