package telemetry

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/shift"
)

// StatsPath is what to ask Envoy's admin interface for.
const StatsPath = `/stats?format=json&usedonly&histogram_buckets=detailed&filter=%5Ecf%5C.`

// Stats are Envoy's counts since it started.
type Stats struct {
	counters   map[string]uint64
	histograms map[string]map[shift.Bin]uint64 // in milliseconds
}

// ParseStats reads Envoy's answer to [StatsPath].
func ParseStats(b []byte) (Stats, error) {
	var answer struct {
		Stats []struct {
			Name       string `json:"name"`
			Value      uint64 `json:"value"`
			Histograms *struct {
				Details []struct {
					Name   string              `json:"name"`
					Totals []shift.EnvoyBucket `json:"totals"`
				} `json:"details"`
			} `json:"histograms"`
		} `json:"stats"`
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return Stats{}, fmt.Errorf("Envoy's stats: %w", err)
	}
	out := Stats{counters: map[string]uint64{}, histograms: map[string]map[shift.Bin]uint64{}}
	for _, s := range answer.Stats {
		if s.Histograms == nil {
			out.counters[s.Name] = s.Value
			continue
		}
		for _, h := range s.Histograms.Details {
			bins := map[shift.Bin]uint64{}
			for _, b := range shift.FromEnvoy(h.Totals, time.Microsecond).Bins {
				bins[b.Bin] = uint64(b.Count)
			}
			out.histograms[h.Name] = bins
		}
	}
	return out, nil
}

// The names, which package envoy makes of its counters and tags. A service's name may have
// dots in it; what follows it is strict.
var (
	attemptName    = regexp.MustCompile(`^cf\.attempt\.destination\.(.+)\.way\.([a-z]*)\.code\.(\d*)\.flags\.([^.]*)\.grpc\.(-?\d*)$`)
	connectionName = regexp.MustCompile(`^cf\.connection\.destination\.(.+)\.way\.([a-z]*)\.flags\.([^.]*)$`)
	timeName       = regexp.MustCompile(`^cf\.(?:attempt|connection)_us\.destination\.(.+)\.way\.([a-z]*)$`)
	plaintextName  = regexp.MustCompile(`^cf\.plaintext\.source_address\.(.+)$`)
)

// Meter makes differences of readings. Its zero value has read nothing: what the first
// reading has counts whole, since a sidecar is there before its Envoy is.
type Meter struct{ last Stats }

// Read is what was counted since the last reading. A count that went down is of an Envoy that
// has started since, and counts whole.
func (m *Meter) Read(now time.Time, s Stats) (out []Outbound, plaintext []Plaintext) {
	pairs := map[string]*tally{}
	for name, value := range s.counters {
		n := since(m.last.counters[name], value)
		if n == 0 {
			continue
		}
		if p := attemptName.FindStringSubmatch(name); p != nil {
			tallyOf(pairs, p[1]).attempts(wayOf(p[2]), n, outcome{code: p[3], flags: p[4], grpc: p[5]})
		} else if p := connectionName.FindStringSubmatch(name); p != nil {
			tallyOf(pairs, p[1]).attempts(wayOf(p[2]), n, outcome{flags: p[3], connection: true})
		} else if p := plaintextName.FindStringSubmatch(name); p != nil {
			plaintext = append(plaintext, Plaintext{Address: p[1], Count: n, Last: now})
		}
	}
	for name, bins := range s.histograms {
		if p := timeName.FindStringSubmatch(name); p != nil {
			if h := binsSince(m.last.histograms[name], bins); len(h.Bins) > 0 {
				w := tallyOf(pairs, p[1]).way(wayOf(p[2]))
				w.Latency = w.Latency.Merge(h)
			}
		}
	}
	m.last = s
	for _, destination := range slices.Sorted(maps.Keys(pairs)) {
		out = append(out, pairs[destination].outbound(destination))
	}
	slices.SortFunc(plaintext, func(a, b Plaintext) int { return cmp.Compare(a.Address, b.Address) })
	return out, plaintext
}

func since(before, now uint64) uint64 {
	if now < before {
		return now
	}
	return now - before
}

func binsSince(before, now map[shift.Bin]uint64) shift.Histogram {
	for bin, n := range before {
		if now[bin] < n {
			before = nil // Envoy has started since
			break
		}
	}
	var out []shift.BinCount
	for bin, n := range now {
		if n > before[bin] {
			out = append(out, shift.BinCount{Bin: bin, Count: float64(n - before[bin])})
		}
	}
	return shift.FromBins(out...)
}

