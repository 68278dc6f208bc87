package routing

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// In these tests a callee is one app per way, so that what it counted is the way's:
// "legacy" is registered nowhere, "direct" without a sidecar, and "mtls" speaks mTLS
// itself, which the direct way passes over.

// app is what answers on one way.
type app struct {
	id     string
	port   int
	served atomic.Int64 // requests, streams or connections
	stop   func()
}

// enlist registers an app that speaks no mTLS.
func (w *world) enlist(service string, a *app) {
	w.t.Helper()
	body, err := json.Marshal(map[string]any{"ID": a.id, "Name": service, "Address": "127.0.0.1", "Port": a.port})
	if err != nil {
		w.t.Fatal(err)
	}
	w.server.Call(http.MethodPut, "/v1/agent/service/register", body)
}

// plainHTTP runs an HTTP server without TLS.
func (w *world) plainHTTP(id string, h http.Handler) *app {
	out := &app{id: id}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.UserAgent() == "crossfade-probe" { // a sidecar trying an old way
			return
		}
		out.served.Add(1)
		h.ServeHTTP(rw, r)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	out.port = s.Listener.Addr().(*net.TCPAddr).Port
	out.stop = sync.OnceFunc(func() { s.CloseClientConnections(); s.Close() })
	w.t.Cleanup(out.stop)
	return out
}

// teller tells of the request, as instances do.
func (w *world) teller(id string) http.Handler {
	in := &instance{w: w, id: id}
	in.status.Store(200)
	return http.HandlerFunc(in.answer)
}

// plainTCP runs a server that says its name first, then echoes.
func (w *world) plainTCP(id string) *app {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	out := &app{id: id, port: l.Addr().(*net.TCPAddr).Port, stop: sync.OnceFunc(func() { l.Close() })}
	w.t.Cleanup(out.stop)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			out.served.Add(1)
			go func() {
				defer c.Close()
				fmt.Fprintln(c, id)
				_, _ = io.Copy(c, bufio.NewReader(c))
			}()
		}
	}()
	return out
}

// chat runs gRPC's health service, which tells its name and the authority in headers.
func (w *world) chat(id string, secure bool) *app {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	out := &app{id: id, port: l.Addr().(*net.TCPAddr).Port}
	told := func(ctx context.Context) metadata.MD {
		out.served.Add(1)
		md, _ := metadata.FromIncomingContext(ctx)
		return metadata.Pairs("x-instance", id, "x-authority", strings.Join(md.Get(":authority"), ""))
	}
	opts := []grpc.ServerOption{
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			_ = grpc.SetHeader(ctx, told(ctx))
			return next(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			_ = s.SetHeader(told(s.Context()))
			return next(srv, s)
		}),
	}
	if secure {
		opts = append(opts, grpc.Creds(credentials.NewTLS(w.tlsConfig("chat"))))
	}
	g, h := grpc.NewServer(opts...), health.NewServer()
	healthpb.RegisterHealthServer(g, h)
	go g.Serve(l)
	done := make(chan struct{})
	go func() { // a stream says something several times a second
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-tick.C:
				h.SetServingStatus("ticks", healthpb.HealthCheckResponse_ServingStatus(1+n%2))
			case <-done:
				return
			}
		}
	}()
	out.stop = sync.OnceFunc(func() { close(done); g.Stop() })
	w.t.Cleanup(out.stop)
	return out
}

// ways are the apps of a service, by way. That of plain may be missing.
type ways struct{ legacy, direct, plain, mtls *app }

