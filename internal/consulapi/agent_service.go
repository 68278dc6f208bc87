package consulapi

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

func agentServices(c *call) (any, error) {
	node := c.host().name
	out := map[string]*agentServiceShape{}
	c.api.store.Read(c.r.Context(), 0, func(r *store.Reader) {
		for _, s := range r.NodeServices(node) {
			out[s.ID] = showAgentService(s, c.api.store.Datacenter())
		}
	})
	selects, err := selector[agentServiceShape](c)
	if err != nil || selects == nil {
		return out, err
	}
	for id, s := range out {
		ok, err := selects(s.whole())
		if err != nil {
			return nil, err
		}
		if !ok {
			delete(out, id)
		}
	}
	return out, nil
}

// agentService answers one service; with hash it waits until the service is another.
func agentService(c *call) (any, error) {
	w, err := c.wait()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), w.limit)
	defer cancel()
	node := c.host().name
	var out *agentServiceShape
	c.api.store.ReadUntil(ctx, func(r *store.Reader) bool {
		s := r.NodeService(node, c.arg)
		if s == nil {
			out = nil
			return true
		}
		out = showAgentService(s, c.api.store.Datacenter())
		out.ContentHash, err = contentHash(out)
		return err != nil || w.hash == "" || out.ContentHash != w.hash
	})
	if err != nil {
		return nil, err
	}
	if out == nil {
		return nil, notFound("unknown service ID: %s", c.arg)
	}
	c.w.Header().Set("X-Consul-Contenthash", out.ContentHash)
	return out, nil
}

func contentHash(s *agentServiceShape) (string, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return "", err
	}
	h := fnv.New64a()
	h.Write(b)
	return strconv.FormatUint(h.Sum64(), 16), nil
}

func registerService(c *call) (any, error) {
	replace, err := c.flag("replace-existing-checks")
	if err != nil {
		return nil, err
	}
	raw, err := c.body(maxSmallBody)
	if err != nil {
		return nil, err
	}
	d, err := config.DecodeRegistration(raw)
	if err != nil {
		return nil, badRequest("Invalid service definition: %v", err)
	}
	if err := unspecified(d); err != nil {
		return nil, err
	}
	return empty{}, c.api.agent.Register(c.host(), d, replace)
}

// unspecified refuses addresses that mean "any", which nobody can call.
func unspecified(d config.Definition) error {
	for _, s := range []*catalog.Service{&d.Service, d.SidecarService()} {
		if s != nil && (s.Address == "0.0.0.0" || s.Address == "::" || s.Address == "[::]") {
			return badRequest("Invalid service address")
		}
	}
	return nil
}

func unknownService(id string) error {
	return notFound("Unknown service ID %q. Ensure that the service ID is passed, not the service name.", id)
}

func deregisterService(c *call) (any, error) {
	found, err := c.api.agent.Deregister(c.host().name, c.arg)
	if err == nil && !found {
		err = unknownService(c.arg)
	}
	return empty{}, err
}

func serviceMaintenance(c *call) (any, error) {
	id, err := c.need("service ID")
	if err != nil {
		return nil, err
	}
	enable, err := c.enable()
	if err != nil {
		return nil, err
	}
	return empty{}, c.api.agent.maintain(c.host(), id, enable, c.query.Get("reason"))
}

// maintain puts a service, or with an empty ID its node, in maintenance or back.
func (a *Agent) maintain(h host, serviceID string, enable bool, reason string) error {
	c := catalog.Check{
		Node: h.name, CheckID: catalog.NodeMaintenance, Name: "Node Maintenance Mode",
		Status: catalog.Critical, Type: "maintenance", Notes: reason,
	}
	what := "node"
	if serviceID != "" {
		c.ServiceID, c.CheckID, c.Name = serviceID, catalog.ServiceMaintenancePrefix+serviceID, "Service Maintenance Mode"
		what = "service"
	}
	if reason == "" {
		c.Notes = fmt.Sprintf("Maintenance mode is enabled for this %s, but no reason was provided. This is a default message.", what)
	}
	err := a.store.Update(func(w *store.Writer) error {
		if serviceID != "" && w.NodeService(h.name, serviceID) == nil {
			return unknownService(serviceID)
		}
		if !enable {
			_, err := w.DeleteCheck(h.name, c.CheckID)
			return err
		}
		if err := h.ensure(w); err != nil {
			return err
		}
		return w.PutCheck(c, nil)
	})
	if err == nil {
		a.notify(h.name, serviceID)
	}
	return err
}

