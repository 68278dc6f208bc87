package sidecar

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/crossfade-mesh/crossfade/internal/envoyadmin"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

const (
	// countEvery is how often Envoy's counts are read and, if there are any, reported. With very
	// many upstreams reading takes long: then it is less often, so that it takes Envoy no more than
	// a part in countShare of a processor, but never less often than countLatest.
	countEvery  = time.Second
	countShare  = 100
	countLatest = 2 * time.Second
	// sayEvery is how often a sidecar reports that has nothing to say: a server takes one
	// that is silent for longer as one that does not watch.
	sayEvery = 5 * time.Second
	// sayPlaintextEvery is the same of one that takes plaintext: who wants it to be strict waits.
	sayPlaintextEvery = time.Second
	// reportWithin bounds one report.
	reportWithin = 3 * time.Second
	// keepCounts is for how long counts are kept that no server takes. What is older
	// tells nobody anything, but for who sent plaintext.
	keepCounts = 2 * time.Minute
	// keepPlaintext is how often the memory of plaintext is kept while some comes, and
	// keepSilence while none does. The first that comes after a silence is kept at once.
	keepPlaintext = 5 * time.Second
	keepSilence   = time.Minute
)

// reporter tells the servers what this instance's Envoy counted.
type reporter struct {
	admin         *envoyadmin.Client
	conn          grpc.ClientConnInterface
	node, sidecar string
	log           *slog.Logger
	// envoy is the process ID of the Envoy that serves, or 0.
	envoy func() int64
	// permissive reports whether Envoy takes plaintext. May be nil.
	permissive func() bool
	// more adds what others know. May be nil.
	more func(*telemetry.Report)
	// keep writes the memory of plaintext down.
	keep   func(telemetry.Memory) error
	memory telemetry.Memory
	// cuts is how far orders to close something are: all, or what is new. May be nil.
	cuts func(all bool) []telemetry.Cut
	// local are the destinations that are held on old ways. May be nil.
	local func() []string
	// carrier is what a report says of checks. May be nil.
	carrier *carrier

	session, seq uint64
	meter        telemetry.Meter
	pid          int64            // that was read last
	read         time.Time        // when; zero: it could not be
	pending      telemetry.Report // not sent yet
	since        time.Time        // of pending
	known        telemetry.Report // probes and the app's port, as last told
	unsure       *telemetry.Report
	client       *telemetry.Client
	end          context.CancelFunc
	said, kept   time.Time
	failing      bool
	lost         bool // counts were given up since the last report that was taken

	mu      sync.Mutex             // guards the following
	takes   bool                   // the server takes connections in reports
	offered *telemetry.Connections // not taken up yet
}

// offer hands over what servers are to know of connections. It is false where the server that
// takes reports takes none of that in them, or it is too long for one.
func (r *reporter) offer(c telemetry.Connections) bool {
	const most = telemetry.MaxReport / 2
	text, err := json.Marshal(c)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.takes || err != nil || len(text) > most || c.Check() != nil {
		return false
	}
	r.offered = &c
	return true
}

func (r *reporter) takeOffered() *telemetry.Connections {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.offered
	r.offered = nil
	return c
}

// run goes on until ctx ends.
func (r *reporter) run(ctx context.Context) {
	r.session, r.since, r.kept = rand.Uint64(), time.Now(), time.Now()
	for wait := countEvery; sleep(ctx, jitter(wait, rand.Float64())); {
		before := mainThread(r.envoy())
		r.count(ctx, time.Now())
		wait = countPause(mainThread(r.envoy()) - before)
		if err := r.tell(ctx, time.Now()); err != nil && ctx.Err() == nil {
			if !r.failing {
				r.log.Warn("no server takes what Envoy counts, the shift guard does not see it", "reason", err)
			}
			r.failing = true
			r.hangUp()
		} else if r.failing {
			r.failing = false
			r.log.Info("a server takes what Envoy counts again", "lost", r.lost)
			r.lost = false
		}
	}
	r.hangUp()
	r.remember(time.Now(), true)
}

// countPause is the wait after a reading that took Envoy so long.
func countPause(took time.Duration) time.Duration {
	return min(max(countEvery, countShare*took), countLatest)
}

// mainThread is for how long a process's main thread, which is Envoy's for its admin interface,
// has been on a processor; 0 where that can't be seen.
func mainThread(pid int64) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
	if err != nil {
		return 0
	}
	spent, _, _ := strings.Cut(string(text), " ")
	n, _ := strconv.ParseInt(spent, 10, 64)
	return time.Duration(n)
}