// three runs the apps of "catalog", "payments" or "chat".
func (w *world) three(service string) ways {
	w.t.Helper()
	var out ways
	switch service {
	case "payments":
		out = ways{legacy: w.plainTCP("legacy"), direct: w.plainTCP("direct")}
		in := w.tcp(service, "mtls-"+service, version(1))
		out.mtls = &app{id: "mtls", port: in.port, stop: in.stop}
	case "chat":
		out = ways{legacy: w.chat("legacy", false), direct: w.chat("direct", false), mtls: w.chat("mtls", true)}
		w.native(service, "mtls-"+service, "v1", out.mtls.port, out.mtls.stop)
	case "news":
		out = ways{legacy: w.plainHTTP("legacy", oneLine("legacy")), direct: w.plainHTTP("direct", oneLine("direct")), mtls: w.secureHTTP(service, oneLine("mtls"))}
		w.native(service, "mtls-"+service, "v1", out.mtls.port, out.mtls.stop)
	default:
		out = ways{legacy: w.plainHTTP("legacy", w.teller("legacy")), direct: w.plainHTTP("direct", w.teller("direct"))}
		in := w.http(service, "mtls-"+service, version(1))
		out.mtls = &app{id: "mtls", port: in.port, stop: in.stop}
	}
	out.direct.id += "-" + service
	w.enlist(service, out.direct)
	return out
}

// four runs the apps of a service, with a sidecar before that of plain. What it registers
// is the direct app's port, so that the direct way does not reach that of plain, and mtls
// means the others alone.
func (w *world) four(service string) ways {
	w.t.Helper()
	out := w.three(service)
	switch service {
	case "payments":
		out.plain = w.plainTCP("plain")
	case "chat":
		out.plain = w.chat("plain", false)
	case "news":
		out.plain = w.plainHTTP("plain", oneLine("plain"))
	default:
		out.plain = w.plainHTTP("plain", w.teller("plain"))
	}
	w.before(service, out)
	return out
}

// before runs the sidecar of the plain app, and waits until callers are told of it.
func (w *world) before(service string, all ways) process {
	w.t.Helper()
	w.write(fmt.Sprintf("Kind = \"service-resolver\"\nName = %q\nDefaultSubset = \"v1\"\nSubsets = { v1 = { Filter = \"Service.Meta.version == v1\" } }\n", service))
	out := w.sidecar("plain-"+service, "service.hcl", fmt.Sprintf(`
service {
  name = %q
  id   = "plain-%[1]s"
  port = %d
  connect { sidecar_service {
    port = %d
    proxy { local_service_port = %d }
  } }
}
`, service, all.direct.port, meshtest.FreePorts(w.t, 1)[0], all.plain.port))
	w.reachable(service, map[string]int{"direct": 1, "plain": 1, "mtls": 1})
	return out
}

// healthy counts the instances in service on each way of web's calls.
func (w *world) healthy(service string) (map[string]int, error) {
	_, body := w.server.Call(http.MethodGet, "/v1/crossfade/chain/"+service+"?source=web", nil)
	var view struct {
		Pair struct {
			Ways []struct {
				Way     string
				Healthy int
			}
		}
	}
	if err := json.Unmarshal(body, &view); err != nil {
		return nil, fmt.Errorf("%w: %s", err, body)
	}
	got := map[string]int{}
	for _, way := range view.Pair.Ways {
		got[way.Way] = way.Healthy
	}
	return got, nil
}

// reachable waits until so many instances are in service on the ways of web's calls.
func (w *world) reachable(service string, want map[string]int) {
	w.t.Helper()
	e := shiftText(service, "127.0.0.1:1", "", [4]float64{0, 0, 0, 100}, "")
	w.write(e)
	meshtest.Eventually(w.t, service+" is reachable", func() error {
		got, err := w.healthy(service)
		if err != nil {
			return err
		}
		for way, n := range want {
			if got[way] != n {
				return fmt.Errorf("%v, want %v", got, want)
			}
		}
		return nil
	})
}

// oneLine takes WebSockets, says its name on each, echoes one line and hangs up.
func oneLine(id string) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(rw)
		if r.Method == http.MethodConnect { // over HTTP/2
			rw.Header().Set("x-instance", id)
			rw.WriteHeader(http.StatusOK)
			_ = rc.Flush()
			line, _ := bufio.NewReader(r.Body).ReadString('\n')
			_, _ = io.WriteString(rw, line)
			return
		}
		c, both, err := rc.Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Instance: %s\r\n\r\n", id)
		line, _ := both.ReadString('\n')
		_, _ = io.WriteString(c, line)
	})
}

