package consulapi

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Checks runs checks; package check's Runner does. Set replaces a check of the same
// ID and leaves an identical one alone. Pulse sets a TTL check. Notify says that the
// checks of a service changed, for aliases of it.
type Checks interface {
	Set(node, serviceID string, definition config.CheckDefinition) error
	Remove(node, checkID string)
	Pulse(node, checkID string, status catalog.Status, output string) error
	Notify(node, serviceID string)
}

// Sidecars without a port of their own get one from this range, as from Consul.
const (
	sidecarMinPort = 21000
	sidecarMaxPort = 21255
)

// sidecarCheckInterval is how often the port of a sidecar is tried.
const sidecarCheckInterval = config.Duration(10 * time.Second)

// sidecarSuffix makes the ID of a service's own sidecar.
const sidecarSuffix = "-sidecar-proxy"

// Agent is what a Consul agent does for the services on its node: it registers
// them with their sidecars and checks and keeps their checks running. It is the
// agent of the server's own node and of every other node that callers name.
type Agent struct {
	store *store.Store
	log   *slog.Logger

	mu     sync.Mutex // held while checks is brought in line with the store
	checks Checks     // nil: nobody runs checks; guarded by mu
}

// NewAgent is the agent over a registry. Until [Agent.Start] no check runs.
func NewAgent(s *store.Store, log *slog.Logger) *Agent {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Agent{store: s, log: log}
}

// Start hands all checks in the registry to checks, which from then on reports to
// [Agent.Report]. TTLs start anew.
func (a *Agent) Start(checks Checks) {
	a.mu.Lock()
	a.checks = checks
	a.mu.Unlock()
	var all []checkKey
	a.store.Read(context.Background(), 0, func(r *store.Reader) {
		for _, c := range r.Checks() {
			all = append(all, checkKey{c.Node, c.CheckID, c.ServiceID})
		}
	})
	a.sync(all)
}

// Report records what a check says. One that is gone meanwhile is ignored.
func (a *Agent) Report(node, checkID string, status catalog.Status, output string) error {
	var serviceID string
	err := a.store.Update(func(w *store.Writer) error {
		c, _ := w.Check(node, checkID)
		if c == nil {
			return nil
		}
		serviceID = c.ServiceID
		_, err := w.UpdateCheck(node, checkID, status, output)
		return err
	})
	if err != nil {
		return fmt.Errorf("check %q on node %q: result not recorded: %w", checkID, node, err)
	}
	a.notify(node, serviceID)
	return nil
}

func (a *Agent) running() Checks {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.checks
}

func (a *Agent) notify(node, serviceID string) {
	if checks := a.running(); checks != nil && serviceID != "" {
		checks.Notify(node, serviceID)
	}
}

// Alias is what an alias check of a service says: the worst of that service's
// checks. Without a service ID it is about the node's own checks.
func (a *Agent) Alias(node, serviceID string) (catalog.Status, string) {
	var there bool
	var worst *catalog.Check
	a.store.Read(context.Background(), 0, func(r *store.Reader) {
		there = r.Node(node) != nil && (serviceID == "" || r.NodeService(node, serviceID) != nil)
		worst = nil
		for _, c := range r.NodeChecks(node) {
			if c.ServiceID == serviceID && (worst == nil || rank(c.Status) > rank(worst.Status)) {
				worst = c
			}
		}
	})
	switch {
	case !there && serviceID == "":
		return catalog.Critical, fmt.Sprintf("Node %q is not registered", node)
	case !there:
		return catalog.Critical, fmt.Sprintf("Service %q is not registered on node %q", serviceID, node)
	case worst == nil:
		return catalog.Passing, "No checks found."
	case worst.Status == catalog.Passing:
		return catalog.Passing, "All checks passing."
	case worst.Status == catalog.Warning:
		return catalog.Warning, fmt.Sprintf("Aliased check %q warning: %s", worst.Name, worst.Output)
	default:
		return catalog.Critical, fmt.Sprintf("Aliased check %q failing: %s", worst.Name, worst.Output)
	}
}

