package ca

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/proto-public/pbconnectca"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/crossfade-mesh/crossfade/internal/identity"
)

func serve(t *testing.T, register func(*grpc.Server)) *Client {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	register(s)
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(lis) }()
	conn, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); s.Stop(); <-done })
	return NewClient(conn)
}

func TestSignOverGRPC(t *testing.T) {
	deny := errors.New("not on this node")
	c := open(t, Options{Authorize: func(_ context.Context, id identity.SPIFFE) (string, error) {
		switch id.Service {
		case "denied":
			return "", deny
		case "unknown":
			return "", status.Error(codes.Unauthenticated, "who are you")
		}
		return "", nil
	}})
	client := serve(t, c.Register)
	keyPEM, csr, err := NewKeyAndCSR(c.Identity("web"))
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := client.Sign(t.Context(), csr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair(leaf, keyPEM); err != nil {
		t.Error(err)
	}
	foreign := c.Identity("web")
	foreign.Datacenter = "dc2"
	for id, want := range map[identity.SPIFFE]codes.Code{
		c.Identity("denied"):  codes.PermissionDenied,
		c.Identity("unknown"): codes.Unauthenticated,
		foreign:               codes.InvalidArgument,
	} {
		_, csr, err := NewKeyAndCSR(id)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Sign(t.Context(), csr); status.Code(err) != want {
			t.Errorf("%s: %v, want %s", id, err, want)
		}
	}
}

func TestSignNeedsAuthorize(t *testing.T) {
	closed, openToAll := open(t, Options{}), open(t, Options{Authorize: Anyone})
	for c, want := range map[*BuiltIn]codes.Code{closed: codes.PermissionDenied, openToAll: codes.OK} {
		_, csr, err := NewKeyAndCSR(c.Identity("web"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := serve(t, c.Register).Sign(t.Context(), csr); status.Code(err) != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestSignAfterTheRootExpired(t *testing.T) {
	now := time.Now()
	c := open(t, Options{Authorize: Anyone, Now: func() time.Time { return now }})
	_, csr, err := NewKeyAndCSR(c.Identity("web"))
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(2 * rootTTL)
	if _, err := serve(t, c.Register).Sign(t.Context(), csr); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("%v, want FailedPrecondition", err)
	}
}

func TestWatchRoots(t *testing.T) {
	c := open(t, Options{})
	client := serve(t, c.Register)
	got := make(chan Roots, 1)
	ended := make(chan error, 1)
	go func() { ended <- client.WatchRoots(t.Context(), func(r Roots) { got <- r }) }()

	first := <-got
	if first.ActiveRootID != c.Roots().ActiveRootID || first.TrustDomain != c.TrustDomain() || len(first.Roots) != 1 || first.Roots[0].RootCert != c.Roots().Roots[0].RootCert {
		t.Errorf("first roots %+v", first)
	}
	next := open(t, Options{}).Roots().Roots[0]
	both := c.Roots()
	both.Roots = append(both.Roots, next)
	c.publish(both)
	if second := <-got; len(second.Roots) != 2 || string(second.PEM()) != string(both.PEM()) {
		t.Errorf("roots after a change %+v", second)
	}
	c.Close()
	if err := <-ended; status.Code(err) != codes.Unavailable {
		t.Errorf("after Close: %v, want Unavailable", err)
	}
}

// fixed answers always the same.
type fixed struct {
	pbconnectca.UnimplementedConnectCAServiceServer
	leaf  string
	roots *pbconnectca.WatchRootsResponse
}

func (f fixed) Sign(context.Context, *pbconnectca.SignRequest) (*pbconnectca.SignResponse, error) {
	return &pbconnectca.SignResponse{CertPem: f.leaf}, nil
}

func (f fixed) WatchRoots(_ *pbconnectca.WatchRootsRequest, stream pbconnectca.ConnectCAService_WatchRootsServer) error {
	return stream.Send(f.roots)
}

func TestClientRefusesWrongAnswers(t *testing.T) {
	c := open(t, Options{})
	_, csr, err := NewKeyAndCSR(c.Identity("web"))
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := NewKeyAndCSR(c.Identity("web"))
	if err != nil {
		t.Fatal(err)
	}
	otherLeaf, err := c.Sign(t.Context(), other, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	noRoots := &pbconnectca.WatchRootsResponse{TrustDomain: c.TrustDomain()}
	leafAsRoot := &pbconnectca.WatchRootsResponse{TrustDomain: c.TrustDomain(), Roots: []*pbconnectca.CARoot{{Id: "x", RootCert: string(otherLeaf)}}}
	for _, tc := range []struct {
		answer    fixed
		sign      string
		wantRoots string
	}{
		{fixed{leaf: string(otherLeaf), roots: noRoots}, "another key", "no roots"},
		{fixed{leaf: "", roots: leafAsRoot}, "not a certificate", "not a CA"},
		{fixed{leaf: "<html>", roots: &pbconnectca.WatchRootsResponse{}}, "not a certificate", "no trust domain"},
	} {
		client := serve(t, func(s *grpc.Server) { pbconnectca.RegisterConnectCAServiceServer(s, tc.answer) })
		if _, err := client.Sign(t.Context(), csr); err == nil || !strings.Contains(err.Error(), tc.sign) {
			t.Errorf("Sign: %v, want %q", err, tc.sign)
		}
		err := client.WatchRoots(t.Context(), func(r Roots) { t.Errorf("update with %+v", r) })
		if err == nil || !strings.Contains(err.Error(), tc.wantRoots) {
			t.Errorf("WatchRoots: %v, want %q", err, tc.wantRoots)
		}
	}
}
