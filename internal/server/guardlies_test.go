//go:build !race

package server

// Under the race detector Go 1.26 now and then ends in a segmentation fault in a select on a
// timer of a synctest bubble. What goes through thousands of those is run without it.

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

// faults are what a registry does wrong. Each ends with the truth. To be caught means that
// without the guard, and for some without what the source does, somebody is told what is not so.
var faults = []struct {
	name   string
	caught bool // without the guard something bad is told
	do     func(r *guardRun)
}{
	{"agents restart in turn, and their nodes leave meanwhile", true, func(r *guardRun) {
		for n := range 4 { // each is away for 2 s, and the next goes before it is back
			name := fmt.Sprintf("n%d", n)
			var was *fakeNode
			r.change(func() { was = r.nodes[name]; delete(r.nodes, name) })
			defer func() {
				after(time.Second / 2)
				r.change(func() { r.index++; was.index = r.index; r.nodes[name] = was })
			}()
			after(time.Second / 2)
		}
	}},
	{"every answer about a service is an empty list", true, func(r *guardRun) {
		r.bending(func(path string, a *fakeAnswer) {
			if strings.HasPrefix(path, "/v1/health/service/") {
				a.body, a.index = []byte("[]"), "99999"
			}
		})
		after(time.Minute)
	}},
	{"every answer about a service is null", false, func(r *guardRun) {
		r.bending(func(path string, a *fakeAnswer) {
			if strings.HasPrefix(path, "/v1/health/service/") {
				a.body = []byte("null")
			}
		})
		after(time.Minute)
	}},
	{"no service has a name", true, func(r *guardRun) {
		r.bending(func(path string, a *fakeAnswer) {
			if path == "/v1/catalog/services" {
				a.body, a.index = []byte("{}"), "99999"
			}
		})
		after(time.Minute)
	}},
	{"all ports are 0", true, func(r *guardRun) {
		r.bending(func(path string, a *fakeAnswer) {
			a.body = bytes.ReplaceAll(a.body, []byte(`"Port":80`), []byte(`"Port":0,"Was":80`))
		})
		after(time.Minute)
	}},
	{"the registry is blank", true, func(r *guardRun) {
		r.change(func() { r.nodes, r.index = map[string]*fakeNode{}, 5000 })
		after(5 * time.Minute)
	}},
	{"an old snapshot is restored, and agents register again after a minute", true, func(r *guardRun) {
		r.old()
		after(time.Minute)
	}},
	{"an old replica answers every other time", true, func(r *guardRun) {
		old := newFakeConsul()
		var n atomic.Int64
		r.bending(func(path string, a *fakeAnswer) {
			if n.Add(1)%2 == 0 {
				old.mu.Lock()
				body, _ := old.read(path)
				old.mu.Unlock()
				a.body, _ = json.Marshal(body)
				a.index = "7"
			}
		})
		after(time.Minute)
	}},
	{"half of all instances vanish with their nodes", true, func(r *guardRun) {
		r.change(func() { delete(r.nodes, "n0"); delete(r.nodes, "n1"); delete(r.nodes, "n2") })
		after(10 * time.Minute)
	}},
	{"gossip is parted: three of four nodes are silent", true, func(r *guardRun) {
		r.change(func() {
			for _, name := range []string{"n0", "n1", "n2", "n3"} {
				r.nodes[name].silent = true
			}
		})
		after(10 * time.Minute)
	}},
	{"answers take 30 s, then nothing answers for half an hour", false, func(r *guardRun) {
		r.bending(func(_ string, a *fakeAnswer) { a.after = 30 * time.Second })
		after(time.Minute)
		n := r.snapshots()
		r.bending(func(_ string, a *fakeAnswer) { a.err = errRefused })
		after(30 * time.Minute)
		if m := r.snapshots(); m != n {
			r.t.Errorf("%d snapshots told while nothing answered", m-n)
		}
	}},
}

// old restores the registry as it was before anything was registered; the nodes were there.
func (r *guardRun) old() {
	r.fakeConsul.mu.Lock()
	defer r.fakeConsul.mu.Unlock()
	r.index, r.restored = 50, r.restored+1
	for _, n := range r.nodes {
		n.services, n.index = map[string]fakeService{}, 50
	}
	r.wake()
}

// Whatever the registry does, nobody is told of a collapse, and 5 s after the truth is back
// all is as it should be. Without the guard the same is caught.
func TestEndpointGuardFaults(t *testing.T) {
	for _, tt := range faults {
		for _, off := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/off=%v", tt.name, off), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFakeConsul()
					services := f.fleet(6, 4)
					truth := copyNodes(f.nodes)
					r := runGuard(t, f, catalog.GuardPolicy{Off: off}, "")
					after(time.Second)
					r.whole(services, 4)
					r.judge(services, 4)
					tt.do(r)
					if tt.caught == (len(r.bad) == 0) && off {
						t.Errorf("told without the guard: %v; want that to be caught: %v", r.bad, tt.caught)
					}
					if off {
						return
					}
					f.bending(nil)
					f.change(func() {
						f.nodes = copyNodes(truth)
						for _, n := range f.nodes {
							n.index = f.index
						}
					})
					after(5 * time.Second)
					r.whole(services, 4)
					if len(r.bad) > 0 {
						t.Errorf("told: %v", r.bad)
					}
				})
			})
		}
	}
}

// junk is 10 MB of it.
var junk = bytes.Repeat([]byte("[{"), 5<<20)

