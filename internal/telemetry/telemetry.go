// Package telemetry carries what Envoys counted of each pair and way to the control plane.
//
// In, at a sidecar: Envoy's stats as JSON ([ParseStats]), read about once a second. Out: the
// difference since the last reading ([Meter]), sent as a [Report]. In, at a server: reports.
// Out: a [Book], which says what each pair did by way, for the shift guard and the ledger,
// and who sent plaintext to whom.
//
// Counts are of attempts, not of outcomes: see docs/telemetry.md. A report is sent again
// until it is acknowledged and counted once. An Envoy or sidecar that restarts counts from
// zero, which is noticed; what a server had heard and not yet used is lost with it.
//
// The stream over which reports go is in rpc.go; nothing else here does I/O, and time is an
// argument everywhere.
package telemetry

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/shift"
)

// Report is what one sidecar counted since the report before.
type Report struct {
	// Session is a number that a sidecar draws at its start, Seq counts its reports. A
	// report that comes again has the same Seq.
	Session uint64 `json:"session"`
	Seq     uint64 `json:"seq"`
	// Over is how long it counted for.
	Over      time.Duration `json:"over,omitempty"`
	Outbound  []Outbound    `json:"out,omitempty"`
	Plaintext []Plaintext   `json:"plaintext,omitempty"`
	// At is the sidecar's clock when it sent this.
	At time.Time `json:"at,omitzero"`
	// Watch is for how long plaintext has been watched for.
	Watch  Watch    `json:"watch,omitzero"`
	Open   []Open   `json:"open,omitempty"`
	Probes []Probe  `json:"probes,omitempty"`
	Cuts   []Cut    `json:"cuts,omitempty"`
	App    *AppPort `json:"app,omitempty"`
	// Local are the destinations that the sidecar holds on their old way by itself.
	Local []string `json:"local,omitempty"`
	// Alive pulses the instance's checks; nil: somebody else does. See [Client.Pulses].
	Alive *Alive `json:"alive,omitempty"`
	// Connections is nil where a server was told of them lately, in this way or another.
	Connections *Connections `json:"connections,omitempty"`
}

// Alive says that a sidecar is registered and lives, and what its checks say.
type Alive struct {
	Port   int     `json:"port"` // of its registration: two instances may use one ID
	Checks []Check `json:"checks"`
}

// Check is a check's last word.
type Check struct {
	ID     string         `json:"id"`
	Status catalog.Status `json:"status"`
	Output string         `json:"output,omitempty"`
}

// Connections is how many connections each listener has open, and what Envoy runs other than it
// was told; nil: nothing ever.
type Connections struct {
	Listeners map[string]int64 `json:"listeners"`
	Drift     *api.Drift       `json:"drift,omitempty"`
}

// Outbound is what went to one destination.
type Outbound struct {
	Destination string               `json:"dst"`
	Ways        []shift.WayTelemetry `json:"ways"`
	Failing     []Failing            `json:"failing,omitempty"`
}

// Open is how many requests, streams or connections of tcp are under way now, where that has
// changed.
type Open struct {
	Destination string    `json:"dst"`
	Way         shift.Way `json:"way"`
	Count       uint64    `json:"n"`
}

// Failing is a kind of failure, and how many attempts ended so. Without a way: nobody was there
// on any, and nothing was attempted.
type Failing struct {
	Way   shift.Way `json:"way,omitempty"`
	What  string    `json:"what"` // "503 UC", "0 UF", "grpc 14"
	Count uint64    `json:"n"`
}

// Plaintext is what came without TLS from one address: requests, or connections of tcp.
type Plaintext struct {
	Address string    `json:"from"`
	Count   uint64    `json:"n"`
	Last    time.Time `json:"last,omitzero"`
}

// Probe is whether a way of a destination takes connections, as seen from the caller.
type Probe struct {
	Destination string    `json:"dst"`
	Way         shift.Way `json:"way"`
	// Address is that of legacy: what was tried may not be what is asked about any more.
	Address string    `json:"at,omitempty"`
	Works   bool      `json:"works"`
	Why     string    `json:"why,omitempty"` // it does not
	Since   time.Time `json:"since,omitzero"`
}

