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
	"time"

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
	// Watched is since when plaintext has been counted without a gap; zero: it is not.
	Watched time.Time `json:"watched,omitzero"`
	Probes  []Probe   `json:"probes,omitempty"`
	App     *AppPort  `json:"app,omitempty"`
	// Local are the destinations that the sidecar holds on their old way by itself.
	Local []string `json:"local,omitempty"`
}

// Outbound is what went to one destination.
type Outbound struct {
	Destination string               `json:"dst"`
	Ways        []shift.WayTelemetry `json:"ways"`
	Failing     []Failing            `json:"failing,omitempty"`
}

// Failing is a kind of failure, and how many attempts ended so.
type Failing struct {
	Way   shift.Way `json:"way"`
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
	Works       bool      `json:"works"`
	Why         string    `json:"why,omitempty"` // it does not
	Since       time.Time `json:"since,omitzero"`
}

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

// Empty reports whether there is nothing to tell.
func (r Report) Empty() bool {
	return len(r.Outbound)+len(r.Plaintext)+len(r.Probes) == 0 && r.App == nil
}

// Bounds of a report. What is longer is refused as a whole.
const (
	MaxReport    = 256 << 10
	maxOutbound  = 2000
	maxWays      = 8
	maxFailing   = 20
	maxSources   = 200
	maxProbes    = 2000
	maxListening = 32
	maxBins      = 400
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
	}{{"destinations", len(r.Outbound), maxOutbound}, {"sources of plaintext", len(r.Plaintext), maxSources}, {"probes", len(r.Probes), maxProbes}, {"held destinations", len(r.Local), maxProbes}} {
		if l.n > l.most {
			return fmt.Errorf("%d %s, at most %d are taken", l.n, l.what, l.most)
		}
	}
	for _, o := range r.Outbound {
		if err := o.check(); err != nil {
			return fmt.Errorf("destination %.80q: %w", o.Destination, err)
		}
	}
	for _, p := range r.Plaintext {
		if len(p.Address) > maxText {
			return fmt.Errorf("plaintext from %.80q: no address is that long", p.Address)
		}
	}
	for _, p := range r.Probes {
		if !known(p.Way) || len(p.Why) > maxText || len(p.Destination) > maxText {
			return fmt.Errorf("probe of %.80q by %.20q: no such way, or too long", p.Destination, p.Way)
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
		if len(w.Latency.Bins) > maxBins {
			return fmt.Errorf("way %s: %d bins, at most %d are taken", w.Way, len(w.Latency.Bins), maxBins)
		}
	}
	for _, f := range o.Failing {
		if !known(f.Way) || len(f.What) > maxText {
			return fmt.Errorf("failure %.80q on way %.20q: no such way, or too long", f.What, f.Way)
		}
	}
	return nil
}

func known(w shift.Way) bool {
	return w == shift.Legacy || w == shift.Direct || w == shift.Plain || w == shift.MTLS
}