// checkKey names a check and the service it is about.
type checkKey struct{ node, id, serviceID string }

// sync brings the running checks in line with the registry, for those named. What
// the registry says when sync holds the lock is what counts, so the order in which
// concurrent writers arrive does not matter.
func (a *Agent) sync(keys []checkKey) {
	if len(keys) == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.checks == nil {
		return
	}
	a.store.Read(context.Background(), 0, func(r *store.Reader) {
		for _, k := range keys {
			c, definition := r.Check(k.node, k.id)
			if definition == nil {
				a.checks.Remove(k.node, k.id)
				continue
			}
			if err := a.checks.Set(k.node, c.ServiceID, *definition); err != nil {
				a.log.Error("check cannot run", "node", k.node, "check", k.id, "err", err)
			}
		}
	})
	for _, k := range keys {
		if k.serviceID != "" {
			a.checks.Notify(k.node, k.serviceID)
		}
	}
}

// host is the node that a caller speaks for.
type host struct {
	name    string
	address string // empty: the node must exist
}

// ensure puts the host's node in the catalog.
func (h host) ensure(w *store.Writer) error {
	n := w.Node(h.name)
	switch {
	case n == nil && h.address == "":
		return badRequest("node %q is not registered: its address is needed as well, node=%s&address=IP", h.name, h.name)
	case n == nil:
		return w.PutNode(catalog.Node{Name: h.name, Address: h.address})
	case h.address != "" && h.address != n.Address:
		changed := *n
		changed.Address = h.address
		return w.PutNode(changed)
	}
	return nil
}

// Register puts a service, its sidecar and their checks on a host. A check that is
// there already keeps its status. With replace, checks that the definition does not
// have are removed.
func (a *Agent) Register(h host, d config.Definition, replace bool) error {
	var touched []checkKey
	err := a.store.Update(func(w *store.Writer) error {
		touched = nil
		if err := h.ensure(w); err != nil {
			return err
		}
		if err := w.PutService(h.name, d.Service); err != nil {
			return err
		}
		keys, err := putChecks(w, h.name, d.Service.ID, d.Checks, replace)
		if err != nil {
			return err
		}
		touched = append(touched, keys...)
		sidecar := d.SidecarService()
		if sidecar == nil {
			return nil
		}
		if sidecar.Port == 0 && sidecar.SocketPath == "" {
			if sidecar.Port, err = freePort(w, h.name, sidecar.ID); err != nil {
				return err
			}
		}
		if err := w.PutService(h.name, *sidecar); err != nil {
			return err
		}
		checks := d.Sidecar.Checks
		if len(checks) == 0 {
			checks = sidecarChecks(w.Node(h.name), h.name == a.store.Node(), d.Service.ID, sidecar)
		}
		keys, err = putChecks(w, h.name, sidecar.ID, checks, replace)
		touched = append(touched, keys...)
		return err
	})
	if err != nil {
		return err
	}
	a.sync(touched)
	a.notify(h.name, d.Service.ID)
	return nil
}

// sidecarChecks are Consul's for a sidecar that declares none: its port answers,
// and its service is well.
func sidecarChecks(n *catalog.Node, own bool, serviceID string, sidecar *catalog.Service) []config.CheckDefinition {
	address := sidecar.Address
	if address == "" && own {
		address = "127.0.0.1"
	}
	id := "service:" + sidecar.ID
	alias := config.CheckDefinition{ID: id + ":2", Name: "Connect Sidecar Aliasing " + serviceID, AliasService: serviceID}
	if sidecar.Port == 0 {
		alias.ID = id
		return []config.CheckDefinition{alias}
	}
	return []config.CheckDefinition{{
		ID: id + ":1", Name: "Connect Sidecar Listening",
		TCP:      net.JoinHostPort(cmp.Or(address, n.Address), strconv.Itoa(sidecar.Port)),
		Interval: sidecarCheckInterval,
	}, alias}
}