// secureHTTP runs an HTTP server that speaks mTLS, and registers nothing.
func (w *world) secureHTTP(service string, h http.Handler) *app {
	out := &app{id: "mtls"}
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = quiet
	s.TLS, s.EnableHTTP2 = w.tlsConfig(service), true
	s.StartTLS()
	out.port = s.Listener.Addr().(*net.TCPAddr).Port
	out.stop = sync.OnceFunc(func() { s.CloseClientConnections(); s.Close() })
	w.t.Cleanup(out.stop)
	return out
}

// socket opens a WebSocket, says a line, and tells who answered it.
func (c *caller) socket(upstream string) (string, error) {
	conn, err := dialWire(c.ports[upstream], time.Now().Add(patience))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	fmt.Fprint(conn.Conn, "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	resp, err := http.ReadResponse(conn.in, nil)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return "", fmt.Errorf("status %d", resp.StatusCode)
	}
	return resp.Header.Get("x-instance"), conn.line(1, time.Now().Add(patience))
}

// shift is an entry for web's way to a service. Shares are legacy's, direct's, plain's and
// that of mtls; more is any other field.
func (s ways) shift(service string, shares [4]float64, more string) string {
	return shiftText(service, fmt.Sprintf("127.0.0.1:%d", s.legacy.port), "", shares, more)
}

func shiftText(service, address, host string, shares [4]float64, more string) string {
	return fmt.Sprintf("Kind = \"traffic-shift\"\nSource = \"web\"\nDestination = %q\nLegacy { Address = %q, Host = %q }\nShares { legacy = %v, direct = %v, plain = %v, mtls = %v }\n%s\n",
		service, address, host, shares[0], shares[1], shares[2], shares[3], more)
}

const (
	protocols      = "Kind = \"service-defaults\"\nName = %q\nProtocol = %q\nMutualTLSMode = \"permissive\"\n"
	allowPlaintext = "Kind = \"mesh\"\nAllowEnablingPermissiveMutualTLS = true\n"
)

// speak declares what the services speak, and that they take plaintext as well.
func (w *world) speak() {
	w.write(allowPlaintext)
	for service, protocol := range map[string]string{"catalog": "http", "chat": "grpc", "payments": "tcp", "news": "http"} {
		w.write(fmt.Sprintf(protocols, service, protocol))
	}
}

// wayNames are in the order of shares.
var wayNames = []string{"legacy", "direct", "plain", "mtls"}

// stream is one to chat, and tells who answers. It ends by itself: Envoy hangs up on
// whoever resets most of many young ones.
func (c *caller) stream(conn *grpc.ClientConn) (id, authority string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var md metadata.MD
	_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Header(&md))
	return strings.Join(md.Get("x-instance"), ""), strings.Join(md.Get("x-authority"), ""), err
}

