package server_test

import (
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

const (
	web     = "service: web\nport: 8080\nprotocol: http\nupstreams: [catalog:7100]\n"
	admin   = "service: admin\nport: 8090\nprotocol: http\nupstreams: [payments:7200]\n"
	catalog = "service: catalog\nport: 8081\nprotocol: http\n"
)

// peer is an ADS client that acknowledges all it gets and remembers the newest of each.
type peer struct {
	t    *testing.T
	c    *xds.Client
	held map[xds.Key]*xds.Resource
	seen chan xds.Response // every response, acknowledged

	responses int // taken in
}

// follow subscribes as Envoy does and keeps acknowledging until the stream ends.
func follow(t *testing.T, s *servertest.Server, id string, relayed bool, names ...xds.Key) *peer {
	t.Helper()
	return followBut(t, s.Stream(id, relayed), func(xds.Response) string { return "" }, names...)
}

// followBut follows, but refuses a response for which refusal has words.
func followBut(t *testing.T, c *xds.Client, refusal func(xds.Response) string, names ...xds.Key) *peer {
	t.Helper()
	p := &peer{t: t, c: c, held: map[xds.Key]*xds.Resource{}, seen: make(chan xds.Response, 1000)}
	p.ask(xds.Request{Type: xds.ClusterType})
	p.ask(xds.Request{Type: xds.ListenerType})
	for _, k := range names {
		p.ask(xds.Request{Type: k.Type, Subscribe: []string{k.Name}})
	}
	go func() {
		defer close(p.seen)
		for {
			r, err := p.c.Recv()
			if err != nil {
				return
			}
			words := refusal(r)
			p.c.Send(xds.Request{Type: r.Type, Nonce: r.Nonce, Error: words})
			if words == "" {
				p.seen <- r
			}
		}
	}()
	return p
}

func (p *peer) ask(r xds.Request) {
	p.t.Helper()
	if err := p.c.Send(r); err != nil {
		p.t.Fatal(err)
	}
}

// until takes responses in until done says so.
func (p *peer) until(what string, done func() bool) {
	p.t.Helper()
	timeout := time.After(20 * time.Second)
	for !done() {
		select {
		case r, ok := <-p.seen:
			if !ok {
				p.t.Fatalf("the stream ended before: %s", what)
			}
			p.responses++
			for _, res := range r.Resources {
				p.held[xds.Key{Type: r.Type, Name: res.Name}] = res
			}
			for _, name := range r.Removed {
				delete(p.held, xds.Key{Type: r.Type, Name: name})
			}
		case <-timeout:
			p.t.Fatalf("never came true: %s; held: %v", what, p.names())
		}
	}
}

func (p *peer) names() []string {
	var out []string
	for k := range p.held {
		out = append(out, k.Type.Short()+" "+k.Name)
	}
	slices.Sort(out)
	return out
}

// body is a held resource as JSON, or "".
func (p *peer) body(k xds.Key) string {
	p.t.Helper()
	res := p.held[k]
	if res == nil {
		return ""
	}
	b, err := res.Body()
	if err != nil {
		p.t.Fatal(err)
	}
	j, err := envoy.JSON(string(k.Type), b)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(j)
}

func endpoints(s *servertest.Server, service string) xds.Key {
	return xds.Key{Type: xds.EndpointType, Name: service + ".default.dc1.internal." + s.TrustDomain()}
}

func route(name string) xds.Key { return xds.Key{Type: xds.RouteType, Name: name} }

func TestChangeReachesOnlyWhomItConcerns(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	s.Register("web.yaml", web)
	s.Register("admin.yaml", admin)
	caller := follow(t, s, "web-sidecar-proxy", true, endpoints(s, "catalog"), route("public_listener"))
	other := follow(t, s, "admin-sidecar-proxy", true, endpoints(s, "payments"), route("public_listener"))
	caller.until("the caller is in sync", func() bool {
		return caller.held[endpoints(s, "catalog")] != nil && caller.held[route("public_listener")] != nil
	})
	other.until("the other is in sync", func() bool { return len(other.held) == 6 }) // 2 clusters, 2 listeners, endpoints, route

	before := other.responses
	s.Register("catalog.yaml", catalog)
	caller.until("the new instance reaches its caller", func() bool { return strings.Contains(caller.body(endpoints(s, "catalog")), `"port_value":2100`) })
	s.SetChecks("catalog", "fail")
	caller.until("a critical instance leaves", func() bool { return !strings.Contains(caller.body(endpoints(s, "catalog")), `"port_value"`) })
	s.SetChecks("catalog", "pass")
	caller.until("and comes back", func() bool { return strings.Contains(caller.body(endpoints(s, "catalog")), `"port_value":2100`) })

	s.Write(&config.ServiceIntentions{Kind: config.KindServiceIntentions, Name: "admin",
		Sources: []*config.SourceIntention{{Name: "web", Action: config.Deny, Type: "consul"}}})
	other.until("its own intentions reach it", func() bool { return strings.Contains(other.body(route("public_listener")), "svc/web") })
	if other.responses != before+1 {
		t.Errorf("the other sidecar was sent %d responses, want that one route alone", other.responses-before)
	}
}

func TestDeregistrationWaitsForCallers(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	s.Register("web.yaml", web)
	s.Register("catalog.yaml", catalog)
	caller := follow(t, s, "web-sidecar-proxy", true, endpoints(s, "catalog"))
	caller.until("the caller knows the instance", func() bool { return strings.Contains(caller.body(endpoints(s, "catalog")), `"port_value"`) })
	h, _ := s.Call(http.MethodPut, "/v1/agent/service/deregister/catalog?wait=10s", nil)
	if got := h.Get("X-Crossfade-Waited"); got != "1/1" {
		t.Errorf("deregistration waited for %q callers, want 1/1", got)
	}
	caller.until("the caller knows that it is gone", func() bool { return !strings.Contains(caller.body(endpoints(s, "catalog")), `"port_value"`) })

	// One that never answers is not waited for longer than asked.
	s.Register("catalog.yaml", catalog)
	caller.until("it is back", func() bool { return strings.Contains(caller.body(endpoints(s, "catalog")), `"port_value"`) })
	mute := s.Stream("web-sidecar-proxy", true)
	if err := mute.Send(xds.Request{Type: xds.EndpointType, Subscribe: []string{endpoints(s, "catalog").Name}}); err != nil {
		t.Fatal(err)
	}
	if _, err := mute.Recv(); err != nil {
		t.Fatal(err)
	}
	h, _ = s.Call(http.MethodPut, "/v1/agent/service/deregister/catalog?wait=300ms", nil)
	if got := h.Get("X-Crossfade-Waited"); got != "1/2" {
		t.Errorf("deregistration waited for %q callers, want 1/2", got)
	}
}

func TestSidecarMayConnectBeforeItIsRegistered(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	early := follow(t, s, "web-sidecar-proxy", true)
	s.Register("web.yaml", web)
	early.until("it is served once it is registered", func() bool { return len(early.held) == 4 }) // 2 clusters, 2 listeners
	s.Call(http.MethodPut, "/v1/agent/service/deregister/web", nil)
	s.Register("catalog.yaml", catalog)
	early.ask(xds.Request{Type: xds.EndpointType, Subscribe: []string{endpoints(s, "catalog").Name}})
	early.until("it is still served while it drains", func() bool { return strings.Contains(early.body(endpoints(s, "catalog")), `"port_value"`) })
	if len(early.held) != 5 {
		t.Errorf("a deregistered sidecar holds %v", early.names())
	}
}

func TestOnlyDevelopmentModeMintsKeys(t *testing.T) {
	leaf := xds.Key{Type: xds.SecretType, Name: "leaf"}
	dev := servertest.Start(t, server.Options{DefaultAllow: true})
	dev.Register("web.yaml", web)
	bare := follow(t, dev, "web-sidecar-proxy", false, leaf)
	bare.until("a bare Envoy gets a certificate", func() bool { return strings.Contains(bare.body(leaf), "private_key") })
	relayed := dev.Stream("web-sidecar-proxy", true)
	refused(t, relayed, leaf)

	durable := servertest.Start(t, server.Options{DefaultAllow: true, DataDir: t.TempDir()})
	durable.Register("web.yaml", web)
	refused(t, durable.Stream("web-sidecar-proxy", true), leaf)
	bareRefused := durable.Stream("web-sidecar-proxy", false)
	if err := bareRefused.Send(xds.Request{Type: xds.ClusterType}); err != nil {
		t.Fatal(err)
	}
	if _, err := bareRefused.Recv(); err == nil || !strings.Contains(err.Error(), "run crossfade sidecar") {
		t.Errorf("a bare Envoy outside development mode: %v, want it refused with what to do", err)
	}
}

// refused asks for a resource and wants to hear that there is none.
func refused(t *testing.T, c *xds.Client, k xds.Key) {
	t.Helper()
	if err := c.Send(xds.Request{Type: k.Type, Subscribe: []string{k.Name}}); err != nil {
		t.Fatal(err)
	}
	r, err := c.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Resources) > 0 || !slices.Contains(r.Removed, k.Name) {
		t.Errorf("%s %q: got %d resources, removed %v; want it absent", k.Type.Short(), k.Name, len(r.Resources), r.Removed)
	}
}

