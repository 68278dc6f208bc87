package sidecar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/check"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// fakeAgent is a registry that knows what the sidecar uses of it.
type fakeAgent struct {
	t *testing.T

	mu       sync.Mutex
	down     bool
	refuse   bool
	port     int               // of the registered sidecar; 0: none
	meta     map[string]string // of the registered sidecar
	checks   map[string]string // ID -> status
	protocol string            // of the service-defaults entry; empty: none
	writes   []string          // method and path with query
	seen     chan struct{}     // capacity 1: something was written
}

func (f *fakeAgent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	if r.Method == http.MethodPut {
		f.writes = append(f.writes, r.URL.RequestURI())
		select {
		case f.seen <- struct{}{}:
		default:
		}
	}
	switch {
	case f.down:
		http.Error(w, "no leader", http.StatusInternalServerError)
	case r.URL.Path == "/v1/agent/service/register":
		if f.refuse {
			http.Error(w, "Invalid service port", http.StatusBadRequest)
			return
		}
		def, err := config.DecodeRegistration(body)
		if err != nil {
			f.t.Errorf("registration: %v", err)
			return
		}
		f.port, f.meta = def.Sidecar.Service.Port, def.Sidecar.Service.Meta
		f.checks = map[string]string{}
		for _, c := range slices.Concat(def.Checks, def.Sidecar.Checks) {
			if c.TTL == 0 {
				f.t.Errorf("check %q is registered without a TTL", c.ID)
			}
			f.checks[c.ID] = string(c.Status)
		}
	case strings.HasPrefix(r.URL.Path, "/v1/agent/service/deregister/"):
		f.port = 0
		w.Header().Set("X-Crossfade-Waited", "2/2")
	case strings.HasPrefix(r.URL.Path, "/v1/agent/service/"):
		if f.port == 0 {
			http.Error(w, "unknown service ID", http.StatusNotFound)
			return
		}
		fmt.Fprintf(w, `{"Address":"127.0.0.1","Port":%d}`, f.port)
	case strings.HasPrefix(r.URL.Path, "/v1/agent/check/update/"):
		id := strings.TrimPrefix(r.URL.Path, "/v1/agent/check/update/")
		if _, ok := f.checks[id]; !ok || f.port == 0 {
			http.Error(w, "Unknown check ID", http.StatusNotFound)
			return
		}
		var u struct{ Status string }
		if err := json.Unmarshal(body, &u); err != nil {
			f.t.Errorf("check update: %v", err)
		}
		f.checks[id] = u.Status
	case r.URL.Path == "/v1/config/service-defaults/catalog":
		if f.protocol == "" {
			http.Error(w, "Config entry not found", http.StatusNotFound)
			return
		}
		fmt.Fprintf(w, `{"Kind":"service-defaults","Name":"catalog","Protocol":%q}`, f.protocol)
	case r.URL.Path == "/v1/config":
		var e struct{ Protocol string }
		if err := json.Unmarshal(body, &e); err != nil {
			f.t.Errorf("entry: %v", err)
		}
		f.protocol = e.Protocol
		io.WriteString(w, "true")
	default:
		http.NotFound(w, r)
	}
}

func (f *fakeAgent) status(id string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.checks[id]
}

func (f *fakeAgent) change(c func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c()
}

const alive = "service:catalog-1-sidecar-proxy:alive"

