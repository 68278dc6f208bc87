package routing

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
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
