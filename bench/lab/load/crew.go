package load

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// worker drives one connection. A failure ends its part in the turn.
type worker struct {
	conn Exchanger // nil: to be dialled
	done atomic.Uint64
	// latencies are of requests begun while recording; written by the worker's goroutine only.
	latencies []time.Duration
	err       error
}

// loop sends a request as soon as the one before is answered.
func (w *worker) loop(ctx context.Context, recording, stop *atomic.Bool) {
	begun := time.Now()
	for !stop.Load() {
		record := recording.Load()
		if !w.exchange(ctx) {
			return
		}
		now := time.Now()
		if record {
			w.latencies = append(w.latencies, now.Sub(begun))
		}
		begun = now
	}
}

// follow sends the requests that fall due. A latency begins when the request was
// due, not when a worker was free for it, so that a wait shows in all it delayed.
// Once abandoned is set, nothing more is sent.
func (w *worker) follow(ctx context.Context, schedule <-chan due, abandoned *atomic.Bool) {
	for d := range schedule {
		if abandoned.Load() {
			continue
		}
		if !w.exchange(ctx) {
			return
		}
		if d.record {
			w.latencies = append(w.latencies, time.Since(d.at))
		}
	}
}

func (w *worker) exchange(ctx context.Context) (ok bool) {
	if w.err = w.conn.Exchange(ctx); w.err != nil {
		w.conn.Close()
		w.conn = nil
		return false
	}
	w.done.Add(1)
	return true
}

// Crew is the workers of one path. Connections stay open from turn to turn. Its
// fields may change between turns.
type Crew struct {
	Rate float64 // requests per second; 0: closed loop
	// Phase is how much later than the turn the first request is due, from 0 to 1, of the time between two. Crews
	// with different phases take turns.
	Phase float64
	// Abandon leaves requests unsent that were overdue when a turn ended.
	Abandon bool

	protocol, addr string
	size           int // of an answer
	workers        []*worker
}

// NewCrew makes one of so many connections for answers of size bytes, as fast as they
// come back. It dials in its first turn; Close closes.
func NewCrew(protocol, addr string, connections, size int) *Crew {
	c := &Crew{protocol: protocol, addr: addr, size: size}
	for range connections {
		c.workers = append(c.workers, &worker{})
	}
	return c
}

// Close is for after the last turn.
func (c *Crew) Close() {
	for _, w := range c.workers {
		if w.conn != nil {
			w.conn.Close()
			w.conn = nil
		}
	}
}

// Hooks of a turn: Begin and End are called where the measured part begins and
// ends, while the load goes on; each gets the number of requests done so far.
type Hooks struct {
	Begin, End func(done uint64) error
}

// Turn loads the path for warm-up and measured, and returns the latencies and failures.
func (c *Crew) Turn(ctx context.Context, warmUp, measured time.Duration, h Hooks) (latencies []time.Duration, failures []error, err error) {
	// Far beyond the turn: reached only by a request that hangs.
	loadCtx, cancel := context.WithTimeout(ctx, warmUp+measured+10*time.Second)
	defer cancel()
	for _, w := range c.workers {
		if w.conn == nil {
			if w.conn, err = Dial(c.protocol, c.addr, c.size); err != nil {
				return nil, nil, err
			}
		}
	}
	var (
		recording, stop, abandoned atomic.Bool

		wg sync.WaitGroup
	)
	var schedule chan due
	if c.Rate > 0 {
		// Holds more than can fall due in the turn: the pacer never waits for a worker.
		schedule = make(chan due, int(c.Rate*(warmUp+measured+5*time.Second).Seconds())+1)
		wg.Go(func() { pace(c.Rate, c.Phase, schedule, &recording, &stop) })
	}
	for _, w := range c.workers {
		w.latencies, w.err = w.latencies[:0], nil
		if schedule != nil {
			wg.Go(func() { w.follow(loadCtx, schedule, &abandoned) })
		} else {
			wg.Go(func() { w.loop(loadCtx, &recording, &stop) })
		}
	}
	err = func() error {
		if err := pause(ctx, warmUp); err != nil {
			return err
		}
		recording.Store(true)
		if err := h.Begin(c.done()); err != nil {
			return err
		}
		if err := pause(ctx, measured); err != nil {
			return err
		}
		return h.End(c.done())
	}()
	abandoned.Store(c.Abandon)
	stop.Store(true)
	wg.Wait()
	for _, w := range c.workers {
		latencies = append(latencies, w.latencies...)
		if w.err != nil {
			failures = append(failures, w.err)
		}
	}
	return latencies, failures, err
}

func (c *Crew) done() (sum uint64) {
	for _, w := range c.workers {
		sum += w.done.Load()
	}
	return sum
}

// pause waits for d, or less when ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
