// Package protocols sends through two sidecars what real clients send, and what
// hostile ones do: app, Envoy, mTLS, Envoy, app, with the configuration that the
// product generates. What arrived is counted at both ends.
//
// Test only. Making the configuration is left to packages proxy and envoy.
package protocols

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"golang.org/x/tools/txtar"

	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/identity"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

const (
	caller = "storefront" // calls every service of a mesh
	denied = "reports"    // is let in by none
)

// patience bounds every exchange that is not about time.
const patience = 20 * time.Second

// service is an app behind a sidecar.
type service struct {
	name, protocol string
	port           int
	entry          string // more fields of its service-defaults
	memory         int64  // of its sidecar, in bytes; 0: no limit
	connections    int    // that its sidecar takes; 0: as many as it sets for itself
}

// mesh is one caller's sidecar and one per service, all real Envoys.
type mesh struct {
	t      *testing.T
	ca     *meshtest.Authority
	envoys map[string]*meshtest.Envoy
	// out is where the caller's app reaches a service, side its public listener.
	out, side map[string]string
}

func start(t *testing.T, services ...service) *mesh {
	t.Helper()
	m := &mesh{t: t, ca: meshtest.NewAuthority(t), envoys: map[string]*meshtest.Envoy{}, out: map[string]string{}, side: map[string]string{}}
	ports := meshtest.FreePorts(t, 2*len(services)+1)
	var text, upstreams bytes.Buffer
	for i, s := range services {
		out, side := ports[2*i], ports[2*i+1]
		m.out[s.name], m.side[s.name] = fmt.Sprintf("127.0.0.1:%d", out), fmt.Sprintf("127.0.0.1:%d", side)
		fmt.Fprintf(&text, "-- services/%[1]s.hcl --\nservice {\n name = %[1]q\n port = %[2]d\n connect { sidecar_service { port = %[3]d } }\n}\n", s.name, s.port, side)
		fmt.Fprintf(&text, "-- config/%[1]s.hcl --\nKind = \"service-defaults\"\nName = %[1]q\nProtocol = %[2]q\n%[3]s\n", s.name, s.protocol, s.entry)
		fmt.Fprintf(&text, "-- config/%[1]s-intentions.hcl --\nKind = \"service-intentions\"\nName = %[1]q\nSources = [{ Name = %[2]q, Action = \"deny\" }]\n", s.name, denied)
		fmt.Fprintf(&upstreams, "{ destination_name = %q, local_bind_port = %d },\n", s.name, out)
	}
	fmt.Fprintf(&text, "-- services/%[1]s.hcl --\nservice {\n name = %[1]q\n port = 1\n connect { sidecar_service {\n port = %[2]d\n proxy { upstreams = [\n%[3]s] }\n} }\n}\n",
		caller, ports[2*len(services)], upstreams.String())
	scenario := meshtest.Parse(t, txtar.Parse(text.Bytes()).Files)
	for _, s := range services {
		m.sidecar(scenario, s)
	}
	m.sidecar(scenario, service{name: caller})
	for _, e := range m.envoys {
		e.WaitReady()
	}
	return m
}

