package consulapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"

	wire "github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/access"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// need is what a call takes, by the path of its route and its method. What has no
// entry here takes the right to read, or for a write the right to operate.
type need func(c *call) access.Need

// needs lists, under "METHOD path", what is not the default.
func needs() map[string]need {
	known := func(*call) access.Need { return access.Need{Kind: access.Known} }
	out := map[string]need{
		"GET /v1/agent/self":               known,
		"GET /v1/agent/version":            known,
		"GET /v1/acl/":                     known,
		"PUT /v1/acl/":                     known,
		"DELETE /v1/acl/":                  known,
		"GET /v1/agent/service/":           ofService(access.Read),
		"GET /v1/agent/health/service/id/": ofService(access.Read),

		"PUT /v1/agent/service/register":     registration,
		"PUT /v1/agent/service/deregister/":  ofService(access.Register),
		"PUT /v1/agent/service/maintenance/": ofService(access.Register),
		"PUT /v1/agent/check/register":       checkRegistration,
		"PUT /v1/agent/check/deregister/":    ofCheck,
		"PUT /v1/agent/check/pass/":          pulse,
		"PUT /v1/agent/check/warn/":          pulse,
		"PUT /v1/agent/check/fail/":          pulse,
		"PUT /v1/agent/check/update/":        pulse,

		"GET /v1/config/":    readEntry,
		"PUT /v1/config":     writeEntry,
		"DELETE /v1/config/": func(c *call) access.Need { return entryNeed(c.key()) },

		"PUT /v1/crossfade/sidecars/":        reportBySidecar,
		"POST /v1/discovery-chain/":          plan,
		"POST /v1/crossfade/config/plan":     plan,
		"GET /v1/crossfade/config/history/":  readEntry,
		"PUT /v1/crossfade/config/rollback/": func(c *call) access.Need { return entryNeed(c.key()) },

		"POST /v1/crossfade/shift":    shiftNeed,
		"GET /v1/crossfade/shift/log": func(*call) access.Need { return access.Need{Kind: access.Operate} },
		"POST /v1/crossfade/revert":   revertNeed,

		"PUT /v1/crossfade/catalog/release/": decision("release"),
		"PUT /v1/crossfade/catalog/keep/":    decision("keep"),

		"PUT /v1/connect/intentions/exact":    destination,
		"DELETE /v1/connect/intentions/exact": destination,
		"POST /v1/connect/intentions":         createdIntention,

		"PUT /v1/kv/":    ofKey,
		"DELETE /v1/kv/": ofKey,
	}
	for _, path := range publicPaths() {
		out["GET "+path] = func(*call) access.Need { return access.Need{Kind: access.Public} }
	}
	return out
}

// authorize asks whether the call may be made.
func (c *call) authorize(path string) error {
	if c.api.Authorize == nil {
		return nil
	}
	method := c.r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	n := access.Need{Kind: access.Operate}
	if method == http.MethodGet {
		n.Kind = access.Read
	}
	if of := c.api.needs[method+" "+path]; of != nil {
		// Nothing that a stranger sends is decoded.
		if err := c.api.Authorize(c.r, access.Need{Kind: access.Known}); err != nil && !slices.Contains(publicPaths(), path) {
			return denied(err)
		}
		n = of(c)
	}
	return denied(c.api.Authorize(c.r, n))
}

func denied(err error) error {
	if _, ok := errors.AsType[*access.Refusal](err); ok {
		return &httpError{http.StatusForbidden, err.Error()}
	}
	return err
}

// publicPaths are those that everybody may read.
func publicPaths() []string {
	return []string{"/v1/status/leader", "/v1/status/peers", "/v1/connect/ca/roots", "/v1/agent/connect/ca/roots"}
}

// peek reads a body of at most limit bytes and leaves it to be read again. One that is
// too large, or broken, is left for the endpoint to complain about.
func (c *call) peek(limit int64) []byte {
	raw, err := io.ReadAll(io.LimitReader(c.r.Body, limit+1))
	c.r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(raw), failing{err}, c.r.Body), c.r.Body}
	return raw
}

// failing is a reader that ends with an error, or is empty.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return 0, io.EOF
}

// owners are the services that a registered service's rights come from: itself, and
// for a proxy that which it stands for, to which its usual name belongs as well.
func owners(s *catalog.Service) []string {
	if s.Kind != catalog.ConnectProxy || s.Proxy == nil {
		return []string{s.Name}
	}
	of := s.Proxy.DestinationServiceName
	if s.Name == of+sidecarSuffix {
		return []string{of}
	}
	return []string{of, s.Name}
}

// concerned collects services, without repetition.
type concerned map[string]struct{}

func (c concerned) add(services ...string) {
	for _, s := range services {
		c[s] = struct{}{}
	}
}

func (c concerned) sorted() []string { return slices.Sorted(maps.Keys(c)) }

