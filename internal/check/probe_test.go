package check

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// look probes once as a task would, with a bound on the time it may take.
func look(t *testing.T, def config.CheckDefinition, timeout time.Duration) Result {
	t.Helper()
	probe, err := newProbe(def)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	r := probe(ctx)
	r.Output = clip(r.Output, def.OutputMaxSize)
	return r
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestHTTP(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/code/{code}", func(w http.ResponseWriter, r *http.Request) {
		var code int
		fmt.Sscan(r.PathValue("code"), &code)
		w.WriteHeader(code)
		fmt.Fprint(w, "said ", code)
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s host=%s x=%v agent=%s close=%v body=%s", r.Method, r.Host, r.Header["X-A"], r.UserAgent(), r.Close, body)
	})
	mux.HandleFunc("/long", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, strings.Repeat("\xff", 1<<20)) })
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/code/200", http.StatusFound) })
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	hang := make(chan struct{})
	mux.HandleFunc("/hang", func(http.ResponseWriter, *http.Request) { <-hang })
	mux.HandleFunc("/half", func(w http.ResponseWriter, _ *http.Request) {
		w.(http.Flusher).Flush()
		<-hang
	})
	plain, secure := httptest.NewServer(mux), httptest.NewTLSServer(mux)
	t.Cleanup(func() { close(hang); plain.Close(); secure.Close() })
	closed := listen(t)
	closed.Close()

	for _, tt := range []struct {
		name   string
		def    config.CheckDefinition
		status catalog.Status
		output string
	}{
		{"200", config.CheckDefinition{HTTP: plain.URL + "/code/200"}, catalog.Passing, "HTTP GET " + plain.URL + "/code/200: 200 OK Output: said 200"},
		{"299", config.CheckDefinition{HTTP: plain.URL + "/code/299"}, catalog.Passing, "said 299"},
		{"429", config.CheckDefinition{HTTP: plain.URL + "/code/429"}, catalog.Warning, "429 Too Many Requests"},
		{"300", config.CheckDefinition{HTTP: plain.URL + "/code/300"}, catalog.Critical, "said 300"},
		{"503", config.CheckDefinition{HTTP: plain.URL + "/code/503"}, catalog.Critical, "said 503"},
		{"request", config.CheckDefinition{HTTP: plain.URL + "/echo", Method: "PUT", Body: "hi", Header: map[string][]string{"X-A": {"1", "2"}, "Host": {"web.example"}}},
			catalog.Passing, "PUT host=web.example x=[1 2] agent=crossfade health check close=true body=hi"},
		{"redirect", config.CheckDefinition{HTTP: plain.URL + "/moved"}, catalog.Passing, "said 200"},
		{"redirect, not followed", config.CheckDefinition{HTTP: plain.URL + "/moved", DisableRedirects: true}, catalog.Critical, "302 Found"},
		{"redirect loop", config.CheckDefinition{HTTP: plain.URL + "/loop"}, catalog.Critical, "10 redirects"},
		{"tls, unknown root", config.CheckDefinition{HTTP: secure.URL + "/code/200"}, catalog.Critical, "certificate"},
		{"tls, other name", config.CheckDefinition{HTTP: secure.URL + "/code/200", TLSServerName: "nobody.test"}, catalog.Critical, "certificate"},
		{"tls, not verified", config.CheckDefinition{HTTP: secure.URL + "/code/200", TLSSkipVerify: true}, catalog.Passing, "said 200"},
		{"refused", config.CheckDefinition{HTTP: "http://" + closed.Addr().String()}, catalog.Critical, "connection refused"},
		{"timeout", config.CheckDefinition{HTTP: plain.URL + "/hang"}, catalog.Critical, "deadline exceeded"},
		{"body never ends", config.CheckDefinition{HTTP: plain.URL + "/half"}, catalog.Passing, "200 OK"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			timeout := 10 * time.Second
			if tt.name == "timeout" || tt.name == "body never ends" {
				timeout = 100 * time.Millisecond
			}
			if r := look(t, tt.def, timeout); r.Status != tt.status || !strings.Contains(r.Output, tt.output) {
				t.Errorf("got %s %q, want %s with %q", r.Status, r.Output, tt.status, tt.output)
			}
		})
	}
	if r := look(t, config.CheckDefinition{HTTP: plain.URL + "/long"}, 10*time.Second); r.Status != catalog.Passing || len(r.Output) > MaxOutput || !strings.HasSuffix(r.Output, "?") {
		t.Errorf("long body: %s with %d bytes of output, want passing with at most %d, valid UTF-8", r.Status, len(r.Output), MaxOutput)
	}
}

func TestOutputMaxSize(t *testing.T) {
	for size, want := range map[int]int{0: MaxOutput, 5: 5, MaxOutput * 2: MaxOutput} {
		if got := len(clip(strings.Repeat("x", MaxOutput*2), size)); got != want {
			t.Errorf("%d: %d bytes, want %d", size, got, want)
		}
	}
}