func (c *caller) grpc() *grpc.ClientConn {
	c.w.t.Helper()
	conn, err := grpc.NewClient(fmt.Sprintf("passthrough:///127.0.0.1:%d", c.ports["chat"]), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
	if err != nil {
		c.w.t.Fatal(err)
	}
	c.w.t.Cleanup(func() { conn.Close() })
	return conn
}

// calls are one call each to catalog, payments, chat and news.
func (c *caller) calls() map[string]func() (string, error) {
	conn := c.grpc()
	return map[string]func() (string, error){
		"catalog": func() (string, error) { a := c.get("catalog", "/"); return a.instance, a.ok() },
		"chat":    func() (string, error) { id, _, err := c.stream(conn); return id, err },
		"news":    func() (string, error) { return c.socket("news") },
		"payments": func() (string, error) {
			conn, id, err := c.dial("payments")
			if err == nil {
				conn.Close()
			}
			return id, err
		},
	}
}

// While shares move from old to new and back nobody is refused, and nothing that lasts
// is cut, whatever way it is on.
func TestWaysChangeHot(t *testing.T) {
	w := newWorld(t)
	w.speak()
	shops := ways{legacy: w.plainHTTP("legacy", shop("legacy")), direct: w.plainHTTP("direct", shop("direct")), plain: w.plainHTTP("plain", shop("plain"))}
	w.enlist("catalog", shops.direct)
	port, stop := w.shopApp("catalog", "mtls", true)
	w.native("catalog", "mtls-catalog", "v1", port, stop)
	w.before("catalog", shops)
	apps := map[string]ways{"catalog": shops, "chat": w.four("chat"), "payments": w.four("payments")}
	web := w.caller("web", "web-1", "catalog", "chat", "payments")
	step := func(shares [4]float64) {
		for service, a := range apps {
			w.apply(a.shift(service, shares, ""))
		}
	}
	step([4]float64{100, 0, 0, 0})
	ready(t, web)
	load := w.traffic(t, web.ports)
	pause := func() {
		from := load.sent()
		meshtest.Eventually(t, "traffic goes on", func() error {
			if n := load.sent(); n < from+600 {
				return fmt.Errorf("%d requests since", n-from)
			}
			return nil
		})
	}
	pause()
	for _, shares := range [][4]float64{
		{99, 1, 0, 0}, {50, 50, 0, 0}, {0, 100, 0, 0}, {0, 90, 10, 0}, {0, 0, 100, 0}, {0, 0, 50, 50}, {0, 0, 0, 100}, // as pairs move
		{0, 0, 10, 90}, {0, 0, 100, 0}, {0, 100, 0, 0}, {100, 0, 0, 0}, // and back
		{99, 0, 0, 1}, {60, 20, 10, 10}, {0, 50, 0, 50}, {0, 0, 0, 100}, {50, 0, 0, 50}, {0, 0, 100, 0}, {0, 1, 0, 99}, {10, 20, 30, 40}, {100, 0, 0, 0},
	} {
		step(shares)
		pause()
	}
	for service := range apps { // as if nothing had ever been
		w.delete("traffic-shift", "web~"+service)
	}
	pause()
	step([4]float64{100, 0, 0, 0})
	pause()
	load.stop()
	t.Logf("%d requests%s", load.sent(), load.report())
	for i, f := range load.failures() {
		if i == 10 {
			t.Errorf("and %d more", len(load.failures())-i)
			break
		}
		t.Error(f.Reason)
	}
	if n := load.closed.Load(); n > 0 {
		t.Errorf("%d kept-alive connections were closed", n)
	}
}

// What could not be sent on one way goes by another, unless that is forbidden.
func TestDeadWays(t *testing.T) {
	w := newWorld(t)
	w.speak()
	web := w.caller("web", "web-1", "catalog", "chat")
	dead := map[string]func(ways) *app{"legacy": func(s ways) *app { return s.legacy }, "direct": func(s ways) *app { return s.direct }, "plain": nil, "mtls": func(s ways) *app { return s.mtls }}
	for way, of := range dead {
		t.Run(way, func(t *testing.T) {
			catalog, chat := w.three("catalog"), w.three("chat")
			third := [4]float64{33, 33, 0, 34}
			if of == nil {
				third = [4]float64{33, 0, 33, 34}
				w.deaf("catalog")
				w.deaf("chat")
			} else {
				of(catalog).stop()
				of(chat).stop()
			}
			w.apply(catalog.shift("catalog", third, ""))
			w.apply(chat.shift("chat", third, ""))
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				got, failed := count(200, func() (string, error) { a := web.do(method, "catalog", "/"); return a.instance, a.ok() })
				if len(failed) > 0 || got[way] > 0 || len(got) != 2 {
					t.Errorf("%s: answered by %v, %d failed: %v", method, got, len(failed), errors.Join(failed...))
				}
			}
			got, failed := count(200, web.calls()["chat"])
			if len(failed) > 0 || got[way] > 0 || len(got) != 2 {
				t.Errorf("gRPC: answered by %v, %d failed: %v", got, len(failed), errors.Join(failed...))
			}

			w.apply("Kind = \"traffic-policy\"\nName = \"catalog\"\nCrossing = false\n")
			_, failed = count(200, web.calls()["catalog"])
			within(t, "failures where nothing may cross", len(failed), 200, .333)
			w.delete("traffic-policy", "catalog")
		})
	}
}

