package ca

import (
	"context"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/proto-public/pbconnectca"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/crossfade-mesh/crossfade/internal/identity"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// foreign stands for Consul: a ConnectCAService whose answers can be changed.
type foreign struct {
	pbconnectca.UnimplementedConnectCAServiceServer
	ca     atomic.Pointer[BuiltIn]
	fail   atomic.Pointer[error] // of Sign
	news   chan struct{}         // the roots are others
	signed atomic.Int32
	// told counts how often roots were sent, watchers who has a stream now.
	told, watchers atomic.Int32
}

func (f *foreign) Sign(ctx context.Context, in *pbconnectca.SignRequest) (*pbconnectca.SignResponse, error) {
	f.signed.Add(1)
	if err := f.fail.Load(); err != nil {
		return nil, *err
	}
	return (&service{ca: f.ca.Load().CA}).Sign(ctx, in)
}

func (f *foreign) WatchRoots(_ *pbconnectca.WatchRootsRequest, stream pbconnectca.ConnectCAService_WatchRootsServer) error {
	f.watchers.Add(1)
	defer f.watchers.Add(-1)
	for {
		if err := stream.Send(toProto(f.ca.Load().Roots())); err != nil {
			return err
		}
		f.told.Add(1)
		select {
		case <-f.news:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// followed waits until the one stream there is is that which follows, not that which asked first.
func (f *foreign) followed(t *testing.T) {
	t.Helper()
	meshtest.Eventually(t, "the roots are followed, and no longer asked for", func() error {
		if told, watchers := f.told.Load(), f.watchers.Load(); told < 2 || watchers != 1 {
			return fmt.Errorf("told %d times, %d watchers", told, watchers)
		}
		return nil
	})
}

func dial(t *testing.T, addr string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// consul starts the stand-in and gives its address, and what ends it.
func consul(t *testing.T) (f *foreign, addr string, stop func()) {
	t.Helper()
	f = &foreign{news: make(chan struct{})}
	f.ca.Store(open(t, Options{Authorize: Anyone}))
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	pbconnectca.RegisterConnectCAServiceServer(s, f)
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(lis) }()
	stop = func() { s.Stop(); <-done }
	t.Cleanup(stop)
	return f, lis.Addr().String(), stop
}

func openConsul(t *testing.T, addr string, o Options) *Consul {
	t.Helper()
	o.Datacenter = "dc1"
	c, err := OpenConsul(t.Context(), o, dial(t, addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return c
}

// TestConsulSigns: leaves are Consul's, and which token they came through is remembered beside them.
func TestConsulSigns(t *testing.T) {
	f, addr, _ := consul(t)
	tokens := map[string]string{}
	c := openConsul(t, addr, Options{
		Authorize: func(context.Context, identity.SPIFFE) (string, error) { return "accessor", nil },
		Issued:    func(leaf *x509.Certificate, through string) error { tokens[string(leaf.Raw)] = through; return nil },
		Through:   func(leaf *x509.Certificate) string { return tokens[string(leaf.Raw)] },
	})
	if c.TrustDomain() != f.ca.Load().TrustDomain() || string(c.Roots().PEM()) != string(f.ca.Load().Roots().PEM()) {
		t.Errorf("trust domain %s and its roots are not Consul's", c.TrustDomain())
	}
	key, csr, err := NewKeyAndCSR(c.Identity("web"))
	if err != nil {
		t.Fatal(err)
	}
	chain, err := serve(t, c.Register).Sign(t.Context(), csr)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := c.Verify(shown(t, &pair).PeerCertificates, time.Now()); err != nil || p.ID != c.Identity("web") || p.Through != "accessor" {
		t.Errorf("Verify = %+v, %v", p, err)
	}
	// A name in the leaf itself counts for nothing: others may have put it there.
	named := leafFor(t, f.ca.Load(), "web", "accessor", time.Now())
	if p, err := c.Verify(shown(t, named).PeerCertificates, time.Now()); err != nil || p.Through != "" {
		t.Errorf("Verify = %+v, %v, want no token", p, err)
	}
}

// TestConsulIsAskedForSoundRequestsAlone: what breaks our rules never reaches Consul.
func TestConsulIsAskedForSoundRequestsAlone(t *testing.T) {
	f, addr, _ := consul(t)
	c := openConsul(t, addr, Options{Authorize: func(_ context.Context, id identity.SPIFFE) (string, error) {
		if id.Service != "web" {
			return "", errors.New("not its own service")
		}
		return "", nil
	}})
	client := serve(t, c.Register)
	ask := func(csr string) codes.Code {
		_, err := client.rpc.Sign(t.Context(), &pbconnectca.SignRequest{Csr: csr})
		return status.Code(err)
	}
	web := mustURL(t, c.Identity("web").URI())
	elsewhere := mustURL(t, strings.Replace(web.String(), "/dc/dc1/", "/dc/dc2/", 1))
	p256 := ecKey(t, elliptic.P256())
	for name, csr := range map[string][]byte{
		"no URI":             encodeCSR(t, x509.CertificateRequest{}, p256),
		"two URIs":           encodeCSR(t, x509.CertificateRequest{URIs: []*url.URL{web, web}}, p256),
		"a DNS name too":     encodeCSR(t, x509.CertificateRequest{URIs: []*url.URL{web}, DNSNames: []string{"web"}}, p256),
		"another datacenter": encodeCSR(t, x509.CertificateRequest{URIs: []*url.URL{elsewhere}}, p256),
		"a weak key":         encodeCSR(t, x509.CertificateRequest{URIs: []*url.URL{web}}, ecKey(t, elliptic.P224())),
		"no request":         []byte("hello"),
	} {
		if got := ask(string(csr)); got != codes.InvalidArgument {
			t.Errorf("%s: %s, want InvalidArgument", name, got)
		}
	}
	_, other, err := NewKeyAndCSR(c.Identity("db"))
	if err != nil {
		t.Fatal(err)
	}
	if got := ask(string(other)); got != codes.PermissionDenied {
		t.Errorf("another service's: %s, want PermissionDenied", got)
	}
	if n := f.signed.Load(); n != 0 {
		t.Errorf("Consul was asked %d times", n)
	}
	_, own, err := NewKeyAndCSR(c.Identity("web"))
	if err != nil {
		t.Fatal(err)
	}
	if got := ask(string(own)); got != codes.OK || f.signed.Load() != 1 {
		t.Errorf("its own: %s, Consul was asked %d times", got, f.signed.Load())
	}
}

// TestConsulRefusals: whatever Consul says, a sidecar is not told that it is the one who is refused.
func TestConsulRefusals(t *testing.T) {
	f, addr, _ := consul(t)
	var log meshtest.Log
	c := openConsul(t, addr, Options{Authorize: Anyone, Log: slog.New(slog.NewTextHandler(&log, nil))})
	client := serve(t, c.Register)
	_, csr, err := NewKeyAndCSR(c.Identity("web"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		says, want codes.Code
		text       string
	}{
		{codes.PermissionDenied, codes.FailedPrecondition, "service:write"},
		{codes.Unauthenticated, codes.FailedPrecondition, "service:write"},
		{codes.Unimplemented, codes.FailedPrecondition, "CONSUL_GRPC_ADDR"},
		{codes.InvalidArgument, codes.FailedPrecondition, ""},
		{codes.ResourceExhausted, codes.ResourceExhausted, ""},
		{codes.Internal, codes.Unavailable, ""},
		{codes.Unavailable, codes.Unavailable, ""},
	} {
		says := status.Error(tc.says, "no")
		f.fail.Store(&says)
		if n := len(c.Outages()); tc.says != codes.PermissionDenied && n != 1 {
			t.Errorf("%d outages, want one", n)
		}
		if _, err := client.Sign(t.Context(), csr); status.Code(err) != tc.want || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v, want %s with %q", tc.says, err, tc.want, tc.text)
		}
	}
	f.fail.Store(nil)
	if _, err := client.Sign(t.Context(), csr); err != nil {
		t.Error(err)
	}
	if list := c.Outages(); len(list) > 0 {
		t.Errorf("outages that are over: %+v", list)
	}
	if text := log.String(); strings.Count(text, "does not sign") != 1 || strings.Count(text, "signs again") != 1 {
		t.Errorf("an outage is to be told once, and its end:\n%s", text)
	}
}

// TestConsulRotatesItsRoots: new roots reach watchers; a leaf under a root that is not told yet is kept back.
func TestConsulRotatesItsRoots(t *testing.T) {
	f, addr, _ := consul(t)
	dir := t.TempDir()
	c := openConsul(t, addr, Options{Authorize: Anyone, Dir: dir})
	_, csr, err := NewKeyAndCSR(c.Identity("web"))
	if err != nil {
		t.Fatal(err)
	}
	f.followed(t)
	_, changed := c.Watch()
	old := f.ca.Load()
	f.ca.Store(successor(t, old))
	if _, err := c.Sign(t.Context(), csr, time.Now()); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "has not told yet") {
		t.Errorf("Sign under an unknown root: %v", err)
	}
	f.news <- struct{}{}
	<-changed
	if c.Roots().ActiveRootID == old.Roots().ActiveRootID {
		t.Error("the active root is still the old one")
	}
	if _, err := c.Sign(t.Context(), csr, time.Now()); err != nil {
		t.Error(err)
	}
	again, err := OpenConsul(t.Context(), Options{Datacenter: "dc1", Dir: dir}, dial(t, addr))
	if err != nil || again.Roots().ActiveRootID != c.Roots().ActiveRootID {
		t.Errorf("the new roots are not on disk: %v", err)
	}
}

// successor has another root of the same trust domain.
func successor(t *testing.T, of *BuiltIn) *BuiltIn {
	t.Helper()
	root, key, err := newRootOf(of.TrustDomain(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	b := &BuiltIn{root: root, key: key}
	b.CA = newCA(of.opts, b, Roots{ActiveRootID: fingerprint(root), TrustDomain: of.TrustDomain(), Roots: []Root{describe(root, true)}})
	return b
}

// TestConsulOfAnotherTrustDomain: a Consul that was built anew does not take the mesh along.
func TestConsulOfAnotherTrustDomain(t *testing.T) {
	f, addr, _ := consul(t)
	var log meshtest.Log
	c := openConsul(t, addr, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	before := c.Roots()
	f.followed(t)
	f.ca.Store(open(t, Options{Authorize: Anyone}))
	f.news <- struct{}{}
	meshtest.Eventually(t, "the log says so", func() error {
		if !strings.Contains(log.String(), "of another trust domain") {
			return errors.New(log.String())
		}
		return nil
	})
	if got := c.Roots(); got.TrustDomain != before.TrustDomain || got.ActiveRootID != before.ActiveRootID {
		t.Errorf("roots of %s were taken in place of %s", got.TrustDomain, before.TrustDomain)
	}
}

// TestOpenConsulWithoutConsul: roots on disk will do; without them it is said what is missing.
func TestOpenConsulWithoutConsul(t *testing.T) {
	_, addr, stop := consul(t)
	dir := t.TempDir()
	first := openConsul(t, addr, Options{Dir: dir})
	stop()
	if c, err := OpenConsul(t.Context(), Options{Datacenter: "dc1", Dir: dir}, dial(t, addr)); err != nil || c.TrustDomain() != first.TrustDomain() {
		t.Errorf("from disk: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := OpenConsul(ctx, Options{Datacenter: "dc1"}, dial(t, addr)); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("without either: %v", err)
	}
	path := filepath.Join(dir, consulRootsFile)
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenConsul(t.Context(), Options{Datacenter: "dc1", Dir: dir}, dial(t, addr)); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("from a broken file: %v", err)
	}

	// A Consul agent that is no server has no such service.
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	go s.Serve(lis)
	t.Cleanup(s.Stop)
	if _, err := OpenConsul(t.Context(), Options{Datacenter: "dc1"}, dial(t, lis.Addr().String())); status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "only Consul's servers") {
		t.Errorf("of a client agent: %v", err)
	}
}