// newRegistration registers catalog-1, which has an HTTP check, with f.
func newRegistration(t *testing.T, f *fakeAgent, log io.Writer, addrs ...string) *registration {
	t.Helper()
	f.t, f.seen = t, make(chan struct{}, 1)
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	def, err := instance(config.Definition{
		Service: catalog.Service{Name: "catalog", ID: "catalog-1", Port: 8080}, Protocol: "http",
		Sidecar: &config.Definition{Service: catalog.Service{Port: 21001}},
		Checks:  []config.CheckDefinition{{HTTP: "http://127.0.0.1:8080/healthz", Interval: config.Duration(time.Second)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	h := newHealth(&def, "catalog-1-sidecar-proxy")
	a := newAgent(Options{HTTPAddrs: append(addrs, srv.URL), Node: "host-1", NodeAddress: "127.0.0.1"}, &credential{})
	t.Cleanup(a.close)
	return &registration{
		agent: a, entries: a, health: h, def: def, proxyID: "catalog-1-sidecar-proxy", log: slog.New(slog.NewTextHandler(log, nil)),
		confirmed: func(bool) {}, tried: make(chan struct{}), first: make(chan struct{}),
	}
}

func TestRegistrationFollowsHealth(t *testing.T) {
	f := &fakeAgent{}
	// A dead server first: the next one is asked.
	r := newRegistration(t, f, io.Discard, "http://127.0.0.1:1")
	if err := r.assert(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := f.status(alive) + " " + f.status("service:catalog-1"); got != "critical critical" {
		t.Errorf("registered as %q, want critical at first", got)
	}
	if f.protocol != "http" {
		t.Errorf("service-defaults protocol = %q", f.protocol)
	}
	if i := slices.Index(f.writes, "/v1/config?cas=0"); i != 0 {
		t.Errorf("writes = %q, want the protocol first", f.writes)
	}
	if want := "/v1/agent/service/register?address=127.0.0.1&node=host-1&replace-existing-checks=true"; !slices.Contains(f.writes, want) {
		t.Errorf("writes = %q, lack %q", f.writes, want)
	}

	for _, step := range []struct {
		change func(*health)
		want   string // alive
	}{
		{func(h *health) { h.envoyUp = true }, "critical"},
		{func(h *health) { h.appUp = true }, "critical"}, // its own check is not passing yet
		{func(h *health) { h.results["service:catalog-1"] = checkState{catalog.Warning, "slow"} }, "warning"},
		{func(h *health) { h.results["service:catalog-1"] = checkState{catalog.Passing, "ok"} }, "passing"},
		{func(h *health) { h.envoyUp = false }, "critical"},
	} {
		r.health.set(step.change)
		if err := r.assert(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := f.status(alive); got != step.want {
			t.Errorf("sidecar's check = %q, want %q", got, step.want)
		}
	}
	before := len(f.writes)
	if err := r.assert(t.Context()); err != nil || len(f.writes) != before {
		t.Errorf("with nothing new: %v, wrote %q", err, f.writes[before:])
	}
	if waited, err := r.agent.deregister(t.Context(), "catalog-1", time.Second); waited != "2/2" || err != nil {
		t.Errorf("deregister = %q, %v", waited, err)
	}
}

// Callers learn from the registration where plaintext is taken, also from one that a
// registry had lost; what a definition says of that does not count.
func TestRegistrationTellsOfPlaintext(t *testing.T) {
	f := &fakeAgent{}
	r := newRegistration(t, f, io.Discard)
	r.def.Sidecar.Service.Meta = map[string]string{catalog.PlaintextMeta: "1", "team": "stock"}
	r.health.set(func(h *health) { h.envoyUp, h.appUp = true, true })
	r.health.report("", "service:catalog-1", check.Result{Status: catalog.Passing})
	for _, tt := range []struct {
		name   string
		change func()
		want   string
	}{
		{"at first", func() {}, ""},
		{"in force", func() { r.health.set(func(h *health) { h.plaintext = 21300 }) }, "21300"},
		{"registry empty", func() { f.port, f.checks, f.meta, r.pulsed = 0, nil, nil, nil }, "21300"},
		{"no longer", func() { r.health.set(func(h *health) { h.plaintext = 0 }) }, ""},
	} {
		f.change(tt.change)
		if err := r.assert(t.Context()); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if got := f.meta[catalog.PlaintextMeta]; got != tt.want || f.meta["team"] != "stock" || f.status(alive) != "passing" {
			t.Errorf("%s: registered as %q, %v; want plaintext at %q", tt.name, f.status(alive), f.meta, tt.want)
		}
	}
}

func TestRegistersAgain(t *testing.T) {
	var log strings.Builder
	f := &fakeAgent{protocol: "grpc"}
	r := newRegistration(t, f, &log)
	r.health.set(func(h *health) { h.envoyUp, h.appUp = true, true })
	r.health.report("", "service:catalog-1", check.Result{Status: catalog.Passing})
	for _, tt := range []struct {
		name string
		lose func()
	}{
		{"at first", func() {}},
		{"registry empty", func() { f.port, f.checks = 0, nil }},
		{"another instance took the id", func() { f.port = 1 }},
	} {
		f.change(tt.lose)
		r.pulsed = nil // the time for a look has come
		if err := r.assert(t.Context()); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if f.port != 21001 || f.status(alive) != "passing" {
			t.Errorf("%s: registered at port %d as %q", tt.name, f.port, f.status(alive))
		}
	}
	if f.protocol != "grpc" || !strings.Contains(log.String(), "another protocol") {
		t.Errorf("an entry that was there is now %q; log:\n%s", f.protocol, log.String())
	}
	f.change(func() { f.down = true })
	r.pulsed = nil
	if err := r.assert(t.Context()); err == nil || errors.Is(err, errRefused) || !r.known {
		t.Errorf("with no server: %v, known %v; want an error that is tried again", err, r.known)
	}
}

func TestRegistrationRun(t *testing.T) {
	f := &fakeAgent{}
	r := newRegistration(t, f, io.Discard)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.run(ctx) }()
	<-r.first
	r.health.set(func(h *health) {
		h.envoyUp, h.appUp = true, true
		h.results["service:catalog-1"] = checkState{catalog.Passing, ""}
	})
	for f.status(alive) != "passing" {
		<-f.seen
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}

	refusing := newRegistration(t, &fakeAgent{refuse: true}, io.Discard)
	wantError(t, refusing.run(t.Context()), `service "catalog-1"`, "cannot be registered", "Invalid service port")
}

func TestIDInUse(t *testing.T) {
	_, port := listen(t)
	f := &fakeAgent{port: port}
	r := newRegistration(t, f, io.Discard)
	wantError(t, r.checkID(t.Context()), `service id "catalog-1"`, fmt.Sprint(port), "host-1")
	f.change(func() { f.port = 21001 })
	if err := r.checkID(t.Context()); err != nil {
		t.Errorf("its own registration: %v", err)
	}
}

func TestAgentSelf(t *testing.T) {
	body := `{"Config":{"Datacenter":"dc1"},"xDS":{"Ports":{"Plaintext":8502,"TLS":8503}}}`
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) }))
	t.Cleanup(srv.Close)
	a := newAgent(Options{HTTPAddrs: []string{srv.URL}}, &credential{})
	got, err := a.self(t.Context(), srv.URL)
	if want := (serverSelf{"dc1", "127.0.0.1:8502"}); err != nil || got != want {
		t.Errorf("self = %+v, %v; want %+v", got, err, want)
	}
	body = `{"Config":{"Datacenter":"dc1"},"xDS":{"Ports":{"Plaintext":-1,"TLS":8503}}}`
	_, err = a.self(t.Context(), srv.URL)
	wantError(t, err, "no plaintext gRPC", "--grpc-addr")
	body = "<html>"
	_, err = a.self(t.Context(), srv.URL)
	wantError(t, err, "is it the HTTP port?")
}
