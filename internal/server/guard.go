package server

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/consul"
)

const (
	// lookEvery is how often it is looked again why instances that are held are gone.
	lookEvery = 3 * time.Second
	// lookWithin bounds one such look.
	lookWithin = 10 * time.Second
	// alarmAfter is how long an explanation is waited for before somebody is told.
	alarmAfter = 3 * time.Second
	// maxRechecked are the services read anew by one look.
	maxRechecked = 64
)

// remote is a registry that has to be asked why an instance is gone.
type remote interface {
	Explain(ctx context.Context, gone []catalog.Instance) map[catalog.InstanceKey]string
	// Recheck reads anew what is known of the services.
	Recheck(services []string)
	// Doubt says that the registry may not be what it was.
	Doubt()
	Bad() []consul.Bad
}

// endpointGuard runs a [catalog.Guard] between a registry and the mesh: it brings it
// snapshots, the time and evidence, publishes what it lets through, says what it holds, and
// keeps that on disk. Itself a [catalog.Source].
type endpointGuard struct {
	source catalog.Source
	known  catalog.Evidence // what explains absences at once; or else
	remote remote           // who is to be asked
	file   *guardFile       // nil: nothing is kept
	log    *slog.Logger

	nudge chan struct{} // capacity 1: something is held

	mu        sync.Mutex // guards what follows
	guard     catalog.Guard
	raw       *catalog.Snapshot // nil: nothing read yet
	publish   func(*catalog.Snapshot)
	published *catalog.Snapshot
	explained map[catalog.InstanceKey]string // by the last look
	told      map[string]catalog.Held        // of which somebody was told
	first     map[string]time.Time           // when holding of a service was first seen here
	looked    map[string]bool                // services that a look was at since
	alarms    int                            // how often somebody was told
	rulings   map[string]catalog.Ruling      // by service: what is yet to be heeded
}

func newEndpointGuard(source catalog.Source, policy catalog.GuardPolicy, dir string, log *slog.Logger) *endpointGuard {
	g := &endpointGuard{
		source: source, guard: catalog.Guard{Policy: policy}, log: log, nudge: make(chan struct{}, 1),
		explained: map[catalog.InstanceKey]string{}, told: map[string]catalog.Held{}, first: map[string]time.Time{}, looked: map[string]bool{},
	}
	g.remote, g.guard.Policy.Agents = source.(remote)
	g.known, _ = source.(catalog.Evidence)
	if dir != "" && !policy.Off {
		g.file = newGuardFile(dir, log)
	}
	return g
}

// Explains implements [catalog.Evidence].
func (g *endpointGuard) Explains(in catalog.Instance) string {
	if g.known != nil {
		return g.known.Explains(in)
	}
	return g.explained[catalog.KeyOf(in)]
}

// Run implements [catalog.Source]. Where a registry has to be asked over the network, what
// was let through last before a restart is published first.
func (g *endpointGuard) Run(ctx context.Context, publish func(*catalog.Snapshot)) error {
	g.mu.Lock()
	g.publish = publish
	if g.remote != nil && g.resume(nil) {
		g.remote.Doubt()
		g.published = g.guard.Passed().With(0, nil)
		publish(g.published)
	}
	g.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { g.watch(ctx) })
	if g.file != nil {
		wg.Go(func() { g.file.run(ctx) })
	}
	defer wg.Wait()
	defer cancel()
	return g.source.Run(ctx, g.take)
}

// resume goes on from what was let through last before a restart, if that is known. The caller holds mu.
func (g *endpointGuard) resume(have *catalog.Snapshot) bool {
	last, held := g.file.load(have)
	if last != nil {
		g.guard = g.guard.Resume(last, held)
	}
	return last != nil
}

func (g *endpointGuard) take(raw *catalog.Snapshot) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.raw == nil && g.remote == nil {
		g.resume(raw)
	}
	g.raw = raw
	g.step(time.Now())
}