// freePort finds a port for a sidecar that asks for none: that which it has, or the
// lowest that no service on the node has.
func freePort(w *store.Writer, node, sidecarID string) (int, error) {
	taken := map[int]bool{}
	for _, s := range w.NodeServices(node) {
		if s.ID == sidecarID && sidecarMinPort <= s.Port && s.Port <= sidecarMaxPort {
			return s.Port, nil
		}
		taken[s.Port] = true
	}
	for port := sidecarMinPort; port <= sidecarMaxPort; port++ {
		if !taken[port] {
			return port, nil
		}
	}
	return 0, badRequest("sidecar %q: no port of %d to %d is left on node %q; give it one in connect.sidecar_service.port",
		sidecarID, sidecarMinPort, sidecarMaxPort, node)
}

// putChecks registers the checks of a service. It names all that changed hands.
func putChecks(w *store.Writer, node, serviceID string, checks []config.CheckDefinition, replace bool) ([]checkKey, error) {
	var touched []checkKey
	kept := map[string]bool{}
	for _, d := range checks {
		kept[d.ID] = true
		touched = append(touched, checkKey{node, d.ID, serviceID})
		if err := putCheck(w, node, serviceID, d); err != nil {
			return nil, err
		}
	}
	if !replace {
		return touched, nil
	}
	for _, c := range w.NodeChecks(node) {
		if c.ServiceID != serviceID || kept[c.CheckID] || strings.HasPrefix(c.CheckID, catalog.ServiceMaintenancePrefix) {
			continue
		}
		touched = append(touched, checkKey{node, c.CheckID, serviceID})
		if _, err := w.DeleteCheck(node, c.CheckID); err != nil {
			return nil, err
		}
	}
	return touched, nil
}

func putCheck(w *store.Writer, node, serviceID string, d config.CheckDefinition) error {
	c := catalog.Check{
		Node: node, CheckID: d.ID, ServiceID: serviceID, Name: d.Name, Notes: d.Notes,
		Status: cmp.Or(d.Status, catalog.Critical), Type: d.Type(),
	}
	if d.Interval > 0 {
		c.Interval = d.Interval.String()
	}
	if d.Timeout > 0 {
		c.Timeout = d.Timeout.String()
	}
	if old, definition := w.Check(node, d.ID); old != nil && definition != nil && old.ServiceID == serviceID {
		c.Status, c.Output = old.Status, old.Output
	}
	return w.PutCheck(c, &d)
}

// Deregister removes a service, its own sidecar and their checks. It reports whether
// the service was there.
func (a *Agent) Deregister(node, serviceID string) (bool, error) {
	return a.remove(node, serviceID, (*store.Writer).DeleteService)
}

// Expire is [Agent.Deregister] where nobody asked for it.
func (a *Agent) Expire(node, serviceID string) (bool, error) {
	return a.remove(node, serviceID, (*store.Writer).ExpireService)
}

func (a *Agent) remove(node, serviceID string, remove func(w *store.Writer, node, id string) error) (bool, error) {
	var found bool
	var touched []checkKey
	err := a.store.Update(func(w *store.Writer) error {
		touched = nil
		if found = w.NodeService(node, serviceID) != nil; !found {
			return nil
		}
		ids := []string{serviceID}
		side := w.NodeService(node, serviceID+sidecarSuffix)
		if side != nil && side.Kind == catalog.ConnectProxy && side.Proxy != nil && side.Proxy.DestinationServiceID == serviceID {
			ids = append(ids, side.ID)
		}
		for _, id := range ids {
			touched = append(touched, serviceChecks(w, node, id)...)
			if err := remove(w, node, id); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		a.sync(touched)
		a.notify(node, serviceID)
	}
	return found, err
}

func serviceChecks(w *store.Writer, node, serviceID string) []checkKey {
	var out []checkKey
	for _, c := range w.NodeChecks(node) {
		if c.ServiceID == serviceID {
			out = append(out, checkKey{node, c.CheckID, serviceID})
		}
	}
	return out
}
