package sidecar

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/sidecar/relay"
)

// The states of a sidecar.
const (
	Starting = "starting" // or starting again, after Envoy ended by itself
	Ready    = "ready"    // Envoy serves and the app, if the sidecar runs one, accepts connections
	Draining = "draining"
	Stopped  = "stopped"
)

// Status is what status.json in the state directory says. It is written at every change.
type Status struct {
	State         string             `json:"state"`
	Service       string             `json:"service"`
	ID            string             `json:"id"`
	PublicAddress string             `json:"public_address"`
	PID           int                `json:"pid"` // the sidecar's own
	Envoy         EnvoyStatus        `json:"envoy"`
	Certificate   *CertificateStatus `json:"certificate,omitempty"`
	XDS           XDSStatus          `json:"xds"`
	Registered    bool               `json:"registered"` // a server has confirmed the registration lately
	Sizing        SizingStatus       `json:"sizing"`
	Alarms        []Alarm            `json:"alarms,omitempty"`     // that hold
	Quarantine    *relay.Quarantine  `json:"quarantine,omitempty"` // what Envoy is not told since it crashed on it
	Drift         *api.Drift         `json:"drift,omitempty"`      // nil: Envoy always ran what it was told
	App           *AppStatus         `json:"app,omitempty"`
}

// EnvoyStatus is the child's state. PID 0: not running.
type EnvoyStatus struct {
	PID         int    `json:"pid"`
	Version     string `json:"version"`
	Restarts    int    `json:"restarts"` // since the sidecar started
	AdminSocket string `json:"admin_socket"`
	LastCrash   *Crash `json:"last_crash,omitempty"`
}

// CertificateStatus is the leaf that Envoy was given last.
type CertificateStatus struct {
	Serial    string    `json:"serial"` // as Envoy's /certs and openssl print it, with colons: "0a:1b:…"
	URI       string    `json:"uri"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
}

// XDSStatus is the configuration's way to Envoy.
type XDSStatus struct {
	Connected bool `json:"connected"`
	// Since is when Connected changed last, or the sidecar started.
	Since time.Time `json:"since,omitzero"`
	// LastUpdate is when a server last changed something that Envoy is to run, to 10 s.
	LastUpdate time.Time `json:"last_update,omitzero"`
	Server     string    `json:"server"`
	// FromLastGood: Envoy runs what the disk held, no server has confirmed it yet.
	FromLastGood bool `json:"from_last_good"`
	// Local is what is held on old ways by order on this host.
	Local *relay.Local `json:"local,omitempty"`
}

// updateGrain keeps a status from being written at each change of endpoints.
const updateGrain = 10 * time.Second

// AppStatus is the app's process.
type AppStatus struct {
	PID int `json:"pid"`
}

// board holds the present status and writes it down.
type board struct {
	write func([]byte) error
	log   *slog.Logger

	mu     sync.Mutex
	status Status
	last   []byte
	failed bool
}

// set changes the status and writes it if it differs. A status that cannot be
// written is logged once and stops nothing.
func (b *board) set(change func(*Status)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(&b.status)
	text, err := json.MarshalIndent(b.status, "", "  ")
	if err != nil || bytes.Equal(text, b.last) {
		return
	}
	b.last = text
	err = b.write(append(bytes.Clone(text), '\n'))
	if err != nil && !b.failed {
		b.log.Error("status cannot be written", "error", err)
	}
	b.failed = err != nil
}