// count reads what Envoy counted since the last time.
func (r *reporter) count(ctx context.Context, now time.Time) {
	if now.Sub(r.since) > keepCounts {
		r.lost = r.lost || len(r.pending.Outbound) > 0
		r.pending, r.since = r.pending.Late(), now
	}
	later := telemetry.Report{Over: max(0, now.Sub(r.since)-r.pending.Over)}
	if r.cuts != nil {
		later.Cuts = r.cuts(false) // before what is open is read: what has ended is not told as open
	}
	if counted, ok := r.ask(ctx, now); ok {
		over := now.Sub(r.read)
		if r.read.IsZero() {
			over = 0
		}
		r.read = now
		was := r.memory.Quiet
		r.memory.Add(now, over, counted.Plaintext)
		r.remember(now, len(counted.Plaintext) > 0 && (was > keepPlaintext || now.Sub(r.kept) >= keepPlaintext))
		later = later.Merge(counted)
		later.Plaintext = counted.Plaintext
	}
	if r.more != nil {
		r.more(&later)
	}
	later.Connections = r.takeOffered()
	if later.Probes != nil {
		r.known.Probes = later.Probes
	}
	if later.App != nil {
		r.known.App = later.App
	}
	r.pending = r.pending.Merge(later)
}

// ask reads Envoy's counts. What an Envoy counted between the last reading and its end is
// lost, and that time is not one in which anybody watched.
func (r *reporter) ask(ctx context.Context, now time.Time) (out telemetry.Report, ok bool) {
	pid := r.envoy()
	if pid == 0 {
		return out, false
	}
	if pid != r.pid {
		r.meter.Restarted()
		r.pid, r.read = pid, time.Time{}
	}
	body, err := r.admin.Get(ctx, r.meter.Path())
	if err != nil {
		return out, false
	}
	stats, err := telemetry.ParseStats(body)
	if err != nil {
		r.log.Debug("Envoy's counts can't be read", "reason", err)
		return out, false
	}
	out, hosts := r.meter.Read(now, stats)
	if !hosts {
		return out, true
	}
	if body, err = r.admin.Get(ctx, telemetry.HostsPath); err != nil {
		return out, true // the next time they are asked for again
	}
	of, err := telemetry.ParseHosts(body)
	if err != nil {
		r.log.Debug("Envoy's endpoints can't be read", "reason", err)
		return out, true
	}
	return out.Merge(r.meter.ReadHosts(of)), true
}

// remember keeps the memory of plaintext, if it is time.
func (r *reporter) remember(now time.Time, due bool) {
	if r.keep == nil || !due && now.Sub(r.kept) < keepSilence {
		return
	}
	r.kept = now
	if err := r.keep(r.memory); err != nil {
		r.log.Error("for how long there was no plaintext cannot be remembered, the next start begins anew", "error", err)
	}
}

// tell sends what is pending. What was not acknowledged goes first, as it was: the server
// may have counted it.
func (r *reporter) tell(ctx context.Context, now time.Time) error {
	every := sayEvery
	if r.permissive != nil && r.permissive() {
		every = sayPlaintextEvery
	}
	if r.unsure == nil && r.pending.Empty() && now.Sub(r.said) < every {
		return nil
	}
	if r.client == nil {
		ctx, end := context.WithCancel(ctx)
		c, err := telemetry.Connect(ctx, r.conn, r.node, r.sidecar)
		if err != nil {
			end()
			return err
		}
		r.client, r.end = c, end
		// This server may know nothing of what was told to another, or before it restarted.
		r.pending = telemetry.Report{Plaintext: r.memory.Told(), Open: r.meter.Opened(), Probes: r.known.Probes, App: r.known.App}.Merge(r.pending)
		if r.cuts != nil {
			r.pending.Cuts = r.cuts(true)
		}
	}
	if r.unsure != nil {
		if err := r.send(now, r.unsure); err != nil {
			return err
		}
	}
	next, rest := r.pending.Bounded()
	r.seq++
	next.Session, next.Seq = r.session, r.seq
	if r.local != nil {
		next.Local = r.local()
	}
	r.pending, r.since, r.unsure = rest, now.Add(-rest.Over), &next
	return r.send(now, r.unsure)
}

// send sends a report and forgets it when it is taken, or never will be.
func (r *reporter) send(now time.Time, report *telemetry.Report) error {
	var err error
	if r.carrier != nil && r.client.Pulses() {
		done := r.carrier.load(report)
		defer func() { done(err == nil) }()
	}
	late := time.AfterFunc(reportWithin, r.end)
	defer late.Stop()
	report.At, report.Watch = now, r.memory.Watch
	err = r.client.Send(*report)
	switch {
	case err == nil:
		r.unsure, r.said = nil, now
		r.mu.Lock()
		r.takes = r.client.TakesConnections()
		r.mu.Unlock()
	case status.Code(err) == codes.InvalidArgument: // it would be refused again and again
		r.unsure, r.known, r.lost = nil, telemetry.Report{}, true
	}
	if err != nil {
		return fmt.Errorf("report %d: %w", report.Seq, err)
	}
	return nil
}

func (r *reporter) hangUp() {
	if r.end != nil {
		r.end()
	}
	r.client, r.end = nil, nil
	r.mu.Lock()
	r.takes = false
	r.mu.Unlock()
	if r.carrier != nil {
		r.carrier.drop()
	}
}
