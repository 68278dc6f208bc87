package telemetry

import (
	"cmp"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/shift"
)

// The names, which package envoy makes of its counters and tags. A service's name may have
// dots in it; what follows it is strict.
var (
	attemptName    = regexp.MustCompile(`^cf\.attempt\.destination\.(.+)\.way\.([a-z]*)\.wanted\.(.*)\.code\.(\d*)\.flags\.([^.]*)\.grpc\.(-?\d*)$`)
	connectionName = regexp.MustCompile(`^cf\.connection\.destination\.(.+)\.way\.([a-z]*)\.wanted\.(.*)\.flags\.([^.]*)$`)
	timeName       = regexp.MustCompile(`^cf\.(?:attempt|connection)_us\.destination\.(.+)\.way\.([a-z]*)$`)
	plaintextName  = regexp.MustCompile(`^cf\.plaintext\.source_address\.(.+)$`)
)

// Meter makes differences of readings. Its zero value has read nothing: what the first
// reading has counts whole, since a sidecar is there before its Envoy is.
type Meter struct {
	last  Stats
	hosts Hosts
	open  map[way]uint64
	// requests and connections are the destinations of clusters, as seen in counters.
	requests, connections map[string]map[string]bool
	divided               map[string]bool // clusters of tcp with hosts on several ways
	awaited               map[wanted]*awaited
	unsettled             bool // hosts have to be looked at
	// gone is what was open, by cluster of tcp, on endpoints that Envoy tells of no more: it
	// keeps their connections, and counts those by the cluster alone.
	gone map[string]map[shift.Way]uint64
}

type way struct {
	destination string
	way         shift.Way
}

type wanted struct{ destination, cluster string }

// awaited are retries of requests that wanted a cluster, begun and not yet seen to end.
type awaited struct {
	attempts uint64 // on any way
	crossing uint64 // on another way
}

// Restarted tells that the next reading is of another Envoy.
func (m *Meter) Restarted() {
	m.last, m.hosts, m.awaited, m.gone = Stats{}, nil, nil, nil
}

