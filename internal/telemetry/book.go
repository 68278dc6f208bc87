package telemetry

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/shift"
)

// Key is who reports.
type Key struct {
	Node, Sidecar string // the sidecar's service ID
	Service       string // that it stands for
}

const (
	// recent is what the ledger shows, in slots of slotFor.
	recent  = time.Minute
	slots   = 6
	slotFor = recent / slots
	// rateOver is about how long a rate looks back. Sidecars report each second, and not in step
	// with whoever looks: a second without a report says nothing.
	rateOver = 10 * time.Second
	// fresh is how old a sidecar's last report may be for it to count as watched.
	fresh = 12 * time.Second
	// underway is longer than a report takes to come: who sends it gives it up before.
	underway = 5 * time.Second
	// maxAddresses that sent plaintext are kept of a service, the newest.
	maxAddresses = 1000
	// forgetAddress is for how long one is kept that sends nothing.
	forgetAddress = 31 * 24 * time.Hour
)

// Book is what all sidecars counted. It is bounded by the sidecars that are registered, the
// pairs that they declare, with slots and four ways of each, and maxAddresses of a callee. Safe
// for concurrent use.
type Book struct {
	mu       sync.Mutex // guards the following
	sidecars map[Key]*reporter
	services map[string]map[Key]*reporter // the same, by service
	pairs    map[shift.Pair]*pairBook
	callees  map[string]map[string]*source // plaintext by service, then address
}

// reporter is one sidecar.
type reporter struct {
	session, seq uint64
	at           time.Time // of its last report
	watch        Watch
	watched      time.Time // when watch last grew
	open         map[way]uint64
	probes       map[string]Probe // by destination
	cuts         map[string]Cut   // the same
	app          *AppPort
	local        []string
}

// pairBook is one pair.
type pairBook struct {
	window  map[shift.Way]shift.Telemetry // since the last Drain
	failing map[Failing]uint64            // the same
	over    time.Duration                 // the longest stretch of a report in it
	rates   map[shift.Way]float64         // attempts a second at ratesAt
	ratesAt time.Time
	slots   [slots]slot
	last    map[shift.Way]time.Time // when a way was last used
	first   time.Time
}

type slot struct {
	at      time.Time // its beginning
	ways    map[shift.Way]shift.Telemetry
	failing map[Failing]uint64
}

type source struct{ first, last time.Time }

// NewBook is an empty one.
func NewBook() *Book {
	return &Book{sidecars: map[Key]*reporter{}, services: map[string]map[Key]*reporter{}, pairs: map[shift.Pair]*pairBook{}, callees: map[string]map[string]*source{}}
}

// Put takes a report in. One that was there already counts no second time. Times in it are of
// the sidecar's clock, and become those of now's.
func (b *Book) Put(key Key, r Report, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.sidecars[key]
	if s == nil {
		s = &reporter{}
		b.sidecars[key] = s
		if b.services[key.Service] == nil {
			b.services[key.Service] = map[Key]*reporter{}
		}
		b.services[key.Service][key] = s
	}
	s.at = now
	if s.session != r.Session || s.probes == nil { // a sidecar that has started, which tells all anew
		*s = reporter{session: r.Session, at: now, open: map[way]uint64{}, probes: map[string]Probe{}, cuts: map[string]Cut{}}
	}
	if r.Seq <= s.seq {
		return
	}
	here := func(t time.Time) time.Time {
		if t.IsZero() || r.At.IsZero() {
			return t
		}
		return earliest(now.Add(t.Sub(r.At)), now)
	}
	if r.Watch.For > s.watch.For {
		s.watched = now
	}
	s.seq, s.watch, s.local = r.Seq, r.Watch, r.Local
	s.watch.Since = here(r.Watch.Since)
	if r.App != nil {
		s.app = r.App
	}
	for _, p := range r.Probes {
		p.Since = here(p.Since)
		s.probes[p.Destination] = p
	}
	for _, c := range r.Cuts {
		s.cuts[c.Destination] = c
	}
	for _, o := range r.Open {
		s.open[way{o.Destination, o.Way}] = o.Count
		if o.Count == 0 {
			delete(s.open, way{o.Destination, o.Way})
		}
	}
	for _, o := range r.Outbound {
		b.pair(shift.Pair{Source: key.Service, Destination: o.Destination}, now).put(o, r.Over, now)
	}
	for _, p := range r.Plaintext {
		p.Last = earliest(here(p.Last), now)
		if p.Count == 0 {
			// Told once more, to a server that may know it. That the report took longer than the
			// first one must not make it look like something new.
			p.Last = p.Last.Add(-underway)
		}
		b.plaintext(key.Service, p)
	}
}

