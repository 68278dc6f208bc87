package store

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/hashicorp/go-memdb"
	"pgregory.net/rapid"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

// Rows in trees are found in every order as in a plain list, in the transaction that puts and removes
// them and afterwards; who has begun to read before sees what was there then.
func TestTreesAreAPlainList(t *testing.T) {
	all := map[string]*table{}
	for _, of := range tables() {
		all[of.name] = of
	}
	of := all[tableServices]
	rapid.Check(t, func(t *rapid.T) {
		mem, err := memdb.NewMemDB(schema())
		if err != nil {
			t.Fatal(err)
		}
		begin := func(write bool) *txn { return &txn{Txn: mem.Txn(write), tables: all} }
		plain := map[string]*serviceRow{} // by ID on its node
		check := func(in *txn, want map[string]*serviceRow) {
			t.Helper()
			for _, q := range []struct {
				index string
				args  []any
			}{
				{"id_prefix", []any{[]byte{}}}, {"id_prefix", []any{key("n1")}}, {"id", []any{"n1", "i2"}},
				{"name_prefix", []any{[]byte{}}}, {"name", []any{named("Web")}}, {"name_prefix", []any{key("web")}},
				{"connect_prefix", []any{[]byte{}}}, {"connect", []any{named("web")}},
			} {
				o := of.orders[slices.IndexFunc(of.orders, func(o order) bool { return o.name+"_prefix" == q.index || o.name == q.index })]
				begins, n := seek(q.args)
				var wanted, got []string
				for _, row := range want {
					if p, in := o.of(row); in && slices.Equal(p[:n], begins.path[:n]) {
						wanted = append(wanted, fmt.Sprintf("%q %d", p, row.Service.Port))
					}
				}
				slices.Sort(wanted)
				in.each(tableServices, q.index, q.args, func(row any) bool {
					p, _ := o.of(row)
					got = append(got, fmt.Sprintf("%q %d", p, row.(*serviceRow).Service.Port))
					return true
				})
				if !slices.Equal(got, wanted) {
					t.Fatalf("%s %q: %q, want %q", q.index, q.args, got, wanted)
				}
			}
		}
		some := func(node, id string) *serviceRow {
			row := &serviceRow{node, catalog.Service{ID: id, Name: rapid.SampledFrom([]string{"web", "Web", "api"}).Draw(t, "name"), Port: rapid.IntRange(1, 9).Draw(t, "port")}}
			if rapid.Bool().Draw(t, "proxy") {
				row.Service.Kind, row.Service.Proxy = catalog.ConnectProxy, &catalog.Proxy{DestinationServiceName: rapid.SampledFrom([]string{"web", "api"}).Draw(t, "callee")}
			}
			return row
		}
		w := begin(true)
		var planted []any
		for i := range rapid.IntRange(0, 80).Draw(t, "planted") {
			row := some(fmt.Sprint("n", i%3), fmt.Sprint("i", i))
			planted = append(planted, row)
			plain[row.Node+"/"+row.Service.ID] = row
		}
		w.plant(of, planted)
		check(w, plain)
		if err := w.commit(); err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(1, 6).Draw(t, "transactions") {
			before, old := begin(false), maps.Clone(plain)
			w := begin(true)
			next := maps.Clone(plain)
			for range rapid.IntRange(0, 20).Draw(t, "writes") {
				node, id := fmt.Sprint("n", rapid.IntRange(0, 2).Draw(t, "node")), fmt.Sprint("i", rapid.IntRange(0, 40).Draw(t, "id"))
				at := node + "/" + id
				if was := next[at]; was != nil && rapid.Bool().Draw(t, "remove") {
					if err := w.remove(of, was); err != nil {
						t.Fatal(err)
					}
					delete(next, at)
					continue
				}
				row := some(node, id)
				if err := w.put(of, row); err != nil {
					t.Fatal(err)
				}
				next[at] = row
			}
			check(w, next)
			if rapid.Bool().Draw(t, "abort") {
				w.Abort()
			} else {
				if err := w.commit(); err != nil {
					t.Fatal(err)
				}
				plain = next
			}
			check(before, old)
			check(begin(false), plain)
		}
	})
}
