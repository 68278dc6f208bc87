package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// fakeConsul is a Consul that can be programmed: services on nodes, and what becomes of its
// answers. It is an [http.RoundTripper], so that no socket stands in the way of virtual
// time, and an [http.Handler].
type fakeConsul struct {
	mu       sync.Mutex
	index    uint64
	restored int // how often
	nodes    map[string]*fakeNode
	changed  chan struct{} // closed and replaced at each change
	// bend changes an answer on its way; nil: none.
	bend func(path string, a *fakeAnswer)
}

type fakeNode struct {
	index    uint64
	silent   bool
	services map[string]fakeService // by ID
}

type fakeService struct {
	name, status, output string
	port                 int
	index                uint64
}

// fakeAnswer is an answer that may yet be bent.
type fakeAnswer struct {
	status int
	index  string
	body   []byte
	broken bool          // breaks off in the middle
	err    error         // none comes
	after  time.Duration // it comes late
}

func newFakeConsul() *fakeConsul {
	return &fakeConsul{index: 100, nodes: map[string]*fakeNode{}, changed: make(chan struct{})}
}

// change makes changes as one write.
func (f *fakeConsul) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index++
	do()
	f.wake()
}

func (f *fakeConsul) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeConsul) node(name string) *fakeNode {
	if f.nodes[name] == nil {
		f.nodes[name] = &fakeNode{services: map[string]fakeService{}}
	}
	f.nodes[name].index = f.index
	return f.nodes[name]
}

// register puts an instance on a node; call it in change.
func (f *fakeConsul) register(node, service, id string, port int) {
	f.node(node).services[id] = fakeService{name: service, port: port, status: "passing", index: f.index}
}

func (f *fakeConsul) deregister(node, id string) { delete(f.node(node).services, id) }

// save copies all there is; restore puts it back as it was then, indexes included.
func (f *fakeConsul) save() (restore func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	index, nodes := f.index, copyNodes(f.nodes)
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.index, f.nodes = index, copyNodes(nodes)
		f.restored++
		f.wake()
	}
}

func copyNodes(in map[string]*fakeNode) map[string]*fakeNode {
	out := map[string]*fakeNode{}
	for name, n := range in {
		c := *n
		c.services = maps.Clone(n.services)
		out[name] = &c
	}
	return out
}

func (f *fakeConsul) bending(bend func(path string, a *fakeAnswer)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bend = bend
	f.wake()
}

// read answers one path. The caller holds mu.
func (f *fakeConsul) read(path string) (body any, index uint64) {
	last := func(prefix string) string { return strings.TrimPrefix(path, prefix) }
	switch {
	case path == "/v1/agent/self":
		return map[string]any{"Config": map[string]any{"Datacenter": "dc1"}}, 1
	case path == "/v1/catalog/services":
		out := map[string][]string{}
		for _, n := range f.nodes {
			for _, s := range n.services {
				out[s.name] = []string{}
			}
		}
		return out, f.index
	case strings.HasPrefix(path, "/v1/health/service/"):
		out := []any{}
		for _, name := range slices.Sorted(maps.Keys(f.nodes)) {
			n := f.nodes[name]
			for _, id := range slices.Sorted(maps.Keys(n.services)) {
				if s := n.services[id]; s.name == last("/v1/health/service/") {
					out = append(out, map[string]any{"Node": nodeJSON(name), "Service": s.json(id), "Checks": []any{n.serf(name), s.check(name, id)}})
				}
			}
		}
		return out, f.index
	case strings.HasPrefix(path, "/v1/catalog/node-services/"):
		name := last("/v1/catalog/node-services/")
		n := f.nodes[name]
		if n == nil {
			return nil, f.index
		}
		list := []any{}
		for _, id := range slices.Sorted(maps.Keys(n.services)) {
			list = append(list, n.services[id].json(id))
		}
		return map[string]any{"Node": nodeJSON(name), "Services": list}, n.index
	case strings.HasPrefix(path, "/v1/health/node/"):
		name := last("/v1/health/node/")
		out := []any{}
		if n := f.nodes[name]; n != nil {
			out = append(out, n.serf(name))
			for _, id := range slices.Sorted(maps.Keys(n.services)) {
				out = append(out, n.services[id].check(name, id))
			}
		}
		return out, f.index
	}
	return nil, f.index
}

