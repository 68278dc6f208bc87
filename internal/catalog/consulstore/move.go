package consulstore

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Newest is the mark of the newest commit; the zero one when there is none.
func (e *Engine) Newest(ctx context.Context) (store.Mark, error) {
	h, err := e.readHead(ctx, nil, 0, 0)
	return h.Mark, err
}

// InUse lists the servers that hold a lock now.
func (e *Engine) InUse(ctx context.Context) (out []string, err error) {
	pairs, err := e.list(ctx, belowLocks)
	for _, p := range pairs {
		if p.Session != "" {
			out = append(out, string(p.Value))
		}
	}
	return out, err
}

// Differ lists which of these entries and keys Consul has otherwise.
func (e *Engine) Differ(ctx context.Context, entries []config.Entry, keys []*store.KV) (out []string, err error) {
	for _, kind := range consulKinds() {
		if _, err := e.outside.readKind(ctx, kind, 0); err != nil {
			return nil, err
		}
	}
	for _, want := range entries {
		k := config.KeyOf(want)
		if is, ok := e.outside.of(k); ok && !sameEntry(is.entry, want) {
			out = append(out, k.String())
		}
	}
	for _, want := range keys {
		is, _, err := e.get(ctx, want.Key, nil, 0, 0)
		if err != nil {
			return nil, err
		}
		if is != nil && (string(is.Value) != string(want.Value) || is.Flags != want.Flags) {
			out = append(out, "key "+want.Key)
		}
	}
	return out, nil
}

// Put writes entries and keys over those that there are; [Engine.Differ] has read them.
func (e *Engine) Put(ctx context.Context, entries []config.Entry, keys []*store.KV) error {
	var list []store.EntryChange
	for _, want := range entries {
		list = append(list, store.EntryChange{Key: config.KeyOf(want), After: want})
	}
	if _, failed, err := e.outside.writeAll(ctx, list); err != nil {
		return fmt.Errorf("%s: %w", failed, err)
	}
	for _, k := range keys {
		if _, err := e.do(ctx, http.MethodPut, "/v1/kv/"+escapeKey(k.Key), url.Values{"flags": {fmt.Sprint(k.Flags)}}, k.Value); err != nil {
			return err
		}
	}
	return nil
}

func escapeKey(k string) string {
	parts := strings.Split(k, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	return strings.Join(parts, "/")
}

// Become puts rows in the place of all there is, as they were at a mark.
func (e *Engine) Become(ctx context.Context, rows []store.Change, m store.Mark) error {
	h, err := e.readHead(ctx, url.Values{"consistent": {""}}, 0, 0)
	if err != nil {
		return err
	}
	s := snapshot{Format: format, Mark: m, Rows: rowsOf(slices.DeleteFunc(slices.Clone(rows), func(c store.Change) bool { return !store.Kept(c.Table) }))}
	value, err := e.pack(ctx, keyOfBlob(m), s)
	if err != nil {
		return err
	}
	headValue, err := json.Marshal(head{Mark: m, Format: format})
	if err != nil {
		return err
	}
	_, err = e.transact(ctx, []kvOp{
		{Verb: "cas", Key: keyHead, Value: headValue, Index: h.modify},
		{Verb: "set", Key: keySnapshot, Value: value},
		{Verb: "delete-tree", Key: belowLog},
	})
	return err
}
