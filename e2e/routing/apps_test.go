package routing

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// extendedConnect lets Go's servers take WebSockets over HTTP/2 (RFC 8441). It is read
// when a process starts.
const extendedConnect = "http2xconnect=1"

func TestMain(m *testing.M) {
	if debug := os.Getenv("GODEBUG"); !strings.Contains(debug, extendedConnect) {
		os.Setenv("GODEBUG", strings.TrimPrefix(debug+","+extendedConnect, ","))
		self, err := os.Executable()
		if err == nil {
			err = syscall.Exec(self, os.Args, os.Environ())
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// shop answers every request, whatever its path, and echoes on WebSockets.
func shop(id string) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodConnect: // over HTTP/2
			rw.WriteHeader(http.StatusOK)
			rc := http.NewResponseController(rw)
			_ = rc.Flush()
			b := make([]byte, 1024)
			for {
				n, err := r.Body.Read(b)
				if _, failed := rw.Write(b[:n]); failed != nil || err != nil {
					return
				}
				_ = rc.Flush()
			}
		case r.Header.Get("Upgrade") != "":
			c, both, err := http.NewResponseController(rw).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
			_, _ = io.Copy(c, both)
		default:
			_, _ = io.Copy(io.Discard, r.Body)
			rw.Header().Set("x-instance", id)
			fmt.Fprintf(rw, "%s %s %s", id, r.Method, r.URL.Path)
		}
	})
}

// native registers an instance that speaks mTLS itself on the port.
func (w *world) native(service, id, version string, port int, stop func()) {
	in := &instance{w: w, service: service, id: id, meta: map[string]string{"version": version}, port: port, stop: sync.OnceFunc(stop)}
	w.t.Cleanup(in.stop)
	in.register()
}

// beside runs an app's sidecar.
func (w *world) beside(service, id, version string, port int) process {
	w.t.Helper()
	return w.sidecar(id, "service.hcl", fmt.Sprintf(`
service {
  name = %q
  id   = %q
  port = %d
  meta { version = %q }
  connect { sidecar_service { port = %d } }
}
`, service, id, port, version, meshtest.FreePorts(w.t, 1)[0]))
}

// shopApp runs a shop behind TLS, or in plaintext.
func (w *world) shopApp(service, id string, secure bool) (port int, stop func()) {
	s := httptest.NewUnstartedServer(shop(id))
	s.Config.ErrorLog = quiet
	if secure {
		s.TLS, s.EnableHTTP2 = w.tlsConfig(service), true
		s.StartTLS()
	} else {
		s.Start()
	}
	return s.Listener.Addr().(*net.TCPAddr).Port, func() { s.CloseClientConnections(); s.Close() }
}

// grpcApp runs gRPC's health service. Its streams say something several times a second.
func (w *world) grpcApp(service string, secure bool) (port int, stop func()) {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	var opts []grpc.ServerOption
	if secure {
		opts = append(opts, grpc.Creds(credentials.NewTLS(w.tlsConfig(service))))
	}
	g, h := grpc.NewServer(opts...), health.NewServer()
	healthpb.RegisterHealthServer(g, h)
	go g.Serve(l)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for on := false; ; on = !on {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			state := healthpb.HealthCheckResponse_SERVING
			if on {
				state = healthpb.HealthCheckResponse_NOT_SERVING
			}
			h.SetServingStatus("ticks", state)
		}
	}()
	return l.Addr().(*net.TCPAddr).Port, func() { cancel(); g.Stop() }
}

// lineApp says its name first, then echoes lines, in plaintext.
func (w *world) lineApp(id string) (port int, stop func()) {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprintln(c, id)
				_, _ = io.Copy(c, bufio.NewReader(c))
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port, func() { l.Close() }
}