func nodeJSON(name string) map[string]any {
	return map[string]any{"ID": "x", "Node": name, "Address": "10.0.0." + strings.TrimLeft(name, "n"), "Datacenter": "dc1"}
}

func (s fakeService) json(id string) map[string]any {
	return map[string]any{"ID": id, "Service": s.name, "Port": s.port, "Tags": []string{}, "Weights": map[string]any{"Passing": 1, "Warning": 1}, "ModifyIndex": s.index, "CreateIndex": s.index}
}

func (s fakeService) check(node, id string) map[string]any {
	return map[string]any{"Node": node, "CheckID": "service:" + id, "Status": s.status, "Output": s.output, "ServiceID": id, "ServiceName": s.name, "Type": "ttl"}
}

func (n *fakeNode) serf(node string) map[string]any {
	status := "passing"
	if n.silent {
		status = "critical"
	}
	return map[string]any{"Node": node, "CheckID": "serfHealth", "Status": status, "ServiceID": ""}
}

// answer waits as a blocking query does.
func (f *fakeConsul) answer(r *http.Request) fakeAnswer {
	after, _ := strconv.ParseUint(r.FormValue("index"), 10, 64)
	wait, _ := time.ParseDuration(r.FormValue("wait"))
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	path := r.URL.Path
	f.mu.Lock()
	born := f.restored
	f.mu.Unlock()
	for expired := false; ; {
		f.mu.Lock()
		body, index := f.read(path)
		changed, bend, restored := f.changed, f.bend, f.restored != born
		f.mu.Unlock()
		if after > 0 && index <= after && !expired && !restored && bend == nil {
			select {
			case <-changed:
			case <-timeout.C:
				expired = true
			case <-r.Context().Done():
				return fakeAnswer{err: r.Context().Err()}
			}
			continue
		}
		a := fakeAnswer{status: http.StatusOK, index: strconv.FormatUint(index, 10)}
		a.body, _ = json.Marshal(body)
		if bend != nil {
			bend(path, &a)
		}
		if a.after > 0 {
			late := time.NewTimer(a.after)
			defer late.Stop()
			select {
			case <-late.C:
			case <-r.Context().Done():
				return fakeAnswer{err: r.Context().Err()}
			}
		}
		return a
	}
}

// RoundTrip implements [http.RoundTripper].
func (f *fakeConsul) RoundTrip(r *http.Request) (*http.Response, error) {
	a := f.answer(r)
	if a.err != nil {
		return nil, a.err
	}
	resp := &http.Response{StatusCode: a.status, Header: http.Header{}, Request: r}
	if a.index != "" {
		resp.Header.Set("X-Consul-Index", a.index)
	}
	body := io.Reader(bytes.NewReader(a.body))
	if a.broken {
		body = io.MultiReader(bytes.NewReader(a.body[:len(a.body)/2]), failingReader{})
	}
	resp.Body = io.NopCloser(body)
	return resp, nil
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// ServeHTTP implements [http.Handler].
func (f *fakeConsul) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a := f.answer(r)
	if a.err != nil {
		panic(http.ErrAbortHandler)
	}
	if a.index != "" {
		w.Header().Set("X-Consul-Index", a.index)
	}
	w.WriteHeader(a.status)
	w.Write(a.body)
}

var errRefused = errors.New("connection refused")

// fleet registers so many services with so many instances each, an instance of each on each node.
func (f *fakeConsul) fleet(services, nodes int) (names []string) {
	f.change(func() {
		for s := range services {
			name := fmt.Sprintf("s%d", s)
			names = append(names, name)
			for n := range nodes {
				f.register(fmt.Sprintf("n%d", n), name, fmt.Sprintf("%s-%d", name, n), 8000+s)
			}
		}
	})
	return names
}
