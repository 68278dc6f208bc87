// Package api is crossfade's own HTTP API: the types of its requests and answers,
// and a small client for them.
//
// In: a context, and the address of a server. Out: the ledger of all pairs, and
// changes of their shares, which return when the server has taken them; [Client.Applied]
// waits until Envoys run them. What Consul has, Consul's own clients are for.
//
// It leaves deciding to the server. Nothing but the standard library is imported, and
// a zero value of a field always means what leaving it out means.
package api

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The ways by which a request of a pair can travel, in the order in which a move takes them.
const (
	Legacy = "legacy" // the old mesh's address
	Direct = "direct" // the callee's own port
	Plain  = "plain"  // sidecar to sidecar, without TLS
	MTLS   = "mtls"   // sidecar to sidecar
)

// Ways lists the ways in their order.
func Ways() []string { return []string{Legacy, Direct, Plain, MTLS} }

// Bounds of what a server takes in one request.
const (
	MaxBody  = 1 << 20 // bytes
	MaxPairs = 5000
)

// PairName names a pair. "*" stands for every service.
type PairName struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
}

// String is "storefront -> catalog".
func (p PairName) String() string { return p.Source + " -> " + p.Destination }

// Shares are the percents of a pair's requests by way, in steps of 0.01, that add up to 100.
type Shares struct {
	Legacy float64 `json:"legacy,omitempty"`
	Direct float64 `json:"direct,omitempty"`
	Plain  float64 `json:"plain,omitempty"`
	MTLS   float64 `json:"mtls,omitempty"`
}

// Of is the share of a way; 0 for a word that is none.
func (s Shares) Of(way string) float64 {
	switch way {
	case Legacy:
		return s.Legacy
	case Direct:
		return s.Direct
	case Plain:
		return s.Plain
	case MTLS:
		return s.MTLS
	}
	return 0
}

// String names the ways that have a share: "legacy 90%, mtls 10%".
func (s Shares) String() string {
	var out []string
	for _, way := range Ways() {
		if p := s.Of(way); p != 0 {
			out = append(out, way+" "+strconv.FormatFloat(p, 'f', -1, 64)+"%")
		}
	}
	return strings.Join(out, ", ")
}

// LegacyWay is where the old mesh takes requests for a destination.
type LegacyWay struct {
	Address string `json:"address"`        // host:port
	Host    string `json:"host,omitempty"` // of requests on it; empty: as the app sent it
}

// Pair is a row of the ledger: what is known of a source and a destination.
type Pair struct {
	PairName
	// Declared says that a registered sidecar of the source names the destination as an upstream.
	Declared bool `json:"declared"`
	// Shares are those wanted.
	Shares Shares `json:"shares"`
	// Entry is the name of the traffic-shift that decides: that of the pair
	// ("storefront~catalog"), of the destination ("*~catalog"), of the source
	// ("storefront~*") or of all ("*~*"); empty for none, with which all goes by mtls.
	Entry string `json:"entry,omitempty"`
	// Index is that of the entry's last change, 0 without one. See [PairIndex].
	Index  uint64     `json:"index"`
	Legacy *LegacyWay `json:"legacy,omitempty"`

	Sidecars   Sidecars   `json:"sidecars"` // of the source
	Callee     Callee     `json:"callee"`
	Revertible Revertible `json:"revertible"`
	Changed    *Change    `json:"changed,omitempty"` // the entry's last change

	// Stage says which ways are open: client, plain, permissive or strict; outside for a caller
	// past its sidecar, whose shares nothing decides.
	Stage string `json:"stage,omitempty"`
	// What follows is of about the last minute, as callers' sidecars count it: attempts, not
	// outcomes. Measured is nil without any.
	Measured *Shares   `json:"measured,omitempty"`
	Ways     []PairWay `json:"ways,omitempty"`
	Failing  []Failing `json:"failing,omitempty"` // the most frequent first

	// Unsaved is why the shares in force are not saved: the server's disk takes nothing.
	Unsaved string `json:"unsaved,omitempty"`
	// HeldLocally are the source's sidecars that hold the old way by order on their host.
	HeldLocally []string `json:"held_locally,omitempty"`

	LastSeen      time.Time    `json:"last_seen,omitzero"`
	LastPlaintext time.Time    `json:"last_plaintext,omitzero"` // that the callee took from a host of the source
	Blockers      []string     `json:"blockers,omitempty"`      // what keeps the pair from going on
	Notes         []string     `json:"notes,omitempty"`         // what its stage does not prove
	Shift         *ShiftStatus `json:"shift,omitempty"`         // the last one that moves or watches its shares
}

