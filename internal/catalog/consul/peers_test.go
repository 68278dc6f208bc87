//go:build peers

package consul

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// patience bounds every wait on a real process.
const patience = 60 * time.Second

// agent is a real `consul agent -dev`.
type agent struct {
	t     *testing.T
	ports [3]int // HTTP, server RPC, gossip
	cmd   *exec.Cmd
	log   string
}

func startAgent(t *testing.T) *agent {
	t.Helper()
	a := &agent{t: t, log: filepath.Join(t.TempDir(), "consul.log")}
	for i := range a.ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		a.ports[i] = l.Addr().(*net.TCPAddr).Port
		l.Close()
	}
	t.Cleanup(a.kill)
	a.start()
	return a
}

func (a *agent) address() string { return "127.0.0.1:" + strconv.Itoa(a.ports[0]) }

func (a *agent) start() {
	a.t.Helper()
	binary := os.Getenv("CROSSFADE_CONSUL")
	if binary == "" {
		binary = "../../../bin/consul"
	}
	out, err := os.OpenFile(a.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		a.t.Fatal(err)
	}
	defer out.Close()
	a.cmd = exec.Command(binary, "agent", "-dev", "-node", "n0", "-bind", "127.0.0.1", "-log-level", "warn",
		"-http-port", strconv.Itoa(a.ports[0]), "-server-port", strconv.Itoa(a.ports[1]), "-serf-lan-port", strconv.Itoa(a.ports[2]),
		"-serf-wan-port", "-1", "-dns-port", "-1", "-grpc-port", "-1", "-grpc-tls-port", "-1")
	a.cmd.Stdout, a.cmd.Stderr = out, out
	if err := a.cmd.Start(); err != nil {
		a.t.Fatalf("consul %q: %v; build it as tools/consul/README.md says, or set CROSSFADE_CONSUL", binary, err)
	}
	deadline := time.Now().Add(patience)
	for {
		if code, body := a.try(http.MethodGet, "/v1/health/service/consul?passing", nil); code == 200 && bytes.Contains(body, []byte("serfHealth")) {
			break
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(a.log)
			a.t.Fatalf("consul did not become ready:\n%s", log)
		}
		<-time.After(50 * time.Millisecond)
	}
	meshtest.ConsulSettled(a.t, "http://"+a.address())
}

func (a *agent) kill() {
	if a.cmd != nil {
		a.cmd.Process.Kill()
		a.cmd.Wait()
		a.cmd = nil
	}
}

func (a *agent) try(method, path string, value any) (int, []byte) {
	body, err := json.Marshal(value)
	if err != nil {
		a.t.Fatal(err)
	}
	req, err := http.NewRequest(method, "http://"+a.address()+path, bytes.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, []byte(err.Error())
	}
	defer resp.Body.Close()
	body, _ = io.ReadAll(resp.Body)
	return resp.StatusCode, body
}

func (a *agent) put(path string, value any) {
	a.t.Helper()
	if code, body := a.try(http.MethodPut, path, value); code != 200 {
		a.t.Fatalf("PUT %s: %d %s", path, code, body)
	}
}

// feed holds the snapshots of a source that runs until the test ends.
type feed chan *catalog.Snapshot

func runFeed(t *testing.T, s catalog.Source) feed {
	f := make(feed, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, func(s *catalog.Snapshot) { f <- s }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v", err)
		}
	})
	return f
}

// await takes snapshots until one fits.
func (f feed) await(t *testing.T, what string, fits func(*catalog.Snapshot) bool) *catalog.Snapshot {
	t.Helper()
	timeout := time.After(patience)
	var last *catalog.Snapshot
	for {
		select {
		case last = <-f:
			if fits(last) {
				return last
			}
		case <-timeout:
			t.Fatalf("no snapshot with %s; the last: %+v", what, last)
		}
	}
}

func fromConsul(t *testing.T, a *agent) feed {
	s, err := New(Options{Address: a.address()})
	if err != nil {
		t.Fatal(err)
	}
	return runFeed(t, s)
}

