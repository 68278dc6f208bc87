package check

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

const (
	maxStagger    = time.Second // before the first probe
	aliasInterval = 5 * time.Second
	probeTimeout  = 10 * time.Second // when the definition has none
	// lateness is by how much a TTL may end late. More means that this process was
	// stopped or starved, and did not see the pulses of checks that are alive.
	lateness = 2 * time.Second
)

type pulse struct {
	result Result
	taken  chan struct{} // closed once the result has been handled
}

// task is one check being run. The first group is set before its goroutine
// starts and read-only after; the last group belongs to that goroutine.
type task struct {
	runner    *Runner
	node      string
	serviceID string
	def       config.CheckDefinition
	probe     probeFunc // nil for TTL and alias
	ctx       context.Context
	stop      context.CancelFunc
	previous  <-chan struct{} // closed when the task it replaces has ended; nil: none
	done      chan struct{}   // closed when run has returned
	pulses    chan pulse
	wake      chan struct{} // capacity 1: look again at the aliased service
	again     chan struct{} // capacity 1: report the last result again

	removed bool // guarded by Runner.mu

	gate      gate
	due       *time.Timer // next probe, or expiry of the TTL
	flush     *time.Timer // end of the pause between changes of output
	reap      *time.Timer // end of the time a service may stay critical
	expiry    time.Time   // when due is to end the TTL
	status    catalog.Status
	output    string
	reported  bool
	reaping   bool
	pending   *Result // newest output not yet reported
	quiet     time.Time
	lastPulse string
}

func (r *Runner) newTask(node, serviceID string, def config.CheckDefinition) (*task, error) {
	t := &task{
		runner: r, node: node, serviceID: serviceID, def: def,
		done: make(chan struct{}), pulses: make(chan pulse), wake: make(chan struct{}, 1), again: make(chan struct{}, 1),
		gate:   newGate(def),
		status: def.Status,
	}
	if !t.status.Valid() {
		t.status = catalog.Critical
	}
	switch {
	case def.TTL > 0:
		return t, nil
	case def.AliasService != "":
		if r.opts.Alias == nil {
			return nil, errors.New("alias checks are not served here")
		}
		return t, nil
	}
	probe, err := r.probe(def)
	if err != nil {
		return nil, err
	}
	if def.Interval <= 0 {
		return nil, errors.New("Interval is missing: say how often to check, for example 10s")
	}
	t.probe = probe
	return t, nil
}

// aliased is the node and the service ID an alias check looks at; "", "" for others.
func (t *task) aliased() (node, serviceID string) {
	if t.def.AliasService == "" {
		return "", ""
	}
	if t.def.AliasNode != "" {
		return t.def.AliasNode, t.def.AliasService
	}
	return t.node, t.def.AliasService
}

func (t *task) run() {
	if t.previous != nil {
		<-t.previous
	}
	t.due, t.flush, t.reap = time.NewTimer(t.firstDelay()), time.NewTimer(time.Hour), time.NewTimer(time.Hour)
	t.flush.Stop()
	t.reap.Stop()
	defer func() {
		t.due.Stop()
		t.flush.Stop()
		t.reap.Stop()
	}()
	t.expiry = time.Now().Add(time.Duration(t.def.TTL))
	t.watchCritical()
	for {
		select {
		case <-t.ctx.Done():
			return
		case <-t.due.C:
			t.step()
		case <-t.wake:
			t.step()
		case p := <-t.pulses:
			t.lastPulse = p.result.Output
			t.restartTTL()
			t.offer(p.result)
			close(p.taken)
		case <-t.again:
			if t.reported {
				t.runner.opts.Report(t.node, t.def.ID, Result{t.status, t.output})
			}
		case <-t.flush.C:
			if t.pending != nil {
				t.report(*t.pending)
			}
		case <-t.reap.C:
			t.runner.opts.Log.Warn("deregistering a service that stays critical", "node", t.node, "service", t.serviceID,
				"check", t.def.ID, "after", time.Duration(t.def.DeregisterCriticalServiceAfter))
			t.reap.Reset(time.Duration(t.def.DeregisterCriticalServiceAfter))
			t.runner.opts.Deregister(t.node, t.serviceID)
		}
	}
}

// firstDelay spreads the probes of checks that were set together.
func (t *task) firstDelay() time.Duration {
	switch {
	case t.def.TTL > 0:
		return time.Duration(t.def.TTL)
	case t.probe == nil:
		return 0
	}
	return rand.N(min(time.Duration(t.def.Interval), maxStagger))
}

