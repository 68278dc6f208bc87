package main

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// worker drives one connection. A failure ends its part in the turn.
type worker struct {
	conn exchanger // nil: to be dialled
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
func (w *worker) follow(ctx context.Context, schedule <-chan due) {
	for d := range schedule {
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

// crew is the workers of one path. Connections stay open from turn to turn.
type crew struct {
	protocol, addr string
	rate           float64 // requests per second; 0: closed loop
	workers        []*worker
}

func newCrew(protocol, addr string, size int, rate float64) *crew {
	c := &crew{protocol: protocol, addr: addr, rate: rate}
	for range size {
		c.workers = append(c.workers, &worker{})
	}
	return c
}

func (c *crew) close() {
	for _, w := range c.workers {
		if w.conn != nil {
			w.conn.Close()
			w.conn = nil
		}
	}
}

// hooks of a turn: begin and end are called where the measured part begins and
// ends, while the load goes on; each gets the number of requests done so far.
type hooks struct {
	begin, end func(done uint64) error
}

// turn loads the path for warm-up and measured, and returns the latencies and failures.
func (c *crew) turn(ctx context.Context, warmUp, measured time.Duration, h hooks) (latencies []time.Duration, failures []error, err error) {
	// Far beyond the turn: reached only by a request that hangs.
	loadCtx, cancel := context.WithTimeout(ctx, warmUp+measured+10*time.Second)
	defer cancel()
	for _, w := range c.workers {
		if w.conn == nil {
			if w.conn, err = dial(c.protocol, c.addr); err != nil {
				return nil, nil, err
			}
		}
	}
	var (
		recording, stop atomic.Bool
		wg              sync.WaitGroup
	)
	var schedule chan due
	if c.rate > 0 {
		// Holds more than can fall due in the turn: the pacer never waits for a worker.
		schedule = make(chan due, int(c.rate*(warmUp+measured+5*time.Second).Seconds())+1)
		wg.Go(func() { pace(c.rate, schedule, &recording, &stop) })
	}
	for _, w := range c.workers {
		w.latencies, w.err = w.latencies[:0], nil
		if schedule != nil {
			wg.Go(func() { w.follow(loadCtx, schedule) })
		} else {
			wg.Go(func() { w.loop(loadCtx, &recording, &stop) })
		}
	}
	err = func() error {
		if err := pause(ctx, warmUp); err != nil {
			return err
		}
		recording.Store(true)
		if err := h.begin(c.done()); err != nil {
			return err
		}
		if err := pause(ctx, measured); err != nil {
			return err
		}
		return h.end(c.done())
	}()
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

func (c *crew) done() (sum uint64) {
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