// ofService is what concerns the service whose ID ends the path. Of one that is not
// there everybody may be told so.
func ofService(kind access.Kind) need {
	return func(c *call) access.Need {
		n := access.Need{Kind: access.Known}
		c.api.store.Read(c.r.Context(), 0, func(r *store.Reader) {
			if s := r.NodeService(c.host().name, c.arg); s != nil {
				n = access.Need{Kind: kind, Services: owners(s)}
			}
		})
		return n
	}
}

// registration concerns the service and its sidecar, and whatever has their IDs, or
// those of their checks, now. It must not move a node from under others.
func registration(c *call) access.Need {
	d, err := config.DecodeRegistration(c.peek(maxSmallBody))
	if err != nil {
		return access.Need{Kind: access.Known} // the endpoint will refuse it
	}
	h := c.host()
	n := access.Need{Kind: access.Register, Target: fmt.Sprintf("%s id %s on %s", d.Service.Name, d.Service.ID, h.name)}
	all := concerned{}
	c.api.store.Read(c.r.Context(), 0, func(r *store.Reader) {
		clear(all)
		for _, part := range []struct {
			service *catalog.Service
			checks  []config.CheckDefinition
		}{{&d.Service, d.Checks}, {d.SidecarService(), sidecarChecksOf(d)}} {
			if part.service == nil {
				continue
			}
			all.add(owners(part.service)...)
			if now := r.NodeService(h.name, part.service.ID); now != nil {
				all.add(owners(now)...)
			}
			for _, check := range part.checks {
				all.add(checked(r, h.name, check.ID, part.service.ID)...)
			}
		}
		if node := r.Node(h.name); node != nil && h.address != "" && node.Address != h.address {
			for _, s := range r.NodeServices(h.name) {
				all.add(owners(s)...)
			}
		}
	})
	n.Services = all.sorted()
	return n
}

func sidecarChecksOf(d config.Definition) []config.CheckDefinition {
	if d.Sidecar == nil {
		return nil
	}
	id := "service:" + d.SidecarService().ID
	return append([]config.CheckDefinition{{ID: id}, {ID: id + ":1"}, {ID: id + ":2"}}, d.Sidecar.Checks...)
}

// checked are the owners of what a check is about now, when that is not the service
// with the given ID: "" for a check of the node, which is nobody's.
func checked(r *store.Reader, node, checkID, serviceID string) []string {
	check, _ := r.Check(node, checkID)
	if check == nil || check.ServiceID == serviceID {
		return nil
	}
	if s := r.NodeService(node, check.ServiceID); s != nil {
		return owners(s)
	}
	return []string{""}
}

func checkRegistration(c *call) access.Need {
	serviceID, d, err := decodeCheck(c.peek(maxSmallBody))
	if err != nil {
		return access.Need{Kind: access.Known}
	}
	node := c.host().name
	all := concerned{}
	there := true
	c.api.store.Read(c.r.Context(), 0, func(r *store.Reader) {
		clear(all)
		s := r.NodeService(node, serviceID)
		if there = s != nil; there {
			all.add(owners(s)...)
		}
		all.add(checked(r, node, d.ID, serviceID)...)
	})
	if !there {
		return access.Need{Kind: access.Operate, Target: "check " + d.ID}
	}
	return access.Need{Kind: access.Register, Services: all.sorted(), Target: "check " + d.ID + " of " + serviceID}
}

// ofCheck concerns the service of the check whose ID ends the path. The node's own
// checks take an operator.
func ofCheck(c *call) access.Need {
	n := access.Need{Kind: access.Known}
	c.api.store.Read(c.r.Context(), 0, func(r *store.Reader) {
		check, _ := r.Check(c.host().name, c.arg)
		if check == nil {
			n = access.Need{Kind: access.Known}
			return
		}
		n = access.Need{Kind: access.Operate}
		if s := r.NodeService(c.host().name, check.ServiceID); s != nil {
			n = access.Need{Kind: access.Register, Services: owners(s)}
		}
	})
	return n
}

func pulse(c *call) access.Need {
	n := ofCheck(c)
	n.Pulse = true
	return n
}

// entryNeed is what writing an entry takes: its service's owner, where it has one, and
// of a pair the source's.
func entryNeed(k config.Key) access.Need {
	n := access.Need{Kind: access.Operate, Target: string(k.Kind) + "/" + k.Name}
	if source, _, pair := config.PairOf(k.Name); k.Kind == config.KindTrafficShift {
		// Those are the source's own requests.
		if pair && source != "" && source != config.Wildcard {
			n.Kind, n.Services = access.Write, []string{source}
		}
		return n
	}
	if strings.HasPrefix(string(k.Kind), "service-") && k.Name != "" && k.Name != config.Wildcard {
		n.Kind, n.Services = access.Write, []string{k.Name}
	}
	return n
}

func readEntry(c *call) access.Need {
	n := entryNeed(c.key())
	n.Kind = access.Read
	return n
}

