package consulapi

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

// stale is what a compare-and-set of a row of the catalog fails with.
func stale(what string, write bool) error {
	action := "set"
	if !write {
		action = "delete"
	}
	return fmt.Errorf("failed to %s %s, index is stale", action, what)
}

func (t *txn) node(op *nodeOp) error {
	n := op.Node
	old := t.w.Node(n.Node)
	for _, other := range t.w.Nodes() {
		if n.Node == "" && n.ID != "" && other.ID == n.ID {
			old = other
		}
	}
	var index uint64
	if old != nil {
		index = old.ModifyIndex
	}
	what := fmt.Sprintf("node %q", n.Node)
	switch op.Verb {
	case "get":
		if old == nil {
			return fmt.Errorf("node %q doesn't exist", n.Node)
		}
		shape := showNode(old)
		t.show(txnResult{Node: &shape})
		return nil
	case "cas":
		if !compare(&n.ModifyIndex, old != nil, index) {
			return stale(what, true)
		}
	case "delete-cas":
		if old == nil || index != n.ModifyIndex {
			return stale(what, false)
		}
	}
	if op.Verb == "delete" || op.Verb == "delete-cas" {
		t.touch(n.Node, "")
		return t.w.DeleteNode(n.Node)
	}
	b := registrationBody{ID: n.ID, Node: n.Node, Address: n.Address, TaggedAddresses: n.TaggedAddresses, NodeMeta: n.Meta}
	if err := b.putNode(t.w); err != nil {
		return err
	}
	shape := showNode(t.w.Node(n.Node))
	t.show(txnResult{Node: &shape})
	return nil
}

// touch notes the checks of a service, or of a whole node, before they go.
func (t *txn) touch(node, serviceID string) {
	for _, c := range t.w.NodeChecks(node) {
		if serviceID == "" || c.ServiceID == serviceID {
			t.touched = append(t.touched, checkKey{node, c.CheckID, c.ServiceID})
		}
	}
}

// text is a field of the service that holds a string.
func (op *serviceOp) text(name string) string {
	var s string
	if json.Unmarshal(op.Service[name], &s) != nil {
		return ""
	}
	return s
}

func (t *txn) service(op *serviceOp) error {
	var want uint64
	if raw, ok := op.Service["ModifyIndex"]; ok {
		if err := json.Unmarshal(raw, &want); err != nil {
			return fmt.Errorf("service: ModifyIndex: %w", err)
		}
	}
	id := op.text("ID")
	if id == "" {
		id = op.text("Service")
	}
	old := t.w.NodeService(op.Node, id)
	var index uint64
	if old != nil {
		index = old.ModifyIndex
	}
	what := fmt.Sprintf("service %q on node %q", id, op.Node)
	switch op.Verb {
	case "get":
		if old == nil {
			return fmt.Errorf("%s doesn't exist", what)
		}
		shape := showService(old)
		t.show(txnResult{Service: &shape})
		return nil
	case "cas":
		if !compare(&want, old != nil, index) {
			return stale(what, true)
		}
	case "delete-cas":
		if old == nil || index != want {
			return stale(what, false)
		}
	}
	if op.Verb == "delete" || op.Verb == "delete-cas" {
		t.touch(op.Node, id)
		return t.w.DeleteService(op.Node, id)
	}
	if t.w.Node(op.Node) == nil {
		return errors.New("Missing node registration")
	}
	b := registrationBody{Service: op.Service}
	s, err := b.service()
	if err != nil {
		return err
	}
	if err := t.w.PutService(op.Node, *s); err != nil {
		return err
	}
	shape := showService(t.w.NodeService(op.Node, id))
	t.show(txnResult{Service: &shape})
	return nil
}

func (t *txn) check(op *checkOp) error {
	b := op.Check
	old, _ := t.w.Check(b.Node, b.CheckID)
	var index uint64
	if old != nil {
		index = old.ModifyIndex
	}
	what := fmt.Sprintf("check %q on node %q", b.CheckID, b.Node)
	switch op.Verb {
	case "get":
		if old == nil {
			return fmt.Errorf("%s doesn't exist", what)
		}
		t.showCheck(old)
		return nil
	case "cas":
		if !compare(&b.ModifyIndex, old != nil, index) {
			return stale(what, true)
		}
	case "delete-cas":
		if old == nil || index != b.ModifyIndex {
			return stale(what, false)
		}
	}
	if op.Verb == "delete" || op.Verb == "delete-cas" {
		if old != nil {
			t.touched = append(t.touched, checkKey{b.Node, b.CheckID, old.ServiceID})
		}
		_, err := t.w.DeleteCheck(b.Node, b.CheckID)
		return err
	}
	if t.w.Node(b.Node) == nil {
		return errors.New("Missing node registration")
	}
	k, err := b.put(t.w, b.Node)
	if err != nil {
		return err
	}
	t.touched = append(t.touched, k)
	put, _ := t.w.Check(k.node, k.id)
	t.showCheck(put)
	return nil
}

func (t *txn) showCheck(c *catalog.Check) {
	shape := showCheck(c)
	t.show(txnResult{Check: &shape})
}