func (b *Book) pair(p shift.Pair, now time.Time) *pairBook {
	at := b.pairs[p]
	if at == nil {
		at = &pairBook{window: map[shift.Way]shift.Telemetry{}, failing: map[Failing]uint64{}, rates: map[shift.Way]float64{}, ratesAt: now, last: map[shift.Way]time.Time{}, first: now}
		b.pairs[p] = at
	}
	return at
}

func (p *pairBook) put(o Outbound, over time.Duration, now time.Time) {
	s := &p.slots[now.UnixNano()/int64(slotFor)%slots]
	if begin := now.Truncate(slotFor); !s.at.Equal(begin) {
		*s = slot{at: begin, ways: map[shift.Way]shift.Telemetry{}, failing: map[Failing]uint64{}}
	}
	p.rates, p.ratesAt = p.ratesNow(now), latest(now, p.ratesAt)
	for _, w := range o.Ways {
		p.rates[w.Way] += float64(w.Attempts) * weight(over)
		p.window[w.Way] = p.window[w.Way].Merge(w.Telemetry)
		s.ways[w.Way] = s.ways[w.Way].Merge(w.Telemetry)
		if w.Attempts > 0 {
			p.last[w.Way] = now
		}
	}
	for _, f := range o.Failing {
		n := f.Count
		f.Count = 0
		bounded(p.failing, f, n)
		bounded(s.failing, f, n)
	}
	p.over = max(p.over, over)
}

// weight is by how much an attempt of a stretch that ends now raises a rate, in attempts a
// second: that of a mean over the past in which what is older counts e times less by rateOver.
func weight(over time.Duration) float64 {
	if over <= 0 {
		return 1 / rateOver.Seconds()
	}
	return -math.Expm1(-over.Seconds()/rateOver.Seconds()) / over.Seconds()
}

// ratesNow are the pair's rates, but for those that are next to nothing.
func (p *pairBook) ratesNow(now time.Time) map[shift.Way]float64 {
	out := map[shift.Way]float64{}
	for w, r := range p.rates {
		if r *= math.Exp(-max(0, now.Sub(p.ratesAt)).Seconds() / rateOver.Seconds()); r >= 0.001 {
			out[w] = r
		}
	}
	return out
}

// Rate is a pair's attempts a second as of late, by way; the same, whether its sidecars told of
// them second by second or of some minutes at once.
type Rate struct {
	Pair shift.Pair
	Ways map[shift.Way]float64 // above 0
}

// Rates lists the pairs of which attempts were counted of late, sorted.
func (b *Book) Rates(now time.Time) (out []Rate) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for pair, p := range b.pairs {
		if ways := p.ratesNow(now); len(ways) > 0 {
			out = append(out, Rate{pair, ways})
		}
	}
	slices.SortFunc(out, func(x, y Rate) int { return x.Pair.Compare(y.Pair) })
	return out
}

// bounded counts, but no more kinds than a few.
func bounded(m map[Failing]uint64, f Failing, n uint64) {
	if _, there := m[f]; there || len(m) < 4*maxFailing {
		m[f] += n
	}
}

