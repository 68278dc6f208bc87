package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/client"
	"github.com/crossfade-mesh/crossfade/internal/demo/load"
	"github.com/crossfade-mesh/crossfade/internal/demo/shop"
)

const (
	pairRate       = 220  // requests per second and pair
	leastRate      = 200  // that has to come of it
	pageRate       = 5    // whole pages per second, through all four services
	burstRate      = 1800 // at most
	requestTimeout = 5 * time.Second
	// Of so many requests one opens its own connection.
	newEvery = 10
	// At most so many requests of one stream are unanswered at a time.
	outstanding = 2000
	// A burst is bounded so that it is no flood on a slow machine, and no reason to pass over a sidecar
	// that is a caller's as well: least request gives less to who has more under way.
	burstOutstanding = 2
)

// pair is the load from one service to another.
type pair struct {
	from, to *instance // to: any one of the callee
	call     load.Call
	rec      *load.Recorder
	burst    *load.Recorder // requests besides the constant load; nil when there were none
	// Long requests that were put in flight on purpose, and how many of them failed.
	held, heldFailed uint64
	// inFlight are failures that had to be: requests that were in flight on a
	// process when it was killed on purpose.
	inFlight uint64

	caller, callee Identity // as they were last looked at
}

// key identifies what a pair's failures count towards.
func (p *pair) key() string { return p.from.service + " → " + p.to.service }

// traffic is all load of the demo. The pairs' clients stand where the caller's
// app stands: they call that caller's sidecar on loopback.
type traffic struct {
	pairs []*pair
	pages *pair // a visitor's pages, which the apps make by calling each other
	begun time.Time
	ended time.Time

	roads       []*client.Pair // that the clients follow
	catalog     *shop.HTTP
	payments    *shop.Payments
	assignments *shop.Assignments
	visitor     *shop.HTTP

	watch   *shop.Watch
	line    *shop.LongLived
	opened  int                      // how often they were
	mourned map[*shop.LongLived]bool // whose end was told

	cancel    context.CancelFunc // ends the load
	hangUp    context.CancelFunc // ends line
	wg        sync.WaitGroup
	stopOnce  sync.Once
	closeOnce sync.Once
}

func newTraffic(m *mesh) (*traffic, error) {
	front, catalog1 := m.instance("storefront-1"), m.instance("catalog-1")
	t := &traffic{mourned: map[*shop.LongLived]bool{}, visitor: shop.NewHTTP(fmt.Sprintf("127.0.0.1:%d", m.storefrontPort), newEvery)}
	// The clients are moved as the apps are whose place they take.
	by := func(from *instance, to string) (shop.Road, error) {
		env := m.appEnv(from)
		p, err := openPair(from.service, to, func(name string) string { return env[name] })
		if err != nil {
			return nil, err
		}
		t.roads = append(t.roads, p)
		return road(p, to), nil
	}
	toCatalog, err1 := by(front, "catalog")
	toPayments, err2 := by(front, "payments")
	toAssignments, err3 := by(catalog1, "assignments")
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	t.catalog, t.payments, t.assignments = shop.NewHTTPBy(toCatalog, newEvery), shop.NewPaymentsBy(toPayments, newEvery), shop.NewAssignmentsBy(toAssignments, newEvery)
	t.pairs = []*pair{
		{from: front, to: catalog1, call: t.catalog.Item},
		{from: catalog1, to: m.instance("assignments-1"), call: t.assignments.AssignNumbered},
		{from: front, to: m.instance("payments-1"), call: t.payments.PayNumbered},
	}
	t.pages = &pair{from: &instance{service: "visitor"}, to: front, call: t.visitor.Page}
	for _, p := range t.all() {
		p.rec = load.NewRecorder()
	}
	return t, nil
}

func (t *traffic) all() []*pair { return append(slices.Clone(t.pairs), t.pages) }

// probe asks every pair once, and fails unless all answers are right.
func (t *traffic) probe(n uint64) error {
	for _, p := range t.all() {
		if _, err := p.call(n, time.Now().Add(requestTimeout)); err != nil {
			return fmt.Errorf("%s: %w", p.key(), err)
		}
	}
	return nil
}

// openLong opens the stream and the connection that stay open.
func (t *traffic) openLong() error {
	var err error
	t.opened++
	name := fmt.Sprintf("demo-%d", t.opened)
	if t.watch, err = t.assignments.OpenWatch(name); err != nil {
		return fmt.Errorf("opening the gRPC stream: %w", err)
	}
	var ctx context.Context
	ctx, t.hangUp = context.WithCancel(context.Background())
	if t.line, err = t.payments.HoldConnection(ctx, name); err != nil {
		return fmt.Errorf("opening the TCP connection: %w", err)
	}
	return nil
}

