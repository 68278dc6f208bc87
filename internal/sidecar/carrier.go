package sidecar

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

const (
	// carryAgain is how long checks are left alone that a report has pulsed, carriedFor how long
	// they need no other pulse: with the time until somebody looks that is within [checkTTL].
	carryAgain = pulseEvery * 3 / 4
	carriedFor = checkTTL / 2
	// maxCarried bounds the bytes of a pulse.
	maxCarried = 64 << 10
)

// carrier puts the pulse of checks into reports to a server that takes it there: who has nothing
// to tell costs that server no further request, and no connection for those. A check that changes
// is told by a request at once. Safe for concurrent use.
type carrier struct {
	health *health
	port   int // of the sidecar's registration

	// order is held while checks are told, in whichever way, from before it is looked what they
	// say until the answer: what a registry hears last is the newest.
	order sync.Mutex
	ended bool // guarded by order

	mu     sync.Mutex            // guards the following
	states map[string]checkState // that a report has pulsed; nil: none since the stream began
	at     time.Time
}

// load puts the present states into a report, if it is time. The result is to be called with what
// became of the report.
func (c *carrier) load(r *telemetry.Report) (done func(taken bool)) {
	r.Alive = nil // of a try before
	c.mu.Lock()
	due := c.states == nil || time.Since(c.at) >= carryAgain
	c.mu.Unlock()
	if !due {
		return func(bool) {}
	}
	c.order.Lock()
	if c.ended {
		c.order.Unlock()
		return func(bool) {}
	}
	states := c.health.states()
	alive := &telemetry.Alive{Port: c.port}
	size := 0
	for _, id := range slices.Sorted(maps.Keys(states)) {
		s := states[id]
		size += len(id) + len(s.output)
		alive.Checks = append(alive.Checks, telemetry.Check{ID: id, Status: s.status, Output: s.output})
	}
	if size > maxCarried {
		c.order.Unlock()
		return func(bool) {}
	}
	r.Alive = alive
	return func(taken bool) {
		if taken {
			c.mu.Lock()
			c.states, c.at = states, time.Now()
			c.mu.Unlock()
		}
		c.order.Unlock()
	}
}

// stop ends it: the instance leaves the registry. It waits for a report that is on its way.
func (c *carrier) stop() {
	c.order.Lock()
	defer c.order.Unlock()
	c.ended = true
}

// drop says that reports carry nothing any more. Whoever relied on them is woken.
func (c *carrier) drop() {
	c.mu.Lock()
	carried := c.states != nil
	c.states = nil
	c.mu.Unlock()
	if carried {
		c.health.set(func(*health) {})
	}
}

// carried reports whether a server has heard these states from a report, lately.
func (c *carrier) carried(states map[string]checkState) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.states != nil && time.Since(c.at) < carriedFor && maps.Equal(c.states, states)
}