// deaf registers a sidecar that says that it takes plaintext where nobody listens. Subsets
// keep it out of mtls.
func (w *world) deaf(service string) {
	w.t.Helper()
	w.write(fmt.Sprintf("Kind = \"service-resolver\"\nName = %q\nDefaultSubset = \"v1\"\nSubsets = { v1 = { Filter = \"Service.Meta.version == v1\" } }\n", service))
	ports := meshtest.FreePorts(w.t, 2)
	body, err := json.Marshal(map[string]any{
		"ID": "deaf-" + service, "Name": service + "-sidecar-proxy", "Kind": "connect-proxy", "Address": "127.0.0.1", "Port": ports[0],
		"Meta": map[string]string{"crossfade_plaintext": fmt.Sprint(ports[1])}, "Proxy": map[string]any{"DestinationServiceName": service, "DestinationServiceID": "deaf"},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.server.Call(http.MethodPut, "/v1/agent/service/register", body)
}

// With nobody left all is refused: the tests above count what fails.
func TestAllWaysDead(t *testing.T) {
	w := newWorld(t)
	w.speak()
	all := map[string]ways{}
	web := w.caller("web", "web-1", "catalog", "chat", "payments")
	for _, service := range []string{"catalog", "chat", "payments"} {
		s := w.three(service)
		s.legacy.stop()
		s.mtls.stop()
		w.apply(s.shift(service, [4]float64{50, 0, 0, 50}, ""))
		all[service] = s
	}
	for service, call := range web.calls() {
		if got, failed := count(100, call); len(failed) != 100 {
			t.Errorf("%s: answered by %v, %d failed", service, got, len(failed))
		}
	}
}

// A connection that cannot be made on one way is tried twice more, each time on a way
// by shares, until the dead one is known as such.
func TestDeadWayOfConnections(t *testing.T) {
	w := newWorld(t)
	w.speak()
	web := w.caller("web", "web-1", "payments")
	payments := w.three("payments")
	payments.legacy.stop()
	w.apply(payments.shift("payments", [4]float64{10, 0, 0, 90}, ""))
	got, failed := count(500, web.calls()["payments"])
	t.Logf("answered by %v, %d failed", got, len(failed))
	if len(failed) > 5 || got["mtls"] < 495 {
		t.Errorf("answered by %v, %d failed: %v", got, len(failed), errors.Join(failed...))
	}
}

// A request that the callee may have seen is not sent again on another way.
func TestSeenRequestsStay(t *testing.T) {
	w := newWorld(t)
	w.speak()
	all := w.three("catalog")
	rude := w.plainHTTP("rude", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if c, _, err := http.NewResponseController(rw).Hijack(); err == nil {
			c.Close()
		}
	}))
	all.legacy = rude
	web := w.caller("web", "web-1", "catalog")
	w.apply(all.shift("catalog", [4]float64{50, 0, 0, 50}, ""))
	const n = 100
	for _, method := range []string{http.MethodPost, http.MethodGet} {
		before := rude.served.Load()
		got, failed := count(n, func() (string, error) { a := web.do(method, "catalog", "/"); return a.instance, a.ok() })
		if seen := int(rude.served.Load() - before); seen == 0 || seen != len(failed) || got["mtls"]+seen != n {
			t.Errorf("%s: %d were seen by who hangs up, %d failed, answered were %v", method, seen, len(failed), got)
		}
	}
}

