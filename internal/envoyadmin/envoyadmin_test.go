package envoyadmin

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// serve answers as an Envoy until the test ends.
func serve(t *testing.T, network, address string, h http.HandlerFunc) *Client {
	t.Helper()
	lis, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(h)
	srv.Listener.Close()
	srv.Listener = lis
	srv.Start()
	c := New(lis.Addr().String(), 10*time.Second)
	t.Cleanup(func() {
		c.Close()
		srv.Close()
	})
	return c
}

func socket(t *testing.T) string { return filepath.Join(t.TempDir(), "admin") }

func TestConnectionsByListener(t *testing.T) {
	c := serve(t, "unix", socket(t), func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/listeners" {
			fmt.Fprint(w, `{"listener_statuses":[
				{"name":"public_listener:127.0.0.1:21000","local_address":{"socket_address":{"address":"127.0.0.1","port_value":21000}}},
				{"name":"six","local_address":{"socket_address":{"address":"::1","port_value":7100}}},
				{"name":"of a socket","local_address":{"pipe":{"path":"/tmp/x"}}},
				{"name":"not counted","local_address":{"socket_address":{"address":"127.0.0.1","port_value":7200}}}]}`)
			return
		}
		fmt.Fprint(w, "listener.127.0.0.1_21000.downstream_cx_active: 5\nlistener.[__1]_7100.downstream_cx_active: 0\n")
	})
	got, err := c.Connections(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]int64{"public_listener:127.0.0.1:21000": 5, "six": 0}, got); diff != "" {
		t.Error(diff)
	}
	var ports []int
	listeners, err := c.Listeners(t.Context())
	for _, l := range listeners {
		ports = append(ports, l.Port)
	}
	if want := []int{21000, 7100, 0, 7200}; err != nil || !slices.Equal(ports, want) {
		t.Errorf("listeners at %v, %v; want %v", ports, err, want)
	}
}

func TestStats(t *testing.T) {
	c := serve(t, "unix", socket(t), func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s: 7\ncluster.x.time: P0(nan,1) P100(nan,2)\nlast: 3", r.URL.Query().Get("filter"))
	})
	got, err := c.Stats(t.Context(), `^a|b&c$`)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]int64{`^a|b&c$`: 7, "last": 3}, got); diff != "" {
		t.Error(diff)
	}
}

// An Envoy may be at an address instead of a socket, and its refusals are errors with its words.
func TestAnswers(t *testing.T) {
	var asked []string
	c := serve(t, "tcp", "127.0.0.1:0", func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.RequestURI)
		switch r.URL.Path {
		case "/ready":
			http.Error(w, "INITIALIZING", http.StatusServiceUnavailable)
		case "/runtime":
			fmt.Fprint(w, `{"entries":{"a.b":{"final_value":"1.5","layer_values":["","1.5"]}}}`)
		case "/listeners":
			fmt.Fprint(w, "no JSON")
		default:
			http.Error(w, "invalid path", http.StatusNotFound)
		}
	})
	ctx := t.Context()
	if ready, state, err := c.Ready(ctx); ready || state != "INITIALIZING" || err != nil {
		t.Errorf("ready %v, %q, %v", ready, state, err)
	}
	if got, err := c.Runtime(ctx); err != nil || len(got) != 1 || got["a.b"] != "1.5" {
		t.Errorf("runtime %v, %v", got, err)
	}
	for name, call := range map[string]func() error{
		"envoy admin /x: status 404: invalid path":               func() error { _, err := c.Get(ctx, "/x"); return err },
		"envoy admin /stats?filter=a: status 404":                func() error { _, err := c.Stats(ctx, "a"); return err },
		"envoy admin /listeners?format=json: 7 bytes: ":          func() error { _, err := c.Listeners(ctx); return err },
		"envoy admin /drain_listeners?inboundonly: status 404: ": func() error { return c.CloseInbound(ctx) },
	} {
		if err := call(); err == nil || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("%v, want %s", err, name)
		}
	}
	if !slices.Contains(asked, "POST /drain_listeners?inboundonly") {
		t.Errorf("asked for %q", asked)
	}
}
