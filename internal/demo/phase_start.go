package demo

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// start brings up the server and 7 sidecars, and begins the load.
func (d *demo) start(ctx context.Context, p *Proof) error {
	m := d.mesh
	begun := time.Now()
	if err := m.startServer(ctx); err != nil {
		return err
	}
	d.out.step("server answers after %s", seconds(time.Since(begun)))
	for _, in := range m.instances {
		if err := m.api.setDefaults(ctx, in.service, in.protocol); err != nil {
			return err
		}
	}
	if d.o.Sabotage == "spread" {
		m.instance("catalog-3").weight = 10
		d.out.step("sabotage: catalog-3 asks for ten times its share")
	}
	first := m.instances[:0:0]
	for _, in := range m.instances {
		if in.id != "catalog-5" {
			first = append(first, in)
		}
	}
	for _, in := range first {
		if err := m.startInstance(in); err != nil {
			return err
		}
	}
	if err := d.awaitReady(ctx, first); err != nil {
		return err
	}
	p.check(true, "server and %d sidecars ready in %s", len(first), seconds(time.Since(begun)))

	var err error
	if d.traffic, err = newTraffic(m); err != nil {
		return err
	}
	if err := d.awaitAnswers(ctx); err != nil {
		return err
	}
	p.check(true, "every pair answers after %s", seconds(time.Since(begun)))
	p.figure("ready_seconds", time.Since(begun).Seconds())
	if err := d.traffic.start(); err != nil {
		return err
	}
	d.out.watch(d.traffic)
	p.check(true, "load: %d requests/s on each of %d pairs, open-loop, no retries, 1 in %d on a new connection; a gRPC stream and a TCP connection stay open",
		pairRate, len(d.traffic.pairs), newEvery)
	return nil
}

// awaitReady waits for all given sidecars at once.
func (d *demo) awaitReady(ctx context.Context, all []*instance) error {
	begun := time.Now()
	errs := make(chan error, len(all))
	var wg sync.WaitGroup
	for _, in := range all {
		wg.Go(func() {
			err := await(ctx, startLimit, in.id+" is ready", in.ready)
			if err == nil {
				d.out.step("%s is ready after %s", in.id, seconds(time.Since(begun)))
			}
			errs <- err
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// awaitAnswers waits until every pair answers and all four instances of catalog do.
func (d *demo) awaitAnswers(ctx context.Context) error {
	seen, n := map[string]bool{}, uint64(0)
	return await(ctx, startLimit, "every pair answers", func() error {
		n++
		if err := d.traffic.probe(n); err != nil {
			return err
		}
		for range 8 {
			n++
			a, err := d.traffic.catalog.Item(n, time.Now().Add(requestTimeout))
			if err != nil {
				return err
			}
			seen[a.From] = true
		}
		if len(seen) < 4 {
			return fmt.Errorf("only %d of 4 instances of catalog have answered", len(seen))
		}
		return nil
	})
}
