package config

import (
	"cmp"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/shift"
)

// TrafficShift is a kind of our own: by which ways the requests of a pair travel, and
// in what shares. Of the entries that fit a pair the most specific counts: both
// named, then the destination, then the source, then neither.
type TrafficShift struct {
	Kind Kind `json:"Kind"`
	// Name is made of the pair: "storefront~catalog".
	Name        string     `json:"Name"`
	Source      string     `json:"Source"`      // a service, or "*"
	Destination string     `json:"Destination"` // a service, or "*"
	Legacy      *LegacyWay `json:"Legacy,omitempty"`
	Shares      Shares     `json:"Shares"`
	// Stage says which ways are open: "client" legacy and direct, "plain" also plain,
	// "permissive" all. Empty closes none. Whether a callee is strict its MutualTLSMode says.
	Stage string `json:"Stage,omitempty"`
	// Generation counts changes of Shares. Of two settings the higher one holds, so that
	// nothing takes an older share for newer. Verbs and the shift guard raise it.
	Generation uint64 `json:"Generation,omitempty"`
	// Steps, Dwell and Windows are how shares move by themselves once somebody starts that.
	// Steps are percents of the new way; none: 1, 5, 25, 50, 100.
	Steps []float64 `json:"Steps,omitempty"`
	Dwell Duration  `json:"Dwell,omitempty"` // on each step; 0: 5 minutes
	// Windows are stretches of the week in which steps may run, "Mon-Fri 09:00-17:00"; none: always.
	Windows []string    `json:"Windows,omitempty"`
	Guard   *ShiftGuard `json:"Guard,omitempty"`
	// Sticky keeps a caller on its way while shares move. Connections are sticky by
	// Source alone.
	Sticky *Sticky `json:"Sticky,omitempty"`
	// Slots are which callers are on which way, where moves have made that more than shares in
	// order. It is kept by the store, so that moves move nobody else: see [Slot].
	Slots string            `json:"Slots,omitempty"`
	Meta  map[string]string `json:"Meta,omitempty"`
}

// ShiftGuard says when the new way is too bad, compared with the old one of the same pair
// at the same time, and what happens then. A zero field takes the default.
type ShiftGuard struct {
	Off      bool   `json:"Off,omitempty"`      // nothing is compared
	OnBreach string `json:"OnBreach,omitempty"` // "revert", the default, or "pause"
	// Failures is how many more attempts may fail, in percent of all; 0: 0.5.
	Failures float64 `json:"Failures,omitempty"`
	// Slower, in percent, and SlowerBy are how much slower p50 and p99 may be; a breach
	// exceeds both; 0: 20 and 1 ms.
	Slower   float64  `json:"Slower,omitempty"`
	SlowerBy Duration `json:"SlowerBy,omitempty"`
	// Attempts are needed on each way before a step is passed; 0: 100.
	Attempts uint64 `json:"Attempts,omitempty"`
}

// The stages of a pair, as Stage names them.
const (
	StageClient     = "client"
	StagePlain      = "plain"
	StagePermissive = "permissive"
)

// Breaches do one of these.
const (
	OnBreachRevert = "revert"
	OnBreachPause  = "pause"
)

// LegacyWay is where the old mesh takes requests for the destination.
type LegacyWay struct {
	Address string `json:"Address"`        // host:port
	Host    string `json:"Host,omitempty"` // of requests on it; empty: as the app sent it
}

// HostPort is the address in its parts.
func (l *LegacyWay) HostPort() (host string, port int) {
	host, text, _ := splitHostPort(l.Address)
	port, _ = strconv.Atoi(text) // it was checked
	return host, port
}

// Shares are percents, in steps of 0.01, that add up to 100.
type Shares struct {
	Legacy float64 `json:"legacy,omitempty"`
	Direct float64 `json:"direct,omitempty"`
	Plain  float64 `json:"plain,omitempty"`
	MTLS   float64 `json:"mtls,omitempty"`
}

