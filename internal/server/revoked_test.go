package server_test

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/crossfade-mesh/crossfade/internal/ca"
	"github.com/crossfade-mesh/crossfade/internal/catalog/consulstore/consultest"
	"github.com/crossfade-mesh/crossfade/internal/identity"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// revokedWithin is how soon a revocation is in force on all servers.
const revokedWithin = 5 * time.Second

// renew gets web a new leaf by what the caller shows.
func renew(t *testing.T, s *servertest.Server, c servertest.Caller) (*tls.Certificate, error) {
	t.Helper()
	key, csr, err := ca.NewKeyAndCSR(identity.SPIFFE{TrustDomain: s.TrustDomain(), Datacenter: "dc1", Service: "web"})
	if err != nil {
		t.Fatal(err)
	}
	chain, err := ca.NewClient(s.ConnAs(c)).Sign(t.Context(), csr)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(chain, key)
	return &pair, err
}

// admitted says why a caller gets no stream, no answer over HTTP, or no new leaf.
func admitted(t *testing.T, s *servertest.Server, c servertest.Caller) (stream, http, leaf error) {
	t.Helper()
	_, stream = first(t, s, c, "web-sidecar-proxy")
	_, leaf = renew(t, s, c)
	return stream, overHTTP(s, c), leaf
}

func overHTTP(s *servertest.Server, c servertest.Caller) error {
	client := s.HTTPClient(c)
	defer client.CloseIdleConnections()
	resp, err := client.Get(s.URL() + "/v1/agent/self")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

// open opens a stream, and returns the error that ends it.
func open(t *testing.T, s *servertest.Server, c servertest.Caller) <-chan error {
	t.Helper()
	st := s.StreamAs(c, "web-sidecar-proxy")
	if err := st.Send(xds.Request{Type: xds.ClusterType}); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := st.Recv(); err != nil {
				ended <- err
				return
			}
		}
	}()
	return ended
}

// TestRevocationReachesAllServers: instances joined, and renewed their leaves, on either of two servers. A
// revocation on one turns them away on both, on one that starts later and after a restart. Those of
// another token stay.
func TestRevocationReachesAllServers(t *testing.T) {
	for name, options := range map[string]func(t *testing.T) server.Options{
		"our own CA": func(t *testing.T) server.Options {
			return server.Options{Consul: consultest.NewFake(t).URL, DefaultAllow: true}
		},
		"Consul's CA": func(t *testing.T) server.Options { o, _ := withForeignCA(t); return o },
	} {
		t.Run(name, func(t *testing.T) { testRevocation(t, options(t)) })
	}
}

func testRevocation(t *testing.T, o server.Options) {
	webCallsCatalog(t, o.Consul)
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	start := func(i int) *servertest.Server {
		t.Helper()
		if i > 0 {
			operator(t, dirs[0], dirs[i])
		}
		one := o
		one.DataDir = dirs[i]
		return servertest.Start(t, one)
	}
	s := []*servertest.Server{start(0), start(1)}
	accessor, join := s[0].Token(`{"role":"join","services":["web"]}`)
	_, other := s[0].Token(`{"role":"join","services":["web"]}`)
	joined := s[0].Leaf("web", join)
	out := map[string]servertest.Caller{"joined": {Leaf: joined}}
	stay := map[string]servertest.Caller{"another token's": {Leaf: s[0].Leaf("web", other)}}
	for i := range s {
		leaf, err := renew(t, s[i], servertest.Caller{Leaf: joined})
		if err != nil {
			t.Fatalf("a leaf of server 0 is renewed on server %d: %v", i, err)
		}
		out[fmt.Sprintf("renewed on server %d", i)] = servertest.Caller{Leaf: leaf}
	}
	ending := map[string]<-chan error{}
	for i := range s {
		for who, c := range out {
			ending[fmt.Sprintf("%s, on server %d", who, i)] = open(t, s[i], c)
		}
	}
	var staying []<-chan error
	for i := range s {
		staying = append(staying, open(t, s[i], stay["another token's"]))
	}

	began := time.Now()
	s[1].Call(http.MethodDelete, "/v1/crossfade/tokens/"+accessor, nil)
	for who, ended := range ending {
		select {
		case err := <-ended:
			if !strings.Contains(err.Error(), "token "+accessor+": revoked at") {
				t.Errorf("the stream of %s is ended by %v", who, err)
			}
		case <-time.After(time.Until(began.Add(revokedWithin))):
			t.Fatalf("the stream of %s outlives the revocation by %s", who, revokedWithin)
		}
	}
	t.Logf("streams on both servers ended after %s", time.Since(began).Round(time.Millisecond))
	look := func(when string) {
		t.Helper()
		for i := range s {
			for who, c := range out {
				stream, overHTTP, leaf := admitted(t, s[i], c)
				if stream == nil || overHTTP == nil || grpcstatus.Code(leaf) != codes.Unauthenticated || !strings.Contains(leaf.Error(), "was revoked at") {
					t.Errorf("%s server %d lets %s in: stream %v, HTTP %v, renewal %v", when, i, who, stream, overHTTP, leaf)
				}
			}
			for who, c := range stay {
				if stream, overHTTP, leaf := admitted(t, s[i], c); stream != nil || overHTTP != nil || leaf != nil {
					t.Errorf("%s server %d turns %s away: stream %v, HTTP %v, renewal %v", when, i, who, stream, overHTTP, leaf)
				}
			}
		}
	}
	look("after the revocation")
	for i, ended := range staying {
		select {
		case err := <-ended:
			t.Errorf("another token's stream on server %d ended, too: %v", i, err)
		default:
		}
	}

	s = append(s, start(2))
	for i := range 2 {
		s[i].Stop()
		s[i] = start(i)
	}
	look("after a restart")
	meshtest.Eventually(t, "the token is listed as revoked", func() error {
		if _, list := s[2].Call(http.MethodGet, "/v1/crossfade/tokens", nil); !strings.Contains(string(list), `"revoked":`) {
			return fmt.Errorf("%s", list)
		}
		return nil
	})
}