// Cut is how far a sidecar is with the last order to close what is open to a destination on ways
// that were left.
type Cut struct {
	Destination string `json:"dst"`
	Order       string `json:"order"`
	State       string `json:"state"`
	// Connections were closed, and on them Closed cut short: requests, streams and WebSockets.
	// Of tcp a connection is one.
	Connections uint64 `json:"connections,omitempty"`
	Closed      uint64 `json:"closed,omitempty"`
	Why         string `json:"why,omitempty"` // it waits, or failed
}

// How far a sidecar is.
const (
	CutWaiting = "waiting" // its Envoy still leads something there
	CutClosing = "closing"
	CutDone    = "done"
	CutFailed  = "failed"
)

// AppPort is how the port of the app itself can be reached.
type AppPort struct {
	Port int `json:"port"`
	// Listening are the addresses that it listens on, sorted; none: it does not.
	Listening []string `json:"listening,omitempty"`
	// Loopback says that all of them are loopback's.
	Loopback bool `json:"loopback"`
	// Protected says that rules are loaded that keep others out, Unseen that the sidecar has
	// no right to look for any.
	Protected bool `json:"protected"`
	Unseen    bool `json:"unseen,omitempty"`
}

// Check says what is beyond bounds.
func (c Connections) Check() error {
	if len(c.Listeners) > maxListeners {
		return fmt.Errorf("reports %d listeners, at most %d are taken", len(c.Listeners), maxListeners)
	}
	for name, n := range c.Listeners {
		if n < 0 || len(name) > maxListener {
			return fmt.Errorf("listener %.80q: %d connections: want 0 or more, and a name of at most %d bytes", name, n, maxListener)
		}
	}
	return nil
}

// Empty reports whether there is nothing to tell.
func (r Report) Empty() bool {
	return len(r.Outbound)+len(r.Plaintext)+len(r.Open)+len(r.Probes)+len(r.Cuts) == 0 && r.App == nil && r.Connections == nil
}

// Bounds of a report. What is longer is refused as a whole.
const (
	MaxReport    = 256 << 10
	maxOutbound  = 2000
	maxWays      = 8
	maxFailing   = 20
	maxSources   = 200
	maxOpen      = 4000
	maxProbes    = 2000
	maxCuts      = 2000
	maxListening = 32
	maxListeners = 2000
	maxListener  = 512
	maxChecks    = 200
	maxOutput    = 8 << 10
	maxBins      = 1000
	maxText      = 256
)

// Encode is the report as it is sent.
func (r Report) Encode() ([]byte, error) { return json.Marshal(r) }

// Decode reads a report and checks its bounds.
func Decode(b []byte) (Report, error) {
	var r Report
	if len(b) > MaxReport {
		return r, fmt.Errorf("report: %d bytes, at most %d are taken", len(b), MaxReport)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return Report{}, fmt.Errorf("report: %w", err)
	}
	if err := r.check(); err != nil {
		return Report{}, fmt.Errorf("report: %w", err)
	}
	return r, nil
}

