package sidecar

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// consulAgentStub answers as a Consul agent does that holds web-1 and its sidecar.
type consulAgentStub struct {
	mu    sync.Mutex
	notes string // of the sidecar's maintenance mode; "": none
	token string
	asked []string
}

const consulProxy = `{"Kind":"connect-proxy","ID":"web-1-sidecar-proxy","Service":"web-sidecar-proxy","Port":21007,"Address":"","Weights":{"Passing":1,"Warning":1},
	"Proxy":{"DestinationServiceName":"web","DestinationServiceID":"web-1","LocalServiceAddress":"127.0.0.1","LocalServicePort":8080,
	"Config":{"bind_port":31007},"Upstreams":[{"DestinationType":"service","DestinationName":"db","LocalBindPort":7100}]}}`

func (c *consulAgentStub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.token = r.Header.Get(tokenHeader)
	c.asked = append(c.asked, r.Method+" "+r.URL.Path)
	filter := r.URL.Query().Get("filter")
	switch r.URL.Path {
	case "/v1/agent/self":
		fmt.Fprint(w, `{"Config":{"NodeName":"n7","Datacenter":"dc1"},"Member":{"Addr":"10.0.0.7"}}`)
	case "/v1/agent/services":
		if strings.Contains(filter, `Proxy.DestinationServiceID == "web-1"`) || strings.Contains(filter, `ID == "web-1-sidecar-proxy"`) {
			fmt.Fprintf(w, `{"web-1-sidecar-proxy":%s}`, consulProxy)
		} else {
			fmt.Fprint(w, `{}`)
		}
	case "/v1/agent/service/web-1":
		fmt.Fprint(w, `{"ID":"web-1","Service":"web","Port":8080,"Proxy":{}}`)
	case "/v1/agent/checks":
		if c.notes == "" {
			fmt.Fprint(w, `{}`)
		} else {
			fmt.Fprintf(w, `{"_service_maintenance:web-1-sidecar-proxy":{"Notes":%q}}`, c.notes)
		}
	case "/v1/agent/service/maintenance/web-1-sidecar-proxy":
		if c.notes = ""; r.URL.Query().Get("enable") == "true" {
			c.notes = r.URL.Query().Get("reason")
		}
	default:
		http.NotFound(w, r)
	}
}

func TestAdopt(t *testing.T) {
	stub := &consulAgentStub{}
	srv := httptest.NewServer(stub)
	defer srv.Close()
	o := Options{Consul: srv.URL, ConsulToken: "secret", SidecarFor: "web-1", StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
	got, err := o.adopt(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d := got.Definition
	if got.Node != "n7" || got.NodeAddress != "10.0.0.7" || d.Service.ID != "web-1" || d.Service.Name != "web" || d.Service.Proxy != nil || stub.token != "secret" {
		t.Errorf("node %q at %q, %+v, token %q", got.Node, got.NodeAddress, d.Service, stub.token)
	}
	if address, port := listensAt(got.consul.Proxy); address != "0.0.0.0" || port != 31007 {
		t.Errorf("listens at %s:%d, want everywhere, at the port that its config says", address, port)
	}
	if up := localUpstreams(got.consul.Proxy.Proxy); len(up) != 1 || up[0].bind() != "127.0.0.1:7100" {
		t.Errorf("upstreams %+v", up)
	}
	byProxy := o
	byProxy.SidecarFor, byProxy.ProxyID = "", "web-1-sidecar-proxy"
	if got, err := byProxy.adopt(t.Context()); err != nil || got.Definition.Service.ID != "web-1" {
		t.Errorf("by the proxy's ID: %+v, %v", got.Definition.Service, err)
	}
	none := o
	none.SidecarFor = "db-1"
	if _, err := none.adopt(t.Context()); !errors.Is(err, errUnknown) || !strings.Contains(err.Error(), "connect { sidecar_service {} }") {
		t.Errorf("of an instance without a sidecar: %v", err)
	}
	own := Options{Consul: srv.URL, StateDir: t.TempDir()}
	if got, err := own.adopt(t.Context()); err != nil || got.Node != "n7" || got.consul.Proxy != nil {
		t.Errorf("with a definition of its own: %+v, %v", got.consul, err)
	}
	if _, err := (Options{SidecarFor: "web-1"}).adopt(t.Context()); err == nil || !strings.Contains(err.Error(), "--consul") {
		t.Errorf("without a Consul agent: %v", err)
	}

	// With the agent away what was said last will do, of this instance alone.
	srv.Close()
	text, err := json.Marshal(got.consul)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(o.StateDir, registrationFile), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := o.adopt(t.Context()); err != nil || again.Definition.Service.ID != "web-1" || again.Node != "n7" {
		t.Errorf("from disk: %+v, %v", again.Definition.Service, err)
	}
	if none.remembered(filepath.Join(o.StateDir, registrationFile)) != nil || own.remembered(filepath.Join(o.StateDir, registrationFile)) != nil {
		t.Error("what was said of another is taken")
	}
}

// A sidecar that nobody succeeds leaves by maintenance mode, and comes back from its own alone.
func TestMaintenance(t *testing.T) {
	stub := &consulAgentStub{}
	srv := httptest.NewServer(stub)
	defer srv.Close()
	a := newConsulAgent(Options{Consul: srv.URL})
	defer a.close()
	const id = "web-1-sidecar-proxy"
	for _, tc := range []struct {
		name, before string
		on           bool
		after        string
	}{
		{"leaves", "", true, maintenanceReason},
		{"is back", maintenanceReason, false, ""},
		{"somebody else's", "a new disk", false, "a new disk"},
		{"none", "", false, ""},
	} {
		stub.notes = tc.before
		if err := a.maintenance(t.Context(), id, tc.on); err != nil || stub.notes != tc.after {
			t.Errorf("%s: %q after %q, %v; want %q", tc.name, stub.notes, tc.before, err, tc.after)
		}
	}
	writes := slices.DeleteFunc(stub.asked, func(call string) bool { return !strings.HasPrefix(call, http.MethodPut) })
	if want := "PUT /v1/agent/service/maintenance/" + url.PathEscape(id); len(writes) != 2 || writes[0] != want || writes[1] != want {
		t.Errorf("wrote %q", writes)
	}
}

// An adopted registration is looked at and never written.
func TestAdoptedRegistrationIsOnlyLookedAt(t *testing.T) {
	stub := &consulAgentStub{}
	srv := httptest.NewServer(stub)
	defer srv.Close()
	a := newConsulAgent(Options{Consul: srv.URL})
	defer a.close()
	r := &registration{agent: a, adopted: true, proxyID: "web-1", log: slog.New(slog.DiscardHandler), health: &health{}}
	if err := errors.Join(r.checkID(t.Context()), r.assert(t.Context())); err != nil {
		t.Error(err)
	}
	r.proxyID = "gone"
	if err := r.assert(t.Context()); !errors.Is(err, errUnknown) {
		t.Errorf("gone: %v", err)
	}
	if i := slices.IndexFunc(stub.asked, func(call string) bool { return !strings.HasPrefix(call, "GET ") }); i >= 0 {
		t.Errorf("wrote %q", stub.asked[i])
	}
}