func (b *Book) plaintext(service string, p Plaintext) {
	from := b.callees[service]
	if from == nil {
		from = map[string]*source{}
		b.callees[service] = from
	}
	s := from[p.Address]
	if s == nil {
		if len(from) >= maxAddresses {
			oldest := slices.MinFunc(slices.Collect(maps.Keys(from)), func(x, y string) int { return from[x].last.Compare(from[y].last) })
			delete(from, oldest)
		}
		s = &source{first: p.Last}
		from[p.Address] = s
	}
	s.first, s.last = earliest(s.first, p.Last), latest(s.last, p.Last)
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func (b *Book) forget(key Key) {
	delete(b.sidecars, key)
	delete(b.services[key.Service], key)
	if len(b.services[key.Service]) == 0 {
		delete(b.services, key.Service)
	}
}

// Keep drops the sidecars that are not registered, the pairs that nobody declares, and
// addresses that have sent nothing for long.
func (b *Book) Keep(now time.Time, registered func(Key) bool, declared func(shift.Pair) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for k := range b.sidecars {
		if !registered(k) {
			b.forget(k)
		}
	}
	maps.DeleteFunc(b.pairs, func(p shift.Pair, _ *pairBook) bool { return !declared(p) })
	for service, from := range b.callees {
		maps.DeleteFunc(from, func(_ string, s *source) bool { return now.Sub(s.last) > forgetAddress })
		if len(from) == 0 {
			delete(b.callees, service)
		}
	}
}

// Window is what a pair did since the last [Book.Drain].
type Window struct {
	Pair    shift.Pair
	Over    time.Duration // the longest stretch that a sidecar told of
	Ways    []shift.WayTelemetry
	Failing []Failing
}

// Drain takes what was counted since it was last called, by pair.
func (b *Book) Drain() []Window {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Window
	for pair, p := range b.pairs {
		if len(p.window) == 0 {
			continue
		}
		out = append(out, Window{Pair: pair, Over: p.over, Ways: waysOf(p.window), Failing: failingOf(p.failing)})
		p.window, p.failing, p.over = map[shift.Way]shift.Telemetry{}, map[Failing]uint64{}, 0
	}
	slices.SortFunc(out, func(x, y Window) int { return x.Pair.Compare(y.Pair) })
	return out
}

func waysOf(m map[shift.Way]shift.Telemetry) (out []shift.WayTelemetry) {
	for _, w := range shift.Ways() {
		if t, ok := m[w]; ok {
			out = append(out, shift.WayTelemetry{Way: w, Telemetry: t})
		}
	}
	return out
}

func failingOf(m map[Failing]uint64) []Failing {
	var list []Failing
	for f, n := range m {
		f.Count = n
		list = append(list, f)
	}
	return foremost(list)
}

// Pair is what is known of one.
type Pair struct {
	Pair        shift.Pair
	Ways        []shift.WayTelemetry // of about the last minute
	Failing     []Failing            // the same
	Last        map[shift.Way]time.Time
	First, Seen time.Time            // when traffic was first and last counted; zero: never
	Open        map[shift.Way]uint64 // requests, streams, or connections of tcp, under way now
}

// Pairs lists what every pair did in about the last minute, sorted.
func (b *Book) Pairs(now time.Time) []Pair {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]Pair, 0, len(b.pairs))
	open := b.opened(func(shift.Pair) bool { return true }, now)
	for pair, p := range b.pairs {
		of := p.recent(pair, now)
		of.Open = open[pair]
		delete(open, pair)
		out = append(out, of)
	}
	for pair, ways := range open { // that nothing was counted of yet
		out = append(out, Pair{Pair: pair, Open: ways})
	}
	slices.SortFunc(out, func(x, y Pair) int { return x.Pair.Compare(y.Pair) })
	return out
}

// Pair is what one pair did in about the last minute.
func (b *Book) Pair(p shift.Pair, now time.Time) Pair {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := Pair{Pair: p}
	if at := b.pairs[p]; at != nil {
		out = at.recent(p, now)
	}
	out.Open = b.opened(func(of shift.Pair) bool { return of == p }, now)[p]
	return out
}

