package store

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Nodes lists all nodes by name.
func (r *Reader) Nodes() []*catalog.Node {
	r.look(subjectNodes)
	var out []*catalog.Node
	for _, row := range r.list(tableNodes, "id_prefix", []byte{}) {
		out = append(out, row.(*catalog.Node))
	}
	return out
}

// Node is the node with that name, or nil.
func (r *Reader) Node(name string) *catalog.Node {
	r.look(subjectNode(name))
	return r.node(name)
}

func (r *Reader) node(name string) *catalog.Node {
	n, _ := r.first(tableNodes, "id", name).(*catalog.Node)
	return n
}

// NodeServices lists the services on a node by ID.
func (r *Reader) NodeServices(node string) []*catalog.Service {
	r.look(subjectNode(node))
	var out []*catalog.Service
	for _, row := range r.list(tableServices, "id_prefix", key(node)) {
		out = append(out, &row.(*serviceRow).Service)
	}
	return out
}

// NodeService is one service on a node, or nil.
func (r *Reader) NodeService(node, id string) *catalog.Service {
	r.look(subjectNode(node))
	return r.service(node, id)
}

func (r *Reader) service(node, id string) *catalog.Service {
	row, ok := r.first(tableServices, "id", node, id).(*serviceRow)
	if !ok {
		return nil
	}
	return &row.Service
}

// Services lists, for each service name, the services registered under it with
// their nodes. Checks are left out.
func (r *Reader) Services() []catalog.Instance {
	r.look(subjectServices)
	var out []catalog.Instance
	for _, row := range r.list(tableServices, "name_prefix", []byte{}) {
		row := row.(*serviceRow)
		out = append(out, catalog.Instance{Node: r.node(row.Node), Service: &row.Service})
	}
	return out
}

// Instances lists the instances of a service, sorted by [catalog.CompareInstances].
func (r *Reader) Instances(service string) []catalog.Instance {
	r.look(subjectService(service))
	return r.instances("name", named(service))
}

// Connect lists the instances that carry a service's mesh traffic: its proxies and
// its connect-native instances, sorted by [catalog.CompareInstances].
func (r *Reader) Connect(service string) []catalog.Instance {
	r.look(subjectConnect(service))
	return r.instances("connect", named(service))
}

// InstancesFold, ConnectFold and NodeFold find what has a name in whatever case, as
// DNS needs it. They depend on nothing, so that they cannot be waited for.

// InstancesFold is [Reader.Instances] without regard to case.
func (r *Reader) InstancesFold(service string) []catalog.Instance {
	return r.instances("name_prefix", key(strings.ToLower(service)))
}

// ConnectFold is [Reader.Connect] without regard to case.
func (r *Reader) ConnectFold(service string) []catalog.Instance {
	return r.instances("connect_prefix", key(strings.ToLower(service)))
}

// NodeFold is [Reader.Node] without regard to case; of several, one.
func (r *Reader) NodeFold(name string) *catalog.Node {
	n, _ := r.first(tableNodes, "folded", strings.ToLower(name)).(*catalog.Node)
	return n
}

func (r *Reader) instances(index string, name []byte) []catalog.Instance {
	var out []catalog.Instance
	for _, row := range r.list(tableServices, index, name) {
		row := row.(*serviceRow)
		checks := r.checks("service", row.Node, "")
		if row.Service.ID != "" {
			checks = append(checks, r.checks("service", row.Node, row.Service.ID)...)
		}
		out = append(out, catalog.Instance{Node: r.node(row.Node), Service: &row.Service, Checks: checks})
	}
	slices.SortFunc(out, catalog.CompareInstances)
	return out
}

func (r *Reader) checks(index string, args ...any) []*catalog.Check {
	var out []*catalog.Check
	for _, row := range r.list(tableChecks, index, args...) {
		out = append(out, &row.(*checkRow).Check)
	}
	return out
}

// Checks lists all checks by node and ID.
func (r *Reader) Checks() []*catalog.Check {
	r.look(subjectChecks)
	return r.checks("id_prefix", []byte{})
}

// ServiceChecks lists the checks of all instances of a service, without their nodes'.
func (r *Reader) ServiceChecks(service string) []*catalog.Check {
	r.look(subjectService(service))
	var out []*catalog.Check
	for _, in := range r.instances("name", named(service)) {
		for _, c := range in.Checks {
			if c.ServiceID != "" {
				out = append(out, c)
			}
		}
	}
	return out
}

