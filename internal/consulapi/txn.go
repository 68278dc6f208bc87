package consulapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
)

// Bounds of a transaction, as in Consul.
const (
	maxTxnOps  = 128
	maxTxnBody = 512 << 10
)

// txnOp is one operation of a transaction: one of its fields, or nothing.
type txnOp struct {
	KV      *kvOp
	Node    *nodeOp
	Service *serviceOp
	Check   *checkOp
}

type kvOp struct {
	Verb    string
	Key     string
	Value   []byte
	Flags   uint64
	Index   uint64
	Session string
	// Consul's, of which only "default" exists here.
	Namespace, Partition any
}

type nodeOp struct {
	Verb string
	Node struct {
		ID, Node, Address, Datacenter string
		TaggedAddresses, Meta         map[string]string
		CreateIndex, ModifyIndex      uint64
		Partition, PeerName, Locality any
	}
}

type serviceOp struct {
	Verb    string
	Node    string
	Service map[string]json.RawMessage
}

type checkOp struct {
	Verb  string
	Check txnCheck
}

// txnCheck is a check whose index counts.
type txnCheck struct {
	checkBody
	ModifyIndex uint64
}

// txnResult is what one operation shows.
type txnResult struct {
	KV      *pairShape    `json:",omitempty"`
	Node    *nodeShape    `json:",omitempty"`
	Service *serviceShape `json:",omitempty"`
	Check   *checkShape   `json:",omitempty"`
}

// txnError says which operation failed, and why.
type txnError struct {
	OpIndex int
	What    string
}

// txnAnswer is what a transaction that writes answers.
type txnAnswer struct {
	Results []txnResult
	Errors  []txnError
}

// txnReadAnswer is what a transaction that only reads answers. Consul adds how it
// read, in part by constants.
type txnReadAnswer struct {
	txnAnswer
	Index                 uint64
	LastContact           uint64
	KnownLeader           bool
	ConsistencyLevel      string
	NotModified           bool
	Backend               int
	ResultsFilteredByACLs bool
}

// errTxn keeps a failed transaction from being written.
var errTxn = errors.New("transaction failed")

func applyTxn(c *call) (any, error) {
	if n := c.r.ContentLength; n > maxTxnBody {
		return nil, &httpError{http.StatusRequestEntityTooLarge, fmt.Sprintf("Request body(%d bytes) too large, max size: %d bytes.", n, maxTxnBody)}
	}
	raw, err := c.body(maxTxnBody)
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	var ops []txnOp
	if err := dec.Decode(&ops); err != nil {
		return nil, badRequest("Failed to parse body: %v", err)
	}
	if len(ops) > maxTxnOps {
		return nil, &httpError{http.StatusRequestEntityTooLarge,
			fmt.Sprintf("Transaction contains too many operations (%d > %d)", len(ops), maxTxnOps)}
	}
	out, touched, err := c.api.runTxn(ops)
	if err != nil {
		return nil, err
	}
	c.api.agent.sync(touched)
	var answer any = out
	if !writes(ops) {
		c.w.Header().Set("X-Consul-Knownleader", "true")
		c.w.Header().Set("X-Consul-Lastcontact", "0")
		answer = txnReadAnswer{txnAnswer: out, Index: 1, KnownLeader: true}
	}
	if len(out.Errors) == 0 {
		return answer, nil
	}
	c.w.Header().Set("Content-Type", "application/json; charset=utf-8")
	c.w.WriteHeader(http.StatusConflict)
	return answer, nil
}

// writes reports whether a transaction is meant to change something.
func writes(ops []txnOp) bool {
	for _, op := range ops {
		switch {
		case op.KV != nil:
			switch op.KV.Verb {
			case "set", "cas", "lock", "unlock", "delete", "delete-cas", "delete-tree":
				return true
			}
		case op.Node != nil && op.Node.Verb != "get", op.Service != nil && op.Service.Verb != "get", op.Check != nil && op.Check.Verb != "get":
			return true
		}
	}
	return false
}

// runTxn does all operations or, when one fails, none. It names the checks that may
// have changed hands.
func (a *api) runTxn(ops []txnOp) (txnAnswer, []checkKey, error) {
	t := &txn{}
	for i, op := range ops {
		if err := op.precheck(); err != nil {
			t.fail(i, err)
		}
	}
	if len(t.errors) > 0 {
		return txnAnswer{Errors: t.errors}, nil, nil
	}
	err := a.store.Update(func(w *store.Writer) error {
		*t = txn{w: w, results: []txnResult{}}
		for i, op := range ops {
			if err := t.do(op); err != nil {
				t.fail(i, err)
			}
		}
		if len(t.errors) > 0 {
			return errTxn
		}
		return nil
	})
	switch {
	case errors.Is(err, errTxn):
		return txnAnswer{Errors: t.errors}, nil, nil
	case err != nil:
		return txnAnswer{}, nil, err
	}
	return txnAnswer{Results: t.results}, t.touched, nil
}

// txn is a transaction under way.
type txn struct {
	w       *store.Writer
	results []txnResult
	errors  []txnError
	touched []checkKey
}

func (t *txn) fail(i int, err error) { t.errors = append(t.errors, txnError{i, err.Error()}) }

func (t *txn) show(r txnResult) { t.results = append(t.results, r) }

func (t *txn) do(op txnOp) error {
	switch {
	case op.KV != nil:
		return t.kv(op.KV)
	case op.Node != nil:
		return t.node(op.Node)
	case op.Service != nil:
		return t.service(op.Service)
	case op.Check != nil:
		return t.check(op.Check)
	}
	return nil
}

// precheck finds what is wrong with an operation whatever is in the registry.
func (op txnOp) precheck() error {
	known := func(what, verb string) error {
		switch verb {
		case "get", "set", "cas", "delete", "delete-cas":
			return nil
		}
		return fmt.Errorf("unknown %s operation: %s", what, verb)
	}
	switch {
	case op.KV != nil:
		return op.KV.precheck()
	case op.Node != nil:
		if err := known("node", op.Node.Verb); err != nil {
			return err
		}
		if op.Node.Verb != "get" && op.Node.Node.Node == "" {
			return errors.New("Must provide node")
		}
	case op.Service != nil:
		if err := known("service", op.Service.Verb); err != nil || op.Service.Verb == "get" {
			return err
		}
		if op.Service.text("Service") == "" {
			return errors.New("Must provide service name (Service.Service) when service ID is provided")
		}
	case op.Check != nil:
		return known("check", op.Check.Verb)
	}
	return nil
}

func (op *kvOp) precheck() error {
	switch op.Verb {
	case "set", "cas", "lock", "unlock", "get", "get-or-empty", "get-tree", "check-session", "check-index", "check-not-exists",
		"delete", "delete-cas", "delete-tree":
	default:
		return fmt.Errorf("unknown KV operation: %s", op.Verb)
	}
	if op.Key == "" && op.Verb != "delete-tree" && op.Verb != "get-tree" {
		return errors.New("Must provide key")
	}
	return nil
}
