package demo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"
)

// end closes the load and tells everything to stop.
func (d *demo) end(ctx context.Context, p *Proof) error {
	t := d.traffic
	if _, roots, err := d.mesh.api.roots(ctx); err == nil {
		for _, pr := range t.pairs {
			if err := pr.identify(ctx, roots); err != nil {
				return err
			}
		}
	}
	t.stop()
	_, _, watchErr := t.hangUpLong(ctx)
	t.close()
	messages, gap := t.watch.Messages()
	p.check(watchErr == nil, "the gRPC stream stayed open: %s messages in sequence, none lost, at most %s apart%s", count(messages), ms(gap), because(watchErr))
	payments, gap := t.line.Messages()
	p.check(t.line.Err() == nil, "the TCP connection stayed open: %s payments on it, at most %s apart%s", count(payments), ms(gap), because(t.line.Err()))
	p.check(t.assignments.Repeats() == 0, "%d calls were repeated by the gRPC client", t.assignments.Repeats())
	p.figure("stream_messages", messages)
	p.figure("connection_payments", payments)
	for _, pr := range t.all() {
		all, least := pr.totals(), float64(leastRate)
		if pr == t.pages {
			least = 0
		}
		failed, rate := all.Failed-pr.inFlight, pr.rate(t)
		p.check(failed == 0 && rate >= least, "%s: %s of %s requests failed over the whole run%s, at %.0f/s open-loop", pr.key(), count(failed), count(all.Requests), besides(pr.inFlight), rate)
	}

	begun := time.Now()
	running := d.mesh.running()
	errs := make([]error, len(running))
	var wg sync.WaitGroup
	for i, in := range running {
		wg.Go(func() { errs[i] = in.stop(ctx) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	d.mesh.server.Signal(syscall.SIGTERM)
	if err := d.mesh.server.waitEnd(ctx, stopLimit); err != nil {
		return err
	}
	left := d.mesh.left()
	p.check(len(left) == 0, "%d sidecars, their Envoys and apps, and the server stopped in %s; %d processes left", len(running), seconds(time.Since(begun)), len(left))
	return nil
}

func besides(inFlight uint64) string {
	if inFlight == 0 {
		return ""
	}
	return fmt.Sprintf(", besides the %d that were in flight on what was killed", inFlight)
}

func because(err error) string {
	if err == nil {
		return ""
	}
	return fmt.Sprintf(" – no: %v", err)
}