// The old mesh gets its own Host, and nobody else does, also when a request crosses.
func TestLegacyHost(t *testing.T) {
	w := newWorld(t)
	w.speak()
	catalog, chat := w.three("catalog"), w.three("chat")
	web := w.caller("web", "web-1", "catalog", "chat")
	conn := web.grpc()
	hosts := func(want map[string]string) {
		t.Helper()
		seen := map[string]bool{}
		for range 60 {
			a := web.do(http.MethodPost, "catalog", "/", func(r *http.Request) { r.Host = "catalog.app" })
			way, _, _ := strings.Cut(a.instance, "-")
			if a.ok() != nil || strings.Fields(a.body)[2] != want[way] {
				t.Fatalf("%v: %q, want %v", a.ok(), a.body, want)
			}
			id, authority, err := web.stream(conn)
			if err != nil || id != "legacy" && authority == "old.example" || id == "legacy" && authority != "old.example" {
				t.Fatalf("%s got :authority %q, %v", id, authority, err)
			}
			seen[way] = true
		}
		if len(seen) != len(want) {
			t.Errorf("answered by %v, want %v", seen, want)
		}
	}
	write := func(legacy [2]int, shares [4]float64) {
		w.apply(shiftText("catalog", fmt.Sprintf("127.0.0.1:%d", legacy[0]), "old.example", shares, ""))
		w.apply(shiftText("chat", fmt.Sprintf("127.0.0.1:%d", legacy[1]), "old.example", shares, ""))
	}
	alive := [2]int{catalog.legacy.port, chat.legacy.port}
	write(alive, [4]float64{40, 20, 0, 40})
	hosts(map[string]string{"legacy": "old.example", "direct": "catalog.app", "mtls": "catalog.app"})
	free := meshtest.FreePorts(t, 2)
	write([2]int{free[0], free[1]}, [4]float64{90, 0, 0, 10}) // nobody listens
	hosts(map[string]string{"mtls": "catalog.app"})
	catalog.mtls.stop()
	chat.mtls.stop()
	write(alive, [4]float64{10, 0, 0, 90})
	hosts(map[string]string{"legacy": "old.example"})
	w.apply(shiftText("catalog", fmt.Sprintf("localhost:%d", alive[0]), "old.example", [4]float64{100, 0, 0, 0}, ""))
	hosts(map[string]string{"legacy": "old.example"})
	w.apply(shiftText("catalog", fmt.Sprintf("localhost:%d", alive[0]), "", [4]float64{100, 0, 0, 0}, ""))
	hosts(map[string]string{"legacy": "catalog.app"})
}

// Callers stay on their way while shares move, but for those who must go.
func TestStickyWays(t *testing.T) {
	w := newWorld(t)
	w.speak()
	catalog, payments := w.four("catalog"), w.four("payments")
	web := w.caller("web", "web-1", "catalog", "payments")
	name := func(i int) string { return fmt.Sprintf("user-%d", i) }
	const n = 1000
	place := func(shares [4]float64) map[string]string {
		t.Helper()
		w.apply(catalog.shift("catalog", shares, "Sticky { Header = \"x-user\" }"))
		out := users(web, n, name)
		if all, _ := moved(out, users(web, n, name), ""); all > 0 {
			t.Errorf("%v: %d users changed their way", shares, all)
		}
		on := map[string]int{}
		for _, way := range out {
			on[way]++
		}
		for i, way := range wayNames {
			within(t, fmt.Sprintf("%v: users on %s", shares, way), on[way], n, shares[i]/100)
		}
		return out
	}
	before := place([4]float64{90, 0, 0, 10})
	for _, step := range []struct {
		shares [4]float64
		to     string
		part   float64
	}{
		{[4]float64{70, 0, 0, 30}, "mtls", .2}, {[4]float64{70, 10, 0, 20}, "direct", .1}, {[4]float64{40, 10, 0, 50}, "mtls", .3},
		{[4]float64{40, 10, 20, 30}, "plain", .2}, {[4]float64{0, 10, 20, 70}, "mtls", .4},
	} {
		after := place(step.shares)
		all, wrong := moved(before, after, step.to)
		t.Logf("to %v: %d moved, %d of them elsewhere", step.shares, all, wrong)
		if wrong > 0 {
			t.Errorf("to %v: %d of %d users moved, %d of them elsewhere", step.shares, all, n, wrong)
		}
		within(t, fmt.Sprintf("to %v: users that moved", step.shares), all, n, step.part)
		before = after
	}

	two := place([4]float64{0, 0, 10, 90})
	if all, wrong := moved(two, place([4]float64{0, 0, 30, 70}), "plain"); wrong > 0 || all < n*14/100 || all > n*26/100 {
		t.Errorf("of %d users %d moved, %d of them to mtls: want 20 %% to plain", n, all, wrong)
	}

	w.apply(catalog.shift("catalog", [4]float64{10, 20, 30, 40}, "Sticky { Cookie { Name = \"way\" } }"))
	on := map[string]int{}
	for range 200 {
		first := web.get("catalog", "/")
		cookie, _, _ := strings.Cut(first.header.Get("Set-Cookie"), ";")
		way, _, _ := strings.Cut(first.instance, "-")
		on[way]++
		for range 3 {
			if again := web.get("catalog", "/", header("Cookie", cookie)); again.ok() != nil || again.instance != first.instance || again.header.Get("Set-Cookie") != "" {
				t.Fatalf("cookie %q is of %s, then of %s, %v", cookie, first.instance, again.instance, again.ok())
			}
		}
	}
	for i, way := range wayNames {
		within(t, "cookies of "+way, on[way], 200, float64(i+1)/10)
	}

	w.apply(catalog.shift("catalog", [4]float64{50, 0, 50, 0}, "Sticky { Source = true }"))
	w.apply(payments.shift("payments", [4]float64{50, 0, 50, 0}, "Sticky { Source = true }"))
	calls := web.calls()
	var one string
	for _, service := range []string{"catalog", "payments"} {
		got, failed := count(100, calls[service])
		if len(failed) > 0 || len(got) != 1 {
			t.Errorf("%s: the instance is answered by %v, %v", service, got, errors.Join(failed...))
		}
		for way := range got {
			if one == "" {
				one = way
			}
			if way != one {
				t.Errorf("the instance's connections go by %s, its requests by %s", way, one)
			}
		}
	}
}

