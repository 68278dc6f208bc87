package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

const startScenario = "start"

// scenarios in the order in which they run. The first brings the sidecars up.
var scenarios = []scenario{
	{name: startScenario, run: startAll},
	{name: "idle", run: idle},
	{name: "endpoint-all", run: endpointAll},
	{name: "endpoint-few", run: endpointFew},
	{name: "rate-1", run: rate(1)},
	{name: "rate-10", run: rate(10)},
	{name: "rate-100", run: rate(100)},
	{name: "config-all", run: configAll},
	{name: "half", run: half, embedded: true},
	{name: "deploy", run: deploy, embedded: true},
	{name: "never-reads", run: neverReads},
	{name: "subscribe-loop", run: subscribeLoop},
	{name: "names", run: manyNames},
	{name: "storm", run: storm},
	{name: "rotate", run: rotate},
	{name: "issue", run: issue},
	{name: "restart", run: restart},
}

// startAll connects all sidecars, which hold nothing, at once.
func startAll(ctx context.Context, w *world, m *meter, l *line) error {
	w.fleet.Start(context.Background(), 0, w.Streams)
	if err := await(ctx, "in sync", func() bool { return w.fleet.Totals().Synced == int64(w.Streams) }); err != nil {
		return fmt.Errorf("%w: %+v", err, w.fleet.Totals())
	}
	l.Last = time.Since(m.began).Seconds()
	return nil
}

// idle is nothing at all, for longer than the time between two keepalives.
func idle(ctx context.Context, w *world, _ *meter, l *line) error {
	return pause(ctx, min(w.Duration, 65*time.Second))
}

// endpointAll is one endpoint of the service that all use, several times.
func endpointAll(ctx context.Context, w *world, _ *meter, l *line) error {
	const rounds = 6
	var all []time.Duration
	for i := range rounds {
		times, err := w.changeAlone(ctx, 0, i%2 == 0)
		if err != nil {
			return err
		}
		all = append(all, times...)
		if err := w.quiet(ctx); err != nil {
			return err
		}
	}
	l.Changes = rounds
	l.spread(all)
	return nil
}

// endpointFew is one endpoint of a service that few use, of one service after the other.
func endpointFew(ctx context.Context, w *world, _ *meter, l *line) error {
	const rounds = 40
	var all []time.Duration
	for i := range rounds {
		times, err := w.changeAlone(ctx, 1+i/2%(w.Services-1), i%2 == 0)
		if err != nil {
			return err
		}
		all = append(all, times...)
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	l.Changes = rounds
	l.spread(all)
	return nil
}

// rate is so many changes a second, each of another service, whatever became of those before.
func rate(perSecond int) func(context.Context, *world, *meter, *line) error {
	return func(ctx context.Context, w *world, _ *meter, l *line) error {
		n := max(1, int(w.Duration.Seconds()*float64(perSecond)))
		return w.changes(ctx, n, perSecond, l)
	}
}

// changes makes n changes at a rate.
func (w *world) changes(ctx context.Context, n, perSecond int, l *line) error {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		first error
		by    = make([][]time.Duration, n) // by change
		done  = make([]chan struct{}, n)   // the same
	)
	services := w.Services - 1
	tick := time.NewTicker(time.Second / time.Duration(perSecond))
	defer tick.Stop()
	for i := range n {
		done[i] = make(chan struct{})
		wg.Go(func() {
			defer close(done[i])
			// Each service in turn, critical in every other round, and none before it is known how it was.
			if before := i - services; before >= 0 {
				<-done[before]
			}
			times, err := w.change(ctx, 1+i%services, i/services%2 == 0)
			mu.Lock()
			defer mu.Unlock()
			by[i] = times
			if err != nil && first == nil {
				first = err
			}
		})
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	wg.Wait()
	if first != nil {
		return first
	}
	flat := func(part [][]time.Duration) (out []time.Duration) {
		for _, times := range part {
			out = append(out, times...)
		}
		return out
	}
	var begin, end line
	begin.spread(flat(by[:(n+2)/3]))
	end.spread(flat(by[n-(n+2)/3:]))
	l.Changes, l.P99Begin, l.P99End = n, begin.P99, end.P99
	l.spread(flat(by))
	// What was made critical is passing again before the next scenario.
	var critical []int
	for service := range min(n, services) {
		if last := (n - 1 - service) / services; last%2 == 0 {
			critical = append(critical, 1+service)
		}
	}
	if w.consul != nil { // which may answer with two changes of a service at once, as if there were none
		return parallel(len(critical), func(i int) error {
			_, err := w.change(ctx, critical[i], false)
			return err
		})
	}
	var back [][]op
	for _, service := range critical {
		back = append(back, []op{w.setCheck(instance{service: service, number: w.each() - 1}, catalog.Passing)})
	}
	return w.transact(ctx, back)
}

// configAll is an entry that changes the routes of all sidecars.
func configAll(ctx context.Context, w *world, _ *meter, l *line) error {
	const rounds = 3
	var all []time.Duration
	for i := range rounds {
		watch := w.fleet.Watch(xds.RouteType, everyone, w.Streams)
		err := w.write(ctx, map[string]any{"Kind": "service-resolver", "Name": everyone, "RequestTimeout": fmt.Sprintf("%ds", 20+i)})
		if err == nil {
			err = watch.Wait(ctx)
		}
		times := watch.End()
		if err != nil {
			return fmt.Errorf("%d of %d sidecars have the entry (%+v): %w", len(times), w.Streams, w.fleet.Totals(), err)
		}
		all = append(all, times...)
		if err := w.quiet(ctx); err != nil {
			return err
		}
	}
	l.Changes = rounds
	l.spread(all)
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