// opened adds up what fresh sidecars have open.
func (b *Book) opened(of func(shift.Pair) bool, now time.Time) map[shift.Pair]map[shift.Way]uint64 {
	out := map[shift.Pair]map[shift.Way]uint64{}
	for k, s := range b.sidecars {
		if now.Sub(s.at) > fresh {
			continue
		}
		for w, n := range s.open {
			pair := shift.Pair{Source: k.Service, Destination: w.destination}
			if !of(pair) {
				continue
			}
			if out[pair] == nil {
				out[pair] = map[shift.Way]uint64{}
			}
			out[pair][w.way] += n
		}
	}
	return out
}

func (p *pairBook) recent(pair shift.Pair, now time.Time) Pair {
	out := Pair{Pair: pair, Last: maps.Clone(p.last), First: p.first}
	ways, failing := map[shift.Way]shift.Telemetry{}, map[Failing]uint64{}
	for _, s := range p.slots {
		if now.Sub(s.at) > recent {
			continue
		}
		for w, t := range s.ways {
			ways[w] = ways[w].Merge(t)
		}
		for f, n := range s.failing {
			failing[f] += n
		}
	}
	for _, at := range p.last {
		out.Seen = latest(out.Seen, at)
	}
	out.Ways, out.Failing = waysOf(ways), failingOf(failing)
	return out
}

// Probed is what the callers of a pair say of its old way.
type Probed struct {
	Works, Fails int
	Why          string    // of one that says it fails
	Since        time.Time // the latest change
}

// Probes is what fresh callers of a source, or of all with "*", say of a destination's way, and
// of the address there unless that is empty.
func (b *Book) Probes(pair shift.Pair, way shift.Way, address string, now time.Time) (out Probed) {
	b.mu.Lock()
	defer b.mu.Unlock()
	of := b.services[pair.Source]
	if pair.Source == "*" {
		of = b.sidecars
	}
	for _, k := range slices.SortedFunc(maps.Keys(of), compareKeys) {
		s := of[k]
		p, ok := s.probes[pair.Destination]
		if !ok || p.Way != way || now.Sub(s.at) > fresh || address != "" && p.Address != "" && p.Address != address {
			continue
		}
		if p.Works {
			out.Works++
		} else {
			out.Fails++
			out.Why = cmp.Or(out.Why, k.Sidecar+": "+p.Why)
		}
		out.Since = latest(out.Since, p.Since)
	}
	return out
}

func compareKeys(a, b Key) int {
	return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Sidecar, b.Sidecar), cmp.Compare(a.Node, b.Node))
}

// Sender is an address that sent plaintext to a service.
type Sender struct {
	Address     string
	First, Last time.Time
}

// Plaintext lists who sent plaintext to a service, the latest first.
func (b *Book) Plaintext(service string) []Sender {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Sender
	for address, s := range b.callees[service] {
		out = append(out, Sender{address, s.first, s.last})
	}
	slices.SortFunc(out, func(x, y Sender) int { return cmp.Or(-x.Last.Compare(y.Last), cmp.Compare(x.Address, y.Address)) })
	return out
}

// Local are the destinations that a sidecar holds on their old way by itself.
func (b *Book) Local(key Key) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.sidecars[key]; s != nil {
		return s.local
	}
	return nil
}

// Cut is the last order to close something that a sidecar has told of; none has the order "".
func (b *Book) Cut(key Key, destination string) Cut {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.sidecars[key]; s != nil {
		return s.cuts[destination]
	}
	return Cut{}
}

// Reporting is what an instance of a service says of itself.
type Reporting struct {
	At    time.Time // of its last report; zero: none
	Watch Watch
	App   *AppPort
	Fresh bool // it reports
	// Watching says that it also reads what its Envoy takes in plaintext.
	Watching bool
}

// Reporting is what a sidecar says of itself.
func (b *Book) Reporting(key Key, now time.Time) Reporting {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.sidecars[key]
	if s == nil {
		return Reporting{}
	}
	return Reporting{At: s.at, Watch: s.watch, App: s.app, Fresh: now.Sub(s.at) <= fresh, Watching: now.Sub(s.watched) <= fresh}
}