// The direct way goes past a callee's sidecar, to the instances that are there.
func TestDirectWay(t *testing.T) {
	w := newWorld(t)
	w.speak()
	first := w.plainHTTP("one", w.teller("one"))
	w.beside("catalog", "one", "v1", first.port)
	web := w.caller("web", "web-1", "catalog")
	web.eventually("catalog answers", "catalog", "/", by("one"))
	const xfcc = "Got-X-Forwarded-Client-Cert" // made by the callee's sidecar
	direct := func(a answer) error {
		if err := a.ok(); err != nil || a.header.Get(xfcc) == "" {
			return err
		}
		return errors.New("by the sidecar")
	}
	if a := web.get("catalog", "/"); a.header.Get(xfcc) == "" {
		t.Errorf("past the sidecar before it was asked for: %v", a.header)
	}
	w.apply("Kind = \"traffic-shift\"\nSource = \"web\"\nDestination = \"*\"\nShares { direct = 100 }\n")
	if err := direct(web.get("catalog", "/", header("x-forwarded-client-cert", "URI=spiffe://forged"))); err != nil {
		t.Error(err)
	}
	second := w.plainHTTP("two", w.teller("two"))
	w.enlist("catalog", second)
	web.eventually("an instance that appears is asked", "catalog", "/", by("two"))
	w.server.Call(http.MethodPut, "/v1/agent/service/deregister/two", nil)
	got := map[string]int{}
	meshtest.Eventually(t, "one that goes is not", func() error {
		clear(got)
		for range 20 {
			got[web.get("catalog", "/").instance]++
		}
		if got["one"] != 20 {
			return fmt.Errorf("answered by %v", got)
		}
		return nil
	})
	w.delete("traffic-shift", "web~*")
	web.eventually("the sidecar is back in its place", "catalog", "/", func(a answer) error {
		if direct(a) == nil {
			return errors.New("still past it")
		}
		return a.ok()
	})
}

