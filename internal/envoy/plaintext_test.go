package envoy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"golang.org/x/tools/txtar"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// hosts are where services send from.
var hosts = map[string]string{"storefront": "127.0.1.1", "reports": "127.0.1.2", "web": "127.0.1.3"}

// startCallee runs the sidecar of a service whose app listens at port. It knows hosts. more
// is the rest of the registration's proxy config.
func startCallee(t *testing.T, service, protocol string, app int, more string, args ...string) (l *live, address string) {
	t.Helper()
	port := meshtest.FreePorts(t, 1)[0]
	l = startLive(t, fmt.Sprintf(`
-- services/%[1]s.hcl --
service {
  name = %[1]q
  port = %[2]d
  connect { sidecar_service {
    port = %[3]d
    proxy { config { %[5]s } }
  } }
}
-- config/%[1]s.hcl --
Kind = "service-defaults"
Name = %[1]q
Protocol = %[4]q
`, service, app, port, protocol, more), meshtest.NewAuthority(t), args...)
	l.input.Addresses = func(service string) []netip.Addr {
		if at, ok := hosts[service]; ok {
			return []netip.Addr{netip.MustParseAddr(at)}
		}
		return nil
	}
	return l, fmt.Sprintf("127.0.0.1:%d", port)
}

// mode makes the service strict or permissive.
func (l *live) mode(service, protocol, mode string) {
	l.t.Helper()
	l.write(&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: service, Protocol: protocol, MutualTLSMode: mode})
}

// plainClient speaks HTTP/1.1, or HTTP/2 by prior knowledge, from a host.
func plainClient(t *testing.T, from string, version int) *http.Client {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 5 * time.Second}
	tr := &http.Transport{DialContext: d.DialContext, Protocols: new(http.Protocols)}
	tr.Protocols.SetHTTP1(version == 1)
	tr.Protocols.SetUnencryptedHTTP2(version == 2)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 10 * time.Second}
}

// dialFrom opens a connection from a host.
func dialFrom(t *testing.T, from, address string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 5 * time.Second}
	c, err := d.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