// The connection checks besides plain TCP.
func TestConnections(t *testing.T) {
	h2 := httptest.NewUnstartedServer(http.NotFoundHandler())
	h2.EnableHTTP2 = true
	h2.StartTLS()
	plain := httptest.NewUnstartedServer(http.NotFoundHandler())
	plain.Config.Protocols = new(http.Protocols)
	plain.Config.Protocols.SetUnencryptedHTTP2(true)
	plain.Start()
	old := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(func() { h2.Close(); plain.Close(); old.Close() })
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { udp.Close() })
	gone, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	silent := listen(t) // accepts, and says nothing
	at := func(s *httptest.Server) string { return s.Listener.Addr().String() }
	off := new(bool)

	for _, tt := range []struct {
		name   string
		def    config.CheckDefinition
		status catalog.Status
		output string
	}{
		{"tls", config.CheckDefinition{TCP: at(h2), TCPUseTLS: true, TLSSkipVerify: true}, catalog.Passing, "Success"},
		{"tls, unknown root", config.CheckDefinition{TCP: at(h2), TCPUseTLS: true}, catalog.Critical, "certificate"},
		{"no tls there", config.CheckDefinition{TCP: at(old), TCPUseTLS: true}, catalog.Critical, "TLS handshake"},
		{"udp, silent", config.CheckDefinition{UDP: udp.LocalAddr().String()}, catalog.Passing, "Success"},
		{"udp, nobody", config.CheckDefinition{UDP: gone.LocalAddr().String()}, catalog.Critical, "refused"},
		{"h2 over tls", config.CheckDefinition{H2PING: at(h2), TLSSkipVerify: true}, catalog.Passing, "success"},
		{"h2 over tls, unknown root", config.CheckDefinition{H2PING: at(h2)}, catalog.Critical, "certificate"},
		{"h2", config.CheckDefinition{H2PING: at(plain), H2PingUseTLS: off}, catalog.Passing, "success"},
		{"no h2 there", config.CheckDefinition{H2PING: at(old), H2PingUseTLS: off}, catalog.Critical, "HTTP/2 ping"},
		{"h2, silent", config.CheckDefinition{H2PING: silent.Addr().String(), H2PingUseTLS: off}, catalog.Critical, "HTTP/2 ping"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			timeout := 10 * time.Second
			if strings.Contains(tt.name, "silent") {
				timeout = 200 * time.Millisecond
			}
			if r := look(t, tt.def, timeout); r.Status != tt.status || !strings.Contains(r.Output, tt.output) {
				t.Errorf("got %s %q, want %s with %q", r.Status, r.Output, tt.status, tt.output)
			}
		})
	}
}

func TestTCP(t *testing.T) {
	open, closed := listen(t), listen(t)
	closed.Close()
	if r := look(t, config.CheckDefinition{TCP: open.Addr().String()}, 10*time.Second); r.Status != catalog.Passing || !strings.Contains(r.Output, "Success") {
		t.Errorf("open port: %+v", r)
	}
	if r := look(t, config.CheckDefinition{TCP: closed.Addr().String()}, 10*time.Second); r.Status != catalog.Critical || !strings.Contains(r.Output, "refused") {
		t.Errorf("closed port: %+v", r)
	}
}

func TestGRPC(t *testing.T) {
	serve := func(opts ...grpc.ServerOption) string {
		l, s, h := listen(t), grpc.NewServer(opts...), health.NewServer()
		h.SetServingStatus("up", healthpb.HealthCheckResponse_SERVING)
		h.SetServingStatus("down", healthpb.HealthCheckResponse_NOT_SERVING)
		healthpb.RegisterHealthServer(s, h)
		go s.Serve(l)
		t.Cleanup(s.Stop)
		return l.Addr().String()
	}
	certs := httptest.NewUnstartedServer(nil)
	certs.StartTLS()
	certs.Close()
	plain := serve()
	secure := serve(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: certs.TLS.Certificates})))
	closed := listen(t)
	closed.Close()

	for _, tt := range []struct {
		name   string
		def    config.CheckDefinition
		status catalog.Status
		output string
	}{
		{"server", config.CheckDefinition{GRPC: plain}, catalog.Passing, "success"},
		{"service up", config.CheckDefinition{GRPC: plain + "/up"}, catalog.Passing, "success"},
		{"service down", config.CheckDefinition{GRPC: plain + "/down"}, catalog.Critical, "NOT_SERVING"},
		{"service unknown", config.CheckDefinition{GRPC: plain + "/none"}, catalog.Critical, "NotFound"},
		{"tls", config.CheckDefinition{GRPC: secure + "/up", GRPCUseTLS: true, TLSSkipVerify: true}, catalog.Passing, "success"},
		{"tls, unknown root", config.CheckDefinition{GRPC: secure, GRPCUseTLS: true}, catalog.Critical, "certificate"},
		{"refused", config.CheckDefinition{GRPC: closed.Addr().String()}, catalog.Critical, "refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if r := look(t, tt.def, 10*time.Second); r.Status != tt.status || !strings.Contains(r.Output, tt.output) {
				t.Errorf("got %s %q, want %s with %q", r.Status, r.Output, tt.status, tt.output)
			}
		})
	}
}

// TestRealCheckEndToEnd flips a served port and waits for both reports.
func TestRealCheckEndToEnd(t *testing.T) {
	l := listen(t)
	results := make(chan Result, 10)
	r := New(Options{Report: func(_, _ string, r Result) { results <- r }})
	t.Cleanup(r.Close)
	if err := r.Set("n1", "web-1", config.CheckDefinition{ID: "c", TCP: l.Addr().String(), Interval: config.Duration(20 * time.Millisecond)}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []catalog.Status{catalog.Passing, catalog.Critical} {
		select {
		case got := <-results:
			if got.Status != want {
				t.Fatalf("reported %+v, want %s", got, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("no report of %s", want)
		}
		l.Close()
	}
}
