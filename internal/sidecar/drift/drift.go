// Package drift compares what an Envoy runs with what it was told.
//
// In: what the relay knows that Envoy has acknowledged, and Envoy's admin interface. Out:
// resources of which Envoy has another version than it says, none, or one that it was not
// told of; responses that it never answers; and what was done about that. [State.Step]
// decides, and takes the time as an argument.
//
// It compares versions, which Envoy keeps beside resources, and the content of endpoints and
// runtime, of which it keeps none, and of listeners, of which it may show an older one. What Envoy has refused, what is on its way to it, and
// what warms up is no drift. A look costs Envoy some milliseconds, more with many upstreams,
// and is not taken more often than that it stays below a five-hundredth of the time.
//
// It leaves sending to package relay, and telling people to package sidecar.
package drift

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/envoyadmin"
	"github.com/crossfade-mesh/crossfade/internal/sidecar/relay"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// Watch looks at one sidecar's Envoy for as long as it runs. The first block is set before
// [Watch.Run] and read-only then.
type Watch struct {
	Relay *relay.Relay
	Admin *envoyadmin.Client // of Envoy, with [AskWithin]
	// Envoy is the process ID of an Envoy that serves, or 0: then nothing is looked at.
	Envoy func() int64
	// Changed is told each new report.
	Changed func(api.Drift)
	Timing  Timing
	Log     *slog.Logger

	mu     sync.Mutex // guards the following
	report api.Drift
}

// AskWithin bounds one question: with very many upstreams Envoy is long over an answer.
const AskWithin = 10 * time.Second

// maxFaults bounds the faults of an [api.Drift].
const maxFaults = 20

// Run looks until ctx ends.
func (w *Watch) Run(ctx context.Context) {
	timing := w.Timing.withDefaults()
	var state State
	var pid int64
	var calm uint64 // the generation at which the last look found nothing; 0: it found something
	var looked time.Time
	for wait := timing.Every; sleep(ctx, wait); {
		wait = timing.Every
		now := w.Envoy()
		if now != pid {
			pid, state, calm = now, State{}, 0
			w.show(nil, state)
		}
		if pid == 0 {
			continue
		}
		told := w.Relay.Told()
		if told.Connected && told.Generation == calm && len(told.Pending) == 0 && time.Since(looked) < timing.Idle {
			continue
		}
		looked = time.Now()
		found, err := w.look(ctx, told)
		if err != nil {
			if ctx.Err() == nil {
				w.Log.Debug("what Envoy runs can't be seen", "reason", err)
			}
			found = waiting(told) // that much is known without it
		}
		if w.Envoy() != pid {
			continue // it ended meanwhile
		}
		wait = max(wait, time.Duration(timing.Share)*time.Since(looked))
		var act *Action
		state, act = state.Step(time.Now(), found, timing)
		calm = 0
		if state.Calm() && err == nil {
			calm = told.Generation
		}
		w.do(act)
		w.show(act, state)
	}
}

// look finds what is wrong now.
func (w *Watch) look(ctx context.Context, told relay.Told) ([]Fault, error) {
	runs, err := look(ctx, w.Admin)
	if err != nil {
		return nil, err
	}
	if again := w.Relay.Told(); again.Generation != told.Generation {
		told = again // what was acknowledged meanwhile may be in runs or not; the next look knows
	}
	return sift(ctx, w.Admin, compareAll(told, runs, w.Relay.Resource), w.Relay.Resource)
}

// waiting are the faults that the relay alone knows of.
func waiting(told relay.Told) (out []Fault) {
	if !told.Connected {
		return []Fault{{}}
	}
	for t, sent := range told.Pending {
		out = append(out, Fault{Key: xds.Key{Type: t}, Sent: sent})
	}
	return out
}

