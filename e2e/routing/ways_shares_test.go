package routing

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// count makes n calls, some at once, and counts the ways of who answers.
func count(n int, call func() (string, error)) (map[string]int, []error) {
	var mu sync.Mutex
	out := map[string]int{}
	var failed []error
	var wg sync.WaitGroup
	const workers = 8
	for worker := range workers {
		wg.Go(func() {
			for i := worker; i < n; i += workers {
				id, err := call()
				way, _, _ := strings.Cut(id, "-")
				mu.Lock()
				out[way]++
				if err != nil {
					failed = append(failed, err)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return out, failed
}

// Shares are true: of requests, of connections, of streams and of WebSockets.
func TestWayShares(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.speak()
	numbers := map[string]int{"catalog": 3000, "chat": 1500, "payments": 1500, "news": 1000}
	apps := map[string]ways{}
	for service := range numbers {
		apps[service] = w.four(service)
	}
	web := w.caller("web", "web-1", "catalog", "chat", "payments", "news")
	calls := web.calls()
	for service, n := range numbers {
		for _, shares := range [][4]float64{
			{99, 0, 1, 0}, {0, 90, 0, 10}, {33, 0, 33, 34}, {33, 34, 0, 33}, {0, 50, 50, 0}, {50, 0, 0, 50}, {0, 0, 90, 10}, {1, 9, 0, 90}, {10, 20, 30, 40},
			{100, 0, 0, 0}, {0, 100, 0, 0}, {0, 0, 100, 0}, {0, 0, 0, 100},
		} {
			w.apply(apps[service].shift(service, shares, ""))
			got, failed := count(n, calls[service])
			if len(failed) > 0 {
				t.Errorf("%s %v: %d failed: %v", service, shares, len(failed), failed[0])
			}
			for i, way := range wayNames {
				within(t, fmt.Sprintf("%s %v: %s", service, shares, way), got[way], n, shares[i]/100)
			}
			t.Logf("%s %v: %v", service, shares, got)
		}
	}
}

// Of so many requests the bound is one point at most.
func TestWaySharesOfManyRequests(t *testing.T) {
	const n = 40_000
	w := newWorld(t)
	w.speak()
	apps := w.four("catalog")
	web := w.caller("web", "web-1", "catalog")
	call := func() (string, error) { a := web.get("catalog", "/"); return a.instance, a.ok() }
	for _, shares := range [][4]float64{{10, 33, 7, 50}, {1, 0, 9, 90}} {
		w.apply(apps.shift("catalog", shares, ""))
		began := time.Now()
		got, failed := count(n, call)
		if len(failed) > 0 {
			t.Errorf("%v: %d failed: %v", shares, len(failed), failed[0])
		}
		for i, way := range wayNames {
			within(t, fmt.Sprintf("%v: %s", shares, way), got[way], n, shares[i]/100)
		}
		t.Logf("%v: %v, in %v", shares, got, time.Since(began))
	}
}