// PairWay is what went by one way.
type PairWay struct {
	Way      string  `json:"way"`
	Attempts uint64  `json:"attempts"`
	Success  float64 `json:"success"`          // a part of 1; 1 without attempts
	P99      float64 `json:"p99_ms,omitempty"` // milliseconds until an answer begins, or a connection is made
}

// Telemetry is what a pair did in about the last minute, by way.
type Telemetry struct {
	PairName
	First   *time.Time     `json:"first_seen,omitempty"` // since the server started
	Seen    *time.Time     `json:"last_seen,omitempty"`
	Ways    []WayTelemetry `json:"ways"` // those that were used, or have something open
	Failing []Failing      `json:"failing,omitempty"`
}

// WayTelemetry is one way. Latencies are in milliseconds until an answer begins, or a
// connection is made, and absent where there was none.
type WayTelemetry struct {
	Way           string     `json:"way"`
	Attempts      uint64     `json:"attempts"`
	First         uint64     `json:"first"` // of attempts: no retries
	Failed        uint64     `json:"failed"`
	ConnectFailed uint64     `json:"connect_failed"` // of failed
	Withheld      uint64     `json:"withheld"`       // meant for this way and sent by another, since nobody was healthy on it
	Open          uint64     `json:"open"`           // requests, streams or connections of tcp, now
	P50           float64    `json:"p50_ms,omitempty"`
	P99           float64    `json:"p99_ms,omitempty"`
	Last          *time.Time `json:"last,omitempty"` // when it was last used
}

// Failing is a kind of failure, and how many attempts ended so. Without a way: nobody was
// there on any, and nothing was attempted.
type Failing struct {
	Way   string `json:"way,omitempty"`
	What  string `json:"what"` // status, Envoy's response flags, status of gRPC
	Count uint64 `json:"count"`
}