func TestRealConsul(t *testing.T) {
	a := startAgent(t)
	f := fromConsul(t, a)
	f.await(t, "service consul", func(s *catalog.Snapshot) bool { return s.Datacenter == "dc1" && s.Set("consul") != nil })

	a.put("/v1/agent/service/register", map[string]any{"Name": "web", "ID": "web-1", "Port": 8080, "Tags": []string{"v1"},
		"Check": map[string]any{"CheckID": "alive", "TTL": "10m"},
		"Connect": map[string]any{"SidecarService": map[string]any{"Port": 21001, "Proxy": map[string]any{
			"Upstreams": []any{map[string]any{"DestinationName": "db", "LocalBindPort": 7100}}}}}})
	is := func(want string) func(*catalog.Snapshot) bool {
		return func(s *catalog.Snapshot) bool { return describe(s, "web") == want }
	}
	f.await(t, "web critical", is("web-1@127.0.0.1:8080 critical"))
	a.put("/v1/agent/check/pass/alive", nil)
	f.await(t, "web passing", is("web-1@127.0.0.1:8080 passing"))
	a.put("/v1/agent/check/warn/alive", nil)
	before := f.await(t, "web warning", is("web-1@127.0.0.1:8080 warning"))
	proxy, ok := before.ProxyFor("web-1", "n0")
	if !ok {
		before = f.await(t, "the proxy of web", func(s *catalog.Snapshot) bool { proxy, ok = s.ProxyFor("web-1", "n0"); return ok })
	}
	up := proxy.Service.Proxy.Upstreams
	if proxy.Service.Port != 21001 || len(up) != 1 || up[0].DestinationName != "db" || up[0].LocalBindPort != 7100 {
		t.Errorf("the proxy arrived as %+v with %+v", proxy.Service, proxy.Service.Proxy)
	}
	if in := before.Connect("web"); len(in) != 1 || in[0].Service.ID != "web-1-sidecar-proxy" {
		t.Errorf("Connect(web) = %+v", in)
	}
	a.put("/v1/agent/check/fail/alive", nil)
	after := f.await(t, "web critical again", is("web-1@127.0.0.1:8080 critical"))
	if after.Set("consul") != before.Set("consul") {
		t.Errorf("service consul changed its set though nobody touched it")
	}
	a.put("/v1/agent/service/deregister/web-1", nil)
	f.await(t, "web gone", func(s *catalog.Snapshot) bool { return s.Set("web") == nil && s.Set("web-sidecar-proxy") == nil })

	// A new agent on the same address has another history, with lower indexes.
	for i := range 30 {
		a.put("/v1/kv/x", i)
	}
	a.put("/v1/agent/service/register", map[string]any{"Name": "web", "ID": "web-1", "Port": 8080})
	f.await(t, "web", is("web-1@127.0.0.1:8080 passing"))
	a.kill()
	a.start()
	a.put("/v1/agent/service/register", map[string]any{"Name": "web", "ID": "web-2", "Port": 8081})
	f.await(t, "web of the new agent", is("web-2@127.0.0.1:8081 passing"))
}

// registration is a node, a service on it and the service's checks.
type registration struct {
	node    catalog.Node
	service catalog.Service
	checks  []catalog.Check
}

func registrations() []registration {
	node := func(n int) catalog.Node {
		address := fmt.Sprintf("127.0.1.%d", n)
		return catalog.Node{ID: fmt.Sprintf("00000000-0000-0000-0000-00000000000%d", n), Name: fmt.Sprintf("node-%d", n), Address: address, Datacenter: "dc1",
			TaggedAddresses: map[string]string{"lan": address}, Meta: map[string]string{"rack": "a"}}
	}
	check := func(n int, id string, status catalog.Status) []catalog.Check {
		return []catalog.Check{
			{Node: node(n).Name, CheckID: "service:" + id, Name: "alive", Status: status, Output: "said " + string(status), ServiceID: id, Type: "ttl"},
			{Node: node(n).Name, CheckID: "node", Name: "node", Status: catalog.Passing},
		}
	}
	one := catalog.Weights{Passing: 1, Warning: 1}
	return []registration{
		{node(1), catalog.Service{ID: "web-1", Name: "web", Port: 8080, Tags: []string{"v1", "blue"}, Meta: map[string]string{"version": "1"}, Weights: catalog.Weights{Passing: 10, Warning: 2},
			TaggedAddresses: map[string]catalog.Address{"lan": {Address: "127.0.1.1", Port: 8080}}}, check(1, "web-1", catalog.Passing)},
		{node(2), catalog.Service{ID: "web-1", Name: "web", Address: "127.0.2.2", Port: 8081, Weights: one}, check(2, "web-1", catalog.Critical)},
		{node(2), catalog.Service{ID: "native", Name: "native", Port: 9000, Weights: one, Connect: catalog.Connect{Native: true}}, check(2, "native", catalog.Warning)},
		{node(1), catalog.Service{Kind: catalog.ConnectProxy, ID: "web-1-sidecar-proxy", Name: "web-sidecar-proxy", Port: 21000, Weights: one, Proxy: &catalog.Proxy{
			DestinationServiceName: "web", DestinationServiceID: "web-1", LocalServiceAddress: "127.0.0.1", LocalServicePort: 8080,
			Config: map[string]any{"protocol": "http", "local_connect_timeout_ms": 1000.0},
			Upstreams: []catalog.Upstream{
				{DestinationType: "service", DestinationName: "db", LocalBindPort: 7100, Config: map[string]any{"limits": map[string]any{"max_connections": 5.0}}},
				{DestinationType: "service", DestinationName: "native", LocalBindAddress: "127.0.0.9", LocalBindPort: 7101, Datacenter: "dc2"},
			}}}, check(1, "web-1-sidecar-proxy", catalog.Passing)},
		{node(3), catalog.Service{ID: "sock", Name: "sock", SocketPath: "/run/sock", Weights: one}, nil},
	}
}