// answered is what a request from a host is answered with, 0 where it is not.
func answered(t *testing.T, from, address, method, path string, h http.Header) (code int, body string) {
	t.Helper()
	req, _ := http.NewRequestWithContext(t.Context(), method, "http://"+address+path, nil)
	req.Header = h
	resp, err := plainClient(t, from, 1).Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// taken waits until the port takes plaintext: an acknowledgement comes a moment before.
func taken(t *testing.T, address string) {
	t.Helper()
	meshtest.Eventually(t, "plaintext is taken", func() error {
		if code, text := answered(t, hosts["storefront"], address, "GET", "/", nil); code == 0 {
			return errors.New(text)
		}
		return nil
	})
}

func TestPlaintextRequestsBesideMTLS(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(catalogApp))
	t.Cleanup(app.Close)
	l, at := startCallee(t, "catalog", "http", app.Listener.Addr().(*net.TCPAddr).Port, "")
	if code, text := answered(t, hosts["storefront"], at, "GET", "/", nil); code != 0 {
		t.Errorf("plaintext before anything is permissive: %d %s", code, text)
	}
	l.mode("catalog", "http", config.MutualTLSPermissive)
	taken(t, at)

	forged := http.Header{"X-Forwarded-Client-Cert": {"URI=spiffe://forged"}, "X-Envoy-Original-Path": {"/"}}
	for _, version := range []int{1, 2} {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://"+at+"//a/../b//c", nil)
		req.Header = forged.Clone()
		code, _, body := do(t, plainClient(t, hosts["storefront"], version), req)
		if code != 200 || !strings.HasPrefix(body, "GET HTTP/1.1 "+at+" /b/c\n") {
			t.Errorf("HTTP/%d: %d %s, want a normal path", version, code, body)
		}
		if lower := strings.ToLower(body); strings.Contains(lower, "x-forwarded-client-cert") || strings.Contains(lower, "x-envoy") {
			t.Errorf("HTTP/%d: the app got what the caller says of itself: %s", version, body)
		}
	}
	if code, body := answered(t, hosts["storefront"], at, "GET", "/%2Fx", nil); code != 400 {
		t.Errorf("an escaped slash: %d %s, want 400 as over mTLS", code, body)
	}
	old := dialFrom(t, hosts["storefront"], at)
	fmt.Fprint(old, "GET /old HTTP/1.0\r\n\r\n")
	if text, _ := io.ReadAll(old); !strings.Contains(string(text), "GET HTTP/1.1 catalog /old\n") {
		t.Errorf("HTTP/1.0 without a host: %s", text)
	}
	socket := dialFrom(t, hosts["storefront"], at)
	upgrade(t, socket)
	if code, _, body := l.mesh.call(spiffe("storefront"), at); code != 200 || !strings.Contains(body, "URI="+spiffe("storefront").URI()) {
		t.Errorf("mTLS on the same port: %d %s", code, body)
	}
	for name, config := range map[string]*tls.Config{
		"no certificate": {InsecureSkipVerify: true},
		"another root":   meshtest.NewAuthority(t).Client(spiffe("storefront")),
	} {
		if resp, err := l.mesh.client(config).Get("https://" + at); err == nil {
			resp.Body.Close()
			t.Errorf("TLS with %s: %s", name, resp.Status)
		}
	}
	counted(t, l, hosts["storefront"], 5) // the first, HTTP/1.1, HTTP/2, HTTP/1.0 and the WebSocket, which is still open

	l.mode("catalog", "http", config.MutualTLSStrict)
	meshtest.Eventually(t, "plaintext is no longer taken", func() error {
		if code, _ := answered(t, hosts["storefront"], at, "GET", "/", nil); code != 0 {
			return fmt.Errorf("status %d", code)
		}
		return nil
	})
}

// upgrade makes a WebSocket of a connection and sends a line along it.
func upgrade(t *testing.T, c net.Conn) *bufio.Reader {
	t.Helper()
	fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: catalog\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", resp, err)
	}
	if err := echoed(c, r, "hello"); err != nil {
		t.Fatal(err)
	}
	return r
}

// echoed sends a line and wants it back.
func echoed(w io.Writer, r *bufio.Reader, line string) error {
	if _, err := fmt.Fprintln(w, line); err != nil {
		return err
	}
	if got, err := r.ReadString('\n'); got != line+"\n" {
		return fmt.Errorf("sent %q, got %q: %w", line, got, err)
	}
	return nil
}

// counted checks the count of plaintext from a host.
func counted(t *testing.T, l *live, from string, want int) {
	t.Helper()
	meshtest.Eventually(t, "plaintext is counted by its source", func() error {
		if n := l.Stat("cf.plaintext.source_address." + from); n != want {
			return fmt.Errorf("%d from %s, want %d", n, from, want)
		}
		return nil
	})
}