// agentHealthShape is a service with its health on its own node.
type agentHealthShape struct {
	AggregatedStatus catalog.Status
	Service          *agentServiceShape
	Checks           []checkShape
}

// agentHealth judges a service by its own checks and by those set on its node.
func (c *call) agentHealth(r *store.Reader, s *catalog.Service) agentHealthShape {
	out := agentHealthShape{AggregatedStatus: catalog.Passing, Service: showAgentService(s, c.api.store.Datacenter())}
	for _, check := range r.NodeChecks(c.host().name) {
		if check.ServiceID != s.ID && (check.ServiceID != "" || check.CheckID == "serfHealth") {
			continue
		}
		out.Checks = append(out.Checks, showCheck(check))
		out.AggregatedStatus = worse(out.AggregatedStatus, aggregate(check))
	}
	return out
}

// rank orders aggregate statuses, the best first.
func rank(s catalog.Status) int {
	return slices.Index([]catalog.Status{catalog.Passing, catalog.Warning, catalog.Critical, catalog.Maintenance}, s)
}

// worse is the worse of two aggregate statuses.
func worse(a, b catalog.Status) catalog.Status {
	if rank(b) > rank(a) {
		return b
	}
	return a
}

// aggregate is a check's share of an aggregate status.
func aggregate(c *catalog.Check) catalog.Status {
	if c.CheckID == catalog.NodeMaintenance || strings.HasPrefix(c.CheckID, catalog.ServiceMaintenancePrefix) {
		return catalog.Maintenance
	}
	return c.Status
}

func serviceHealthByID(c *call) (any, error) {
	var out agentHealthShape
	c.api.store.Read(c.r.Context(), 0, func(r *store.Reader) {
		if s := r.NodeService(c.host().name, c.arg); s != nil {
			out = c.agentHealth(r, s)
		}
	})
	if out.Service == nil {
		out.AggregatedStatus = catalog.Critical
		return c.judge(http.StatusNotFound, fmt.Sprintf("ServiceId %s not found", c.arg), out)
	}
	return c.judge(statusOf(out.AggregatedStatus), string(out.AggregatedStatus), out)
}

func serviceHealthByName(c *call) (any, error) {
	out := []agentHealthShape{}
	worst := catalog.Passing
	c.api.store.Read(c.r.Context(), 0, func(r *store.Reader) {
		out = out[:0]
		for _, s := range r.NodeServices(c.host().name) {
			if s.Name == c.arg {
				h := c.agentHealth(r, s)
				out = append(out, h)
				worst = worse(worst, h.AggregatedStatus)
			}
		}
	})
	if len(out) == 0 {
		return c.judge(http.StatusNotFound, fmt.Sprintf("ServiceName %s Not Found", c.arg), out)
	}
	return c.judge(statusOf(worst), string(worst), out)
}

// judge answers with a status that says how the service is, and why.
func (c *call) judge(status int, reason string, value any) (any, error) {
	if status != http.StatusOK {
		c.w.Header().Set("X-Consul-Reason", reason)
	}
	if c.query.Get("format") == "text" || strings.Contains(c.r.Header.Get("Accept"), "text/plain") {
		c.w.Header().Set("Content-Type", "text/plain")
		c.w.WriteHeader(status)
		io.WriteString(c.w, reason)
		return done{}, nil
	}
	c.w.Header().Set("Content-Type", "application/json")
	if status != http.StatusOK {
		c.w.WriteHeader(status)
	}
	return value, nil
}
