package consulapi

import (
	"fmt"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
)

func (t *txn) kv(op *kvOp) error {
	old := t.w.KV(op.Key)
	switch op.Verb {
	case "set", "cas", "lock", "unlock":
		return t.kvWrite(op, old)
	case "delete":
		return t.w.DeleteKV(op.Key)
	case "delete-cas":
		if !canDelete(&op.Index, old) {
			return fmt.Errorf("failed to delete key %q, index is stale", op.Key)
		}
		return t.w.DeleteKV(op.Key)
	case "delete-tree":
		return t.w.DeleteKVs(op.Key)
	case "get-tree":
		for _, p := range t.w.KVs(op.Key) {
			t.showKV(p, true)
		}
		return nil
	case "get-or-empty":
		if old == nil {
			old = &store.KV{Key: op.Key}
		}
	case "check-not-exists":
		if old != nil {
			return fmt.Errorf("key %q exists", op.Key)
		}
		return nil
	}
	if old == nil {
		return fmt.Errorf("key %q doesn't exist", op.Key)
	}
	switch {
	case op.Verb == "check-session" && old.Session != op.Session:
		return fmt.Errorf("failed session check for key %q, current session %q != %q", op.Key, old.Session, op.Session)
	case op.Verb == "check-index" && old.ModifyIndex != op.Index:
		return fmt.Errorf("failed index check for key %q, current modify index %d != %d", op.Key, old.ModifyIndex, op.Index)
	}
	t.showKV(old, op.Verb == "get" || op.Verb == "get-or-empty")
	return nil
}

func (t *txn) kvWrite(op *kvOp, old *store.KV) error {
	done, err := true, error(nil)
	refusal := ""
	switch op.Verb {
	case "cas":
		if done = compare(&op.Index, old != nil, modified(old)); !done {
			return fmt.Errorf("failed to set key %q, index is stale", op.Key)
		}
		err = t.w.PutKV(op.Key, op.Value, op.Flags)
	case "lock":
		if err := sessionError(t.w, op.Session); err != nil {
			return err
		}
		refusal = "failed to lock key %q, lock is already held"
		if t.w.Delayed(op.Key) {
			refusal = "failed to lock key %q due to lock delay"
		}
		done, err = t.w.Acquire(op.Key, op.Value, op.Flags, op.Session)
	case "unlock":
		refusal = "failed to unlock key %q, lock isn't held, or is held by another session"
		done, err = t.w.Release(op.Key, op.Value, op.Flags, op.Session)
	default:
		err = t.w.PutKV(op.Key, op.Value, op.Flags)
	}
	if err != nil {
		return err
	}
	if !done {
		return fmt.Errorf(refusal, op.Key)
	}
	t.showKV(t.w.KV(op.Key), false)
	return nil
}

// showKV shows a pair; its value only where it was asked for.
func (t *txn) showKV(p *store.KV, value bool) {
	shape := showPair(p)
	if !value {
		shape.Value = nil
	}
	t.show(txnResult{KV: &shape})
}