// ShiftStatus is how far a shift is.
type ShiftStatus struct {
	Status string `json:"status"` // queued, running, paused, done, reverting, reverted, aborted
	From   string `json:"from"`
	To     string `json:"to"`
	Held   bool   `json:"held,omitempty"` // it takes no steps: it watches shares that people set
	// GuardOff says that the pair's traffic-shift turns the shift guard off: nothing is compared.
	GuardOff bool      `json:"guard_off,omitempty"`
	Steps    []float64 `json:"steps,omitempty"`
	// Wait and Reason are what it waits for, or why it is as it is.
	Wait    string    `json:"wait,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	By      string    `json:"by,omitempty"`
	Started time.Time `json:"started,omitzero"`
	Changed time.Time `json:"changed,omitzero"`
	Dwelt   string    `json:"dwelt,omitempty"` // on its present step
	// Breach is what the shift guard found, in numbers.
	Breach string `json:"breach,omitempty"`
}

// Sidecars counts the sidecars of a pair's source.
type Sidecars struct {
	Registered int `json:"registered"`
	Connected  int `json:"connected"`
	// Acknowledged is how many of those connected run everything that they were told.
	Acknowledged int `json:"acknowledged"`
}

// Callee counts the instances of a pair's destination.
type Callee struct {
	Instances int `json:"instances"`
	Healthy   int `json:"healthy"`  // by their own checks
	Sidecars  int `json:"sidecars"` // instances that have one, or speak mTLS themselves
}

// What is known about going back.
const (
	Yes     = "yes"
	No      = "no"
	Unknown = "unknown"
)

// Revertible says whether the pair could go back to the old way now.
type Revertible struct {
	State string `json:"state"` // yes, no or unknown
	Way   string `json:"way,omitempty"`
	Why   string `json:"why"`
	// Since when callers say so; zero where they were not asked.
	Since time.Time `json:"since,omitzero"`
}

// Change is who changed an entry, when and how.
type Change struct {
	Index  uint64    `json:"index"`
	Time   time.Time `json:"time,omitzero"`
	Who    string    `json:"who,omitempty"`
	What   string    `json:"what"`             // created, changed, deleted, rolled back, reverted
	Shares *Shares   `json:"shares,omitempty"` // as the change left them; none when deleted
}

// PairDetail is all that is known of one pair.
type PairDetail struct {
	Pair
	// Behind are the source's sidecars that do not run all that they should, and why. At
	// most 100 of them.
	Behind  []Behind `json:"behind,omitempty"`
	History []Change `json:"history,omitempty"` // of the entry that decides, the newest first
}

// Behind is a sidecar that does not run all that it should.
type Behind struct {
	Sidecar string `json:"sidecar"`
	Why     string `json:"why"`
}

// PairIndex names a pair and, if Index is set, what its deciding entry's index has to be for a
// shift to be taken: that of [Pair], or 0 where there must be none.
type PairIndex struct {
	PairName
	Index *uint64 `json:"index,omitempty"`
}

// ShiftRequest asks for a change of shares.
type ShiftRequest struct {
	// Pairs are those to shift, or Service is a destination, of whose callers all are
	// that have an entry or declare it.
	Pairs   []PairIndex `json:"pairs,omitempty"`
	Service string      `json:"service,omitempty"`
	// Via is the percent of each way. Of several ways the others have none. One alone takes
	// its share from the way that has the largest of the others, then the next, and gives
	// to the largest; where no other has any, the old way is meant: legacy if the pair has
	// an address for it, else direct.
	Via map[string]float64 `json:"via,omitempty"`
	// To, in place of Via, is a way to which shares move by themselves, step by step, as Plan
	// says or, where it says nothing, the pair's traffic-shift.
	To   string `json:"to,omitempty"`
	Plan *Plan  `json:"plan,omitempty"`
	// Do, in place of both, is [Pause], [Resume] or [Abort], of a shift that is under way.
	Do string `json:"do,omitempty"`
	// Stage, in place of all that, is client, plain, permissive or, of a Service, strict. Shares
	// on ways that it closes go to the old way. Window is for how long a callee must have taken
	// no plaintext to become strict; empty: "24h".
	Stage  string `json:"stage,omitempty"`
	Window string `json:"window,omitempty"`
	// Force sets shares though a shift is under way or the callee cannot bear them, takes a legacy
	// address that does not answer, or makes a callee strict in spite of what speaks against it.
	Force bool `json:"force,omitempty"`
	// Legacy, if set, replaces the pair's.
	Legacy *LegacyWay `json:"legacy,omitempty"`
	DryRun bool       `json:"dry_run,omitempty"` // change nothing
}

// What can be done with a shift that is under way. An aborted one takes its shares back.
const (
	Pause  = "pause"
	Resume = "resume"
	Abort  = "abort"
)

// Plan is how shares move by themselves. It is kept in the pair's traffic-shift; a zero field
// leaves what is there.
type Plan struct {
	Steps    []float64 `json:"steps,omitempty"`     // percents of the new way, rising
	Dwell    string    `json:"dwell,omitempty"`     // on each step at least, "10m"
	Windows  []string  `json:"windows,omitempty"`   // in which steps may run, "Mon-Fri 09:00-17:00"
	OnBreach string    `json:"on_breach,omitempty"` // "revert" or "pause"
}

// RevertRequest asks that pairs go back to the old way: legacy if the pair has an address
// for it, else direct.
type RevertRequest struct {
	// Exactly one of them: pairs, all callers of a destination, or whatever was shifted.
	Pairs   []PairName `json:"pairs,omitempty"`
	Service string     `json:"service,omitempty"`
	All     bool       `json:"all,omitempty"`
	// Force goes back even where nothing takes requests on the old way.
	Force bool `json:"force,omitempty"`
	// Cut closes what is still open on other ways, once nothing new goes there, spread evenly
	// Over a time, by default "30s". How far that is [Client.Cut] says.
	Cut  bool   `json:"cut,omitempty"`
	Over string `json:"over,omitempty"`
}

// Changed is what became of a [ShiftRequest] or a [RevertRequest].
type Changed struct {
	// Index is for [Client.Applied]; 0 when nothing was written.
	Index uint64        `json:"index,omitempty"`
	Pairs []PairChanged `json:"pairs"` // by source and destination
	// Disconnected are registered sidecars of the pairs that no server tells anything now.
	// They get the change when they are back. At most 100, of DisconnectedTotal.
	Disconnected      []string `json:"disconnected,omitempty"`
	DisconnectedTotal int      `json:"disconnected_total,omitempty"`
	// Unsaved, of a revert, is why it is in force and not saved: it is tried again.
	Unsaved string `json:"unsaved,omitempty"`
	// Cut is the ID of the order to close what is open, for [Client.Cut].
	Cut string `json:"cut,omitempty"`
	// Warnings are why requests may fail on a way that has a share.
	Warnings []string `json:"warnings,omitempty"`
}

// PairChanged is one pair before and after. A source or destination of "*" stands for the
// entry of that name, and so for all pairs that it decides for.
type PairChanged struct {
	PairName
	Before Shares `json:"before"`
	After  Shares `json:"after"`
	// Index is that of the entry that decided before; see [PairIndex].
	Index uint64 `json:"index"`
	// Entry is the traffic-shift as written, or as it would be.
	Entry json.RawMessage `json:"entry,omitempty"`
	// Stage is the stage that was set.
	Stage string `json:"stage,omitempty"`
	// Status is that of its shift, if one is under way or has ended.
	Status string `json:"status,omitempty"`
	// Refused is why the pair was left as it was.
	Refused string `json:"refused,omitempty"`
}

// Same reports whether there was nothing to do.
func (p PairChanged) Same() bool { return p.Refused == "" && p.Entry == nil }

// What a sidecar made of a change.
const (
	Acked        = "acked"
	Refused      = "refused"
	Waiting      = "waiting"
	Disconnected = "disconnected" // before it had answered
)

// Applied is what became of a change on sidecars.
type Applied struct {
	Index uint64 `json:"index"`
	// Told says that all connected sidecars were sent what the change means for them.
	Told bool `json:"told"`
	// Sidecars are those whose resources it changed, sorted.
	Sidecars []AppliedSidecar `json:"sidecars"`
	// Unheard are servers that share a Consul with this one and have not said yet what their
	// sidecars made of it, by name.
	Unheard []string `json:"unheard,omitempty"`
	// Problems are what cannot be honoured for sidecars that read a changed entry.
	Problems []string `json:"problems,omitempty"`
}

// AppliedSidecar is one sidecar that a change concerns.
type AppliedSidecar struct {
	Sidecar string            `json:"sidecar"`
	Node    string            `json:"node,omitempty"`
	State   string            `json:"state"`
	Refused []RefusedResource `json:"refused,omitempty"`
	Waiting []string          `json:"waiting,omitempty"` // what it has not answered for
}

// RefusedResource is a resource that an Envoy would not take.
type RefusedResource struct {
	Type    string `json:"type"`
	Name    string `json:"name"`
	Message string `json:"message"` // Envoy's
}

// Cut is how far sidecars are with an order to close what is open on ways that were left.
type Cut struct {
	ID    string    `json:"id"`
	Begun time.Time `json:"begun"`
	Over  string    `json:"over"`
	// Done says that nothing more is to come of it.
	Done bool `json:"done"`
	// Closed counts requests, streams and WebSockets that were cut short, and connections of tcp.
	Closed   uint64       `json:"closed"`
	Sidecars []CutSidecar `json:"sidecars"` // by source, sidecar and destination
}

// CutSidecar is one sidecar and one pair of its.
type CutSidecar struct {
	PairName
	Sidecar string `json:"sidecar"`
	Node    string `json:"node,omitempty"`
	State   string `json:"state"` // waiting, closing, done, failed or disconnected
	Closed  uint64 `json:"closed"`
	// Connections are those that were closed for it: requests share them.
	Connections uint64 `json:"connections"`
	Why         string `json:"why,omitempty"` // it waits, or failed
}

// How far a sidecar is with such an order; or it is [Disconnected].
const (
	CutWaiting = "waiting"
	CutClosing = "closing"
	CutDone    = "done"
	CutFailed  = "failed"
)

// Error is an answer other than 200.
type Error struct {
	Status int
	Text   string
}

// Error implements error.
func (e *Error) Error() string { return fmt.Sprintf("server answered %d: %s", e.Status, e.Text) }