// wayOf is the way that an endpoint's metadata names; those of mtls name none.
func wayOf(tag string) shift.Way {
	if w := shift.Way(tag); known(w) {
		return w
	}
	return shift.MTLS
}

// tally is one destination's counts.
type tally struct {
	ways    map[shift.Way]*shift.Telemetry
	failing map[Failing]uint64 // by Failing without its Count
}

func tallyOf(all map[string]*tally, destination string) *tally {
	t := all[destination]
	if t == nil {
		t = &tally{ways: map[shift.Way]*shift.Telemetry{}, failing: map[Failing]uint64{}}
		all[destination] = t
	}
	return t
}

func (t *tally) way(w shift.Way) *shift.Telemetry {
	if t.ways[w] == nil {
		t.ways[w] = &shift.Telemetry{}
	}
	return t.ways[w]
}

func (t *tally) attempts(w shift.Way, n uint64, o outcome) {
	c := t.way(w)
	c.Attempts += n
	failed, unconnected := o.judge()
	if failed {
		c.Failed += n
		t.failing[Failing{Way: w, What: o.String()}] += n
	}
	if unconnected {
		c.ConnectFailed += n
	}
}

func (t *tally) outbound(destination string) Outbound {
	out := Outbound{Destination: destination}
	for _, w := range shift.Ways() {
		if c := t.ways[w]; c != nil {
			out.Ways = append(out.Ways, shift.WayTelemetry{Way: w, Telemetry: *c})
		}
	}
	for f, n := range t.failing {
		f.Count = n
		out.Failing = append(out.Failing, f)
	}
	out.Failing = foremost(out.Failing)
	return out
}

// foremost keeps the most frequent kinds of failure.
func foremost(list []Failing) []Failing {
	slices.SortFunc(list, func(a, b Failing) int {
		return cmp.Or(-cmp.Compare(a.Count, b.Count), cmp.Compare(a.Way, b.Way), cmp.Compare(a.What, b.What))
	})
	return list[:min(len(list), maxFailing)]
}

// outcome is how an attempt ended.
type outcome struct {
	code, flags, grpc string
	connection        bool
}

// failedStatus are gRPC's statuses that say more of the way or the callee than of the call:
// UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS.
var failedStatus = []string{"2", "4", "13", "14", "15"}

// judge says whether the attempt failed, and whether for want of a connection.
func (o outcome) judge() (failed, unconnected bool) {
	if o.connection {
		return o.flags != "-", o.flags != "-"
	}
	code, _ := strconv.Atoi(o.code)
	unconnected = code == 0 && slices.ContainsFunc(strings.Split(o.flags, ","), func(f string) bool { return f == "UF" || f == "UH" || f == "UO" })
	return code == 0 || code >= 500 || slices.Contains(failedStatus, o.grpc), unconnected
}

// String is the outcome in few words.
func (o outcome) String() string {
	words := []string{o.code}
	switch {
	case o.connection:
		words = []string{"no connection"}
	case o.code == "" || o.code == "0":
		words = []string{"no answer"}
	}
	if o.flags != "-" && o.flags != "" {
		words = append(words, o.flags)
	}
	if slices.Contains(failedStatus, o.grpc) {
		words = append(words, "grpc "+o.grpc)
	}
	return strings.Join(words, " ")
}

// Merge adds a later stretch to an earlier one, as of a report that could not be sent.
func (r Report) Merge(later Report) Report {
	later.Over += r.Over
	pairs := map[string]*tally{}
	for _, o := range slices.Concat(r.Outbound, later.Outbound) {
		t := tallyOf(pairs, o.Destination)
		for _, w := range o.Ways {
			*t.way(w.Way) = t.way(w.Way).Merge(w.Telemetry)
		}
		for _, f := range o.Failing {
			n := f.Count
			f.Count = 0
			t.failing[f] += n
		}
	}
	later.Outbound = nil
	for _, destination := range slices.Sorted(maps.Keys(pairs)) {
		later.Outbound = append(later.Outbound, pairs[destination].outbound(destination))
	}
	from := map[string]Plaintext{}
	for _, p := range slices.Concat(r.Plaintext, later.Plaintext) {
		p.Count += from[p.Address].Count
		from[p.Address] = p
	}
	later.Plaintext = nil
	for _, address := range slices.Sorted(maps.Keys(from)) {
		later.Plaintext = append(later.Plaintext, from[address])
	}
	if later.Local == nil {
		later.Local = r.Local
	}
	if later.Probes == nil {
		later.Probes = r.Probes
	}
	if later.App == nil {
		later.App = r.App
	}
	return later
}
