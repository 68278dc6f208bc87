package consulapi

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

func agentChecks(c *call) (any, error) {
	node := c.host().name
	out := map[string]checkShape{}
	c.api.store.Read(c.r.Context(), 0, func(r *store.Reader) {
		for _, check := range r.NodeChecks(node) {
			// As Consul's agent, which does not own this one.
			if check.CheckID != "serfHealth" {
				out[check.CheckID] = showCheck(check)
			}
		}
	})
	return filterMap(c, out)
}

func unknownCheck(id string) error {
	return notFound("Unknown check ID %q. Ensure that the check ID is passed, not the check name.", id)
}

// registerCheck takes a check of a service or of the node. The body is a check
// definition with a ServiceID beside it.
func registerCheck(c *call) (any, error) {
	raw, err := c.body(maxSmallBody)
	if err != nil {
		return nil, err
	}
	serviceID, d, err := decodeCheck(raw)
	if err != nil {
		return nil, err
	}
	h := c.host()
	err = c.api.store.Update(func(w *store.Writer) error {
		if serviceID != "" && w.NodeService(h.name, serviceID) == nil {
			return notFound("ServiceID %q does not exist", serviceID)
		}
		if err := h.ensure(w); err != nil {
			return err
		}
		return putCheck(w, h.name, serviceID, d)
	})
	if err == nil {
		c.api.agent.sync([]checkKey{{h.name, d.ID, serviceID}})
	}
	return empty{}, err
}

func decodeCheck(raw []byte) (serviceID string, d config.CheckDefinition, err error) {
	body := map[string]json.RawMessage{}
	if err := json.Unmarshal(raw, &body); err != nil {
		return "", d, badRequest("Request decode failed: %v", err)
	}
	text := func(name string) (string, error) {
		for key, value := range body {
			if !strings.EqualFold(strings.ReplaceAll(key, "_", ""), name) {
				continue
			}
			var s string
			if err := json.Unmarshal(value, &s); err != nil {
				return "", badRequest("Request decode failed: %s: %v", key, err)
			}
			delete(body, key)
			return s, nil
		}
		return "", nil
	}
	name, err := text("Name")
	if err != nil {
		return "", d, err
	}
	id, err := text("ID")
	if err != nil {
		return "", d, err
	}
	checkID, err := text("CheckID")
	if err != nil {
		return "", d, err
	}
	if serviceID, err = text("ServiceID"); err != nil {
		return "", d, err
	}
	if name == "" {
		return "", d, badRequest("Missing check name")
	}
	body["Name"] = quote(name)
	body["CheckID"] = quote(cmp.Or(id, checkID, name))
	inner, err := json.Marshal(body)
	if err != nil {
		return "", d, err
	}
	// A check is decoded as part of a service, by whose rules it goes.
	def, err := config.DecodeRegistration(fmt.Appendf(nil, `{"Name":"service","Check":%s}`, inner))
	if err != nil {
		return "", d, badRequest("Invalid check: %v", err)
	}
	if len(def.Checks) != 1 {
		return "", d, badRequest("Invalid check: one of http, tcp, grpc, ttl and alias_service is needed")
	}
	return serviceID, def.Checks[0], nil
}

func quote(s string) json.RawMessage {
	b, _ := json.Marshal(s) // strings always marshal
	return b
}

func deregisterCheck(c *call) (any, error) {
	node := c.host().name
	var serviceID string
	err := c.api.store.Update(func(w *store.Writer) error {
		check, _ := w.Check(node, c.arg)
		if check == nil {
			return unknownCheck(c.arg)
		}
		serviceID = check.ServiceID
		_, err := w.DeleteCheck(node, c.arg)
		return err
	})
	if err == nil {
		c.api.agent.sync([]checkKey{{node, c.arg, serviceID}})
	}
	return empty{}, err
}

func passCheck(c *call) (any, error) { return c.pulse(catalog.Passing, c.query.Get("note")) }
func warnCheck(c *call) (any, error) { return c.pulse(catalog.Warning, c.query.Get("note")) }
func failCheck(c *call) (any, error) { return c.pulse(catalog.Critical, c.query.Get("note")) }

func updateCheck(c *call) (any, error) {
	var body struct {
		Status catalog.Status
		Output string
	}
	if err := c.decode(&body); err != nil {
		return nil, err
	}
	if !body.Status.Valid() {
		return nil, badRequest("Invalid check status: '%s'", body.Status)
	}
	return c.pulse(body.Status, body.Output)
}

// pulse sets a TTL check.
func (c *call) pulse(status catalog.Status, output string) (any, error) {
	return empty{}, c.api.agent.Pulse(c.host().name, c.arg, status, output)
}

// Pulse sets a TTL check and starts its TTL anew.
func (a *Agent) Pulse(node, checkID string, status catalog.Status, output string) error {
	var err error
	a.store.Read(context.Background(), 0, func(r *store.Reader) {
		err = nil
		switch check, d := r.Check(node, checkID); {
		case check == nil:
			err = unknownCheck(checkID)
		case d == nil || d.TTL == 0:
			err = internal("CheckID %q does not have associated TTL", checkID)
		}
	})
	if err != nil {
		return err
	}
	if checks := a.running(); checks != nil {
		return checks.Pulse(node, checkID, status, output)
	}
	return a.Report(node, checkID, status, output)
}