// The ways by which a request can travel, as Shares names them.
const (
	WayLegacy = "legacy" // the old mesh's address
	WayDirect = "direct" // the callee's own port
	WayPlain  = "plain"  // from sidecar to sidecar, without TLS
	WayMTLS   = "mtls"   // from sidecar to sidecar
)

// pairSeparator is between the services of a pair; no service's name has it.
const pairSeparator = "~"

// PairName is the name of a pair's traffic-shift.
func PairName(source, destination string) string { return source + pairSeparator + destination }

// PairOf is the inverse of [PairName].
func PairOf(name string) (source, destination string, ok bool) {
	return strings.Cut(name, pairSeparator)
}

// EntryKind implements [Entry].
func (e *TrafficShift) EntryKind() Kind { return KindTrafficShift }

// EntryName implements [Entry].
func (e *TrafficShift) EntryName() string { return cmp.Or(e.Name, PairName(e.Source, e.Destination)) }

// Normalize implements [Entry].
func (e *TrafficShift) Normalize() {
	e.Kind = KindTrafficShift
	e.Name = PairName(e.Source, e.Destination)
	for _, s := range e.Shares.all() {
		*s.percent = float64(hundredths(*s.percent)) / 100
	}
}

// Validate implements [Entry].
func (e *TrafficShift) Validate() error { return validate(e) }

// Succeed is what is written in place of an entry, or of none: a traffic-shift with other
// shares than before has a higher generation, whoever wrote it and whatever it said, and slots
// in which no more callers have moved than must.
func Succeed(before, next Entry) Entry {
	e, ok := next.(*TrafficShift)
	if !ok {
		return next
	}
	was, _ := before.(*TrafficShift)
	generation, slots := e.Generation, e.succeedSlots(was)
	switch {
	case was == nil:
	case was.Shares == e.Shares:
		generation = max(generation, was.Generation)
	default:
		generation = max(generation, was.Generation+1)
	}
	if generation == e.Generation && slots == e.Slots {
		return e
	}
	raised := *e
	raised.Generation, raised.Slots = generation, slots
	return &raised
}

// share is one of Shares.
type share struct {
	way     string
	percent *float64
}

// all lists the shares in the order in which they divide.
func (s *Shares) all() []share {
	return []share{{WayLegacy, &s.Legacy}, {WayDirect, &s.Direct}, {WayPlain, &s.Plain}, {WayMTLS, &s.MTLS}}
}

// Hundredths is the way's share in hundredths of a percent. Those of an entry add up to 10,000.
func (s Shares) Hundredths(way string) int {
	for _, one := range s.all() {
		if one.way == way {
			return hundredths(*one.percent)
		}
	}
	return 0
}

func hundredths(percent float64) int { return int(math.Round(percent * 100)) }

func (e *TrafficShift) check(r *report) {
	for _, of := range []struct{ field, name string }{{"Source", e.Source}, {"Destination", e.Destination}} {
		if of.name != Wildcard {
			r.name(of.field, of.name)
		}
	}
	if made := PairName(e.Source, e.Destination); e.Name != "" && e.Name != made {
		r.addf("Name", "%q: is made of the pair: leave it out, or say %q", cut(e.Name), cut(made))
	}
	r.meta("Meta", e.Meta)
	if l := e.Legacy; l != nil {
		r.hostPort("Legacy.Address", l.Address)
		r.authority("Legacy.Host", l.Host)
	}
	e.Shares.check(r, "Shares")
	if e.Shares.Legacy > 0 && e.Legacy == nil {
		r.addf("Shares.legacy", "%v: Legacy.Address is missing: say where the old mesh takes requests", e.Shares.Legacy)
	}
	e.Sticky.check(r, "Sticky")
	e.checkPlan(r)
}

// maxShiftSteps and maxWindows bound a plan; minDwell is the least that a step lasts.
const (
	maxShiftSteps = 100
	maxWindows    = 50
	minDwell      = Duration(30 * time.Second)
)