// NodeChecks lists the checks on a node, those of its services included, by ID.
func (r *Reader) NodeChecks(node string) []*catalog.Check {
	r.look(subjectNode(node))
	return r.checks("id_prefix", key(node))
}

// Check is one check, or nil, with its definition when the server runs it.
func (r *Reader) Check(node, id string) (*catalog.Check, *config.CheckDefinition) {
	r.look(subjectNode(node))
	row, ok := r.first(tableChecks, "id", node, id).(*checkRow)
	if !ok {
		return nil, nil
	}
	return &row.Check, row.Definition
}

// PutNode registers a node or replaces its row.
func (w *Writer) PutNode(n catalog.Node) error {
	if err := nameError("node", n.Name); err != nil {
		return err
	}
	n.Datacenter = w.datacenter
	n.CreateIndex, n.ModifyIndex = w.next, w.next
	if old := w.node(n.Name); old != nil {
		n.CreateIndex, n.ModifyIndex = old.CreateIndex, old.ModifyIndex
		if same(old, &n) {
			return nil
		}
		n.ModifyIndex = w.next
	}
	if err := w.put(tableNodes, &n); err != nil {
		return err
	}
	w.bump(subjectNodes)
	w.nodeChanged(n.Name)
	return nil
}

// nodeChanged bumps a node and everything that is seen through it.
func (w *Writer) nodeChanged(node string) {
	w.bump(subjectNode(node))
	for _, row := range w.list(tableServices, "id_prefix", key(node)) {
		w.serviceChanged(&row.(*serviceRow).Service)
	}
}

func (w *Writer) serviceChanged(s *catalog.Service) {
	w.bump(subjectService(s.Name))
	if name := meshName(s); name != "" {
		w.bump(subjectConnect(name))
	}
}

// DeleteNode removes a node with all its services and checks. A node that is not
// there is no error.
func (w *Writer) DeleteNode(name string) error {
	n := w.node(name)
	if n == nil {
		return nil
	}
	for _, row := range w.list(tableChecks, "id_prefix", key(name)) {
		if err := w.deleteCheck(row.(*checkRow)); err != nil {
			return err
		}
	}
	for _, row := range w.list(tableServices, "id_prefix", key(name)) {
		if err := w.deleteService(row.(*serviceRow), "its node was deregistered"); err != nil {
			return err
		}
	}
	if err := w.endSessions(name, ""); err != nil {
		return err
	}
	if err := w.remove(tableNodes, n); err != nil {
		return err
	}
	w.bump(subjectNodes)
	w.bump(subjectNode(name))
	return w.bury()
}

// PutService registers a service on a node that exists, or replaces it. An empty ID
// is the name, absent weights are 1.
func (w *Writer) PutService(node string, s catalog.Service) error {
	if err := nameError("service", s.Name); err != nil {
		return err
	}
	s.ID = cmp.Or(s.ID, s.Name)
	if err := nameError("service ID", s.ID); err != nil {
		return err
	}
	if w.node(node) == nil {
		return fmt.Errorf("service %q: node %q is not registered; register the node first", s.ID, node)
	}
	if s.Tags == nil {
		s.Tags = []string{}
	}
	if s.Weights == (catalog.Weights{}) {
		s.Weights = catalog.Weights{Passing: 1, Warning: 1}
	}
	s.CreateIndex, s.ModifyIndex = w.next, w.next
	old := w.service(node, s.ID)
	if old != nil {
		s.CreateIndex, s.ModifyIndex = old.CreateIndex, old.ModifyIndex
		if same(old, &s) {
			return nil
		}
		s.ModifyIndex = w.next
	}
	if err := w.put(tableServices, &serviceRow{node, s}); err != nil {
		return err
	}
	if err := w.arrive(node, s.ID); err != nil {
		return err
	}
	w.bump(subjectServices)
	w.bump(subjectNode(node))
	w.serviceChanged(&s)
	if old == nil {
		return nil
	}
	w.serviceChanged(old)
	return w.renameChecks(node, &s)
}

// renameChecks keeps the copies of a service's name and tags in its checks true.
func (w *Writer) renameChecks(node string, s *catalog.Service) error {
	for _, row := range w.list(tableChecks, "service", node, s.ID) {
		row := row.(*checkRow)
		if err := w.PutCheck(row.Check, row.Definition); err != nil {
			return err
		}
	}
	return nil
}

