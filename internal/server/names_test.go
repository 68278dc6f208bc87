package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// resolving is names with answers that a test gives.
type resolving struct {
	*names
	mu     sync.Mutex
	four   map[string][]string
	six    map[string][]string
	takes  time.Duration
	broken bool
	told   []proxy.Names
}

func newResolving() *resolving {
	r := &resolving{four: map[string][]string{}, six: map[string][]string{}}
	r.names = newNames(nil, func(n proxy.Names) { r.change(func() { r.told = append(r.told, n) }) }, slog.New(slog.DiscardHandler))
	r.lookup = func(ctx context.Context, network, host string) (out []netip.Addr, err error) {
		var takes time.Duration
		err = errors.New("no such host")
		r.change(func() {
			takes = r.takes
			from := r.four
			if network == "ip6" {
				from = r.six
			}
			for _, a := range from[host] {
				out = append(out, netip.MustParseAddr(a))
			}
			if !r.broken && len(out) > 0 {
				err = nil
			}
		})
		select {
		case <-time.After(takes):
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err != nil {
			return nil, err
		}
		return out, nil
	}
	return r
}

// start runs it until it is stopped.
func (r *resolving) start(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// change changes answers.
func (r *resolving) change(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

// answer is the addresses of a name from now on.
func (r *resolving) answer(host string, addresses ...string) {
	r.change(func() { r.four[host] = addresses })
}

// last is what was told last.
func (r *resolving) last() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.told) == 0 {
		return ""
	}
	return fmt.Sprint(r.told[len(r.told)-1])
}

func TestNamesAreResolvedBeforeEntriesCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, ctx := newResolving(), t.Context()
		defer r.start(ctx)()
		r.answer("a", "10.0.0.2", "10.0.0.1", "10.0.0.2")
		r.change(func() { r.six["a"] = []string{"::1"} })
		r.want(ctx, []string{"a"})
		if got := r.last(); got != "map[a:[10.0.0.1 10.0.0.2]]" {
			t.Errorf("%s", got)
		}
		r.change(func() { r.six["b"] = []string{"fe80::1%eth0", "::ffff:10.0.0.9"} })
		r.want(ctx, []string{"a", "b"})
		if got := r.last(); got != "map[a:[10.0.0.1 10.0.0.2] b:[10.0.0.9 fe80::1]]" {
			t.Errorf("no address of IPv4: %s", got)
		}

		r.change(func() { r.takes = time.Second }) // others do not wait for a slow one, which is known in the end
		r.answer("c", "10.0.0.3")
		began := time.Now()
		r.want(ctx, []string{"a", "b", "c"})
		if took := time.Since(began); took != resolveFirst {
			t.Errorf("waited %v", took)
		}
		<-time.After(time.Second)
		synctest.Wait()
		if got := r.last(); got != "map[a:[10.0.0.1 10.0.0.2] b:[10.0.0.9 fe80::1] c:[10.0.0.3]]" {
			t.Errorf("%s", got)
		}
		r.change(func() { r.takes = 0 })

		r.want(ctx, []string{"a"}) // endpoints outlive their entry
		<-time.After(nameKept - time.Second)
		synctest.Wait()
		if got := r.last(); got != "map[a:[10.0.0.1 10.0.0.2] b:[10.0.0.9 fe80::1] c:[10.0.0.3]]" {
			t.Errorf("too early: %s", got)
		}
		<-time.After(2 * resolveEvery)
		synctest.Wait()
		if got := r.last(); got != "map[a:[10.0.0.1 10.0.0.2]]" {
			t.Errorf("not forgotten: %s", got)
		}
	})
}

func TestLastAddressesStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, ctx := newResolving(), t.Context()
		defer r.start(ctx)()
		r.answer("a", "10.0.0.1")
		r.want(ctx, []string{"a", "lost"})
		if got := r.lost("lost:80"); got != "legacy address lost:80: the server cannot resolve its name since 2000-01-01T00:00:00Z: no such host: nothing goes there" {
			t.Errorf("%q", got)
		}
		for _, fault := range []func(){func() { r.broken = true }, func() { r.broken, r.four["a"] = false, nil }} {
			r.change(fault)
			<-time.After(2 * resolveEvery)
			synctest.Wait()
			if got := r.last(); got != "map[a:[10.0.0.1]]" || len(r.told) != 1 {
				t.Errorf("told %s, %d times", got, len(r.told))
			}
			if got := r.lost("a:80"); got != "legacy address a:80: the server cannot resolve its name since 2000-01-01T00:00:05Z: no such host: the last 1 addresses stay" {
				t.Errorf("%q", got)
			}
		}
		var many []string
		for i := range 2 * maxResolved {
			many = append(many, fmt.Sprintf("10.0.1.%d", 2*maxResolved-i))
		}
		r.answer("a", many...)
		<-time.After(2 * resolveEvery)
		synctest.Wait()
		got := r.told[len(r.told)-1]["a"]
		if len(got) != maxResolved || !slices.IsSortedFunc(got, netip.Addr.Compare) || got[0] != netip.MustParseAddr("10.0.1.1") || r.lost("a:80") != "" {
			t.Errorf("%v, %q", got, r.lost("a:80"))
		}
	})
}

// A server that starts while nothing can be resolved gives callers what it gave them before.
func TestNamesOutliveARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), namesFile)
	first := newResolving()
	first.recall(path)
	first.four["a"], first.four["b"] = []string{"10.0.0.1"}, []string{"10.0.0.2"}
	stop := first.start(t.Context())
	first.want(t.Context(), []string{"a", "b"})
	stop()
	second := newResolving()
	second.broken = true
	second.recall(path)
	stop = second.start(t.Context())
	second.want(t.Context(), []string{"a"})
	stop()
	if got := second.last(); got != "map[a:[10.0.0.1] b:[10.0.0.2]]" {
		t.Errorf("%q", got)
	}
	if second.lost("a:1") == "" {
		t.Error("nobody is told that they are old")
	}
}

func TestNamesOfEntries(t *testing.T) {
	set := config.NewSet(
		&config.ServiceDefaults{Name: "web", Protocol: "http"},
		&config.TrafficShift{Source: "*", Destination: "web", Legacy: &config.LegacyWay{Address: "requests:1"}},
		&config.TrafficShift{Source: "*", Destination: "db", Legacy: &config.LegacyWay{Address: "db:1"}},
		&config.TrafficShift{Source: "a", Destination: "db", Legacy: &config.LegacyWay{Address: "db:2"}},
		&config.TrafficShift{Source: "a", Destination: "*", Legacy: &config.LegacyWay{Address: "any:1"}},
		&config.TrafficShift{Source: "b", Destination: "db", Legacy: &config.LegacyWay{Address: "10.0.0.1:1"}},
		&config.TrafficShift{Source: "c", Destination: "db"},
	)
	if got := namesIn(set); !slices.Equal(got, []string{"any", "db"}) {
		t.Errorf("%v", got)
	}
	before := proxy.Names{"a": {netip.MustParseAddr("10.0.0.1")}, "gone": {netip.MustParseAddr("10.0.0.1")}}
	now := maps.Clone(before)
	delete(now, "gone")
	now["new"] = now["a"]
	if got := namesChanged(before, now); !slices.Equal(got, []string{"gone", "new"}) {
		t.Errorf("%v", got)
	}
}