// step does what is due: one probe, one look at the aliased service, or the end of the TTL.
func (t *task) step() {
	switch {
	case t.def.TTL > 0 && time.Since(t.expiry) > lateness:
		t.runner.opts.Log.Warn("this process did not run for a while, the TTL starts anew", "node", t.node, "check", t.def.ID, "late", time.Since(t.expiry))
		t.restartTTL()
	case t.def.TTL > 0:
		t.offer(Result{catalog.Critical, expired(t.lastPulse)})
	case t.probe == nil:
		status, why := t.runner.opts.Alias(t.aliased())
		t.due.Reset(aliasInterval)
		t.offer(Result{status, clip(why, t.def.OutputMaxSize)})
	default:
		result, ok := t.probeOnce()
		if !ok {
			return
		}
		t.due.Reset(time.Duration(t.def.Interval))
		if result, ok = t.gate.pass(result); ok {
			t.offer(result)
		}
	}
}

func (t *task) restartTTL() {
	t.due.Reset(time.Duration(t.def.TTL))
	t.expiry = time.Now().Add(time.Duration(t.def.TTL))
}

// expired is Consul's wording, which dashboards look for.
func expired(last string) string {
	if last == "" {
		return "TTL expired"
	}
	return clip("TTL expired (last output before timeout follows): "+last, 0)
}

// probeOnce waits for a slot, then probes. It is false when the check ended meanwhile.
func (t *task) probeOnce() (Result, bool) {
	select {
	case t.runner.slots <- struct{}{}:
	case <-t.ctx.Done():
		return Result{}, false
	}
	defer func() { <-t.runner.slots }()
	timeout := time.Duration(t.def.Timeout)
	if timeout <= 0 {
		timeout = probeTimeout
	}
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	result := t.probe(ctx)
	result.Output = clip(result.Output, t.def.OutputMaxSize)
	return result, t.ctx.Err() == nil
}

// offer reports a result now, later (a change of output alone, too soon after the last report) or not at all.
func (t *task) offer(r Result) {
	pause := time.Until(t.quiet)
	switch {
	case !t.reported || r.Status != t.status:
		t.report(r)
	case r.Output == t.output:
		t.pending = nil
		t.flush.Stop()
	case pause > 0:
		t.pending = &r
		t.flush.Reset(pause)
	default:
		t.report(r)
	}
}

func (t *task) report(r Result) {
	if r.Status != t.status {
		t.runner.opts.Log.Info("check changed", "node", t.node, "service", t.serviceID, "check", t.def.ID, "from", t.status, "to", r.Status, "output", r.Output)
	}
	t.status, t.output, t.reported, t.pending = r.Status, r.Output, true, nil
	t.flush.Stop()
	t.quiet = time.Now().Add(t.runner.opts.OutputEvery)
	t.watchCritical()
	t.runner.opts.Report(t.node, t.def.ID, r)
}

// watchCritical starts or ends the time after which a critical service is deregistered.
func (t *task) watchCritical() {
	if t.def.DeregisterCriticalServiceAfter <= 0 || t.runner.opts.Deregister == nil || t.serviceID == "" {
		return
	}
	switch critical := t.status == catalog.Critical; {
	case critical && !t.reaping:
		t.reap.Reset(time.Duration(t.def.DeregisterCriticalServiceAfter))
	case !critical:
		t.reap.Stop()
	}
	t.reaping = t.status == catalog.Critical
}

// gate holds a result back until enough in a row agree. Passing and warning
// count as success, and a check that never succeeded is critical at its first
// failure, both as in Consul.
type gate struct {
	successes, failures int // in a row so far; at most one is above 0

	beforePassing, beforeWarning, beforeCritical int
}

func newGate(def config.CheckDefinition) gate {
	g := gate{beforePassing: def.SuccessBeforePassing, beforeWarning: def.FailuresBeforeWarning, beforeCritical: def.FailuresBeforeCritical}
	g.failures = g.beforeCritical
	if g.beforeWarning == 0 {
		g.beforeWarning = g.beforeCritical
	}
	return g
}

// pass is the result to show, and whether there is one.
func (g *gate) pass(r Result) (Result, bool) {
	if r.Status != catalog.Critical {
		g.successes, g.failures = g.successes+1, 0
		return r, g.successes >= g.beforePassing
	}
	g.successes, g.failures = 0, g.failures+1
	switch {
	case g.failures >= g.beforeCritical:
		return r, true
	case g.failures >= g.beforeWarning:
		return Result{catalog.Warning, r.Output}, true
	}
	return r, false
}
