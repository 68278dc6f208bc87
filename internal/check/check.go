// Package check runs health checks: HTTP, TCP, UDP, gRPC, HTTP/2 ping, TTL and alias.
//
// In: check definitions by node and check ID, and pulses for TTL checks. Out:
// calls of [Options.Report] when a check's status or output changed, and of
// [Options.Deregister] when a service was critical for too long. It connects to
// nothing but what a definition names (an HTTP check follows redirects, as
// Consul's does) and ignores proxy variables of the environment.
//
// It leaves keeping results, aggregating them and persisting definitions to its
// caller, and defaults and validation of a definition to package config.
package check

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// ErrUnknown is wrapped by [Runner.Pulse] when no such check is set.
var ErrUnknown = errors.New("no such check")

// MaxOutput is the most bytes of output that a [Result] carries.
const MaxOutput = 4 << 10

// Result is what a check last said. Output is valid UTF-8.
type Result struct {
	Status catalog.Status
	Output string
}

// Options are what a [Runner] needs from its owner.
//
// The functions are called from the runner's goroutines, for one check never
// two at a time. They may call Set, Remove and Notify, and must not call Close,
// nor Pulse for the check they are called for.
type Options struct {
	// Report receives the first result of a check, each change of its status at
	// once, and changes of its output alone at most once per OutputEvery.
	// A report that was under way when Remove was called may end after it.
	Report func(node, checkID string, r Result)
	// Alias reads the worst status among the checks of a service, and why. Nil
	// when no alias checks are used.
	Alias func(node, serviceID string) (catalog.Status, string)
	// Deregister is called when a check with DeregisterCriticalServiceAfter was
	// critical for that long, and again after as long if it is still set. Nil: never.
	Deregister func(node, serviceID string)
	// Log receives changes of status; nil discards them.
	Log *slog.Logger

	MaxProbes   int           // probes under way at once; 0: 128
	OutputEvery time.Duration // 0: one minute
}

// Runner runs the checks set on it, each on a goroutine of its own, until Close.
type Runner struct {
	opts  Options
	slots chan struct{}                                   // one token per probe under way
	probe func(config.CheckDefinition) (probeFunc, error) // read-only after New

	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu     sync.Mutex // guards what follows
	closed bool
	tasks  map[key]*task // a removed task stays until its goroutine has ended
}

type key struct{ node, checkID string }

// New returns a runner without checks. Its owner calls Close.
func New(o Options) *Runner {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.MaxProbes <= 0 {
		o.MaxProbes = 128
	}
	if o.OutputEvery <= 0 {
		o.OutputEvery = time.Minute
	}
	ctx, stop := context.WithCancel(context.Background())
	return &Runner{
		opts: o, slots: make(chan struct{}, o.MaxProbes), probe: newProbe,
		ctx: ctx, stop: stop, tasks: map[key]*task{},
	}
}

// Set starts a check of a service (or of the node, when serviceID is empty) in
// place of an earlier one with the same ID. A definition identical to the
// earlier one restarts nothing; its last result, if any, is reported again,
// since the caller may have rewritten the row that held it. The definition's
// maps must not change afterwards.
func (r *Runner) Set(node, serviceID string, def config.CheckDefinition) error {
	if def.ID == "" {
		return fmt.Errorf("check of service %q on node %q: ID is empty", serviceID, node)
	}
	t, err := r.newTask(node, serviceID, def)
	if err != nil {
		return fmt.Errorf("check %q on node %q: %w", def.ID, node, err)
	}
	k := key{node, def.ID}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return fmt.Errorf("check %q on node %q: the runner is closed", def.ID, node)
	}
	if old := r.tasks[k]; old != nil {
		if !old.removed && old.serviceID == serviceID && reflect.DeepEqual(old.def, def) {
			nudge(old.again)
			return nil
		}
		old.stop()
		t.previous = old.done
	}
	t.ctx, t.stop = context.WithCancel(r.ctx)
	r.tasks[k] = t
	r.wg.Go(func() {
		defer func() {
			t.stop()
			r.mu.Lock()
			if r.tasks[k] == t {
				delete(r.tasks, k)
			}
			r.mu.Unlock()
			close(t.done)
		}()
		t.run()
	})
	return nil
}

// Remove ends a check; of an unknown one it does nothing. It does not wait.
func (r *Runner) Remove(node, checkID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t := r.tasks[key{node, checkID}]; t != nil {
		t.removed = true
		t.stop()
	}
}

// Pulse sets the state of a TTL check and starts its TTL anew. When it returns
// nil, Report has been called if it was due.
func (r *Runner) Pulse(node, checkID string, status catalog.Status, output string) error {
	if !status.Valid() {
		return fmt.Errorf("check %q on node %q: status %q is not one of passing, warning, critical", checkID, node, status)
	}
	unknown := fmt.Errorf("check %q on node %q: %w", checkID, node, ErrUnknown)
	r.mu.Lock()
	t := r.tasks[key{node, checkID}]
	if t == nil || t.removed {
		r.mu.Unlock()
		return unknown
	}
	r.mu.Unlock()
	if t.def.TTL <= 0 {
		return fmt.Errorf("check %q on node %q: it has no TTL, so it cannot be set from outside", checkID, node)
	}
	p := pulse{Result{status, clip(output, t.def.OutputMaxSize)}, make(chan struct{})}
	select {
	case t.pulses <- p:
	case <-t.done:
		return unknown
	}
	select {
	case <-p.taken:
		return nil
	case <-t.done:
		return unknown
	}
}

// Notify makes alias checks of that service look again. Without it they look
// every few seconds. It does not wait.
func (r *Runner) Notify(node, serviceID string) {
	if serviceID == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.tasks {
		if n, id := t.aliased(); id == serviceID && n == node {
			nudge(t.wake)
		}
	}
}

// Close ends all checks and waits until nothing is reported any more.
func (r *Runner) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.stop()
	r.wg.Wait()
}

// nudge leaves a token in a channel of capacity one.
func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