func (e *TrafficShift) checkPlan(r *report) {
	r.oneOf("Stage", e.Stage, "", StageClient, StagePlain, StagePermissive)
	for _, one := range e.Shares.all() {
		if *one.percent > 0 && e.Stage != "" && !e.stage().Opens(shift.Way(one.way)) {
			r.addf("Shares."+one.way, "%v: stage %s closes this way", *one.percent, e.Stage)
		}
	}
	if !r.most("Steps", "steps", len(e.Steps), maxShiftSteps) {
		last := 0.0
		for i, s := range e.Steps {
			path := index("Steps", i)
			if r.percentage(path, s) && s <= last {
				r.addf(path, "%v: comes after %v: steps rise", s, last)
			}
			last = s
		}
	}
	if e.Dwell != 0 && e.Dwell < minDwell {
		r.addf("Dwell", "%v: want %v or more", time.Duration(e.Dwell), time.Duration(minDwell))
	}
	if !r.most("Windows", "windows", len(e.Windows), maxWindows) {
		for i, text := range e.Windows {
			if _, err := shift.ParseWindow(text); err != nil {
				r.addf(index("Windows", i), "%v", err)
			}
		}
	}
	if _, err := parseSlots(e.Slots); err != nil {
		r.addf("Slots", "%v", err)
	}
	if g := e.Guard; g != nil {
		r.oneOf("Guard.OnBreach", g.OnBreach, "", OnBreachRevert, OnBreachPause)
		r.percentage("Guard.Failures", g.Failures)
		if g.Slower != 0 && !(g.Slower > 0 && g.Slower <= 10_000) {
			r.addf("Guard.Slower", "%v: want a percentage, 0 to 10000", g.Slower)
		}
		r.notNegative("Guard.SlowerBy", g.SlowerBy)
	}
}

// stage is Stage as package shift knows it.
func (e *TrafficShift) stage() shift.Stage { return shift.Stage(e.Stage) }

func (s Shares) check(r *report, path string) {
	sum, weighed := 0, true
	for _, one := range s.all() {
		if r.percentage(path+"."+one.way, *one.percent) {
			sum += hundredths(*one.percent)
		} else {
			weighed = false
		}
	}
	if weighed && sum != 100_00 {
		r.addf(path, "must add up to 100, not %v", float64(sum)/100)
	}
}

// percentage checks a share of a whole, and reports whether it is one.
func (r *report) percentage(path string, p float64) bool {
	switch {
	case p < 0 || p > 100 || math.IsNaN(p):
		r.addf(path, "%v: want a percentage, 0 to 100", p)
	case math.Abs(p*100-math.Round(p*100)) > 1e-6:
		r.addf(path, "%v: want steps of 0.01", p)
	default:
		return true
	}
	return false
}

// authority checks a Host header: a host, with a port or without.
func (r *report) authority(path, host string) {
	if host == "" {
		return
	}
	if bare, _, ok := splitHostPort(host); ok && bare != host && strings.ContainsRune(host, ':') {
		r.hostPort(path, host)
		return
	}
	inner, found := strings.CutPrefix(host, "[")
	inner, closed := strings.CutSuffix(inner, "]")
	if strings.ContainsRune(inner, ':') != (found && closed) || found != closed {
		r.addf(path, "%q: want a host, with a port or without", cut(host))
		return
	}
	r.host(path, inner)
}

// TrafficShiftKeys are the entries that may count for a pair, the one that counts
// before others first.
func TrafficShiftKeys(source, destination string) []Key {
	names := []string{
		PairName(source, destination), PairName(Wildcard, destination), PairName(source, Wildcard), PairName(Wildcard, Wildcard),
	}
	out := make([]Key, len(names))
	for i, name := range names {
		out[i] = Key{KindTrafficShift, name}
	}
	return out
}

// TrafficShift is the entry that counts for a pair, or nil.
func (s *Set) TrafficShift(source, destination string) *TrafficShift {
	for _, k := range TrafficShiftKeys(source, destination) {
		if e, ok := s.Get(k).(*TrafficShift); ok {
			return e
		}
	}
	return nil
}
