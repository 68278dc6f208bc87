package consulstore

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

const (
	// lookEvery is how often a Consul is asked whether it has a leader, lookWithin how long it may take to answer.
	lookEvery  = time.Second
	lookWithin = 2 * time.Second
	// leaderless is how long a Consul may have none until that is trouble: longer than it takes to elect one,
	// for which writes wait.
	leaderless = 5 * time.Second
)

// errLeaderless is wrapped by what is said of a Consul without a leader.
var errLeaderless = errors.New("it has no leader: it is cut off from the other servers of its cluster, or most of those are gone")

// quorum knows whether the Consul has a leader. A query that waits does not tell: a Consul server that is cut off from
// the others, or stands still, lets it wait to its end.
type quorum struct {
	e *Engine

	mu   sync.Mutex
	last time.Time     // when it had one; guarded by mu, as the following
	why  error         // of its having none, the last time
	lost chan struct{} // closed while it has had none for too long
}

func newQuorum(e *Engine) *quorum { return &quorum{e: e, lost: make(chan struct{})} }

// run looks until ctx ends.
func (q *quorum) run(ctx context.Context) {
	for {
		q.look(ctx)
		if !wait(ctx, lookEvery) {
			return
		}
	}
}

// look asks once.
func (q *quorum) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	a, err := q.e.do(ctx, http.MethodGet, "/v1/status/leader", nil, nil)
	if err == nil && strings.TrimSpace(string(a.Body)) == `""` {
		err = fmt.Errorf("Consul at %s: %w", q.e.opts.Address, errLeaderless)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	if err == nil || q.last.IsZero() {
		q.last = now
	}
	if err != nil {
		q.why = err
	}
	switch gone, lost := now.Sub(q.last) >= leaderless, closed(q.lost); {
	case gone && !lost:
		close(q.lost)
	case !gone && lost:
		q.lost = make(chan struct{})
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// missing is why there has been no leader for too long, or nil.
func (q *quorum) missing() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if closed(q.lost) {
		return q.why
	}
	return nil
}

// holding is a context that ends, with a reason, when the Consul has had no leader for too long.
func (q *quorum) holding(ctx context.Context) (_ context.Context, done func()) {
	if q.missing() != nil {
		q.look(ctx) // it may have one again
	}
	q.mu.Lock()
	lost := q.lost
	q.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-lost:
			q.mu.Lock()
			defer q.mu.Unlock()
			cancel(q.why)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil); <-ended }
}
