package main

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"time"
)

// half takes half of all instances away, those that are served elsewhere, and brings them back.
// Versions are hashes of what they stand for: in the end sidecars hold what they held before.
func half(ctx context.Context, w *world, m *meter, l *line) error {
	before := w.fleet.Endpoints()
	var gone, back [][]op
	w.all(func(in instance) {
		if in.number >= w.connected(in.service) && in.number%2 == w.each()%2 { // not the last, which flip changes
			gone, back = append(gone, []op{w.drop(in)}), append(back, w.set(in))
		}
	})
	if err := w.transact(ctx, gone); err != nil {
		return err
	}
	if err := w.told(ctx); err != nil {
		return fmt.Errorf("half of all gone: %w", err)
	}
	for name, versions := range w.fleet.Endpoints() {
		if maps.Equal(before[name], versions) {
			return fmt.Errorf("half of all gone: endpoints %q are what they were before", name)
		}
	}
	came := time.Now()
	if err := w.transact(ctx, back); err != nil {
		return err
	}
	written := time.Since(came)
	if err := w.same(ctx, before); err != nil {
		return fmt.Errorf("half of all gone and back: %w", err)
	}
	l.Changes = len(gone) + len(back)
	l.PerSecond = float64(len(back)) / written.Seconds()
	// From the last write of those that came back until the last sidecar had it.
	l.Last = max(0, w.fleet.Latest().Sub(came.Add(written)).Seconds())
	return nil
}

// told waits until sidecars have what was written so far, and wants that they agree. It asks as a
// sidecar does that leaves: its deregistration is answered when all callers of its service know what
// the registry knows.
func (w *world) told(ctx context.Context) error {
	last := instance{service: 0, number: w.each()}
	if err := w.transact(ctx, [][]op{w.set(last)}); err != nil {
		return err
	}
	path := fmt.Sprintf("/v1/agent/service/deregister/%s?node=%s&wait=60s", w.proxyID(last), w.nodeOf(last))
	if err := w.call(ctx, http.MethodPut, path, nil, nil); err != nil {
		return err
	}
	return w.agree(ctx)
}

// same wants that sidecars hold given versions, but for those that have refused one.
func (w *world) same(ctx context.Context, want map[string]map[uint64]int) error {
	if err := w.told(ctx); err != nil {
		return err
	}
	refused := int(w.fleet.Totals().Nacks)
	now := w.fleet.Endpoints()
	for name, versions := range want {
		same := 0
		for v, n := range versions {
			same += min(n, now[name][v])
		}
		total := 0
		for _, n := range versions {
			total += n
		}
		if total-same > refused {
			return fmt.Errorf("endpoints %q: %d of %d sidecars hold what they held before", name, same, total)
		}
	}
	return nil
}

// deploy replaces all instances of 200 services, of each of them one after the other: the new one
// is registered, then the old one goes. Those that are connected come back with a new connection.
func deploy(ctx context.Context, w *world, m *meter, l *line) error {
	const most = 200
	services := min(most, w.Services/4)
	before := w.fleet.Endpoints()
	var steps [][]op // each the next instance of every service
	for number := w.connected(0); number < w.each(); number++ {
		for _, turn := range []func(instance) []op{
			func(in instance) []op { in.generation = 1; return w.set(in) },
			func(in instance) []op { return []op{w.drop(in)} },
		} {
			for service := 1; service <= services; service++ {
				steps = append(steps, turn(instance{service: service, number: number}))
			}
		}
	}
	each := max(1, len(steps)/100)
	tick := time.NewTicker(w.Duration / 100)
	defer tick.Stop()
	watched := make(chan error, 1)
	var seen []time.Duration
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			times, err := w.renew(ctx)
			if err != nil {
				watched <- err
				return
			}
			seen = append(seen, times...)
			select {
			case <-stop:
				watched <- w.txn(ctx, w.renewed())
				return
			case <-time.After(time.Second):
			}
		}
	}()
	l.Changes = len(steps)
	for i := 0; len(steps) > 0; i++ {
		n := min(each, len(steps))
		if err := w.transact(ctx, steps[:n]); err != nil {
			return err
		}
		steps = steps[n:]
		w.fleet.Redial(i % w.Streams)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	close(stop)
	if err := <-watched; err != nil {
		return err
	}
	if err := w.agree(ctx); err != nil {
		return err
	}
	l.spread(seen)
	// As it was, for what comes after.
	var back [][]op
	for number := w.connected(0); number < w.each(); number++ {
		for service := 1; service <= services; service++ {
			in := instance{service: service, number: number}
			old := in
			old.generation = 1
			back = append(back, append(w.set(in), w.drop(old)))
		}
	}
	if err := w.transact(ctx, back); err != nil {
		return err
	}
	return w.same(ctx, before)
}