// mutate makes an answer wrong in one of many ways, but for what another true answer could be.
func mutate(rng *rand.Rand, path string, a *fakeAnswer, older map[string][]byte) {
	list := func(change func(list []any) []any) {
		var v []any
		if json.Unmarshal(a.body, &v) == nil {
			a.body, _ = json.Marshal(change(v))
		}
	}
	service := func(in any) map[string]any {
		m, _ := in.(map[string]any)
		s, _ := m["Service"].(map[string]any)
		return s
	}
	each := func(field string, value any) {
		list(func(v []any) []any {
			for _, in := range v {
				if s := service(in); s != nil && rng.IntN(3) > 0 {
					s[field] = value
				}
			}
			return v
		})
	}
	few := []byte("[]")
	if path == "/v1/catalog/services" {
		few = []byte("{}")
	}
	switch rng.IntN(26) {
	case 0, 1:
		a.body = few
	case 2:
		a.body = []byte("null")
	case 3:
		a.body = []byte("<html><body>503 from a proxy</body></html>")
	case 4:
		a.body = a.body[:rng.IntN(len(a.body)+1)]
	case 5:
		a.status, a.body = []int{500, 502, 403, 429, 204, 302}[rng.IntN(6)], []byte("No cluster leader")
	case 6:
		a.body = junk
	case 7:
		each("Port", "many")
	case 8:
		a.body = bytes.ReplaceAll(a.body, []byte(`"Passing":1`), []byte(`"Passing":NaN`))
	case 9:
		each("Port", []int{0, 70000, -1}[rng.IntN(3)])
	case 10:
		each("Weights", map[string]any{"Passing": 1 << 40, "Warning": -1})
	case 11:
		list(func(v []any) []any {
			for _, in := range v {
				copied, _ := json.Marshal(in)
				var twin map[string]any
				if json.Unmarshal(copied, &twin) == nil && service(twin) != nil {
					service(twin)["Port"] = 1
					v = append(v, twin)
				}
			}
			return v
		})
	case 12:
		a.index = "3"
	case 13:
		a.index = []string{"", "0", "-5", "x", "18446744073709551616"}[rng.IntN(5)]
	case 14:
		a.index, a.body = "9999999999", few
	case 15, 16:
		if strings.HasPrefix(path, "/v1/health/node/") {
			a.body = few // all three lying alike is no mistake that could be told
			break
		}
		list(func(v []any) []any { return slices.DeleteFunc(v, func(any) bool { return rng.IntN(3) > 0 }) })
	case 17:
		each("Service", "other")
	case 18:
		a.broken = true
	case 19:
		if old := older[path]; old != nil {
			a.body, a.index = old, "50"
		}
	case 20:
		a.body = bytes.ReplaceAll(a.body, []byte(`"Services":[`), []byte(`"Services":[],"Were":[`))
	case 21:
		a.body = bytes.ReplaceAll(a.body, []byte(`"CheckID":"serfHealth","Node"`), []byte(`"CheckID":"serfHealth","Was":"passing","Node"`))
		a.body = bytes.ReplaceAll(a.body, []byte(`"ServiceID":"","Status":"passing"`), []byte(`"ServiceID":"","Status":"critical"`))
	case 22:
		a.body = bytes.ReplaceAll(a.body, []byte(`"Node":{`), []byte(`"Node":null,"Was":{`))
	case 23:
		a.body = append(a.body, a.body...)
	case 24:
		a.body = bytes.ReplaceAll(a.body, []byte(`"Status":"passing"`), []byte(`"Status":"great"`))
	case 25:
		a.err = errRefused
	}
}

// Thousands of answers that are wrong, by a seed each: nobody is told anything bad, and 5 s
// after the last of them all is as it should be. Without the guard the same seeds are caught.
func TestEndpointGuardMutatedAnswers(t *testing.T) {
	mutated, caught := 0, 0
	for seed := range uint64(3) {
		for _, off := range []bool{false, true} {
			if off && seed > 0 {
				continue
			}
			synctest.Test(t, func(t *testing.T) {
				f := newFakeConsul()
				services := f.fleet(10, 4)
				r := runGuard(t, f, catalog.GuardPolicy{Off: off}, "")
				after(time.Second)
				r.whole(services, 4)
				r.judge(services, 4)
				rng := rand.New(rand.NewPCG(seed, 1))
				var mu sync.Mutex
				n := 0
				older := map[string][]byte{"/v1/catalog/services": []byte("{}"), "/v1/health/service/s3": []byte("[]")}
				f.bending(func(path string, a *fakeAnswer) {
					mu.Lock()
					defer mu.Unlock()
					if rng.IntN(5) > 0 && path != "/v1/agent/self" {
						n++
						mutate(rng, path, a, older)
					}
				})
				for range 40 {
					after(3 * time.Second)
				}
				f.bending(nil)
				f.change(func() {})
				after(5 * time.Second)
				mu.Lock()
				defer mu.Unlock()
				if off {
					caught += len(r.bad)
					return
				}
				r.whole(services, 4)
				mutated += n
				if len(r.bad) > 0 {
					t.Errorf("seed %d: after %d mutated answers %d bad ones were told: %v", seed, n, len(r.bad), r.bad[:min(5, len(r.bad))])
				}
			})
		}
	}
	if mutated < 1000 || caught == 0 {
		t.Errorf("%d answers mutated, want 1,000; %d bad pushes without the guard, want some", mutated, caught)
	}
	t.Logf("%d mutated answers; %d bad pushes without the guard", mutated, caught)
}