// DeleteService removes a service and its checks because somebody who may asked for it,
// which [Store.Explains] tells later. One that is not there is no error.
func (w *Writer) DeleteService(node, id string) error {
	if row, ok := w.first(tableServices, "id", node, id).(*serviceRow); ok {
		return w.deleteService(row, "it was deregistered")
	}
	return nil
}

// ExpireService is [Writer.DeleteService] where nobody asked: the registry gives up on it.
func (w *Writer) ExpireService(node, id string) error {
	if row, ok := w.first(tableServices, "id", node, id).(*serviceRow); ok {
		return w.deleteService(row, "")
	}
	return nil
}

// deleteService removes a service; why, if somebody asked for it, is remembered.
func (w *Writer) deleteService(row *serviceRow, why string) error {
	node, id := row.Node, row.Service.ID
	for _, c := range w.list(tableChecks, "service", node, id) {
		if err := w.deleteCheck(c.(*checkRow)); err != nil {
			return err
		}
	}
	if err := w.remove(tableServices, row); err != nil {
		return err
	}
	if why != "" {
		if err := w.depart(row, why); err != nil {
			return err
		}
	}
	w.bump(subjectServices)
	w.bump(subjectNode(node))
	w.serviceChanged(&row.Service)
	if w.first(tableServices, "name", named(row.Service.Name)) == nil {
		return w.bury()
	}
	return nil
}

// PutCheck registers a check or replaces it. definition says how the server runs
// it; nil when somebody else reports its status. A check of a service needs that
// service on its node; its name and tags are copied into the check.
func (w *Writer) PutCheck(c catalog.Check, definition *config.CheckDefinition) error {
	if err := nameError("check ID", c.CheckID); err != nil {
		return err
	}
	if !c.Status.Valid() {
		return fmt.Errorf("check %q: status %q: want passing, warning or critical", c.CheckID, c.Status)
	}
	if w.node(c.Node) == nil {
		return fmt.Errorf("check %q: node %q is not registered; register the node first", c.CheckID, c.Node)
	}
	c.ServiceName, c.ServiceTags = "", []string{}
	if c.ServiceID != "" {
		s := w.service(c.Node, c.ServiceID)
		if s == nil {
			return fmt.Errorf("check %q: service %q is not registered on node %q", c.CheckID, c.ServiceID, c.Node)
		}
		c.ServiceName, c.ServiceTags = s.Name, s.Tags
	}
	c.CreateIndex, c.ModifyIndex = w.next, w.next
	old, _ := w.first(tableChecks, "id", c.Node, c.CheckID).(*checkRow)
	if old != nil {
		c.CreateIndex, c.ModifyIndex = old.Check.CreateIndex, old.Check.ModifyIndex
		if same(old, &checkRow{c, definition}) {
			return nil
		}
		c.ModifyIndex = w.next
	}
	if err := w.put(tableChecks, &checkRow{c, definition}); err != nil {
		return err
	}
	w.checkChanged(&c)
	if c.Status == catalog.Critical {
		if err := w.endSessions(c.Node, c.CheckID); err != nil {
			return err
		}
	}
	if old != nil && old.Check.ServiceID != c.ServiceID {
		w.checkChanged(&old.Check)
	}
	return nil
}

// UpdateCheck sets what a check says. It reports whether the check is there.
func (w *Writer) UpdateCheck(node, id string, status catalog.Status, output string) (bool, error) {
	row, ok := w.first(tableChecks, "id", node, id).(*checkRow)
	if !ok {
		return false, nil
	}
	c := row.Check
	c.Status, c.Output = status, output
	return true, w.PutCheck(c, row.Definition)
}

// DeleteCheck removes a check. It reports whether it was there.
func (w *Writer) DeleteCheck(node, id string) (bool, error) {
	row, ok := w.first(tableChecks, "id", node, id).(*checkRow)
	if !ok {
		return false, nil
	}
	return true, w.deleteCheck(row)
}

func (w *Writer) deleteCheck(row *checkRow) error {
	if err := w.remove(tableChecks, row); err != nil {
		return err
	}
	w.checkChanged(&row.Check)
	return w.endSessions(row.Check.Node, row.Check.CheckID)
}

// checkChanged bumps a check's service or, for a node's check, everything on the node.
func (w *Writer) checkChanged(c *catalog.Check) {
	w.bump(subjectChecks)
	if c.ServiceID == "" {
		w.nodeChanged(c.Node)
		return
	}
	w.bump(subjectNode(c.Node))
	if s := w.service(c.Node, c.ServiceID); s != nil {
		w.serviceChanged(s)
	}
}