// Read is what was counted since the last reading. A count that went down is of an Envoy that
// has started since, and counts whole. When it says hosts, what is of connections follows
// from [Meter.ReadHosts].
func (m *Meter) Read(now time.Time, s Stats) (r Report, hosts bool) {
	pairs, divided := map[string]*tally{}, map[wanted]*division{}
	failed := map[string]bool{} // clusters of connections
	var connected []func()
	for name, value := range s.counters {
		n := since(m.last.counters[name], value)
		if n == 0 || !strings.HasPrefix(name, "cf.") {
			continue
		}
		if p := attemptName.FindStringSubmatch(name); p != nil {
			m.requests = learn(m.requests, p[3], p[1])
			tallyOf(pairs, p[1]).attempts(wayOf(p[2]), n, outcome{code: p[4], flags: p[5], grpc: p[6]})
			divisionOf(divided, wanted{p[1], p[3]}).add(wayOf(p[2]), n)
		} else if p := connectionName.FindStringSubmatch(name); p != nil {
			m.connections = learn(m.connections, p[3], p[1])
			if p[2] != "" {
				m.divide(p[3])
			}
			connected = append(connected, func() {
				tallyOf(pairs, p[1]).connection(wayOf(p[2]), p[2] != "" || !m.divided[p[3]], n, p[4])
			})
		} else if p := plaintextName.FindStringSubmatch(name); p != nil {
			r.Plaintext = append(r.Plaintext, Plaintext{Address: p[1], Count: n, Last: now})
		}
	}
	for _, count := range connected { // when it is known what is divided
		count()
	}
	open := map[way]uint64{}
	for name, value := range s.counters {
		if !strings.HasPrefix(name, "cluster.") {
			continue
		}
		n := since(m.last.counters[name], value)
		if value == 0 && n == 0 {
			continue
		}
		cluster, stat := cutStat(name)
		tcp := m.connections[cluster] != nil
		switch stat {
		case retries:
			if of := m.requests[cluster]; n > 0 && len(of) == 1 { // else nobody knows whose
				m.await(wanted{m.destination(cluster), cluster}, n)
			}
		case requestsOpen:
			if !tcp {
				open[way{m.destination(cluster), wayOfCluster(cluster)}] += value
			}
		case connectionsOpen:
			if tcp && !m.divided[cluster] {
				open[way{m.destination(cluster), shift.MTLS}] += value
			}
		case connectionsFailed:
			failed[cluster] = n > 0
		case nobodyHealthy:
			if n > 0 && !tcp {
				tallyOf(pairs, m.destination(cluster)).nobody(wayOfCluster(cluster), n)
			}
		}
	}
	for at, d := range divided {
		m.firsts(at, d, tallyOf(pairs, at.destination))
	}
	for at, due := range m.awaited { // what is not under way will not be seen to end
		n := uint64(0)
		for _, w := range shift.Ways() {
			n += open[way{at.destination, w}]
		}
		if due.attempts, due.crossing = min(due.attempts, n), min(due.crossing, n); n == 0 {
			delete(m.awaited, at)
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
	for cluster := range m.connections {
		changed := s.counters[clusterStat(cluster, connectionsOpen)] != m.last.counters[clusterStat(cluster, connectionsOpen)] ||
			s.counters[clusterStat(cluster, connectionsMade)] != m.last.counters[clusterStat(cluster, connectionsMade)]
		m.unsettled = m.unsettled || failed[cluster] || m.divided[cluster] && changed
	}
	m.last = s
	r.Outbound = outbounds(pairs)
	slices.SortFunc(r.Plaintext, func(a, b Plaintext) int { return cmp.Compare(a.Address, b.Address) })
	for w := range m.open {
		if m.dividedTo(w.destination) {
			open[w] = m.open[w] // hosts tell
		}
	}
	r.Open = m.opened(open)
	return r, m.unsettled
}

// ReadHosts is what endpoints tell of connections: those that failed, and those that are open,
// by way.
func (m *Meter) ReadHosts(hosts Hosts) (r Report) {
	pairs := map[string]*tally{}
	open := maps.Clone(m.open)
	if open == nil {
		open = map[way]uint64{}
	}
	for h := range hosts {
		if _, of := m.connections[h.cluster]; of && h.part != "" {
			m.divide(h.cluster)
		}
	}
	for w := range open {
		if m.dividedTo(w.destination) {
			delete(open, w)
		}
	}
	for h, n := range hosts {
		if m.connections[h.cluster] == nil {
			continue
		}
		by := way{m.destination(h.cluster), wayOf(h.part)}
		if n := since(m.hosts[h].failed, n.failed); n > 0 {
			tallyOf(pairs, by.destination).attempts(by.way, n, outcome{connection: true, flags: "UF"})
			tallyOf(pairs, by.destination).way(by.way).First += n
		}
		if m.divided[h.cluster] && n.open > 0 {
			open[by] += n.open
		}
	}
	m.leave(hosts)
	for cluster, by := range m.gone {
		for w, n := range by {
			open[way{m.destination(cluster), w}] += n
		}
	}
	m.hosts, m.unsettled = hosts, false
	r.Outbound, r.Open = outbounds(pairs), m.opened(open)
	return r
}

// leave brings gone up to what is there now. What a cluster has open and no endpoint does was
// opened on those that are gone. Nothing new is, so that its ways keep their proportions.
func (m *Meter) leave(now Hosts) {
	looked := map[string]bool{}
	for h, was := range m.hosts {
		looked[h.cluster] = true
		if _, there := now[h]; !there && m.divided[h.cluster] {
			m.left(h.cluster, wayOf(h.part), was.open)
		}
	}
	for cluster := range m.divided {
		if !looked[cluster] && m.gone[cluster] == nil { // until now all were counted as on mtls
			m.left(cluster, shift.MTLS, m.open[way{m.destination(cluster), shift.MTLS}])
		}
	}
	for cluster, by := range m.gone {
		left, sum := m.last.counters[clusterStat(cluster, connectionsOpen)], uint64(0)
		for h, n := range now {
			if h.cluster == cluster {
				left -= min(left, n.open)
			}
		}
		for _, n := range by {
			sum += n
		}
		for _, w := range shift.Ways() {
			if n := by[w]; n > 0 {
				by[w] = (n*left + sum/2) / sum
				left, sum = left-min(left, by[w]), sum-n
			}
		}
		maps.DeleteFunc(by, func(_ shift.Way, n uint64) bool { return n == 0 })
		if len(by) == 0 {
			delete(m.gone, cluster)
		}
	}
}

// left notes so many connections on endpoints that are gone.
func (m *Meter) left(cluster string, w shift.Way, n uint64) {
	if n == 0 {
		return
	}
	if m.gone == nil {
		m.gone = map[string]map[shift.Way]uint64{}
	}
	if m.gone[cluster] == nil {
		m.gone[cluster] = map[shift.Way]uint64{}
	}
	m.gone[cluster][w] += n
}

// Path is what to ask Envoy's admin interface for, for the next [Meter.Read].
func (m *Meter) Path() string {
	if len(m.connections) == 0 {
		return requestsPath
	}
	return connectionsPath
}

// learn notes a destination of a cluster.
func learn(of map[string]map[string]bool, cluster, destination string) map[string]map[string]bool {
	if of == nil {
		of = map[string]map[string]bool{}
	}
	if of[cluster] == nil {
		of[cluster] = map[string]bool{}
	}
	of[cluster][destination] = true
	return of
}

func (m *Meter) divide(cluster string) {
	if m.divided == nil {
		m.divided = map[string]bool{}
	}
	m.divided[cluster] = true
}

// dividedTo reports whether connections to a destination are divided among ways.
func (m *Meter) dividedTo(destination string) bool {
	for cluster := range m.divided {
		if m.connections[cluster][destination] {
			return true
		}
	}
	return false
}

// destination is the upstream that a cluster is of: as counted or, before anything was, the
// service in its name: "way~subset.service.default.datacenter.internal....".
func (m *Meter) destination(cluster string) string {
	for _, of := range []map[string]map[string]bool{m.connections, m.requests} {
		if d := of[cluster]; len(d) > 0 {
			return slices.Min(slices.Collect(maps.Keys(d)))
		}
	}
	if _, after, ok := strings.Cut(cluster, "~"); ok {
		cluster = after
	}
	name, _, _ := strings.Cut(cluster, ".default.")
	return name[strings.LastIndexByte(name, '.')+1:]
}

// wayOfCluster is the way of a cluster of requests.
func wayOfCluster(cluster string) shift.Way {
	before, _, _ := strings.Cut(cluster, "~")
	return wayOf(before)
}

// opened are the counts that have changed.
func (m *Meter) opened(open map[way]uint64) []Open {
	changed := map[way]uint64{}
	for w, n := range open {
		if m.open[w] != n {
			changed[w] = n
		}
	}
	for w := range m.open {
		if open[w] == 0 {
			changed[w] = 0
		}
	}
	maps.DeleteFunc(open, func(_ way, n uint64) bool { return n == 0 })
	m.open = open
	return openOf(changed)
}

// Opened is all that is open, for a server that has not been told.
func (m *Meter) Opened() []Open { return openOf(m.open) }

func openOf(counts map[way]uint64) (out []Open) {
	for w, n := range counts {
		out = append(out, Open{w.destination, w.way, n})
	}
	slices.SortFunc(out, func(a, b Open) int {
		return cmp.Or(cmp.Compare(a.Destination, b.Destination), cmp.Compare(a.Way, b.Way))
	})
	return out
}

// division is on which ways the attempts went that wanted one cluster.
type division map[shift.Way]uint64

func divisionOf(all map[wanted]*division, at wanted) *division {
	if all[at] == nil {
		all[at] = &division{}
	}
	return all[at]
}

func (d *division) add(w shift.Way, n uint64) { (*d)[w] += n }

// firsts works out how many attempts were their requests' first, and how many requests were
// withheld from the way that they wanted: another stood in without a retry. Envoy counts
// retries by the cluster that is wanted, and the attempts that come of them end later.
func (m *Meter) firsts(at wanted, d *division, t *tally) {
	due := m.awaited[at]
	if due == nil {
		due = &awaited{}
	}
	own, all := wayOfCluster(at.cluster), uint64(0)
	for _, n := range *d {
		all += n
	}
	first := all - take(&due.attempts, all)
	crossed := all - (*d)[own]
	withheld := min(first, crossed-take(&due.crossing, crossed))
	if len(m.requests[at.cluster]) > 1 {
		withheld = 0
	}
	if withheld > 0 {
		t.way(own).Withheld += withheld
	}
	if n := min(first-withheld, (*d)[own]); n > 0 {
		t.way(own).First += n
		first -= n
	}
	for _, w := range shift.Ways() {
		if n := min(first, (*d)[w]); w != own && n > 0 {
			t.way(w).First += n
			first -= n
		}
	}
}

// await notes that so many retries began of requests that wanted a cluster.
func (m *Meter) await(at wanted, n uint64) {
	due := m.awaited[at]
	if due == nil {
		if m.awaited == nil {
			m.awaited = map[wanted]*awaited{}
		}
		due = &awaited{}
		m.awaited[at] = due
	}
	due.attempts, due.crossing = due.attempts+n, due.crossing+n
}

// take is as much of n as there is, which is then there no more.
func take(n *uint64, most uint64) uint64 {
	taken := min(*n, most)
	*n -= taken
	return taken
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
