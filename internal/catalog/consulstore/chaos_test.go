package consulstore_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog/consulstore/consultest"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// rounds is how often each writer writes.
const rounds = 60

// attempts are what one writer has tried to make of an entry, the oldest first, and which of them
// was acknowledged last.
type attempts struct {
	tried []string
	acked int // index of it, or -1
}

// TestNoAcknowledgedWriteIsLost has servers write entries of Consul's kinds and of our own through
// a Consul whose connections break, before a request and after it, while servers come and go. At
// the end each entry is what was acknowledged last, or something that was tried later.
func TestNoAcknowledgedWriteIsLost(t *testing.T) {
	f := consultest.NewFake(t)
	var broken atomic.Int64
	f.Spoil(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet {
			return false
		}
		switch rand.IntN(10) {
		case 0:
			broken.Add(1)
			panic(http.ErrAbortHandler)
		case 1:
			broken.Add(1)
			f.Serve(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
		return false
	})
	var mu sync.Mutex
	all := map[config.Key]*attempts{}
	acked, failed := 0, 0
	var writers sync.WaitGroup
	for writer := range 4 {
		writers.Go(func() {
			var s *store.Store
			for n := range rounds {
				for s == nil || n%20 == 0 { // a new server, with nothing in memory
					if s != nil {
						s.Close()
					}
					var err error
					if s, err = tryMember(f.URL, ""); err != nil {
						s = nil
						continue
					}
					break
				}
				value := fmt.Sprintf("v%d-%d", writer, n)
				var e config.Entry = &config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: fmt.Sprintf("s%d-%d", writer, n%3), Protocol: "http", Meta: map[string]string{"v": value}}
				if n%2 == 0 {
					e = policy(fmt.Sprintf("s%d-%d", writer, n%3), value)
				}
				mu.Lock()
				at := all[config.KeyOf(e)]
				if at == nil {
					at = &attempts{acked: -1}
					all[config.KeyOf(e)] = at
				}
				at.tried = append(at.tried, value)
				mu.Unlock()
				err := s.Update(put(e, "w"))
				mu.Lock()
				if err == nil {
					at.acked = len(at.tried) - 1
					acked++
				} else {
					failed++
				}
				mu.Unlock()
			}
			if s != nil {
				s.Close()
			}
		})
	}
	writers.Wait()
	f.Spoil(nil)
	a, b := member(t, f.URL, ""), member(t, f.URL, "")
	<-time.After(time.Second) // time enough to find what is otherwise
	agree(t, a, b)
	a.Read(context.Background(), 0, func(r *store.Reader) {
		for k, at := range all {
			if at.acked < 0 {
				continue
			}
			row := r.Entry(k)
			found := false
			for _, value := range at.tried[at.acked:] {
				if row == nil {
					break
				}
				text, err := config.EncodeEntry(row.Entry)
				found = found || err == nil && strings.Contains(string(text), `"`+value+`"`)
			}
			if !found {
				t.Errorf("%s: %s was acknowledged last, of %v; it is %+v", k, at.tried[at.acked], at.tried, row)
			}
		}
	})
	t.Logf("%d writes acknowledged, %d failed, %d connections broken", acked, failed, broken.Load())
	if acked < 100 || broken.Load() < 20 {
		t.Errorf("%d acknowledged and %d connections broken prove nothing", acked, broken.Load())
	}
}