// writeEntry lets an instance declare its own service's protocol while nobody has.
func writeEntry(c *call) access.Need {
	e, err := config.DecodeEntryJSON(c.peek(maxBody))
	if err != nil {
		return access.Need{Kind: access.Known}
	}
	n := entryNeed(config.KeyOf(e))
	if d, ok := e.(*config.ServiceDefaults); ok && c.query.Get("cas") == "0" && n.Kind == access.Write {
		bare := config.ServiceDefaults{Kind: d.Kind, Name: d.Name, Protocol: d.Protocol}
		bare.Normalize()
		if reflect.DeepEqual(*d, bare) {
			n.Kind = access.Register
		}
	}
	return n
}

// reportBySidecar is for whoever may register the sidecar whose ID begins the rest of the path.
func reportBySidecar(c *call) access.Need {
	of := *c
	of.arg, _, _ = strings.Cut(c.arg, "/")
	n := ofService(access.Register)(&of)
	n.Pulse = true
	return n
}

// shiftNeed is what writing the entry of each pair takes. What cannot be read takes the most.
func shiftNeed(c *call) access.Need {
	var in wire.ShiftRequest
	if json.Unmarshal(c.peek(wire.MaxBody), &in) != nil {
		return access.Need{Kind: access.Operate, Target: "shift"}
	}
	if in.DryRun {
		return plan(c)
	}
	pairs := make([]wire.PairName, len(in.Pairs))
	for i, p := range in.Pairs {
		pairs[i] = p.PairName
	}
	if in.Stage != "" && in.Service != "" {
		// What a service takes is its owner's to say; how its callers send is not.
		if in.Stage == "strict" {
			return access.Need{Kind: access.Write, Services: []string{in.Service}, Target: "strict " + in.Service}
		}
		return access.Need{Kind: access.Operate, Target: "stage " + in.Service}
	}
	n := pairsNeed("shift", in.Service, pairs)
	if in.Stage == "plain" || in.Stage == "permissive" {
		all := concerned{}
		all.add(n.Services...)
		for _, p := range pairs {
			all.add(p.Destination)
		}
		n.Services = all.sorted()
	}
	return n
}

func revertNeed(c *call) access.Need {
	var in wire.RevertRequest
	if json.Unmarshal(c.peek(wire.MaxBody), &in) != nil {
		return access.Need{Kind: access.Operate, Target: "revert"}
	}
	if in.All {
		return access.Need{Kind: access.Operate, Target: "revert all"}
	}
	return pairsNeed("revert", in.Service, in.Pairs)
}

// pairsNeed is all that the pairs take; a service's callers are as a rule of many owners.
func pairsNeed(verb, service string, pairs []wire.PairName) access.Need {
	out := access.Need{Kind: access.Write, Target: verb}
	if service != "" || len(pairs) == 0 {
		return access.Need{Kind: access.Operate, Target: strings.TrimSpace(verb + " " + service)}
	}
	all := concerned{}
	for _, p := range pairs {
		n := entryNeed(config.Key{Kind: config.KindTrafficShift, Name: config.PairName(p.Source, p.Destination)})
		if n.Kind != access.Write {
			out.Kind = n.Kind
		}
		all.add(n.Services...)
		out.Target += " " + config.PairName(p.Source, p.Destination)
	}
	out.Services = all.sorted()
	return out
}

// decision is about what is held of a service, which takes an operator.
func decision(verb string) need {
	return func(c *call) access.Need {
		return access.Need{Kind: access.Operate, Target: verb + " " + c.arg}
	}
}

// plan writes nothing, though it takes a body.
func plan(*call) access.Need { return access.Need{Kind: access.Read, Pulse: true} }

func destination(c *call) access.Need {
	source, dest, err := c.pair()
	if err != nil {
		return access.Need{Kind: access.Known}
	}
	return intentionNeed(source, dest)
}

func createdIntention(c *call) access.Need {
	raw := c.peek(maxSmallBody)
	var b intentionBody
	inner := &call{api: c.api, w: c.w, r: c.r.Clone(c.r.Context())}
	inner.r.Body = io.NopCloser(bytes.NewReader(raw))
	if err := inner.decode(&b); err != nil {
		return access.Need{Kind: access.Known}
	}
	return intentionNeed(b.SourceName, b.DestinationName)
}

func intentionNeed(source, dest string) access.Need {
	n := entryNeed(config.Key{Kind: config.KindServiceIntentions, Name: dest})
	n.Target = "intention " + source + " => " + dest
	return n
}

// ofKey gives the source of a pair the key by which client libraries are told its
// share; all other keys take an operator.
func ofKey(c *call) access.Need {
	p := strings.Split(c.arg, "/")
	if len(p) == 4 && p[0] == "crossfade" && p[1] != "" && p[2] != "" && p[3] == "mesh_percent" && !c.query.Has("recurse") {
		return access.Need{Kind: access.Write, Services: []string{p[1]}}
	}
	return access.Need{Kind: access.Operate}
}
