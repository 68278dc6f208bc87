package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// open starts a registry in dir ("" in memory) and closes it with the test.
func open(t *testing.T, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(store.Options{Dir: dir, NodeName: "self", NodeAddress: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func update(t *testing.T, s *store.Store, write func(*store.Writer) error) {
	t.Helper()
	if err := s.Update(write); err != nil {
		t.Fatal(err)
	}
}

func node(name string) func(*store.Writer) error {
	return func(w *store.Writer) error { return w.PutNode(catalog.Node{Name: name, Address: "10.0.0.1"}) }
}

func service(on, name string, port int) func(*store.Writer) error {
	return func(w *store.Writer) error { return w.PutService(on, catalog.Service{Name: name, Port: port}) }
}

func proxy(on, name string) func(*store.Writer) error {
	return func(w *store.Writer) error {
		return w.PutService(on, catalog.Service{Kind: catalog.ConnectProxy, Name: name + "-sidecar-proxy", Port: 21000,
			Proxy: &catalog.Proxy{DestinationServiceName: name}})
	}
}

func check(on, id, serviceID string, status catalog.Status) func(*store.Writer) error {
	return func(w *store.Writer) error {
		return w.PutCheck(catalog.Check{Node: on, CheckID: id, ServiceID: serviceID, Status: status}, nil)
	}
}

func kv(k, v string) func(*store.Writer) error {
	return func(w *store.Writer) error { return w.PutKV(k, []byte(v), 0) }
}

func entry(name, protocol string) func(*store.Writer) error {
	return func(w *store.Writer) error {
		return w.PutEntry(&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: name, Protocol: protocol}, store.Author{})
	}
}

// reads are the watchable things; each has an index of its own.
var reads = map[string]func(*store.Reader){
	"nodes":        func(r *store.Reader) { r.Nodes() },
	"services":     func(r *store.Reader) { r.Services() },
	"checks":       func(r *store.Reader) { r.Checks() },
	"node a":       func(r *store.Reader) { r.NodeServices("a") },
	"node b":       func(r *store.Reader) { r.NodeServices("b") },
	"web":          func(r *store.Reader) { r.Instances("web") },
	"api":          func(r *store.Reader) { r.Instances("api") },
	"connect web":  func(r *store.Reader) { r.Connect("web") },
	"kv x":         func(r *store.Reader) { r.KV("x") },
	"kv p/":        func(r *store.Reader) { r.KVs("p/") },
	"entries":      func(r *store.Reader) { r.Entries("") },
	"defaults":     func(r *store.Reader) { r.Entries(config.KindServiceDefaults) },
	"defaults web": func(r *store.Reader) { r.Entry(config.Key{Kind: config.KindServiceDefaults, Name: "web"}) },
}

func indexes(s *store.Store) map[string]uint64 {
	out := map[string]uint64{}
	for name, read := range reads {
		out[name] = s.Read(context.Background(), 0, read)
	}
	return out
}

func TestWhatAWriteTouches(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for _, w := range []func(*store.Writer) error{node("a"), node("b"), service("a", "web", 80), service("b", "web", 80),
		service("b", "api", 81), proxy("a", "web"), check("a", "c", "web", catalog.Passing), kv("x", "1"), kv("p/q", "1"), entry("web", "http"), entry("api", "tcp")} {
		update(t, s, w)
	}
	for _, step := range []struct {
		name  string
		write func(*store.Writer) error
		wakes string
	}{
		{"same node again", node("a"), ""},
		{"same service again", service("a", "web", 80), ""},
		{"same proxy again", proxy("a", "web"), ""},
		{"same check again", check("a", "c", "web", catalog.Passing), ""},
		{"same pair again", kv("x", "1"), ""},
		{"same entry again", entry("web", "http"), ""},
		{"delete what is not there", func(w *store.Writer) error { return w.DeleteService("a", "nope") }, ""},
		{"other pair", kv("y", "1"), ""},
		{"pair", kv("x", "2"), "kv x"},
		{"pair below", kv("p/r", "1"), "kv p/"},
		{"pair gone", func(w *store.Writer) error { return w.DeleteKV("p/r") }, "kv p/"},
		{"entry", entry("web", "grpc"), "defaults,defaults web,entries"},
		{"another entry", entry("api", "grpc"), "defaults,entries"},
		{"another service", service("b", "db", 5432), "node b,services"},
		{"service", service("b", "api", 82), "api,node b,services"},
		{"check", check("a", "c", "web", catalog.Critical), "checks,node a,web"},
		{"check of the proxy", check("a", "p", "web-sidecar-proxy", catalog.Passing), "checks,connect web,node a"},
		{"node's check", check("b", "n", "", catalog.Passing), "api,checks,node b,web"},
		{"check gone", func(w *store.Writer) error { _, err := w.DeleteCheck("a", "c"); return err }, "checks,node a,web"},
		{"one instance gone", func(w *store.Writer) error { return w.DeleteService("b", "web") }, "node b,services,web"},
		{"last instance gone", func(w *store.Writer) error { return w.DeleteService("a", "web") }, "node a,services,web"},
		{"node gone", func(w *store.Writer) error { return w.DeleteNode("a") }, "checks,connect web,node a,nodes,services"},
		{"entry gone", func(w *store.Writer) error {
			return w.DeleteEntry(config.Key{Kind: config.KindServiceDefaults, Name: "web"}, store.Author{})
		}, "defaults,defaults web,entries"},
	} {
		before := indexes(s)
		update(t, s, step.write)
		var woken []string
		for name, index := range indexes(s) {
			if index < before[name] {
				t.Errorf("%s: index of %s fell from %d to %d", step.name, name, before[name], index)
			}
			if index > before[name] {
				woken = append(woken, name)
			}
		}
		slices.Sort(woken)
		if got := strings.Join(woken, ","); got != step.wakes {
			t.Errorf("%s: woke %q, want %q", step.name, got, step.wakes)
		}
	}
	after := indexes(s)
	s.Close()
	if diff := cmp.Diff(after, indexes(open(t, dir))); diff != "" {
		t.Errorf("indexes after a restart (-before +after):\n%s", diff)
	}
}

func TestBlockingReadWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, "")
		update(t, s, service("self", "web", 80))
		index := s.Read(t.Context(), 0, reads["web"])

		woken := make(chan uint64, 1)
		calls := 0
		go func() {
			woken <- s.Read(t.Context(), index, func(r *store.Reader) { calls++; r.Instances("web") })
		}()
		synctest.Wait()
		update(t, s, service("self", "api", 81))
		update(t, s, kv("x", "y"))
		synctest.Wait()
		if calls != 1 {
			t.Errorf("unrelated writes: read called %d times, want 1", calls)
		}
		update(t, s, service("self", "web", 82))
		if got := <-woken; got <= index {
			t.Errorf("woken with index %d, want more than %d", got, index)
		}

		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		start := time.Now()
		now := s.Read(t.Context(), 0, reads["api"])
		if got := s.Read(ctx, now, reads["api"]); got != now || time.Since(start) != 5*time.Minute {
			t.Errorf("timed out with index %d after %v, want %d after 5m", got, time.Since(start), now)
		}
		start = time.Now()
		if got := s.Read(t.Context(), 1<<40, reads["api"]); got != now || time.Since(start) != 0 {
			t.Errorf("index of another registry: answered %d after %v, want %d at once", got, time.Since(start), now)
		}
	})
}

func TestCloseEndsWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, "")
		ended := make(chan error)
		go func() { ended <- s.Run(t.Context(), func(*catalog.Snapshot) {}) }()
		synctest.Wait()
		s.Close()
		if err := <-ended; !errors.Is(err, store.ErrClosed) {
			t.Errorf("Run returned %v, want %v", err, store.ErrClosed)
		}
		if err := s.Update(kv("a", "b")); !errors.Is(err, store.ErrClosed) {
			t.Errorf("Update returned %v, want %v", err, store.ErrClosed)
		}
	})
}

func TestUpdateIsAtomic(t *testing.T) {
	s := open(t, t.TempDir())
	before := indexes(s)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			err := s.Update(func(w *store.Writer) error {
				if err := w.PutKV(fmt.Sprint("k", i), nil, 0); err != nil || i%2 == 0 {
					return err
				}
				return fmt.Errorf("refused %d", i)
			})
			if (err == nil) != (i%2 == 0) || err != nil && err.Error() != fmt.Sprint("refused ", i) {
				t.Errorf("write %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	n := 0
	s.Read(t.Context(), 0, func(r *store.Reader) { n = len(r.KVs("k")) })
	if n != 10 {
		t.Errorf("%d pairs, want those of the 10 writes that succeeded", n)
	}
	if diff := cmp.Diff(before["web"], indexes(s)["web"]); diff != "" {
		t.Error(diff)
	}
}

func TestRefusals(t *testing.T) {
	s := open(t, "")
	for _, tt := range []struct {
		write func(*store.Writer) error
		want  string
	}{
		{service("ghost", "web", 1), `service "web": node "ghost" is not registered`},
		{check("ghost", "c", "", catalog.Passing), `check "c": node "ghost" is not registered`},
		{check("self", "c", "web", catalog.Passing), `check "c": service "web" is not registered on node "self"`},
		{check("self", "c", "", "fine"), `check "c": status "fine": want passing, warning or critical`},
		{service("self", "", 1), `service: name is empty`},
		{service("self", "a\x00b", 1), `name holds a NUL byte`},
		{service("self", "a\xff", 1), `the name is not valid UTF-8`},
		{kv(strings.Repeat("k", 40_000), ""), `name of 40001 bytes, at most 32768`},
	} {
		if err := s.Update(tt.write); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got error %v, want %q", err, tt.want)
		}
	}
}

func TestSnapshotsKeepWhatDidNotChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, "")
		update(t, s, service("self", "web", 80))
		update(t, s, service("self", "api", 81))
		got := make(chan *catalog.Snapshot, 1)
		sets := make(chan *config.Set, 1)
		go s.Run(t.Context(), func(n *catalog.Snapshot) { got <- n })
		go s.RunConfig(t.Context(), func(n *config.Set, _ uint64) { sets <- n })
		first, entries := <-got, <-sets

		update(t, s, check("self", "c", "web", catalog.Critical))
		second := <-got
		if diff := cmp.Diff([]string{"web"}, catalog.Changed(first, second)); diff != "" {
			t.Errorf("after a check: %s", diff)
		}
		if in := second.Set("web").Instances; len(in) != 1 || in[0].Status() != catalog.Critical || in[0].Node.Name != "self" {
			t.Errorf("web is %+v, want one critical instance on self", in)
		}
		update(t, s, entry("web", "http"))
		entries2 := <-sets
		update(t, s, entry("api", "http"))
		if diff := cmp.Diff([]config.Key{{Kind: config.KindServiceDefaults, Name: "api"}}, config.Changed(entries2, <-sets)); diff != "" {
			t.Errorf("after an entry: %s", diff)
		}
		if len(entries.Keys()) != 0 {
			t.Errorf("first set holds %v", entries.Keys())
		}
		update(t, s, kv("x", "y"))
		update(t, s, service("self", "web", 80))
		synctest.Wait()
		if len(got) != 0 || len(sets) != 0 {
			t.Error("published without a change")
		}

		// One is being published, one waits in the channel; all that follow share one snapshot.
		for port := range 50 {
			update(t, s, service("self", "api", 1000+port))
			synctest.Wait()
		}
		n := 0
		var last *catalog.Snapshot
		for synctest.Wait(); len(got) > 0; synctest.Wait() {
			last = <-got
			n++
		}
		if port := last.Set("api").Instances[0].Service.Port; port != 1049 || n > 3 {
			t.Errorf("%d snapshots, the last with port %d; want at most 3 and port 1049", n, port)
		}
		update(t, s, func(w *store.Writer) error { return w.DeleteService("self", "web") })
		if gone := <-got; gone.Set("web") != nil || gone.Set("api") != last.Set("api") {
			t.Error("after a deletion: want web gone and api as it was")
		}
	})
}

func TestForgetsOldNames(t *testing.T) {
	s := open(t, "")
	update(t, s, service("self", "web", 80))
	update(t, s, service("self", "api", 80))
	update(t, s, func(w *store.Writer) error { return w.DeleteService("self", "api") })
	update(t, s, kv("x", "y"))
	before := indexes(s)
	for i := range 11 {
		update(t, s, func(w *store.Writer) error {
			for j := range 1000 {
				if err := kv(fmt.Sprint("p/", i, "/", j), "")(w); err != nil {
					return err
				}
			}
			return w.DeleteKVs("p/")
		})
	}
	after := indexes(s)
	if after["kv p/"] <= before["kv p/"] {
		t.Errorf("index of the emptied prefix is %d, before it was %d", after["kv p/"], before["kv p/"])
	}
	if after["api"] < before["api"] {
		t.Errorf("index of the service that is gone fell from %d to %d", before["api"], after["api"])
	}
	for _, name := range []string{"web", "kv x"} {
		if after[name] != before[name] {
			t.Errorf("index of %s went from %d to %d", name, before[name], after[name])
		}
	}
}
