package sidecar

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/check"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

const (
	// checkTTL is how long the registry believes a check's last word: a host that
	// dies leaves the mesh after that.
	checkTTL = 15 * time.Second
	// pulseEvery repeats that word. Two pulses may be lost.
	pulseEvery = checkTTL / 3
)

// checkState is a check's last word.
type checkState struct {
	status catalog.Status
	output string
}

// ownCheck is a check of the definition that the sidecar runs.
type ownCheck struct {
	serviceID string
	def       config.CheckDefinition
}

// health is what the sidecar knows of its instance, as checks in the registry have it.
// Safe for concurrent use.
type health struct {
	aliveID string     // the check on the sidecar itself
	own     []ownCheck // read-only
	// changed has capacity 1 and is filled when a state changed.
	changed chan struct{}

	mu      sync.Mutex
	envoyUp bool
	appUp   bool
	// plaintext is the port where Envoy takes plaintext from other hosts now; 0: none.
	plaintext int
	results   map[string]checkState
}

// newHealth gives every check of the definition an ID and takes over those that
// need somebody to run them. TTL checks are pulsed by the app, alias checks are
// evaluated where all checks are known.
func newHealth(d *config.Definition, proxyID string) *health {
	h := &health{aliveID: "service:" + proxyID + ":alive", changed: make(chan struct{}, 1), results: map[string]checkState{}}
	take := func(serviceID string, checks []config.CheckDefinition) []config.CheckDefinition {
		checks = slices.Clone(checks)
		for i := range checks {
			c := &checks[i]
			if c.ID == "" {
				c.ID = "service:" + serviceID
				if len(checks) > 1 {
					c.ID = fmt.Sprintf("%s:%d", c.ID, i+1)
				}
			}
			if c.Probes() {
				h.own = append(h.own, ownCheck{serviceID, *c})
				h.results[c.ID] = checkState{cmp.Or(c.Status, catalog.Critical), "not checked yet"}
			}
		}
		return checks
	}
	d.Checks = take(d.Service.ID, d.Checks)
	d.Sidecar.Checks = take(proxyID, d.Sidecar.Checks)
	return h
}

// definitions replaces the checks that the sidecar runs by TTL checks in their
// present state, and adds the one on the sidecar itself.
func (h *health) definitions(d config.Definition) config.Definition {
	states := h.states()
	ttl := func(checks []config.CheckDefinition) []config.CheckDefinition {
		checks = slices.Clone(checks)
		for i, c := range checks {
			if s, ok := states[c.ID]; ok {
				checks[i] = config.CheckDefinition{
					ID: c.ID, Name: c.Name, Notes: c.Notes, Status: s.status, TTL: config.Duration(checkTTL),
					DeregisterCriticalServiceAfter: c.DeregisterCriticalServiceAfter,
				}
			}
		}
		return checks
	}
	side := *d.Sidecar
	side.Service.Meta = h.meta(d.SidecarService().Meta)
	d.Checks = ttl(d.Checks)
	side.Checks = append(ttl(side.Checks), config.CheckDefinition{
		ID: h.aliveID, Name: "crossfade sidecar alive", TTL: config.Duration(checkTTL), Status: states[h.aliveID].status,
	})
	d.Sidecar = &side
	return d
}

// meta adds to a sidecar's Meta what is true of it now, whatever its definition says.
func (h *health) meta(declared map[string]string) map[string]string {
	out := maps.Clone(declared)
	delete(out, catalog.PlaintextMeta)
	if port := h.plaintextPort(); port != 0 {
		if out == nil {
			out = map[string]string{}
		}
		out[catalog.PlaintextMeta] = strconv.Itoa(port)
	}
	return out
}

func (h *health) plaintextPort() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.plaintext
}

// states are all checks that the sidecar pulses, by ID.
func (h *health) states() map[string]checkState {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make(map[string]checkState, len(h.results)+1)
	maps.Copy(out, h.results)
	out[h.aliveID] = h.aliveLocked()
	return out
}

// aliveLocked is the sidecar's own check: critical until requests can be served,
// then the worst of the service's checks. So a caller that looks at the sidecar
// alone, as Consul's do, sees what bears on the instance.
func (h *health) aliveLocked() checkState {
	if !h.envoyUp {
		return checkState{catalog.Critical, "Envoy is not ready"}
	}
	if !h.appUp {
		return checkState{catalog.Critical, "the app does not accept connections yet"}
	}
	worst := checkState{catalog.Passing, "Envoy is ready"}
	var bad []string
	for _, c := range h.own {
		switch s := h.results[c.def.ID]; s.status {
		case catalog.Critical:
			worst.status = catalog.Critical
			bad = append(bad, c.def.ID)
		case catalog.Warning:
			if worst.status == catalog.Passing {
				worst.status = catalog.Warning
			}
			bad = append(bad, c.def.ID)
		}
	}
	if len(bad) > 0 {
		worst.output = "not passing: " + strings.Join(bad, ", ")
	}
	return worst
}

// set changes what is known and wakes whoever pulses.
func (h *health) set(change func(*health)) {
	h.mu.Lock()
	change(h)
	h.mu.Unlock()
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// report takes a result from the runner.
func (h *health) report(_, checkID string, r check.Result) {
	h.set(func(h *health) { h.results[checkID] = checkState{r.Status, r.Output} })
}

// start runs the definition's checks until the runner is closed.
func (h *health) start(runner *check.Runner, node string) error {
	for _, c := range h.own {
		if err := runner.Set(node, c.serviceID, c.def); err != nil {
			return err
		}
	}
	return nil
}