// hangUpLong closes them, and says how much came on both, and what was lost of the stream.
func (t *traffic) hangUpLong(ctx context.Context) (watched, paid uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err = t.watch.Finish(ctx)
	t.watch.Close()
	t.hangUp()
	<-t.line.Done()
	watched, _ = t.watch.Messages()
	paid, _ = t.line.Messages()
	return watched, paid, err
}

// start opens what stays open, and begins the load.
func (t *traffic) start() error {
	if err := t.openLong(); err != nil {
		return err
	}
	var ctx context.Context
	ctx, t.cancel = context.WithCancel(context.Background())
	t.begun = time.Now()
	for _, p := range t.all() {
		g := load.Generator{Rate: pairRate, Timeout: requestTimeout, Outstanding: outstanding, Call: p.call, Record: p.rec}
		if p == t.pages {
			g.Rate = pageRate
		}
		t.wg.Go(func() { g.Run(ctx) })
	}
	return nil
}

// startBurst adds requests to a pair's load until ctx ends, as many as the
// machine can take besides.
func (t *traffic) startBurst(ctx context.Context, p *pair) {
	p.burst = load.NewRecorder()
	g := load.Generator{Rate: burstRate, Timeout: requestTimeout, Outstanding: burstOutstanding, Patient: true, Call: p.call, Record: p.burst}
	t.wg.Go(func() { g.Run(ctx) })
}

// stop ends the load and waits for the last answers.
func (t *traffic) stop() {
	t.stopOnce.Do(func() {
		if t.cancel != nil {
			t.cancel()
		}
		t.wg.Wait()
		t.ended = time.Now()
	})
}

// close ends the load, closes what stayed open and every client's connections. It
// may be called more than once.
func (t *traffic) close() {
	t.stop()
	t.closeOnce.Do(func() {
		if t.watch != nil {
			t.watch.Close()
		}
		if t.hangUp != nil {
			t.hangUp()
		}
		if t.line != nil {
			<-t.line.Done()
		}
		t.catalog.Close()
		t.payments.Close()
		t.visitor.Close()
		t.assignments.Close()
		for _, p := range t.roads {
			p.Close()
		}
	})
}

// totals is all that was asked of a pair.
func (p *pair) totals() load.Totals {
	t := p.rec.Totals()
	if p.burst != nil {
		b := p.burst.Totals()
		t.Requests, t.Failed, t.NewConnections = t.Requests+b.Requests, t.Failed+b.Failed, t.NewConnections+b.NewConnections
	}
	t.Requests, t.Failed, t.NewConnections = t.Requests+p.held, t.Failed+p.heldFailed, t.NewConnections+p.held
	return t
}

// rate is the open-loop requests per second, once the load has ended.
func (p *pair) rate(t *traffic) float64 {
	return float64(p.rec.Totals().Requests) / max(t.ended.Sub(t.begun).Seconds(), 0.001)
}

// settle waits until every request sent so far is answered or has failed.
func (t *traffic) settle(ctx context.Context) error {
	for _, p := range t.all() {
		if err := p.rec.Settle(ctx); err != nil {
			return err
		}
	}
	return nil
}

// mark is what was counted up to one moment.
type mark struct {
	totals   []load.Totals
	failures []int // how many failures with particulars
}

func (t *traffic) mark() mark {
	var m mark
	for _, p := range t.all() {
		m.totals = append(m.totals, p.rec.Totals())
		m.failures = append(m.failures, len(p.rec.Failures()))
	}
	return m
}

// since is what was counted after a mark, over all pairs.
func (t *traffic) since(m mark) (requests, failed uint64) {
	for i, p := range t.all() {
		d := p.rec.Totals().Since(m.totals[i])
		requests += d.Requests
		failed += d.Failed
	}
	return requests, failed
}

// failuresSince are the particulars of each pair's failures after a mark.
func (t *traffic) failuresSince(m mark) map[*pair][]load.Failure {
	out := map[*pair][]load.Failure{}
	for i, p := range t.all() {
		if f := p.rec.Failures(); len(f) > m.failures[i] {
			out[p] = f[m.failures[i]:]
		}
	}
	return out
}

// broken says what has ended of the stream and the connection that have to stay
// open; each end is said once.
func (t *traffic) broken() error {
	var out error
	var open []*shop.LongLived
	if t.watch != nil {
		open = append(open, t.watch.LongLived)
	}
	if t.line != nil {
		open = append(open, t.line)
	}
	for _, l := range open {
		if err := l.Err(); err != nil && !t.mourned[l] {
			t.mourned[l] = true
			out = errors.Join(out, err)
		}
	}
	return out
}