func TestRestartKeepsEverythingAndSendsNothingAgain(t *testing.T) {
	dir := t.TempDir()
	s := servertest.Start(t, server.Options{DefaultAllow: true, DataDir: dir})
	s.Register("web.yaml", web)
	s.Register("catalog.yaml", catalog)
	p := follow(t, s, "web-sidecar-proxy", true, endpoints(s, "catalog"))
	p.until("in sync", func() bool {
		return strings.Contains(p.body(endpoints(s, "catalog")), `"port_value"`) && len(p.held) == 5
	})
	s.Stop()

	s2 := servertest.Start(t, server.Options{DefaultAllow: true, DataDir: dir})
	if s2.TrustDomain() != s.TrustDomain() {
		t.Fatalf("trust domain %s became %s", s.TrustDomain(), s2.TrustDomain())
	}
	c := s2.Stream("web-sidecar-proxy", true)
	for _, typ := range []xds.Type{xds.ClusterType, xds.EndpointType, xds.ListenerType} {
		r := xds.Request{Type: typ, Initial: map[string]string{}}
		for k, res := range p.held {
			if k.Type == typ {
				r.Initial[k.Name] = res.Version
				if typ == xds.EndpointType {
					r.Subscribe = append(r.Subscribe, k.Name)
				}
			}
		}
		if err := c.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	// What is asked for last is the only thing that comes.
	if err := c.Send(xds.Request{Type: xds.RouteType, Subscribe: []string{"public_listener"}}); err != nil {
		t.Fatal(err)
	}
	r, err := c.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if r.Type != xds.RouteType {
		t.Errorf("after a restart %s was sent although the client holds it", r.Type.Short())
	}
}

func TestRefusesToStart(t *testing.T) {
	dir := t.TempDir()
	running := servertest.Start(t, server.Options{DataDir: dir})
	file := dir + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, want string
		o          server.Options
	}{
		{"no data directory", "set --data-dir", server.Options{}},
		{"two masters", "leave out --dev or --data-dir", server.Options{Dev: true, DataDir: dir}},
		{"directory in use", "in use by another", server.Options{DataDir: dir, NodeName: "n"}},
		{"directory is a file", file, server.Options{DataDir: file, NodeName: "n"}},
		{"not loopback", "loopback", server.Options{Dev: true, BindAddr: "192.0.2.1"}},
		{"port in use", "choose another with --http-port", server.Options{Dev: true, NodeName: "n", HTTPPort: portOf(t, running.HTTPAddr())}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := server.New(tt.o)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("New gave %v, want one line with %q", err, tt.want)
			}
		})
	}
}

func portOf(t *testing.T, addr string) int {
	t.Helper()
	_, port, ok := strings.Cut(addr, ":")
	n := 0
	for _, c := range port {
		n = n*10 + int(c-'0')
	}
	if !ok || n == 0 {
		t.Fatalf("address %q", addr)
	}
	return n
}

func TestPagesOfOtherOriginsCannotWrite(t *testing.T) {
	s := servertest.Start(t, server.Options{})
	for origin, want := range map[string]int{"": 200, "http://" + s.HTTPAddr(): 200, "http://evil.example": 403} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+s.HTTPAddr()+"/v1/kv/x", strings.NewReader("y"))
		if err != nil {
			t.Fatal(err)
		}
		if origin != "" {
			req.Header.Set("Origin", origin)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("a write with Origin %q got %d, want %d", origin, resp.StatusCode, want)
		}
	}
}
