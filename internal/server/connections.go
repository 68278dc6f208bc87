package server

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/access"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

// Bounds of a sidecar's report about its connections.
const (
	maxReport       = 256 << 10
	maxFault        = 512
	maxReportFaults = 20
	// reportAge is how old a report may be to count: sidecars repeat theirs every minute.
	reportAge = 3 * time.Minute
)

// openConnections is how many connections each listener of a sidecar has open, as the
// sidecars report it. It is lost with the process, and unknown until they do so again.
type openConnections struct {
	mu   sync.Mutex            // guards the following
	by   map[string]openReport // by instance
	tidy int                   // the size at which old reports are dropped
}

type openReport struct {
	at        time.Time
	listeners map[string]int64
	drift     *api.Drift // nil: there was none
}

func (o *openConnections) put(in catalog.Instance, r openReport) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := r.at
	o.by[instanceKey(in)] = r
	if len(o.by) <= o.tidy {
		return
	}
	maps.DeleteFunc(o.by, func(_ string, r openReport) bool { return now.Sub(r.at) > reportAge })
	o.tidy = 2*len(o.by) + 100
}

// take puts what a sidecar says, if it is within bounds.
func (o *openConnections) take(in catalog.Instance, c telemetry.Connections, now time.Time) error {
	if err := c.Check(); err != nil {
		return err
	}
	if d := c.Drift; d != nil {
		d.Faults = d.Faults[:min(len(d.Faults), maxReportFaults)]
		for i, text := range d.Faults {
			d.Faults[i] = text[:min(len(text), maxFault)]
		}
	}
	o.put(in, openReport{now, c.Listeners, c.Drift})
	return nil
}

// of is the number of connections that a listener has open, if that is known.
func (o *openConnections) of(in catalog.Instance, listener string, now time.Time) (n int64, known bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r, ok := o.by[instanceKey(in)]
	if !ok || now.Sub(r.at) > reportAge {
		return 0, false
	}
	n, known = r.listeners[listener]
	return n, known
}

// openOn is what a connected node has reported of its connections, not to be changed.
func (m *mesh) openOn(key string) map[string]int64 { return m.reportOf(key).listeners }

// driftOn is what a connected node has reported lately of drift, not to be changed; nil: none.
func (m *mesh) driftOn(key string) *api.Drift {
	r := m.reportOf(key)
	if time.Since(r.at) > reportAge {
		return nil
	}
	return r.drift
}

func (m *mesh) reportOf(key string) openReport {
	m.mu.Lock()
	n, snap := m.connected[key], m.catalog
	m.mu.Unlock()
	if snap == nil {
		return openReport{}
	}
	in, ok := snap.Proxy(n.id, n.name)
	if !ok {
		return openReport{}
	}
	m.open.mu.Lock()
	defer m.open.mu.Unlock()
	return m.open.by[instanceKey(in)]
}

func instanceKey(in catalog.Instance) string { return in.Node.Name + "/" + in.Service.ID }

// connections takes a sidecar's report in.
func (s *Server) connections(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	in, ok := s.mesh.snapshot().Proxy(id, r.URL.Query().Get("node"))
	if !ok {
		http.Error(w, fmt.Sprintf("sidecar %q: not registered", id), http.StatusNotFound)
		return
	}
	// Of a Consul's catalog only the mesh knows whose the sidecar is.
	if !s.allowed(w, r, access.Need{Kind: access.Register, Services: []string{in.Service.Proxy.DestinationServiceName}, Pulse: true}) {
		return
	}
	var body telemetry.Connections
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxReport)).Decode(&body); err != nil {
		http.Error(w, fmt.Sprintf("sidecar %q: its report cannot be read: %v", id, err), http.StatusBadRequest)
		return
	}
	if err := s.mesh.open.take(in, body, time.Now()); err != nil {
		http.Error(w, fmt.Sprintf("sidecar %q: %v", id, err), http.StatusBadRequest)
		return
	}
	s.answer(w, struct{}{})
}