func TestIntentionsByAddress(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(catalogApp))
	t.Cleanup(app.Close)
	l, at := startCallee(t, "catalog", "http", app.Listener.Addr().(*net.TCPAddr).Port, "")
	l.mode("catalog", "http", config.MutualTLSPermissive)
	taken(t, at)
	const elsewhere = "127.0.1.9" // where no known service is
	expect := func(what, from, method, path string, h http.Header, want int) {
		t.Helper()
		if code, text := answered(t, from, at, method, path, h); code != want {
			t.Errorf("%s: %d %s, want %d", what, code, text, want)
		}
	}
	okta := newIssuer(t, "okta")
	rules := func(sources ...*config.SourceIntention) { l.t.Helper(); l.write(intentions("catalog", sources...)) }

	rules(&config.SourceIntention{Name: "reports", Action: config.Deny})
	expect("denied", hosts["reports"], "GET", "/", nil, 403)
	expect("not denied", hosts["storefront"], "GET", "/", nil, 200)
	expect("an unknown host, while all are allowed", elsewhere, "GET", "/", nil, 200)

	get := rule(config.Allow, config.HTTPPermission{PathPrefix: "/items", Methods: []string{"GET"}})
	rules(&config.SourceIntention{Name: "storefront", Action: config.Allow}, &config.SourceIntention{Name: "web", Permissions: []*config.Permission{get}}, &config.SourceIntention{Name: config.Wildcard, Action: config.Deny})
	expect("allowed", hosts["storefront"], "GET", "/", nil, 200)
	expect("allowed this", hosts["web"], "GET", "/items/1", nil, 200)
	expect("not that", hosts["web"], "POST", "/items/1", nil, 403)
	expect("of nobody's", hosts["reports"], "GET", "/", nil, 403)
	expect("an unknown host, while all are denied", elsewhere, "GET", "/", nil, 403)

	l.write(okta.provider(nil), &config.ServiceIntentions{Kind: config.KindServiceIntentions, Name: "catalog", JWT: needs("okta"), Sources: []*config.SourceIntention{{Name: "storefront", Action: config.Allow}}})
	expect("without the token", hosts["storefront"], "GET", "/", nil, 403)
	expect("with the token", hosts["storefront"], "GET", "/", bearer(okta.token(nil)), 200)

	rules(&config.SourceIntention{Name: "reports", Action: config.Deny})
	l.write(&config.TrafficPolicy{Name: "catalog", Audit: &config.Audit{Sources: []string{"reports"}}})
	expect("watched", hosts["reports"], "GET", "/", nil, 200)
	for stat, want := range map[string]int{"rbac.shadow_denied": 1, "rbac.denied": 5} {
		if n := l.Stat("http.public_listener_plaintext." + stat); n != want {
			t.Errorf("%s is %d, want %d", stat, n, want)
		}
	}
}

// tlsEcho is an app that speaks TLS itself, and echoes lines.
func tlsEcho(t *testing.T, l *live) int {
	lis, err := tls.Listen("tcp", "127.0.0.1:0", l.mesh.ca.Client(spiffe("own")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lis.Close() })
	go echoes(lis)
	return lis.Addr().(*net.TCPAddr).Port
}

// echoes answers all connections with what they send.
func echoes(lis net.Listener) {
	accept(lis, func(c net.Conn) { io.Copy(c, c) })
}

// greeting is what the app says first, "" where the connection ends instead, and when.
func greeting(c net.Conn) (string, time.Duration) {
	began := time.Now()
	line, _ := bufio.NewReader(c).ReadString('\n')
	return line, time.Since(began)
}

const ready = "payments ready\n"

// inspection is a little less than what each plaintext connection waits where a port takes mTLS as well.
const inspection = 200 * time.Millisecond

// soonest is the first greeting within inspection, or the last of some: a busy machine delays one, a listener
// that inspects delays all.
func soonest(t *testing.T, at string) (got string, took time.Duration) {
	for range 5 {
		if got, took = greeting(dialFrom(t, hosts["web"], at)); got != ready || took < inspection {
			break
		}
	}
	return got, took
}

