package demo

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/demo/shop"
)

const (
	// A request in flight while something is stopped or killed is held so long.
	holdTime = 2 * time.Second
	heldLoad = 32 // so many of them; the chance that one of four instances gets none is 1 in 10,000
	// A sidecar that is ready takes traffic within this time.
	trafficLimit = 20 * time.Second
)

// add starts one more instance of catalog under load.
func (d *demo) add(ctx context.Context, p *Proof) error {
	in := d.mesh.instance("catalog-5")
	m := d.traffic.mark()
	begun := time.Now()
	if err := d.mesh.startInstance(in); err != nil {
		return err
	}
	if err := d.awaitReady(ctx, []*instance{in}); err != nil {
		return err
	}
	ready := time.Since(begun)
	if err := d.awaitTrafficTo(ctx, in.id); err != nil {
		return err
	}
	p.figure("ready_seconds", ready.Seconds())
	p.figure("first_answer_seconds", time.Since(begun).Seconds())
	p.check(true, "%s: ready %s after it was started, its first answer %s later", in.id, seconds(ready), seconds(time.Since(begun)-ready))
	if err := d.evenly(ctx, p); err != nil {
		return err
	}
	return d.nothingFailed(ctx, p, m)
}

// awaitTrafficTo waits until an instance of catalog has answered a request sent
// from now on.
func (d *demo) awaitTrafficTo(ctx context.Context, id string) error {
	before := d.traffic.pairs[0].rec.Totals()
	return await(ctx, trafficLimit, id+" answers requests", func() error {
		if d.traffic.pairs[0].rec.Totals().Since(before).From[id] == 0 {
			return fmt.Errorf("none yet")
		}
		return nil
	})
}

// evenly shows who answers for one second.
func (d *demo) evenly(ctx context.Context, p *Proof) error {
	before := d.traffic.pairs[0].rec.Totals()
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	from := d.traffic.pairs[0].rec.Totals().Since(before).From
	_, _, text := shares(from)
	p.check(from["catalog-5"] > 0, "over the next second: %s", text)
	return nil
}

// drain stops an instance of catalog that has requests in flight.
func (d *demo) drain(ctx context.Context, p *Proof) error {
	in := d.mesh.instance("catalog-2")
	st, err := in.status()
	if err != nil {
		return err
	}
	m := d.traffic.mark()
	held, err := d.hold(ctx)
	if err != nil {
		return err
	}
	begun := time.Now()
	if d.o.sabotaged("drain") {
		d.out.step("sabotage: %s is killed instead of told to stop", in.id)
		for _, pid := range []int{in.child.PID, st.Envoy.PID, in.appPID(st)} {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		<-in.child.Done()
	} else if err := in.stop(ctx); err != nil {
		return err
	}
	took := time.Since(begun)
	before := d.traffic.pairs[0].rec.Totals()
	mine, failed, _, failedElsewhere := d.heldEnd(held, in.id)
	failed += failedElsewhere
	p.figure("in_flight", mine)
	p.figure("drain_seconds", took.Seconds())
	p.check(mine > 0 && failed == 0, "%s had %d long requests in flight when it was told to stop: %d of all %d failed", in.id, mine, failed, len(held))
	p.check(true, "%s was gone %s later, Envoy and app with it", in.id, seconds(took))
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	d1 := d.traffic.pairs[0].rec.Totals().Since(before)
	p.check(d1.From[in.id] == 0, "since then it answered %d of %s requests", d1.From[in.id], count(d1.Requests))
	if err := d.nothingFailed(ctx, p, m); err != nil {
		return err
	}
	if !processGone(st.Envoy.PID) || !processGone(in.appPID(st)) {
		p.check(false, "%s left processes behind", in.id)
	}
	return nil
}

// hold puts long requests in flight on all instances of catalog, and returns once
// each is known to have reached one.
func (d *demo) hold(ctx context.Context) ([]*shop.Held, error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	var out []*shop.Held
	var failed error
	for n := range heldLoad {
		wg.Go(func() {
			h, err := d.traffic.catalog.Hold(fmt.Sprintf("held-%d", n), holdTime, time.Now().Add(stopLimit))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = fmt.Errorf("a long request: %w", err)
				return
			}
			out = append(out, h)
		})
	}
	wg.Wait()
	d.traffic.pairs[0].held += uint64(len(out))
	if failed == nil {
		failed = ctx.Err()
	}
	return out, failed
}

// heldEnd waits for long requests to end, and counts those that the given
// instance had and the others, with how many of each failed.
func (d *demo) heldEnd(held []*shop.Held, on string) (mine, mineFailed, others, othersFailed int) {
	for _, h := range held {
		failed := 0
		if h.Wait() != nil {
			failed = 1
		}
		if h.Instance == on {
			mine, mineFailed = mine+1, mineFailed+failed
		} else {
			others, othersFailed = others+1, othersFailed+failed
		}
	}
	d.traffic.pairs[0].heldFailed += uint64(mineFailed + othersFailed)
	return mine, mineFailed, others, othersFailed
}