// sidecar starts a service's Envoy, sized as a sidecar sizes it.
func (m *mesh) sidecar(s meshtest.Scenario, of service) {
	m.t.Helper()
	in, ok := s.Snapshot.Proxy(of.name+"-sidecar-proxy", "")
	if !ok {
		m.t.Fatalf("service %q has no sidecar", of.name)
	}
	p, problems := proxy.Build(proxy.Input{Instance: in, Config: s.Config, Datacenter: meshtest.Datacenter, TrustDomain: meshtest.TrustDomain, DefaultAllow: s.DefaultAllow})
	for _, problem := range problems {
		m.t.Fatal(problem)
	}
	r, err := envoy.Build(p)
	if err != nil {
		m.t.Fatal(err)
	}
	var endpoints []*endpointv3.ClusterLoadAssignment
	for _, ref := range p.Endpoints() {
		endpoints = append(endpoints, envoy.Endpoints(proxy.BuildEndpoints(s.Snapshot, ref, nil, nil)))
	}
	cert, key := m.ca.Leaf(p.Identity)
	o := envoy.BootstrapOptions{
		NodeID: p.ID, Service: p.Identity.Service, Datacenter: meshtest.Datacenter,
		AdminSocket: filepath.Join(meshtest.RunDir(m.t), "admin.sock"), MaxDownstreamConnections: int64(cmp.Or(of.connections, connections(m.t))),
	}
	if of.memory > 0 {
		o.MaxHeapBytes = envoy.HeapLimit(of.memory)
	}
	b, err := envoy.StaticBootstrap(o, r, endpoints, envoy.LeafSecret(cert, key), envoy.RootsSecret(m.ca.PEM))
	if err != nil {
		m.t.Fatal(err)
	}
	m.envoys[of.name] = meshtest.StartEnvoy(m.t, b)
}

// connections is how many a sidecar's Envoy takes: as a sidecar sets it, less than
// half of the files that it may open, and no more than on a common host.
func connections(t testing.TB) int {
	t.Helper()
	return min(int(files(t))/2-64, 10000)
}

// files is how many a process may open.
func files(t testing.TB) uint64 {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	return limit.Max
}

func spiffe(service string) identity.SPIFFE {
	return identity.SPIFFE{TrustDomain: meshtest.TrustDomain, Datacenter: meshtest.Datacenter, Service: service}
}

// dial opens a connection of the caller's app to a service.
func (m *mesh) dial(t *testing.T, service string) net.Conn {
	t.Helper()
	return dial(t, m.out[service])
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// dialSide opens a connection to a service's public listener as another service,
// past that one's sidecar.
func (m *mesh) dialSide(t *testing.T, as, service, alpn string) *tls.Conn {
	t.Helper()
	config := m.ca.Client(spiffe(as))
	config.NextProtos = []string{alpn}
	c := tls.Client(dial(t, m.side[service]), config)
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// tlsDial opens a TLS connection that is the caller's to close.
func tlsDial(ctx context.Context, addr string, config *tls.Config) (*tls.Conn, error) {
	c, err := (&tls.Dialer{NetDialer: &net.Dialer{Timeout: patience}, Config: config}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return c.(*tls.Conn), nil
}

func split(t *testing.T, addr string) (host string, port int) {
	t.Helper()
	a, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return a.IP.String(), a.Port
}

// unchanged fails when one of the Envoys has crashed or warned of a bug in itself.
func (m *mesh) unchanged(t *testing.T) {
	t.Helper()
	for name, e := range m.envoys {
		if n := e.Stat("server.envoy_bug_failures"); n != 0 {
			t.Errorf("sidecar %q: %d Envoy bugs: %s", name, n, e.Log())
		}
	}
}

var residentSet = regexp.MustCompile(`(?m)^VmRSS:\s+(\d+) kB$`)

// resident is the memory of a process, in bytes.
func resident(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	match := residentSet.FindSubmatch(status)
	if match == nil {
		t.Fatalf("process %d has no resident set", pid)
	}
	kb, err := strconv.Atoi(string(match[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}

// client speaks HTTP/1.1, or HTTP/2 without TLS, to the caller's sidecar.
func client(t *testing.T, version int) *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true, ExpectContinueTimeout: patience}
	if version == 2 {
		tr.Protocols.SetUnencryptedHTTP2(true)
	} else {
		tr.Protocols.SetHTTP1(true)
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// serve runs an HTTP app that speaks HTTP/1.1, or HTTP/2 without TLS, until the test ends.
func serve(t *testing.T, version int, h http.Handler) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	if version == 2 {
		s.Protocols.SetUnencryptedHTTP2(true)
	} else {
		s.Protocols.SetHTTP1(true)
	}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return l.Addr().(*net.TCPAddr).Port
}
