package main

import (
	"context"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/demo/load"
)

const (
	requestTimeout = 10 * time.Second
	outstanding    = 4000 // of one pair, at most
)

// traffic is the load on all pairs.
type traffic struct {
	recorders map[string]*load.Recorder // by service
	stop      func()                    // and wait for the last answers
}

// load begins the load, whose clients were shown to work.
func (w *world) load(rate int) *traffic {
	t := &traffic{recorders: map[string]*load.Recorder{}}
	ctx, cancel := context.WithCancel(context.Background())
	clients, err := w.clients()
	if err != nil {
		panic(err) // it made the same before
	}
	var wg sync.WaitGroup
	for _, p := range pairs {
		r := load.NewRecorder()
		t.recorders[p.service] = r
		g := load.Generator{Rate: rate / len(pairs), Timeout: requestTimeout, Outstanding: outstanding, Call: clients.calls[p.service], Record: r}
		wg.Go(func() { g.Run(ctx) })
	}
	t.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		clients.close()
	})
	return t
}

// counted is how many requests have ended, and how many of them failed.
func (t *traffic) counted() (requests, failed uint64) {
	for _, r := range t.recorders {
		got := r.Totals()
		requests, failed = requests+got.Requests, failed+got.Failed
	}
	return requests, failed
}

// await waits until so many have ended.
func (t *traffic) await(ctx context.Context, requests uint64) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if n, _ := t.counted(); n >= requests {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// report fills in what the clients counted. The load has ended.
func (t *traffic) report(l *line) {
	for _, p := range pairs {
		r := t.recorders[p.service]
		totals, latency := r.Totals(), r.Latency()
		k := kind{
			Kind: p.kind, Requests: totals.Requests, Failed: totals.Failed, NewConnections: totals.NewConnections,
			P50: milliseconds(latency.Quantile(0.5)), P99: milliseconds(latency.Quantile(0.99)), Max: milliseconds(latency.Max()),
		}
		for _, f := range r.Failures() {
			if k.Reasons == nil {
				k.Reasons = map[string]int{}
			}
			if _, known := k.Reasons[f.Reason]; known || len(k.Reasons) < 10 {
				k.Reasons[f.Reason]++
			}
		}
		l.Requests, l.Failed, l.LateMS = l.Requests+totals.Requests, l.Failed+totals.Failed, max(l.LateMS, milliseconds(r.Late()))
		l.Kinds = append(l.Kinds, k)
	}
}
