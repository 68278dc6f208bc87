package routing

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// ledger is the row of a pair.
func (w *world) ledger(source, destination string) (p api.PairDetail) {
	w.t.Helper()
	_, body := w.server.Call(http.MethodGet, "/v1/crossfade/pairs/"+source+"/"+destination, nil)
	if err := json.Unmarshal(body, &p); err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) shift(r api.ShiftRequest) (c api.Changed) {
	w.t.Helper()
	in, err := json.Marshal(r)
	if err != nil {
		w.t.Fatal(err)
	}
	_, body := w.server.Call(http.MethodPost, "/v1/crossfade/shift", in)
	if err := json.Unmarshal(body, &c); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// The shift guard sees failures that retries hide from callers, and takes shares back within
// ten seconds of the fault. Not one request fails for it.
func TestGuardRevertsWhatRetriesHide(t *testing.T) {
	w := newWorld(t)
	var broken atomic.Bool
	old := w.plainHTTP("old", w.teller("old"))
	fresh := w.plainHTTP("new", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if broken.Load() && r.Header.Get("x-even") == "" {
			panic(http.ErrAbortHandler) // the connection breaks, and the request is not sent again...
		}
		w.teller("new").ServeHTTP(rw, r)
	}))
	w.enlist("catalog", fresh)
	w.apply("Kind = \"service-defaults\"\nName = \"catalog\"\nProtocol = \"http\"")
	c := w.caller("web", "web-1", "catalog")
	w.apply(fmt.Sprintf(`
Kind = "traffic-shift"
Source = "web"
Destination = "catalog"
Legacy { Address = "127.0.0.1:%d" }
Shares { legacy = 50, direct = 50 }`, old.port))
	stop := make(chan struct{})
	done := make(chan [2]int)
	var asking sync.Mutex // held while a request is under way
	go func() {
		sent, failed := 0, 0
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				done <- [2]int{sent, failed}
				return
			case <-tick.C:
				sent++
				asking.Lock()
				err := c.get("catalog", "/").ok()
				asking.Unlock()
				if err != nil {
					failed++
				}
			}
		}
	}()
	meshtest.Eventually(t, "the guard watches", func() error {
		if p := w.ledger("web", "catalog"); p.Shift == nil || p.Shift.Status != "running" || len(p.Ways) < 2 || p.Ways[1].Attempts < 100 {
			return fmt.Errorf("%+v", p)
		}
		return nil
	})
	// Connections are refused: each request is tried again on the other way. What is under way as they break
	// may have been seen, and is not.
	asking.Lock()
	fresh.stop()
	asking.Unlock()
	began := time.Now()
	meshtest.Eventually(t, "the guard takes all back", func() error {
		if p := w.ledger("web", "catalog"); p.Shares != (api.Shares{Legacy: 100}) {
			return fmt.Errorf("%+v", p.Shares)
		}
		return nil
	})
	took := time.Since(began)
	close(stop)
	n := <-done
	p := w.ledger("web", "catalog")
	t.Logf("back after %v; %d requests, %d failed; %+v", took, n[0], n[1], p.Shift)
	if took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	if n[1] > 0 {
		t.Errorf("%d of %d requests failed", n[1], n[0])
	}
}
