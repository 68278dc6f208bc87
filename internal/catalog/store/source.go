package store

import (
	"cmp"
	"context"
	"encoding/binary"
	"slices"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

var _ catalog.Source = (*Store)(nil)

// Run implements [catalog.Source]. It publishes as fast as publish returns; changes
// made meanwhile share the next snapshot. It returns nil when ctx ends and
// [ErrClosed] when the store closes.
func (s *Store) Run(ctx context.Context, publish func(*catalog.Snapshot)) error {
	var snapshot *catalog.Snapshot
	s.ReadUntil(ctx, func(r *Reader) bool {
		next := r.snapshot(snapshot)
		if snapshot == nil || len(catalog.Changed(snapshot, next)) > 0 {
			snapshot = next
			publish(snapshot)
		}
		return ctx.Err() != nil
	})
	return s.ended(ctx)
}

// RunConfig publishes all configuration entries with the index of their last change,
// and again after each, as [Store.Run] does for the catalog. Entries that did not
// change keep their pointer.
func (s *Store) RunConfig(ctx context.Context, publish func(*config.Set, uint64)) error {
	var published uint64
	s.ReadUntil(ctx, func(r *Reader) bool {
		rows := r.Entries("")
		if r.index > published {
			published = r.index
			entries := make([]config.Entry, len(rows))
			for i, row := range rows {
				entries[i] = row.Entry
			}
			publish(config.NewSet(entries...), published)
		}
		return ctx.Err() != nil
	})
	return s.ended(ctx)
}

func (s *Store) ended(ctx context.Context) error {
	if ctx.Err() == nil {
		return ErrClosed
	}
	return nil
}

// snapshot is the catalog as this reader sees it, made from an earlier one by
// looking only at the services that changed since.
func (r *Reader) snapshot(old *catalog.Snapshot) *catalog.Snapshot {
	it, err := r.txn.Get(tableIndex, "id_prefix", []byte(subjectService("")))
	must(err)
	r.watch.Add(it.WatchCh())

	sets := map[string]*catalog.Set{}
	if old == nil || r.floor() > old.Index {
		// What is gone may be forgotten already, so look at everything.
		for name, instances := range r.everything() {
			row, _ := r.first(tableIndex, "id", subjectService(name)).(*indexRow)
			if old != nil && row != nil && row.Index <= old.Index {
				sets[name] = old.Set(name)
			} else {
				sets[name] = catalog.NewSet(name, instances)
			}
		}
		return catalog.NewSnapshot(r.datacenter, r.Index(), sets)
	}
	changed := r.changedSince(old.Index)
	if len(changed) == 0 {
		return old
	}
	for _, name := range changed {
		sets[name] = catalog.NewSet(name, r.instances("name", named(name)))
	}
	return old.With(r.Index(), sets)
}

// everything is all instances by service, found node by node: to look for each one's checks takes longer.
func (r *Reader) everything() map[string][]catalog.Instance {
	r.look(subjectServices)
	out := map[string][]catalog.Instance{}
	for _, row := range r.list(tableNodes, "id") {
		node := row.(*catalog.Node)
		checks := r.checks("service", node.Name) // by service ID: first the node's own
		nodes, _ := slices.BinarySearchFunc(checks, "\x00", byServiceID)
		for _, row := range r.list(tableServices, "id", node.Name) {
			s := &row.(*serviceRow).Service
			from, _ := slices.BinarySearchFunc(checks, s.ID, byServiceID)
			to, _ := slices.BinarySearchFunc(checks, s.ID+"\x00", byServiceID)
			own := slices.Clip(checks[from:to])
			if nodes > 0 {
				own = slices.Concat(checks[:nodes], own)
			}
			out[s.Name] = append(out[s.Name], catalog.Instance{Node: node, Service: s, Checks: own})
		}
	}
	return out
}

func byServiceID(c *catalog.Check, id string) int { return cmp.Compare(c.ServiceID, id) }

// changedSince lists the services with a change after index.
func (r *Reader) changedSince(index uint64) []string {
	it, err := r.txn.LowerBound(tableIndex, "changed", binary.BigEndian.AppendUint64(nil, index+1))
	must(err)
	var out []string
	for row := it.Next(); row != nil; row = it.Next() {
		out = append(out, row.(*indexRow).Subject[len(subjectService("")):])
	}
	return out
}