func TestPlaintextConnectionsBesideMTLS(t *testing.T) {
	own := meshtest.FreePorts(t, 1)[0]
	l, at := startCallee(t, "payments", "tcp", bannerApp(t), fmt.Sprintf("plaintext_port = %d", own))
	alone := fmt.Sprintf("127.0.0.1:%d", own)
	if got, _ := greeting(slowTLS(t, l, at)); got != ready {
		t.Errorf("strict, a handshake that begins late: %q", got)
	}
	refusesPlaintext(t, at)
	l.mode("payments", "tcp", config.MutualTLSPermissive)
	meshtest.Eventually(t, "plaintext is taken", func() error {
		if got, took := greeting(dialFrom(t, hosts["web"], at)); got != ready || took < inspection {
			return fmt.Errorf("%q after %v", got, took)
		}
		return nil
	})
	c := dialFrom(t, hosts["web"], at)
	if err := echoed(c, bufio.NewReader(io.MultiReader(c)), "x"); err == nil || !strings.Contains(err.Error(), "ready") {
		t.Errorf("a caller that speaks at once is answered %v, want the greeting", err)
	}
	if got, took := soonest(t, alone); got != ready || took > inspection {
		t.Errorf("on the port for plaintext alone: %q after %v, want no wait", got, took)
	}
	if got, _ := greeting(l.meshTLS(t, "payments", at)); got != ready {
		t.Errorf("mTLS on the same port: %q", got)
	}

	l.write(intentions("payments", &config.SourceIntention{Name: "storefront", Action: config.Allow}, &config.SourceIntention{Name: config.Wildcard, Action: config.Deny}))
	before, seen := l.Stat("cluster.local_app.upstream_cx_total"), l.Stat("cf.plaintext.source_address."+hosts["web"])
	for _, address := range []string{at, alone} {
		if got, _ := greeting(dialFrom(t, hosts["web"], address)); got != "" {
			t.Errorf("a denied host is greeted: %q", got)
		}
		if got, _ := greeting(dialFrom(t, hosts["storefront"], address)); got != ready {
			t.Errorf("an allowed host is told %q", got)
		}
	}
	if n := l.Stat("cluster.local_app.upstream_cx_total"); n != before+2 {
		t.Errorf("%d connections to the app, want those of the allowed host alone", n-before)
	}
	counted(t, l, hosts["storefront"], 2)
	counted(t, l, hosts["web"], seen+2) // those refused as well
}

// refusesPlaintext speaks first: whoever says nothing has the time of a handshake.
func refusesPlaintext(t *testing.T, address string) {
	t.Helper()
	c := dialFrom(t, hosts["web"], address)
	fmt.Fprintln(c, "hello")
	if got, _ := greeting(c); strings.Contains(got, "ready") { // an alert of TLS is no greeting
		t.Errorf("greeted in plaintext: %q", got)
	}
}

// meshTLS connects as storefront's sidecar does.
func (l *live) meshTLS(t *testing.T, service, address string) *tls.Conn {
	config := l.mesh.ca.Client(spiffe("storefront"))
	config.ServerName = service + ".default.dc1.internal." + meshtest.TrustDomain
	return tls.Client(dialFrom(t, hosts["storefront"], address), config)
}

// slowTLS is a caller that has nothing to say for longer than the inspector looks.
func slowTLS(t *testing.T, l *live, address string) net.Conn {
	t.Helper()
	stat := "listener." + strings.ReplaceAll(address, ":", "_") + ".downstream_cx_total"
	before := l.Stat(stat)
	raw := dialFrom(t, hosts["storefront"], address)
	meshtest.Eventually(t, "the inspector has given up", func() error {
		if n := l.Stat(stat); n != before+1 {
			return fmt.Errorf("%d connections, want %d", n, before+1)
		}
		return nil
	})
	return tls.Client(raw, l.mesh.ca.Client(spiffe("storefront")))
}

// An app's own TLS passes through the port that also takes the mesh's.
func TestAppsOwnTLS(t *testing.T) {
	ca := meshtest.NewAuthority(t)
	app := tlsEcho(t, &live{t: t, mesh: &mesh{ca: ca}})
	l, at := startCallee(t, "vault", "tcp", app, "")
	l.mode("vault", "tcp", config.MutualTLSPermissive)
	for _, name := range []string{"vault.example", ""} {
		meshtest.Eventually(t, "the app answers in its own TLS", func() error {
			config := ca.Client(spiffe("client"))
			config.ServerName = name
			c := tls.Client(dialFrom(t, hosts["web"], at), config)
			if err := c.HandshakeContext(t.Context()); err != nil {
				return err
			}
			return echoed(c, bufio.NewReader(c), "secret")
		})
	}
	outer := l.meshTLS(t, "vault", at)
	if err := outer.HandshakeContext(t.Context()); err != nil {
		t.Fatalf("mTLS: %v", err)
	}
	inner := tls.Client(outer, ca.Client(spiffe("client")))
	if err := inner.HandshakeContext(t.Context()); err != nil {
		t.Fatalf("the app's TLS inside the mesh's: %v", err)
	}
	if err := echoed(inner, bufio.NewReader(inner), "secret"); err != nil {
		t.Error(err)
	}
}

