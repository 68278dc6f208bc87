package server_test

import (
	"crypto/x509"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/hashicorp/consul/proto-public/pbconnectca"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/crossfade-mesh/crossfade/internal/ca"
	"github.com/crossfade-mesh/crossfade/internal/catalog/consulstore/consultest"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
)

// withForeignCA are options for a server whose mesh has another's CA, which stands for a Consul's.
func withForeignCA(t *testing.T) (server.Options, *ca.BuiltIn) {
	t.Helper()
	authority, err := ca.Open(ca.Options{Datacenter: "dc1", Authorize: ca.Anyone})
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	authority.Register(g)
	go g.Serve(lis)
	t.Cleanup(g.Stop)
	return server.Options{Consul: consultest.NewFake(t).URL, ConsulCA: &server.ConsulCA{GRPCAddr: lis.Addr().String()}, DefaultAllow: true}, authority
}

// In development mode there is no CA but Consul's.
func TestConsulsCAInDevelopmentMode(t *testing.T) {
	o, authority := withForeignCA(t)
	s := servertest.Start(t, o)
	if s.TrustDomain() != authority.TrustDomain() || s.Fingerprint() != "" {
		t.Errorf("trust domain %s, want %s; fingerprint %q", s.TrustDomain(), authority.TrustDomain(), s.Fingerprint())
	}
	if _, b := s.Call(http.MethodGet, "/v1/connect/ca/roots", nil); !strings.Contains(string(b), authority.Roots().ActiveRootID) {
		t.Errorf("roots are %s", b)
	}
}

// The ports' own certificate is of the server's CA, leaves are of Consul's, and each is
// known by the token that it came through, until that is revoked.
func TestConsulsCA(t *testing.T) {
	o, authority := withForeignCA(t)
	o.DataDir = t.TempDir()
	s := servertest.Start(t, o)
	if s.Fingerprint() == "" || s.Fingerprint() == authority.Fingerprint() {
		t.Errorf("the ports show certificates of the CA %q", s.Fingerprint())
	}
	accessor, token := s.Token(`{"role":"join","services":["web"]}`)
	leaf := s.Leaf("web", token)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority.RootPEM())
	if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: pool}); err != nil {
		t.Errorf("the leaf is not of Consul's CA: %v", err)
	}
	sign := func(c servertest.Caller) error {
		_, csr, err := ca.NewKeyAndCSR(authority.Identity("web"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = pbconnectca.NewConnectCAServiceClient(s.ConnAs(c)).Sign(t.Context(), &pbconnectca.SignRequest{Csr: string(csr)})
		return err
	}
	if err := sign(servertest.Caller{Leaf: leaf}); err != nil {
		t.Errorf("renewal with the leaf: %v", err)
	}
	s.Call(http.MethodDelete, "/v1/crossfade/tokens/"+accessor, nil)
	if err := sign(servertest.Caller{Leaf: leaf}); grpcstatus.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "was revoked at") {
		t.Errorf("after the revocation: %v", err)
	}
}

func TestConsulsCANeedsConsul(t *testing.T) {
	o, _ := withForeignCA(t)
	o.Dev, o.Consul = true, ""
	if _, err := server.New(o); err == nil || !strings.Contains(err.Error(), "--consul") {
		t.Errorf("without a Consul: %v", err)
	}
}
