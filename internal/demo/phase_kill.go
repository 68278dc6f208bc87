package demo

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/demo/load"
)

// goneLimit is how long the kernel may take to end a killed process.
const goneLimit = 5 * time.Second

// kill kills one Envoy and shows that what failed was in flight on it. Those
// failures are counted apart.
func (d *demo) kill(ctx context.Context, p *Proof) error {
	in := d.mesh.instance("catalog-3")
	st, err := in.status()
	if err != nil {
		return err
	}
	m := d.traffic.mark()
	held, err := d.hold(ctx)
	if err != nil {
		return err
	}
	killed := time.Now()
	if err := syscall.Kill(st.Envoy.PID, syscall.SIGKILL); err != nil {
		return fmt.Errorf("killing Envoy %d of %s: %w", st.Envoy.PID, in.id, err)
	}
	gone, err := awaitGone(st.Envoy.PID)
	if err != nil {
		return err
	}
	on, onFailed, elsewhere, elsewhereFailed := d.heldEnd(held, in.id)
	d.traffic.pairs[0].inFlight += uint64(onFailed)
	p.figure("held_on_it", on)
	p.figure("held_on_it_failed", onFailed)
	p.figure("held_elsewhere", elsewhere)
	p.figure("held_elsewhere_failed", elsewhereFailed)
	p.check(on > 0 && onFailed == on, "%d of %d long requests in flight on %s's Envoy failed when it was killed", onFailed, on, in.id)
	p.check(elsewhereFailed == 0, "%d of %d long requests in flight on the other three failed", elsewhereFailed, elsewhere)

	if err := await(ctx, startLimit, in.id+"'s sidecar starts Envoy again", func() error {
		s, err := in.status()
		if err != nil {
			return err
		}
		if s.Envoy.PID == st.Envoy.PID || s.Envoy.Restarts <= st.Envoy.Restarts {
			return fmt.Errorf("not yet")
		}
		return in.ready()
	}); err != nil {
		return err
	}
	again := time.Since(gone)
	if err := d.awaitTrafficTo(ctx, in.id); err != nil {
		return err
	}
	p.figure("restart_seconds", again.Seconds())
	p.check(true, "its sidecar had a new Envoy ready after %s, and it takes traffic again after %s", seconds(again), seconds(time.Since(gone)))
	return d.inFlightOnly(ctx, p, m, killed, gone)
}

// inFlightOnly checks that what failed since m was in flight when the process was
// killed, and counts that apart.
func (d *demo) inFlightOnly(ctx context.Context, p *Proof, m mark, killed, gone time.Time) error {
	if err := d.traffic.settle(ctx); err != nil {
		return err
	}
	excused, later := 0, 0
	var latest time.Duration
	for pr, failures := range d.traffic.failuresSince(m) {
		passesIt := pr == d.traffic.pairs[0] || pr == d.traffic.pages
		for _, f := range failures {
			if passesIt && inFlight(f, killed, gone) {
				excused++
				pr.inFlight++
			} else {
				later++
				latest = max(latest, f.Sent.Sub(gone))
			}
		}
	}
	p.figure("load_in_flight_failed", excused)
	requests, _ := d.traffic.since(m)
	p.check(true, "of the load, %d requests failed that were in flight at the kill; they are counted apart", excused)
	p.check(later == 0, "%d of %s other requests failed", later, count(requests-uint64(excused)))
	if later > 0 {
		p.check(false, "the last of them was sent %s after Envoy was gone", ms(latest))
		for _, line := range reasons(d.traffic.failuresSince(m)) {
			p.check(false, "%s", line)
		}
	}
	if err := d.traffic.broken(); err != nil {
		p.check(false, "%v", err)
	}
	return nil
}

// inFlight reports whether a request was under way when a process was killed: it
// was sent while the process was still there, and had not ended before.
func inFlight(f load.Failure, killed, gone time.Time) bool {
	return !f.Sent.After(gone) && !f.Ended.Before(killed)
}

// awaitGone waits until the kernel has closed all that a process had open, and
// returns the moment at which that was seen.
func awaitGone(pid int) (time.Time, error) {
	for begun := time.Now(); time.Since(begun) < goneLimit; {
		if processGone(pid) {
			return time.Now(), nil
		}
		// Short, since this moment decides what was in flight.
		<-time.After(200 * time.Microsecond)
	}
	return time.Time{}, fmt.Errorf("process %d: still there %s after SIGKILL", pid, goneLimit)
}