// Where three of twelve instances have a sidecar, plain and mtls reach those three, and
// direct all.
func TestSidecarsOnSomeInstances(t *testing.T) {
	w := newWorld(t)
	w.speak()
	for i := range 12 {
		a := w.plainHTTP(fmt.Sprintf("app-%d", i), w.teller(fmt.Sprintf("app-%d", i)))
		if i < 3 {
			w.beside("catalog", a.id, "v1", a.port)
		} else {
			w.enlist("catalog", a)
		}
	}
	web := w.caller("web", "web-1", "catalog", "chat")
	w.reachable("catalog", map[string]int{"direct": 12, "plain": 3, "mtls": 3})
	for i, instances := range []int{0, 12, 3, 3} {
		if instances == 0 {
			continue
		}
		var shares [4]float64
		shares[i] = 100
		w.apply(shiftText("catalog", "127.0.0.1:1", "", shares, ""))
		got := web.shares(60*instances, "catalog", "/")
		first := 0
		for n := range 3 {
			if got[fmt.Sprintf("app-%d", n)] > 0 {
				first++
			}
		}
		if len(got) != instances || first != 3 {
			t.Errorf("%s is answered by %v, want %d with the first three", wayNames[i], got, instances)
		}
	}
	w.apply(shiftText("catalog", "127.0.0.1:1", "", [4]float64{0, 50, 0, 50}, ""))
	got := web.shares(600, "catalog", "/")
	of := 0
	for n := range 3 {
		of += got[fmt.Sprintf("app-%d", n)]
	}
	within(t, "requests to instances with a sidecar", of, 600, .5+.5*3/12)

	// A way that leads to nobody gets nothing.
	chat := w.three("chat")
	w.apply(chat.shift("chat", [4]float64{0, 0, 50, 50}, ""))
	byWay, failed := count(100, web.calls()["chat"])
	if len(failed) > 0 || byWay["mtls"] != 100 {
		t.Errorf("where nobody takes plaintext answer %v, %v", byWay, errors.Join(failed...))
	}
}

// A service-router holds on all ways, and what it sends to another service is not divided.
func TestRoutersOnAllWays(t *testing.T) {
	w := newWorld(t)
	w.speak()
	w.write("Kind = \"service-defaults\"\nName = \"cart\"\nProtocol = \"http\"\n")
	w.http("cart", "cart", nil)
	moody := &instance{w: w, id: "legacy"} // answers /status with 503
	moody.status.Store(503)
	catalog := w.four("catalog")
	catalog.legacy = w.plainHTTP("legacy", http.HandlerFunc(moody.answer))
	w.write(`
Kind = "service-router"
Name = "catalog"
Routes = [
  { Match { HTTP { PathPrefix = "/cart/" } }, Destination { Service = "cart", PrefixRewrite = "/" } },
  { Match { HTTP { Header = [{ Name = "x-tell", Present = true }] } }, Destination { RequestHeaders { Set { "x-told" = "1" } } } },
  { Match { HTTP { PathPrefix = "/status" } }, Destination { NumRetries = 2, RetryOnStatusCodes = [503] } },
]
`)
	web := w.caller("web", "web-1", "catalog")
	const n = 400
	for _, host := range []string{"", "catalog.old"} {
		w.apply(shiftText("catalog", fmt.Sprintf("127.0.0.1:%d", catalog.legacy.port), host, [4]float64{25, 25, 25, 25}, ""))
		told := func() (string, error) {
			a := web.get("catalog", "/a", header("x-tell", "yes"))
			if got := a.header.Get("Got-X-Told"); a.ok() == nil && got != "1" {
				return a.instance, fmt.Errorf("%s was told %q", a.instance, got)
			}
			return a.instance, a.ok()
		}
		got, failed := count(n, told)
		if len(failed) > 0 || len(got) != 4 {
			t.Errorf("a header: answered by %v, %v", got, errors.Join(failed...))
		}
		got, failed = count(100, func() (string, error) {
			a := web.get("catalog", "/cart/x")
			if a.ok() == nil && !strings.Contains(a.body, " /x ") {
				return a.instance, errors.New(a.body)
			}
			return a.instance, a.ok()
		})
		if len(failed) > 0 || got["cart"] != 100 {
			t.Errorf("another service: answered by %v, %v", got, errors.Join(failed...))
		}
		// What was answered is sent elsewhere only if it may be repeated, and has no Host that
		// is none of theirs.
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			before := catalog.legacy.served.Load()
			got, failed := count(n, func() (string, error) { a := web.do(method, "catalog", "/status"); return a.instance, a.ok() })
			seen := int(catalog.legacy.served.Load() - before)
			switch crosses := method == http.MethodGet && host == ""; {
			case crosses && (len(failed) > 0 || got["legacy"] > 0 || seen == 0):
				t.Errorf("%s %q: answered by %v, %d failed", method, host, got, len(failed))
			case !crosses && (len(failed) == 0 || seen != 3*len(failed)):
				t.Errorf("%s %q: %d failed, and the old mesh saw %d", method, host, len(failed), seen)
			}
		}
	}
}
