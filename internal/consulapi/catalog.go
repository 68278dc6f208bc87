package consulapi

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// registrationBody is the body of /v1/catalog/register. Fields of type any are
// Consul's that change nothing here.
type registrationBody struct {
	ID                      string
	Node                    string
	Address                 string
	Datacenter              string
	TaggedAddresses         map[string]string
	NodeMeta                map[string]string
	Service                 map[string]json.RawMessage
	Check                   *checkBody
	Checks                  []*checkBody
	SkipNodeUpdate          bool
	Partition, Namespace    any
	Locality, PeerName      any
	EnterpriseMeta, Token   any
	WriteRequest, RaftIndex any
}

type checkBody struct {
	Node                     string
	CheckID                  string
	Name                     string
	Status                   catalog.Status
	Notes                    string
	Output                   string
	ServiceID                string
	Type                     string
	Interval                 string
	Timeout                  string
	ServiceName, ServiceTags any
	Definition, ExposedPort  any
	Partition, Namespace     any
	CreateIndex, ModifyIndex any
	PeerName                 any
}

func catalogRegister(c *call) (any, error) {
	var b registrationBody
	if err := c.decode(&b); err != nil {
		return nil, err
	}
	switch {
	case b.Node == "":
		return nil, internal("Must provide node")
	case b.Address == "" && !b.SkipNodeUpdate:
		return nil, internal("Must provide address if SkipNodeUpdate is not set")
	case b.Datacenter != "" && b.Datacenter != c.api.store.Datacenter():
		return nil, internal("No path to datacenter")
	case b.ID != "" && len(b.ID) != 36:
		return nil, internal("Bad node ID: uuid string is wrong length")
	}
	service, err := b.service()
	if err != nil {
		return nil, err
	}
	checks := b.Checks
	if b.Check != nil {
		checks = append(checks, b.Check)
	}
	var touched []checkKey
	err = c.api.store.Update(func(w *store.Writer) error {
		touched = nil
		if err := b.putNode(w); err != nil {
			return err
		}
		if service != nil {
			if err := w.PutService(b.Node, *service); err != nil {
				return err
			}
		}
		for _, check := range checks {
			k, err := check.put(w, b.Node)
			if err != nil {
				return err
			}
			touched = append(touched, k)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	c.api.agent.sync(touched)
	return true, nil
}

func (b *registrationBody) putNode(w *store.Writer) error {
	old := w.Node(b.Node)
	if old != nil && b.SkipNodeUpdate {
		return nil
	}
	n := catalog.Node{ID: b.ID, Name: b.Node, Address: b.Address, TaggedAddresses: b.TaggedAddresses, Meta: b.NodeMeta}
	if old != nil {
		n.ID = cmp.Or(n.ID, old.ID)
	}
	return w.PutNode(n)
}

// service decodes the service by the same rules as the agent's registrations.
func (b *registrationBody) service() (*catalog.Service, error) {
	if b.Service == nil {
		return nil, nil
	}
	body := map[string]json.RawMessage{}
	for k, v := range b.Service {
		switch strings.ToLower(k) {
		case "service":
			k = "Name"
		case "peername":
			continue
		}
		body[k] = v
	}
	if name := string(body["Name"]); name == "" || name == `""` {
		return nil, internal("Must provide service name (Service.Service) when service ID is provided")
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	d, err := config.DecodeRegistration(raw)
	if err != nil {
		return nil, badRequest("Invalid service: %v", err)
	}
	if d.Sidecar != nil || len(d.Checks) > 0 {
		return nil, badRequest("Invalid service %q: sidecars and checks are registered on the agent, not on the catalog", d.Service.Name)
	}
	return &d.Service, nil
}

func (b *checkBody) put(w *store.Writer, node string) (checkKey, error) {
	c := catalog.Check{
		Node: cmp.Or(b.Node, node), CheckID: cmp.Or(b.CheckID, b.Name), Name: cmp.Or(b.Name, b.CheckID),
		Status: cmp.Or(b.Status, catalog.Critical), Notes: b.Notes, Output: b.Output, ServiceID: b.ServiceID,
		Type: b.Type, Interval: b.Interval, Timeout: b.Timeout,
	}
	k := checkKey{c.Node, c.CheckID, c.ServiceID}
	if c.Node != node {
		return k, internal("check %q is for node %q, the registration for node %q", c.CheckID, c.Node, node)
	}
	if c.ServiceID != "" && w.NodeService(c.Node, c.ServiceID) == nil {
		return k, internal("Unknown service ID '%s' for check ID '%s'", c.ServiceID, c.CheckID)
	}
	if !c.Status.Valid() {
		return k, badRequest("Bad check status")
	}
	_, definition := w.Check(c.Node, c.CheckID)
	return k, w.PutCheck(c, definition)
}

func catalogDeregister(c *call) (any, error) {
	var b struct {
		Node, ServiceID, CheckID, Address, Datacenter  string
		Namespace, Partition, PeerName, EnterpriseMeta any
		WriteRequest, Token                            any
	}
	if err := c.decode(&b); err != nil {
		return nil, err
	}
	if b.Node == "" {
		return nil, internal("Must provide node")
	}
	if b.Datacenter != "" && b.Datacenter != c.api.store.Datacenter() {
		return nil, internal("No path to datacenter")
	}
	var touched []checkKey
	err := c.api.store.Update(func(w *store.Writer) error {
		touched = nil
		for _, check := range w.NodeChecks(b.Node) {
			touched = append(touched, checkKey{b.Node, check.CheckID, check.ServiceID})
		}
		switch {
		case b.ServiceID != "":
			return w.DeleteService(b.Node, b.ServiceID)
		case b.CheckID != "":
			_, err := w.DeleteCheck(b.Node, b.CheckID)
			return err
		default:
			return w.DeleteNode(b.Node)
		}
	})
	if err != nil {
		return nil, err
	}
	c.api.agent.sync(touched)
	return true, nil
}

func catalogDatacenters(c *call) (any, error) { return []string{c.api.store.Datacenter()}, nil }

func catalogNodes(c *call) (any, error) {
	var out []nodeShape
	wanted := c.nodeMeta()
	err := c.read(func(r *store.Reader) {
		out = []nodeShape{}
		for _, n := range r.Nodes() {
			if wanted(n.Meta) {
				out = append(out, showNode(n))
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return filter(c, out)
}

// catalogServices lists the names of services with all tags that instances have.
func catalogServices(c *call) (any, error) {
	var all []catalogServiceShape
	wanted := c.nodeMeta()
	err := c.read(func(r *store.Reader) {
		all = nil
		for _, in := range r.Services() {
			if wanted(in.Node.Meta) {
				all = append(all, showCatalogService(in))
			}
		}
	})
	if err != nil {
		return nil, err
	}
	if all, err = filter(c, all); err != nil {
		return nil, err
	}
	tags := map[string]map[string]bool{}
	for _, s := range all {
		if tags[s.ServiceName] == nil {
			tags[s.ServiceName] = map[string]bool{}
		}
		for _, t := range s.ServiceTags {
			tags[s.ServiceName][t] = true
		}
	}
	out := map[string][]string{}
	for name, set := range tags {
		out[name] = slices.AppendSeq([]string{}, maps.Keys(set))
		slices.Sort(out[name])
	}
	return out, nil
}

func catalogService(c *call) (any, error) { return c.catalogInstances((*store.Reader).Instances) }

func catalogConnect(c *call) (any, error) { return c.catalogInstances((*store.Reader).Connect) }

func (c *call) catalogInstances(list func(*store.Reader, string) []catalog.Instance) (any, error) {
	instances, err := c.instances(list)
	if err != nil {
		return nil, err
	}
	out := []catalogServiceShape{}
	for _, in := range instances {
		out = append(out, showCatalogService(in))
	}
	return filter(c, out)
}

// instances lists those of the service in the path that the call's tags, ServiceTags
// and node-meta select.
func (c *call) instances(list func(*store.Reader, string) []catalog.Instance) ([]catalog.Instance, error) {
	name, err := c.need("service name")
	if err != nil {
		return nil, err
	}
	tags, wanted := c.all("tag"), c.nodeMeta()
	var out []catalog.Instance
	err = c.read(func(r *store.Reader) {
		out = nil
		for _, in := range list(r, name) {
			if hasTags(in.Service.Tags, tags) && wanted(in.Node.Meta) {
				out = append(out, in)
			}
		}
	})
	return out, err
}

func catalogNode(c *call) (any, error) {
	n, services, err := c.nodeServices()
	if err != nil || n == nil {
		return nil, err
	}
	byID := map[string]serviceShape{}
	for _, s := range services {
		byID[s.ID] = s
	}
	return map[string]any{"Node": showNode(n), "Services": byID}, nil
}

func catalogNodeServices(c *call) (any, error) {
	n, services, err := c.nodeServices()
	if err != nil {
		return nil, err
	}
	if n == nil {
		return map[string]any{"Node": nil, "Services": nil}, nil
	}
	return map[string]any{"Node": showNode(n), "Services": services}, nil
}

func (c *call) nodeServices() (*catalog.Node, []serviceShape, error) {
	name, err := c.need("node name")
	if err != nil {
		return nil, nil, err
	}
	var n *catalog.Node
	var services []serviceShape
	err = c.read(func(r *store.Reader) {
		n, services = r.Node(name), []serviceShape{}
		for _, s := range r.NodeServices(name) {
			services = append(services, showService(s))
		}
	})
	if err != nil {
		return nil, nil, err
	}
	services, err = filter(c, services)
	return n, services, err
}