func (r registration) toConsul(a *agent) {
	a.t.Helper()
	a.put("/v1/catalog/register", map[string]any{"ID": r.node.ID, "Node": r.node.Name, "Address": r.node.Address,
		"TaggedAddresses": r.node.TaggedAddresses, "NodeMeta": r.node.Meta, "Service": r.service, "Checks": r.checks})
}

func (r registration) toStore(t *testing.T, s *store.Store) {
	t.Helper()
	err := s.Update(func(w *store.Writer) error {
		if err := w.PutNode(r.node); err != nil {
			return err
		}
		if err := w.PutService(r.node.Name, r.service); err != nil {
			return err
		}
		for _, c := range r.checks {
			if err := w.PutCheck(c, nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestSameSnapshotFromBothSources: the same registrations in a real Consul and in
// the embedded registry give the same snapshot, but for indexes.
func TestSameSnapshotFromBothSources(t *testing.T) {
	a := startAgent(t)
	s, err := store.Open(store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	consul, embedded := fromConsul(t, a), runFeed(t, s)
	ignore := cmp.Options{
		cmpopts.EquateEmpty(),
		cmpopts.IgnoreFields(catalog.Node{}, "CreateIndex", "ModifyIndex"),
		cmpopts.IgnoreFields(catalog.Service{}, "CreateIndex", "ModifyIndex"),
		cmpopts.IgnoreFields(catalog.Check{}, "CreateIndex", "ModifyIndex"),
	}
	same := func(what string, settled func(*catalog.Snapshot) bool) {
		t.Helper()
		c, e := consul.await(t, what, settled), embedded.await(t, what, settled)
		names := func(s *catalog.Snapshot) []string {
			return slices.DeleteFunc(s.Services(), func(n string) bool { return n == "consul" })
		}
		if c.Datacenter != e.Datacenter {
			t.Errorf("%s: datacenter %q from Consul, %q embedded", what, c.Datacenter, e.Datacenter)
		}
		if diff := cmp.Diff(names(c), names(e)); diff != "" {
			t.Fatalf("%s: services (-consul +embedded):\n%s", what, diff)
		}
		for _, name := range names(c) {
			if diff := cmp.Diff(c.Set(name), e.Set(name), ignore); diff != "" {
				t.Errorf("%s: %s (-consul +embedded):\n%s", what, name, diff)
			}
			if diff := cmp.Diff(c.Connect(name), e.Connect(name), ignore); diff != "" {
				t.Errorf("%s: Connect(%s) (-consul +embedded):\n%s", what, name, diff)
			}
		}
	}

	rows := registrations()
	for _, r := range rows {
		r.toConsul(a)
		r.toStore(t, s)
	}
	same("all registered", func(s *catalog.Snapshot) bool {
		return s.Set("sock") != nil && len(s.Connect("web")) == 1 && s.Set("native") != nil && s.Set("web") != nil && len(s.Set("web").Instances) == 2 && len(s.Set("sock").Instances[0].Checks) == 0
	})

	rows[0].checks[0].Status, rows[0].checks[0].Output = catalog.Warning, "slow"
	rows[1].checks[1].Status = catalog.Critical
	for _, r := range rows[:2] {
		r.toConsul(a)
		r.toStore(t, s)
	}
	same("health changed", func(s *catalog.Snapshot) bool {
		return s.Set("native").Instances[0].Status() == catalog.Critical && s.Set("web").Instances[0].Status() == catalog.Warning
	})

	a.put("/v1/catalog/deregister", map[string]any{"Node": "node-1", "ServiceID": "web-1"})
	a.put("/v1/catalog/deregister", map[string]any{"Node": "node-2"})
	if err := s.Update(func(w *store.Writer) error {
		if err := w.DeleteService("node-1", "web-1"); err != nil {
			return err
		}
		return w.DeleteNode("node-2")
	}); err != nil {
		t.Fatal(err)
	}
	same("deregistered", func(s *catalog.Snapshot) bool { return s.Set("web") == nil && s.Set("native") == nil })
}