// step lets through what may be. The caller holds mu.
func (g *endpointGuard) step(now time.Time) {
	if g.raw == nil {
		return
	}
	g.guard, _ = g.guard.Step(now, g.raw, g)
	g.heed()
	g.pass(now, g.guard.Passed())
	if g.guard.Waits() {
		select {
		case g.nudge <- struct{}{}:
		default:
		}
	}
}

// pass publishes and tells. The caller holds mu.
func (g *endpointGuard) pass(now time.Time, snap *catalog.Snapshot) {
	held := g.guard.Held()
	if snap != g.published {
		g.published = snap
		g.publish(snap)
	}
	g.file.keep(snap, held)
	g.tell(now, held)
}

// tell raises the alarm once for each service, and says when it is over. The caller holds mu.
func (g *endpointGuard) tell(now time.Time, held []catalog.Held) {
	still := map[string]bool{}
	keys := map[catalog.InstanceKey]bool{}
	for _, h := range held {
		still[h.Service] = true
		for _, in := range h.Instances {
			keys[catalog.KeyOf(in)] = true
		}
		if g.first[h.Service].IsZero() {
			g.first[h.Service] = now
		}
		_, told := g.told[h.Service]
		if !told && g.remote != nil && len(h.Silent) == 0 && !g.looked[h.Service] && now.Sub(g.first[h.Service]) < alarmAfter {
			continue // it may be explained in a moment
		}
		if !told {
			g.alarms++
			g.log.Warn("endpoint guard holds instances", "service", h.Service, "gone", len(h.Instances), "silent", len(h.Silent), "present", h.Present,
				"why", h.String(), "decide", "crossfade catalog release "+h.Service+", or keep")
		}
		g.told[h.Service] = h
	}
	maps.DeleteFunc(g.explained, func(k catalog.InstanceKey, _ string) bool { return !keys[k] })
	for name := range g.first {
		if !still[name] {
			delete(g.first, name)
			delete(g.looked, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(g.told)) {
		if !still[name] {
			g.log.Info("endpoint guard holds nothing of a service any more", "service", name, "after", now.Sub(g.told[name].Since).Round(time.Millisecond))
			delete(g.told, name)
		}
	}
}

// watch looks for what explains absences, and lets time do its work, while anything is held.
func (g *endpointGuard) watch(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var last time.Time // look
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.nudge:
		}
		for g.waits() && ctx.Err() == nil {
			if time.Since(last) >= lookEvery || g.news() {
				g.look(ctx)
				last = time.Now()
			}
			select {
			case <-ctx.Done():
			case <-g.nudge:
				continue
			case <-tick.C:
			}
			g.mu.Lock()
			g.step(time.Now())
			g.mu.Unlock()
		}
	}
}

func (g *endpointGuard) waits() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.guard.Waits()
}

// news reports whether a service is held at which no look was yet.
func (g *endpointGuard) news() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for name := range g.first {
		if !g.looked[name] {
			return true
		}
	}
	return false
}

// look asks the registry why instances are gone.
func (g *endpointGuard) look(ctx context.Context) {
	if g.remote == nil {
		return
	}
	g.mu.Lock()
	var gone []catalog.Instance
	var services []string
	for _, h := range g.guard.Held() {
		gone = append(gone, h.Instances...)
		services = append(services, h.Service)
	}
	g.mu.Unlock()
	if len(services) == 0 {
		return
	}
	asking, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	why := g.remote.Explain(asking, gone)
	g.mu.Lock()
	g.explained = why
	for _, name := range services {
		if _, ok := g.first[name]; ok {
			g.looked[name] = true
		}
	}
	g.step(time.Now())
	var left []string
	for _, h := range g.guard.Held() {
		left = append(left, h.Service)
	}
	g.mu.Unlock()
	if len(left) > 0 {
		g.remote.Recheck(left[:min(len(left), maxRechecked)])
	}
}

// held is what is held now, and what is left out.
func (g *endpointGuard) held() (held []catalog.Held, bad []consul.Bad, alarms int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.remote != nil {
		bad = g.remote.Bad()
	}
	return g.guard.Held(), bad, g.alarms
}
