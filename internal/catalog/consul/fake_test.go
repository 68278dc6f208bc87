package consul

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

// fake is a Consul with a catalog, an index per service and blocking queries. Any
// path can be made to answer something else. It is an [http.Handler] and, so that
// no socket stands in the way of virtual time, an [http.RoundTripper].
type fake struct {
	mu       sync.Mutex
	index    uint64
	names    uint64 // index of the list of services
	services map[string]*service
	changed  chan struct{} // closed and replaced at each change
	asked    []string      // "path?query" of each request
	token    string        // the last one seen
	open     map[string]int
	most     int // health queries open at once
	script   map[string]http.HandlerFunc
	broken   error // of the transport
}

type service struct {
	index     uint64
	instances []map[string]any
}

func newFake() *fake {
	return &fake{index: 10, names: 10, services: map[string]*service{}, changed: make(chan struct{}), script: map[string]http.HandlerFunc{}, open: map[string]int{}}
}

// instance is an entry as Consul gives it; set is applied to its Service.
func instance(name, id string, port int, status catalog.Status, set map[string]any) map[string]any {
	s := map[string]any{"ID": id, "Service": name, "Port": port, "Tags": []string{}, "Meta": nil, "Weights": map[string]int{"Passing": 1, "Warning": 1},
		"Proxy": map[string]any{"Mode": "", "MeshGateway": map[string]any{}}, "Connect": map[string]any{}}
	maps.Copy(s, set)
	return map[string]any{
		"Node":    map[string]any{"ID": "x", "Node": "n1", "Address": "127.0.0.1", "Datacenter": "dc1"},
		"Service": s,
		"Checks":  []map[string]any{{"Node": "n1", "CheckID": "service:" + id, "Status": status, "ServiceID": id, "Definition": map[string]any{}}},
	}
}

// put replaces a service's instances; none removes it.
func (f *fake) put(name string, instances ...map[string]any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index++
	for _, in := range instances {
		in["Service"].(map[string]any)["ModifyIndex"] = f.index
		in["Node"].(map[string]any)["ModifyIndex"] = f.index
		in["Checks"].([]map[string]any)[0]["ModifyIndex"] = f.index
	}
	if s := f.services[name]; s == nil || len(instances) == 0 {
		f.names = f.index
	}
	if len(instances) == 0 {
		delete(f.services, name)
	} else {
		f.services[name] = &service{f.index, instances}
	}
	f.wake()
}

func (f *fake) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// say makes a path answer with that status, body and index header; nil h ends it.
func (f *fake) say(path string, h http.HandlerFunc) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if h == nil {
		delete(f.script, path)
	} else {
		f.script[path] = h
	}
	f.wake()
}

// fail breaks the transport off, with requests that are under way; nil mends it.
func (f *fake) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = err
	f.wake()
}

func body(status int, index, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if index != "" {
			w.Header().Set("X-Consul-Index", index)
		}
		w.WriteHeader(status)
		io.WriteString(w, text)
	}
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.asked = append(f.asked, r.URL.String())
	f.token = r.Header.Get("X-Consul-Token")
	health := strings.HasPrefix(r.URL.Path, "/v1/health/")
	if health {
		f.open["health"]++
		f.most = max(f.most, f.open["health"])
		defer func() {
			f.mu.Lock()
			f.open["health"]--
			f.mu.Unlock()
		}()
	}
	f.mu.Unlock()

	after, _ := strconv.ParseUint(r.FormValue("index"), 10, 64)
	wait, _ := time.ParseDuration(r.FormValue("wait"))
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	for {
		f.mu.Lock()
		script, changed, broken := f.script[r.URL.Path], f.changed, f.broken
		answer, index := f.read(r.URL.Path)
		f.mu.Unlock()
		if broken != nil {
			return
		}
		if script != nil {
			script(w, r)
			return
		}
		expired := false
		if after > 0 && index <= after {
			select {
			case <-changed:
				continue
			case <-r.Context().Done():
				return
			case <-timeout.C:
				expired = true
			}
		}
		if after == 0 || index > after || expired {
			w.Header().Set("X-Consul-Index", strconv.FormatUint(index, 10))
			json.NewEncoder(w).Encode(answer)
			return
		}
	}
}

func (f *fake) read(path string) (any, uint64) {
	switch name, ok := strings.CutPrefix(path, "/v1/health/service/"); {
	case path == pathServices:
		names := map[string][]string{}
		for name := range f.services {
			names[name] = []string{}
		}
		return names, f.names
	case path == "/v1/agent/self":
		return map[string]any{"Config": map[string]any{"Datacenter": "dc1"}}, 1
	case ok && f.services[name] != nil:
		return f.services[name].instances, f.services[name].index
	}
	return []any{}, f.index
}

// RoundTrip implements [http.RoundTripper].
func (f *fake) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	f.mu.Lock()
	broken := f.broken
	f.mu.Unlock()
	if broken != nil {
		return nil, broken
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	resp := w.Result()
	if resp.Header.Get("X-Break") != "" {
		resp.Body = io.NopCloser(io.MultiReader(resp.Body, iotestErr{}))
	}
	return resp, nil
}

type iotestErr struct{}

func (iotestErr) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// since returns what was asked of a path since the last call, as its queries.
func (f *fake) since(path string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, u := range f.asked {
		if p, query, _ := strings.Cut(u, "?"); strings.HasSuffix(p, path) {
			out = append(out, query)
		}
	}
	f.asked = nil
	return out
}

// reader runs a source inside a synctest bubble.
type reader struct {
	*fake
	source    *Source
	mu        sync.Mutex
	snapshots []*catalog.Snapshot
	log       bytes.Buffer // guarded by mu
}

func read(t *testing.T, f *fake, o Options) *reader {
	t.Helper()
	r := &reader{fake: f}
	o.Address, o.HTTPClient = "consul.test:8500", &http.Client{Transport: f}
	o.Log = slog.New(slog.NewTextHandler(writer{r}, nil))
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	r.source = s
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx, r.publish) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v", err)
		}
	})
	return r
}

type writer struct{ r *reader }

func (w writer) Write(b []byte) (int, error) {
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	return w.r.log.Write(b)
}

func (r *reader) publish(s *catalog.Snapshot) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.snapshots = append(r.snapshots, s)
}

// after lets d pass and returns the snapshots published so far and the newest.
func (r *reader) after(d time.Duration) (n int, newest *catalog.Snapshot) {
	<-time.After(d)
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if n = len(r.snapshots); n > 0 {
		newest = r.snapshots[n-1]
	}
	return n, newest
}

// logged counts lines that hold all of the words.
func (r *reader) logged(words ...string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for line := range strings.Lines(r.log.String()) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			n++
		}
	}
	return n
}

// describe is what the tests compare: "id@address:port status" of each instance.
func describe(s *catalog.Snapshot, name string) string {
	set := s.Set(name)
	if set == nil {
		return "none"
	}
	var out []string
	for _, in := range set.Instances {
		out = append(out, fmt.Sprintf("%s@%s:%d %s", in.Service.ID, in.Address(), in.Service.Port, in.Status()))
	}
	return strings.Join(out, ", ")
}
