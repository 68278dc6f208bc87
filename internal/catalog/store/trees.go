package store

import (
	"maps"
	"slices"
	"strings"

	"github.com/google/btree"
	"github.com/hashicorp/go-memdb"
)

// path is where an index has a row: parts that are compared one after the other. What an index
// has fewer of are empty in all of its rows.
type path [4]string

func (p *path) before(o *path) bool {
	for i := range p {
		if p[i] != o[i] {
			return p[i] < o[i]
		}
	}
	return false
}

// order is an index of a table that is kept in trees. No two rows have the same path; the first
// parts, by which rows are looked for, need not tell them apart.
type order struct {
	name string
	of   func(row any) (path, bool) // false: it leaves the row out
}

// treeDegree makes nodes of a tree half a kilobyte to a kilobyte: what a write copies of each level.
const treeDegree = 32

// tree is an index of rows. Copies share what is the same in them. A row takes the space of
// a pointer in it, as its path is read from the row.
type tree = btree.BTreeG[any]

// sought stands for a row in a search.
type sought struct{ path }

func newTree(o order) *tree {
	at := func(row any) path {
		if s, ok := row.(*sought); ok {
			return s.path
		}
		p, _ := o.of(row)
		return p
	}
	return btree.NewG(treeDegree, func(a, b any) bool {
		x, y := at(a), at(b)
		return x.before(&y)
	})
}

// forest is the rows of all tables that are kept in trees at one moment: by table, the trees of its
// orders. Immutable, but for what [txn] made itself.
type forest map[string][]*tree

// tableForest holds one forest, so that readers see it and other tables at the same moment.
const tableForest = "forest"

// txn is a transaction over all tables, in trees or not.
type txn struct {
	*memdb.Txn
	tables map[string]*table
	trees  forest          // nil: not looked at yet
	own    map[string]bool // tables whose trees nobody else has
}

func (t *txn) forest() forest {
	if t.trees == nil {
		row, err := t.First(tableForest, "id", "")
		must(err)
		if t.trees, _ = row.(forest); t.trees == nil {
			t.trees = forest{}
		}
	}
	return t.trees
}

// each calls yield with the rows whose place in an index begins with what args say, in order, until it
// returns false. An index whose name ends in "_prefix" is that without; of others args are whole parts.
func (t *txn) each(name, index string, args []any, yield func(row any) bool) {
	of := t.tables[name]
	if of == nil || of.orders == nil {
		it, err := t.Get(name, index, args...)
		must(err)
		for row := it.Next(); row != nil && yield(row); row = it.Next() {
		}
		return
	}
	trees := t.forest()[name]
	if trees == nil {
		return
	}
	from, n := seek(args)
	i := slices.IndexFunc(of.orders, func(o order) bool { return o.name == strings.TrimSuffix(index, "_prefix") })
	trees[i].AscendGreaterOrEqual(from, func(row any) bool {
		at, _ := of.orders[i].of(row)
		return slices.Equal(at[:n], from.path[:n]) && yield(row)
	})
}

// seek is where to look for what args, the parts for [key] or ready bytes, say, and how many parts that are.
func seek(args []any) (from *sought, n int) {
	from = &sought{}
	for _, a := range args {
		switch a := a.(type) {
		case string:
			from.path[n] = a
			n++
		case []byte:
			for part := range strings.SplitAfterSeq(string(a), "\x00") {
				if part != "" {
					from.path[n] = strings.TrimSuffix(part, "\x00")
					n++
				}
			}
		}
	}
	return from, n
}

// first is the first row of [txn.each], or nil.
func (t *txn) first(name, index string, args ...any) (row any) {
	t.each(name, index, args, func(r any) bool { row = r; return false })
	return row
}

// put enters a row in place of the one with its ID.
func (t *txn) put(of *table, row any) error {
	if of.orders == nil {
		return t.Insert(of.name, row)
	}
	trees := t.edit(of)
	old, had := trees[0].ReplaceOrInsert(row)
	for i, o := range of.orders[1:] {
		tree := trees[1+i]
		is, in := o.of(row)
		if had {
			if was, wasIn := o.of(old); wasIn && (!in || was != is) {
				tree.Delete(old)
			}
		}
		if in {
			tree.ReplaceOrInsert(row)
		}
	}
	return nil
}

// plant enters rows in trees that have none yet. In nodes of trees that grow by one row after the other,
// in order, half of the room stays empty: here every other row comes first, and then those between them.
func (t *txn) plant(of *table, rows []any) {
	type placed struct {
		at  path
		row any
	}
	in := make([]placed, 0, len(rows))
	for i, tree := range t.edit(of) {
		in = in[:0]
		for _, row := range rows {
			if at, ok := of.orders[i].of(row); ok {
				in = append(in, placed{at, row})
			}
		}
		slices.SortFunc(in, func(a, b placed) int { return slices.Compare(a.at[:], b.at[:]) })
		for first := range 2 {
			for k := first; k < len(in); k += 2 {
				tree.ReplaceOrInsert(in[k].row)
			}
		}
	}
}

func (t *txn) remove(of *table, row any) error {
	if of.orders == nil {
		return t.Delete(of.name, row)
	}
	for i, tree := range t.edit(of) {
		if _, in := of.orders[i].of(row); in {
			tree.Delete(row)
		}
	}
	return nil
}

// edit is a table's trees, to be changed.
func (t *txn) edit(of *table) []*tree {
	if !t.own[of.name] {
		if len(t.own) == 0 {
			t.own, t.trees = map[string]bool{}, maps.Clone(t.forest())
		}
		t.own[of.name] = true
		next := make([]*tree, len(of.orders))
		for i, o := range of.orders {
			if was := t.trees[of.name]; was != nil {
				next[i] = was[i].Clone()
			} else {
				next[i] = newTree(o)
			}
		}
		t.trees[of.name] = next
	}
	return t.trees[of.name]
}

// commit makes what was changed visible, all of it at once.
func (t *txn) commit() error {
	if len(t.own) > 0 {
		if err := t.Insert(tableForest, t.trees); err != nil {
			return err
		}
	}
	t.Commit()
	return nil
}
