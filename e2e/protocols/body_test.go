package protocols

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"
)

// growth is how much memory Envoys may take while bodies pass, however long these
// are: buffers, and what the allocator keeps.
const growth = 32 << 20

// watch notes the largest resident set of each Envoy until it is told to stop, and
// then fails if one has grown by more than growth.
func (m *mesh) watch(t *testing.T) (stop func()) {
	t.Helper()
	first, most := map[string]int{}, map[string]int{}
	for name, e := range m.envoys {
		first[name] = resident(t, e.PID)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for tick := time.NewTicker(20 * time.Millisecond); ctx.Err() == nil; <-tick.C {
			for name, e := range m.envoys {
				most[name] = max(most[name], resident(t, e.PID))
			}
		}
	})
	return func() {
		t.Helper()
		cancel()
		wg.Wait()
		for name := range most {
			grown := most[name] - first[name]
			t.Logf("sidecar %q: %d MB, grown by %d KB", name, most[name]>>20, grown>>10)
			if grown > growth {
				t.Errorf("sidecar %q has grown by %d MB, want at most %d", name, grown>>20, growth>>20)
			}
		}
	}
}

func TestBodies(t *testing.T) {
	m, _ := startHTTP(t)
	for _, p := range pairs() {
		c := client(t, p.client)
		for _, n := range []int64{1, 16384, 65535, 65536, 65537, 1 << 20, 64 << 20} {
			m.transfer(t, c, p, n)
		}
	}
	m.transfer(t, client(t, 1), pair{1, 1, "catalog"}, 1<<30)
	m.unchanged(t)
}

// transfer sends n bytes to the app and gets as many back, while both Envoys keep
// to their size.
func (m *mesh) transfer(t *testing.T, c *http.Client, p pair, n int64) {
	t.Run(fmt.Sprintf("%s, %d bytes", p, n), func(t *testing.T) {
		defer m.watch(t)()
		want, err := sum(body(n))
		if err != nil {
			t.Fatal(err)
		}
		up := m.ask(t, c, p.service, "POST", "/sum", body(n), func(r *http.Request) { r.ContentLength = -1 })
		if up.body != want+"<nil>" {
			t.Errorf("the app got %q, want %q", up.body, want)
		}
		req, err := http.NewRequestWithContext(t.Context(), "GET", fmt.Sprintf("http://%s/stream?n=%d", m.out[p.service], n), nil)
		if err != nil {
			t.Fatal(err)
		}
		down, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer down.Body.Close()
		if got, err := sum(down.Body); got != want || err != nil {
			t.Errorf("the caller got %q, %v, want %q", got, err, want)
		}
	})
}