func (r Report) check() error {
	if r.Over < 0 {
		return fmt.Errorf("over %v: a stretch of time is not negative", r.Over)
	}
	for _, l := range []struct {
		what    string
		n, most int
	}{{"destinations", len(r.Outbound), maxOutbound}, {"sources of plaintext", len(r.Plaintext), maxSources}, {"probes", len(r.Probes), maxProbes}, {"cuts", len(r.Cuts), maxCuts}, {"held destinations", len(r.Local), maxProbes}, {"ways with something open", len(r.Open), maxOpen}} {
		if l.n > l.most {
			return fmt.Errorf("%d %s, at most %d are taken", l.n, l.what, l.most)
		}
	}
	for _, o := range r.Outbound {
		if err := o.check(); err != nil {
			return fmt.Errorf("destination %.80q: %w", o.Destination, err)
		}
	}
	for _, o := range r.Open {
		if o.Destination == "" || len(o.Destination) > maxText || !known(o.Way) {
			return fmt.Errorf("open to %.80q by %.20q: no such way, or no name of a service", o.Destination, o.Way)
		}
	}
	if r.Watch.For < 0 || r.Watch.Quiet < 0 || r.Watch.Quiet > r.Watch.For {
		return fmt.Errorf("watched for %v, quiet for %v of it: no such stretch of time", r.Watch.For, r.Watch.Quiet)
	}
	for _, p := range r.Plaintext {
		if len(p.Address) > maxText {
			return fmt.Errorf("plaintext from %.80q: no address is that long", p.Address)
		}
	}
	for _, p := range r.Probes {
		if !known(p.Way) || len(p.Why) > maxText || len(p.Destination) > maxText || len(p.Address) > maxText {
			return fmt.Errorf("probe of %.80q by %.20q: no such way, or too long", p.Destination, p.Way)
		}
	}
	for _, c := range r.Cuts {
		if c.Destination == "" || len(c.Destination) > maxText || len(c.Order) > maxText || len(c.State) > maxText || len(c.Why) > maxText || c.Connections > most || c.Closed > most {
			return fmt.Errorf("cut to %.80q: no name of a service, or too much", c.Destination)
		}
	}
	if a := r.Alive; a != nil {
		if len(a.Checks) > maxChecks {
			return fmt.Errorf("%d checks, at most %d are taken", len(a.Checks), maxChecks)
		}
		for _, c := range a.Checks {
			if !c.Status.Valid() || len(c.ID) > maxText || len(c.Output) > maxOutput {
				return fmt.Errorf("check %.80q is %.20q: no such status, or too long", c.ID, c.Status)
			}
		}
	}
	if a := r.App; a != nil && len(a.Listening) > maxListening {
		return fmt.Errorf("the app listens at %d addresses, at most %d are taken", len(a.Listening), maxListening)
	}
	return nil
}

func (o Outbound) check() error {
	switch {
	case o.Destination == "" || len(o.Destination) > maxText:
		return fmt.Errorf("no name of a service")
	case len(o.Ways) > maxWays || len(o.Failing) > maxFailing:
		return fmt.Errorf("%d ways and %d kinds of failure, at most %d and %d are taken", len(o.Ways), len(o.Failing), maxWays, maxFailing)
	}
	for _, w := range o.Ways {
		if !known(w.Way) {
			return fmt.Errorf("no such way: %.20q", w.Way)
		}
		if err := sound(w.Telemetry); err != nil {
			return fmt.Errorf("way %s: %w", w.Way, err)
		}
	}
	for _, f := range o.Failing {
		if !known(f.Way) && f.Way != "" || len(f.What) > maxText {
			return fmt.Errorf("failure %.80q on way %.20q: no such way, or too long", f.What, f.Way)
		}
	}
	return nil
}

// most bounds a count: more is no traffic, but a mistake.
const most = 1 << 30

// sound says what cannot be true of counts.
func sound(t shift.Telemetry) error {
	if t.Attempts > most || t.Withheld > most || t.Failed > t.Attempts || t.First > t.Attempts || t.ConnectFailed > t.Failed {
		return fmt.Errorf("%d attempts, %d first ones, %d failed, %d without a connection, %d withheld: cannot be", t.Attempts, t.First, t.Failed, t.ConnectFailed, t.Withheld)
	}
	if len(t.Latency.Bins) > maxBins {
		return fmt.Errorf("%d bins, at most %d are taken", len(t.Latency.Bins), maxBins)
	}
	last := shift.BinOf(0) - 1
	for _, b := range t.Latency.Bins {
		if b.Bin <= last || b.Bin > shift.BinOf(math.Inf(1)) || !(b.Count > 0 && b.Count <= most) {
			return fmt.Errorf("bin %d with %g: no such bin, out of order, or no count", b.Bin, b.Count)
		}
		last = b.Bin
	}
	return nil
}

func known(w shift.Way) bool { return slices.Contains(shift.Ways(), w) }
