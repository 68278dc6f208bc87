package consul

import (
	"cmp"
	"context"
	"errors"
	"hash/maphash"
	"net/url"
	"sync"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

const pathServices = "/v1/catalog/services"

func pathHealth(service string) string { return "/v1/health/service/" + url.PathEscape(service) }

// run is one call of [Source.Run].
type run struct {
	source  *Source
	trouble *trouble
	ctx     context.Context
	wg      sync.WaitGroup
	wake    chan struct{} // capacity 1: there may be something to publish
	slots   chan struct{} // one token per health query that is open

	mu      sync.Mutex // guards what follows
	named   bool       // the names have been read once
	unread  int        // watches that have not read anything yet
	crowded bool       // more services than slots
	index   uint64     // highest seen
	watches map[string]*watch
	changed map[string]*catalog.Set // not yet published; nil: gone
}

// watch follows the health of one service.
type watch struct {
	name string
	stop context.CancelFunc

	read bool // guarded by run.mu

	// Owned by the watch's goroutine.
	instances []catalog.Instance
	bad       map[string]bool // what was left out of the last answer, and why
}

// take is what changed since the last call, once there is enough for a snapshot.
func (r *run) take(published bool) (changed map[string]*catalog.Set, index uint64, ready bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !published && (!r.named || r.unread > 0) {
		return nil, 0, false
	}
	changed, r.changed = r.changed, map[string]*catalog.Set{}
	return changed, r.index, true
}

func (r *run) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// learn asks the agent which datacenter it is in, and how many queries it takes at once, unless these are given.
// The datacenter is empty when ctx ended.
func (r *run) learn() (datacenter string, queries int) {
	const path = "/v1/agent/self"
	datacenter, queries = r.source.datacenter, r.source.most
	var self struct {
		Config      struct{ Datacenter string }
		DebugConfig struct{ HTTPMaxConnsPerClient *int }
	}
	for again := (backOff{}); ; {
		a, err := r.source.get(r.ctx, path, 0, 0)
		if err == nil {
			err = decode(a.body, &self)
		}
		if err == nil && self.Config.Datacenter == "" {
			err = errors.New("the answer has no Config.Datacenter; is this a Consul agent?")
		}
		if err == nil {
			r.trouble.ok(path, "")
			return cmp.Or(datacenter, self.Config.Datacenter), cmp.Or(queries, queriesOf(self.DebugConfig.HTTPMaxConnsPerClient, a.http2))
		}
		if datacenter != "" && !errors.As(err, new(Unreachable)) { // the token may not ask
			return datacenter, cmp.Or(queries, usualQueries)
		}
		if r.ctx.Err() == nil {
			r.trouble.fail(path, err)
		}
		if !pause(r.ctx, again.next(maxBackOff)) {
			return datacenter, cmp.Or(queries, usualQueries)
		}
	}
}

// queriesOf is how many queries an agent takes at once. Others on this host have their part of its limit.
func queriesOf(limit *int, http2 bool) int {
	switch {
	case http2 || limit != nil && *limit <= 0:
		return manyQueries
	case limit == nil:
		return usualQueries
	}
	return min(max(1, *limit*2/3), manyQueries)
}

func (r *run) watchNames() {
	filtered := false
	f := follower{source: r.source, trouble: r.trouble, path: pathServices, wait: func() int { return 0 }}
	f.follow(r.ctx, func(a answer) error {
		var services map[string][]string
		if err := decode(a.body, &services); err != nil {
			return err
		}
		if services == nil {
			return errors.New("want an object with a member per service, got null")
		}
		if a.filtered && !filtered {
			r.source.log.Warn("Consul hides part of the catalog from this token: it needs service:read and node:read")
		}
		filtered = a.filtered
		r.setNames(services, a.index)
		return nil
	})
}

// setNames starts and ends watches so that there is one per service.
func (r *run) setNames(services map[string][]string, index uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.named = true
	r.index = max(r.index, index)
	for name, w := range r.watches {
		if _, ok := services[name]; ok {
			continue
		}
		w.stop()
		if !w.read {
			r.unread--
		}
		delete(r.watches, name)
		r.changed[name] = nil
		r.source.leftOut(name, nil)
	}
	for name := range services {
		if r.watches[name] != nil || name == "" {
			continue
		}
		ctx, stop := context.WithCancel(r.ctx)
		w := &watch{name: name, stop: stop}
		r.watches[name] = w
		r.unread++
		r.wg.Go(func() {
			defer stop()
			r.watchService(ctx, w)
		})
	}
	if crowded := len(r.watches) > cap(r.slots); crowded != r.crowded {
		r.crowded = crowded
		if crowded {
			r.source.log.Warn("more services than queries at once: they take turns, and changes are seen seconds later: use the agent's https address, or raise its limits.http_max_conns_per_client",
				"services", len(r.watches), "queries", cap(r.slots))
		}
	}
	r.nudge()
}

func (r *run) watchService(ctx context.Context, w *watch) {
	path := pathHealth(w.name)
	f := follower{source: r.source, trouble: r.trouble, path: path, slots: r.slots, wait: r.services}
	seed := maphash.MakeSeed()
	var last uint64 // what was taken
	known := false
	f.follow(ctx, func(a answer) error {
		sum := maphash.Bytes(seed, a.body)
		if known && sum == last {
			return nil
		}
		var entries []entry
		if err := decode(a.body, &entries); err != nil {
			return err
		}
		if entries == nil {
			return errors.New("want a list of instances, got null")
		}
		instances, bad, err := joinInstances(w.name, entries)
		if err != nil {
			return err
		}
		for why := range bad {
			if !w.bad[why] {
				r.source.log.Warn("instance left out", "service", w.name, "reason", why)
			}
		}
		w.bad = bad
		r.source.leftOut(w.name, bad)
		r.setInstances(w, instances, a.index)
		last, known = sum, true
		return nil
	})
	r.trouble.forget(path)
	r.source.unkick(path)
}

// setInstances records an answer about a service, unless it is watched no more.
func (r *run) setInstances(w *watch, instances []catalog.Instance, index uint64) {
	set := catalog.NewSet(w.name, instances)
	changed := !sameInstances(w.instances, set.Instances)
	w.instances = set.Instances
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.watches[w.name] != w {
		return
	}
	r.index = max(r.index, index)
	if changed {
		r.changed[w.name] = set
	}
	if !w.read {
		w.read = true
		r.unread--
	}
	r.nudge()
}

// services counts the services watched.
func (r *run) services() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.watches)
}