// Where the app speaks first the public port goes on taking mTLS alone.
func TestServerFirst(t *testing.T) {
	own := meshtest.FreePorts(t, 1)[0]
	l, at := startCallee(t, "payments", "tcp", bannerApp(t), fmt.Sprintf("server_first = true, plaintext_port = %d", own))
	l.mode("payments", "tcp", config.MutualTLSPermissive)
	if got, took := soonest(t, fmt.Sprintf("127.0.0.1:%d", own)); got != ready || took > inspection {
		t.Errorf("%q after %v, want no wait", got, took)
	}
	if got, _ := greeting(slowTLS(t, l, at)); got != ready {
		t.Errorf("a handshake that begins late: %q", got)
	}
	refusesPlaintext(t, at)
	l.untouched()
}

// A mode is a matter of filter chains alone: Envoy then leaves the others, and what is
// connected through them, as they are.
func TestModeChangesFilterChainsAlone(t *testing.T) {
	for name, tc := range map[string]struct{ protocol, more, gone, added string }{
		"http":         {"http", "", "", "plaintext"},
		"grpc":         {"grpc", "", "", "plaintext"},
		"tcp":          {"tcp", "", "mtls, any other", "plaintext"},
		"tcp, apart":   {"tcp", "server_first = true, plaintext_port = 21500", "", ""},
		"tcp, as well": {"tcp", "plaintext_port = 21500", "mtls, any other", "plaintext"},
	} {
		public := func(mode string) *listenerv3.Listener {
			s := meshtest.Parse(t, txtar.Parse(fmt.Appendf(nil, "-- services/a.hcl --\nservice {\n name = \"a\"\n port = 1\n connect { sidecar_service { proxy { config { %s } } } }\n}\n-- config/a.hcl --\nKind = \"service-defaults\"\nName = \"a\"\nProtocol = %q\nMutualTLSMode = %q\n", tc.more, tc.protocol, mode)).Files)
			return resources(t, build(t, s)).Listeners[0]
		}
		before, after := public("strict"), public("permissive")
		gone, added := map[string]bool{}, map[string]bool{}
		for _, c := range before.FilterChains {
			gone[c.Name] = true
		}
		for _, c := range after.FilterChains {
			i := slices.IndexFunc(before.FilterChains, func(b *listenerv3.FilterChain) bool { return proto.Equal(b, c) })
			if i >= 0 {
				delete(gone, c.Name)
			} else {
				added[c.Name] = true
			}
		}
		if text := strings.Join(slices.Sorted(maps.Keys(gone)), "; "); text != tc.gone {
			t.Errorf("%s: %q goes, want %q", name, text, tc.gone)
		}
		if text := strings.Join(slices.Sorted(maps.Keys(added)), "; "); text != tc.added {
			t.Errorf("%s: %q comes, want %q", name, text, tc.added)
		}
		before.FilterChains, after.FilterChains = nil, nil
		if !proto.Equal(before, after) {
			t.Errorf("%s: the listener itself changes:\n%v\n%v", name, before, after)
		}
	}
}

func TestPlaintextGRPC(t *testing.T) {
	l, at := startCallee(t, "assignments", "grpc", healthApp(t), "")
	l.mode("assignments", "grpc", config.MutualTLSPermissive)
	conn, err := grpc.NewClient("passthrough:///"+at, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Error(err)
	}
	if err := checkHealth(t.Context(), t, at); err != nil {
		t.Error(err)
	}
}
