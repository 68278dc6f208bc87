package relay

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/xds"
)

const (
	// defaultProbation is how long a changed resource must have run before a crash is
	// no longer held against it.
	defaultProbation = time.Minute
	// fatalStrikes is how many crashes in its probation put a change in quarantine.
	fatalStrikes = 2
	// namedResources bounds the names in a [Change].
	namedResources = 20
)

// Change is what a server changed at one time.
type Change struct {
	Time      time.Time `json:"time"`
	Resources []string  `json:"resources"` // `Cluster "web"`; the first of many
}

// Quarantine is what Envoy is not given since it crashed on it. It holds until the
// server sends another version of one of the resources, or the relay starts anew.
type Quarantine struct {
	Since     time.Time `json:"since"`
	Reason    string    `json:"reason"`
	Resources []string  `json:"resources"` // `Cluster "web"`
}

// trial is a changed resource that has not proved itself yet.
type trial struct {
	before  *xds.Resource // that it replaced; nil: there was none
	version string        // on trial; absent for a removal
	since   time.Time
	strikes int // crashes that Envoy had with it
}

// tryLocked begins a trial of k, which was what is given, and is now version.
// Endpoints are no settings: going back to addresses of the past helps nobody.
// Without an older configuration that worked there is nothing to go back to.
func (r *Relay) tryLocked(k xds.Key, was *xds.Resource, version string, now time.Time) {
	if k.Type == xds.EndpointType || k.Type == xds.SecretType || !r.seasoned {
		return
	}
	if t := r.trials[k]; t != nil {
		if !r.lastedLocked(t.since, now) {
			was = t.before
		}
	}
	if versionOr(was) == version {
		delete(r.trials, k)
		return
	}
	r.trials[k] = &trial{before: was, version: version, since: now}
}

func versionOr(res *xds.Resource) string {
	if res == nil {
		return absent
	}
	return res.Version
}

// lastedLocked reports whether Envoy, as it runs now, has run for its probation
// with what it was given at since.
func (r *Relay) lastedLocked(since, now time.Time) bool {
	return r.status.EnvoyConnected && now.Sub(later(since, r.openedAt)) >= r.opts.Probation
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// matureLocked ends the trials that were passed. It reports whether there were any.
func (r *Relay) matureLocked(now time.Time) (passed bool) {
	if !r.seasoned && len(r.good[xds.ListenerType]) > 0 && r.lastedLocked(r.openedAt, now) {
		r.seasoned = true
	}
	for k, t := range r.trials {
		if r.lastedLocked(t.since, now) {
			delete(r.trials, k)
			passed = true
		}
	}
	return passed
}

// Crashed notes that Envoy ended by itself at the given time, in the given words.
// What it has crashed on twice since it was changed goes into quarantine: Envoy gets
// the version before. It returns the names of those resources.
func (r *Relay) Crashed(how string, at time.Time) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.told {
		return nil // it ended before it asked for anything
	}
	r.told = false
	var guilty []xds.Key
	for k, t := range r.trials {
		if at.Sub(later(t.since, r.openedAt)) >= r.opts.Probation {
			delete(r.trials, k)
			continue
		}
		if t.strikes++; t.strikes >= fatalStrikes {
			guilty = append(guilty, k)
		}
	}
	if len(guilty) == 0 {
		return nil
	}
	slices.SortFunc(guilty, compareKeys)
	if r.quarantine == nil {
		r.quarantine = &Quarantine{Since: at.UTC()}
	}
	r.quarantine.Reason = fmt.Sprintf(xds.QuarantinePrefix+"Envoy crashed %d times within %s of taking it (%s), the version before runs",
		fatalStrikes, r.opts.Probation, how)
	for _, k := range guilty {
		t := r.trials[k]
		delete(r.trials, k)
		r.barred[k] = t.version
		r.held[k.Type] = with(r.held[k.Type], k.Name, t.before)
		r.good[k.Type] = with(r.good[k.Type], k.Name, t.before)
		delete(r.removed, k)
	}
	r.quarantine.Resources = describe(slices.SortedFunc(maps.Keys(r.barred), compareKeys))
	r.saveSoon()
	r.publishLocked(xds.Types[:]...)
	r.announceLocked()
	r.opts.Log.Error("configuration quarantined: Envoy crashed on it twice and gets the one before, until a server sends another version",
		"resources", strings.Join(shorten(describe(guilty)), ", "), "how", how)
	return describe(guilty)
}

// with is a copy of m in which name is res, or nothing.
func with(m map[string]*xds.Resource, name string, res *xds.Resource) map[string]*xds.Resource {
	m = maps.Clone(m)
	if m == nil {
		m = map[string]*xds.Resource{}
	}
	if res == nil {
		delete(m, name)
	} else {
		m[name] = res
	}
	return m
}

// barredLocked looks through a response for what is in quarantine. When a server has
// another version of any of it, all are released: they were one change, perhaps, and
// are sent again on a new stream.
func (r *Relay) barredLocked(resp xds.Response) (refused map[string]bool, released bool) {
	if len(r.barred) == 0 {
		return nil, false
	}
	refused = map[string]bool{}
	sent := map[string]string{}
	for _, res := range resp.Resources {
		sent[res.Name] = res.Version
	}
	for _, name := range resp.Removed {
		sent[name] = absent
	}
	for name, version := range sent {
		switch r.barred[xds.Key{Type: resp.Type, Name: name}] {
		case "":
		case version:
			refused[name] = true
		default:
			r.opts.Log.Info("quarantine ends, a server sent another version", "resource", resp.Type.Short()+" "+name)
			r.barred, r.quarantine = map[xds.Key]string{}, nil
			r.announceLocked()
			return nil, true
		}
	}
	return refused, false
}

// beforeLocked is the configuration to go back to, if there are trials.
func (r *Relay) beforeLocked() map[xds.Type]map[string]*xds.Resource {
	out := make(map[xds.Type]map[string]*xds.Resource, len(r.good))
	maps.Copy(out, r.good)
	for k, t := range r.trials {
		out[k.Type] = with(out[k.Type], k.Name, t.before)
	}
	return out
}

// retryLocked puts on trial what differs from an older configuration.
func (r *Relay) retryLocked(older map[xds.Type]map[string]*xds.Resource, now time.Time) {
	for _, t := range xds.Types {
		for name, res := range r.held[t] {
			if was := older[t][name]; versionOr(was) != res.Version {
				r.tryLocked(xds.Key{Type: t, Name: name}, was, res.Version, now)
			}
		}
		for name, was := range older[t] {
			if r.held[t][name] == nil {
				r.tryLocked(xds.Key{Type: t, Name: name}, was, absent, now)
			}
		}
	}
}

// LastChange is what a server changed last. Its time is zero when nothing was changed yet.
func (r *Relay) LastChange() Change {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.change
}

func compareKeys(a, b xds.Key) int {
	return cmp.Or(cmp.Compare(slices.Index(xds.Types[:], a.Type), slices.Index(xds.Types[:], b.Type)), strings.Compare(a.Name, b.Name))
}

func describe(keys []xds.Key) []string {
	out := make([]string, len(keys))
	for i, k := range keys {
		out[i] = fmt.Sprintf("%s %q", k.Type.Short(), k.Name)
	}
	return out
}

// shorten names the first of many and counts the rest.
func shorten(names []string) []string {
	if len(names) <= namedResources {
		return names
	}
	return append(slices.Clone(names[:namedResources]), fmt.Sprintf("and %d more", len(names)-namedResources))
}
