package protocols

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// verdicts are those of h2spec's cases, by section and number; nil is a pass.
type verdicts map[string]error

// conform runs every case of h2spec, those that only SHOULD hold too, against a
// server that speaks HTTP/2 without TLS.
func conform(t *testing.T, addr string) verdicts {
	t.Helper()
	host, port := split(t, addr)
	c := &config.Config{Host: host, Port: port, Path: "/", Timeout: 2 * time.Second, MaxHeaderLen: 4000, Strict: true}
	type numbered struct {
		id string
		*spec.TestCase
	}
	cases := make(chan numbered)
	out := verdicts{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 32 { // a failing case waits, for what does not come
		wg.Go(func() {
			for tc := range cases {
				err := try(c, tc.TestCase)
				mu.Lock()
				out[tc.id] = err
				mu.Unlock()
			}
		})
	}
	var walk func(*spec.TestGroup)
	walk = func(g *spec.TestGroup) {
		for i, tc := range append(g.Tests, g.StrictTests...) {
			cases <- numbered{fmt.Sprintf("%s/%d: %s", g.ID(), i+1, tc.Desc), tc}
		}
		for _, sub := range g.Groups {
			walk(sub)
		}
	}
	for _, g := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		walk(g)
	}
	close(cases)
	wg.Wait()
	return out
}

func try(c *config.Config, tc *spec.TestCase) error {
	conn, err := spec.Dial(c)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := tc.Run(c, conn); !errors.Is(err, spec.ErrSkipped) {
		return err
	}
	return nil
}

// worse are the cases that fail, and do not with what it is compared to.
func (v verdicts) worse(than verdicts) []string {
	var out []string
	for id, err := range v {
		if err != nil && than[id] == nil {
			out = append(out, fmt.Sprintf("%s: %v", id, err))
		}
	}
	return out
}

func (v verdicts) failed() int {
	return len(v.worse(verdicts{}))
}

// tunnel takes plaintext for a service's public listener, on connections of another
// service.
func (m *mesh) tunnel(t *testing.T, service string) string {
	t.Helper()
	config := m.ca.Client(spiffe("other"))
	config.NextProtos = []string{"h2"}
	return fmt.Sprintf("127.0.0.1:%d", listen(t, func(c *net.TCPConn) {
		up, err := tlsDial(t.Context(), m.side[service], config)
		if err != nil {
			t.Error(err)
			return
		}
		defer up.Close()
		go func() {
			io.Copy(up, c)
			up.CloseWrite()
		}()
		io.Copy(c, up)
	}))
}

// startBare runs an Envoy that has the least configuration with which it passes
// HTTP/2 on to an app, and says where.
func startBare(t *testing.T, app int, manager string) (*meshtest.Envoy, string) {
	t.Helper()
	port := meshtest.FreePorts(t, 1)[0]
	e := meshtest.StartEnvoy(t, fmt.Appendf(nil, `{
		"admin": {"address": {"pipe": {"path": %q}}},
		"static_resources": {
			"listeners": [{
				"address": {"socket_address": {"address": "127.0.0.1", "port_value": %d}},
				"filter_chains": [{"filters": [{"name": "http", "typed_config": {
					"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
					"stat_prefix": "bare", %s
					"route_config": {"virtual_hosts": [{"name": "app", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app"}}]}]},
					"http_filters": [{"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]
				}}]}]
			}],
			"clusters": [{"name": "app", "load_assignment": {"cluster_name": "app", "endpoints": [{"lb_endpoints": [
				{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": %d}}}}]}]}}]
		}
	}`, filepath.Join(meshtest.RunDir(t), "admin.sock"), port, manager, app))
	e.WaitReady()
	return e, fmt.Sprintf("127.0.0.1:%d", port)
}

// unhurried takes a while over each answer. Cases that send what their stream no
// longer allows must be judged by that alone: once the answer has ended the stream,
// Envoy need not say anything.
func unhurried(app http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-time.After(300 * time.Millisecond)
		app.ServeHTTP(w, r)
	})
}

// A sidecar speaks HTTP/2 no worse than an Envoy of which nothing is set: between
// sidecars, and with the app beside it.
func TestConformance(t *testing.T) {
	app := serve(t, 1, unhurried(&httpApp{}))
	m := start(t, service{name: "catalog", protocol: "http2", port: serve(t, 2, unhurried(&httpApp{}))})
	var want verdicts
	for _, tc := range []struct{ name, codec, addr string }{
		{"inbound", "HTTP2", m.tunnel(t, "catalog")},
		{"outbound", "AUTO", m.out["catalog"]}, // where the first bytes tell the version
	} {
		_, bare := startBare(t, app, fmt.Sprintf(`"codec_type": %q,`, tc.codec))
		want = conform(t, bare)
		if len(want) < 140 || want.failed() > 20 {
			t.Errorf("%d of %d cases fail with a bare Envoy, want 140 cases and more of which most pass", want.failed(), len(want))
		}
		got := conform(t, tc.addr)
		t.Logf("%s: %d of %d cases fail, %d with a bare Envoy", tc.name, got.failed(), len(got), want.failed())
		for _, id := range got.worse(want) {
			t.Errorf("%s: not as with a bare Envoy: %s", tc.name, id)
		}
	}
	// A server of HTTP/1.1 shows that there is something to fail.
	if n := len(conform(t, fmt.Sprintf("127.0.0.1:%d", app)).worse(want)); n < 100 {
		t.Errorf("with a server of HTTP/1.1 %d cases are worse, want most of them", n)
	}
	m.unchanged(t)
}