// compareAll compares what Envoy has acknowledged with what it runs. Of a type of which a
// response is on its way nothing is compared: Envoy is in the middle of it.
func compareAll(told relay.Told, runs running, resource func(xds.Key, string) *xds.Resource) []Fault {
	out := waiting(told)
	if !told.Connected {
		return out
	}
	for k, version := range told.Acked {
		if _, busy := told.Pending[k.Type]; busy || strings.HasPrefix(k.Name, xds.SparePrefix) {
			continue
		}
		want := version
		if k.Type == xds.EndpointType || k.Type == xds.RuntimeType {
			res := resource(k, version)
			if res == nil {
				continue // Envoy has not been told of the newest yet
			}
			var ok bool
			if want, ok = content(res); !ok {
				continue
			}
		}
		if got, ok := differs(k.Type, runs[k], want); ok {
			f := Fault{Key: k, Told: version, Runs: got}
			if want != version && len(runs[k]) > 0 {
				f.Runs = "other content"
			}
			out = append(out, f)
		}
	}
	for k, versions := range runs {
		_, busy := told.Pending[k.Type]
		if _, known := told.Acked[k]; !known && !busy && (k.Type == xds.ClusterType || k.Type == xds.ListenerType) {
			out = append(out, Fault{Key: k, Runs: versions[0]})
		}
	}
	slices.SortFunc(out, compare)
	return out
}

// differs decides whether what Envoy has of a resource is not what is wanted. All clusters
// with the same endpoints are to have them; of two states one is enough.
func differs(t xds.Type, runs []string, want string) (got string, yes bool) {
	if t == xds.EndpointType {
		i := slices.IndexFunc(runs, func(v string) bool { return v != want })
		if i < 0 && len(runs) > 0 {
			return "", false
		}
		return "", true
	}
	if slices.Contains(runs, want) {
		return "", false
	}
	if len(runs) > 0 {
		got = runs[0]
	}
	return got, true
}

// do carries an action out and says so.
func (w *Watch) do(act *Action) {
	if act == nil {
		return
	}
	faults := strings.Join(inWords(act.Faults, 3), "; ")
	switch act.Verb {
	case Resend:
		var keys []xds.Key
		for _, f := range act.Faults {
			keys = append(keys, f.Key)
		}
		w.Relay.Resend(keys)
		w.Log.Error("Envoy does not run what it was told, it is sent again", "faults", faults, "count", len(act.Faults), "since", act.Since.UTC())
	case Named:
		w.Log.Error("Envoy has no stream to its sidecar and hears of no change", "since", act.Since.UTC())
	case Restart:
		w.Relay.Restart(errors.New("Envoy does not run what it was told"))
		w.Log.Error("Envoy still does not run what it was told, its stream is restarted", "faults", faults, "count", len(act.Faults), "since", act.Since.UTC())
	case Healed:
		w.Log.Info("Envoy runs what it was told again", "faults", faults, "count", len(act.Faults), "after", time.Since(act.Since).Round(time.Millisecond))
	}
}

// show tells people where things stand.
func (w *Watch) show(act *Action, state State) {
	faults, since := state.Faults()
	w.mu.Lock()
	before := w.report
	next := api.Drift{Since: since.UTC(), Drifts: before.Drifts, Resends: before.Resends, Restarts: before.Restarts, Faults: inWords(faults, maxFaults)}
	if since.IsZero() {
		next.Since = since
	} else {
		next.Done = before.Done
		next.Stuck = slices.ContainsFunc(faults, Fault.stuck)
	}
	if act != nil {
		switch act.Verb {
		case Named:
			next.Drifts, next.Done = next.Drifts+1, string(Named)
		case Resend:
			next.Drifts, next.Resends, next.Done = next.Drifts+1, next.Resends+1, string(Resend)
		case Restart:
			next.Restarts, next.Done = next.Restarts+1, string(Restart)
		}
	}
	w.report = next
	w.mu.Unlock()
	if act != nil || !slices.Equal(before.Faults, next.Faults) {
		w.Changed(next)
	}
}

func inWords(faults []Fault, most int) (out []string) {
	for _, f := range faults[:min(len(faults), most)] {
		out = append(out, f.String())
	}
	return out
}

// sleep reports whether ctx goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
