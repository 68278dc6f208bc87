// Package servertest runs control-plane servers inside tests.
//
// In: a test and options. Out: a server that serves on loopback ports of its own
// until the test ends, with verbs for the HTTP API and for ADS streams. To a server
// with a data directory, which has TLS and tokens, the test is an operator, or
// whoever a [Caller] says.
//
// Test only: nothing outside of tests imports it.
package servertest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/crossfade-mesh/crossfade/internal/ca"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/identity"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// Server is a running server.
type Server struct {
	*server.Server
	t        testing.TB
	stop     func()
	operator string // token; empty in development mode
	client   *http.Client
}

// Caller is what somebody shows of itself to a server with TLS. The zero value shows nothing.
type Caller struct {
	Token string
	Leaf  *tls.Certificate
}

// Start runs a server: in memory unless o.DataDir is set, on free ports unless o says which.
func Start(t testing.TB, o server.Options) *Server {
	t.Helper()
	if o.DataDir == "" {
		o.Dev = true
	}
	if o.NodeName == "" {
		o.NodeName = "test"
	}
	if o.Version == "" {
		o.Version = "test"
	}
	srv, err := server.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	s := &Server{Server: srv, t: t}
	stopped := false
	s.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("server: %v", err)
		}
	}
	t.Cleanup(s.stop)
	s.client = http.DefaultClient
	if !o.Dev {
		text, err := os.ReadFile(filepath.Join(o.DataDir, "operator.token"))
		if err != nil {
			t.Fatal(err)
		}
		s.operator = strings.TrimSpace(string(text))
		s.client = s.HTTPClient(Caller{Token: s.operator})
	}
	return s
}

// tls is a client's configuration.
func (s *Server) tls(c Caller) *tls.Config {
	s.t.Helper()
	trust, err := ca.NewTrust(nil, s.Fingerprint())
	if err != nil {
		s.t.Fatal(err)
	}
	return trust.TLS(func() *tls.Certificate { return c.Leaf })
}

// HTTPClient asks as the caller.
func (s *Server) HTTPClient(c Caller) *http.Client {
	s.t.Helper()
	tr := &http.Transport{TLSClientConfig: s.tls(c)}
	s.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: bearing{tr, c.Token}}
}

// bearing adds a token to requests.
type bearing struct {
	*http.Transport
	token string
}

// RoundTrip implements [http.RoundTripper].
func (b bearing) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.token != "" {
		r = r.Clone(r.Context())
		r.Header.Set("X-Consul-Token", b.token)
	}
	return b.Transport.RoundTrip(r)
}

// OperatorClient asks as the test itself.
func (s *Server) OperatorClient() *http.Client { return s.client }

// ConnAs is a gRPC connection of the caller.
func (s *Server) ConnAs(c Caller) *grpc.ClientConn {
	s.t.Helper()
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(s.tls(c))),
		grpc.WithUnaryInterceptor(func(ctx context.Context, m string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, o ...grpc.CallOption) error {
			return next(c.carry(ctx), m, req, reply, cc, o...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, m string, next grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
			return next(c.carry(ctx), d, cc, m, o...)
		}),
	}
	conn, err := grpc.NewClient("passthrough:///"+s.GRPCAddr(), opts...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return conn
}

func (c Caller) carry(ctx context.Context) context.Context {
	if c.Token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "x-consul-token", c.Token)
}

// Token makes a token, by the JSON of the request for it.
func (s *Server) Token(request string) (accessor, secret string) {
	s.t.Helper()
	_, b := s.Call(http.MethodPut, "/v1/crossfade/tokens", []byte(request))
	var made struct{ Accessor, Secret string }
	if err := json.Unmarshal(b, &made); err != nil {
		s.t.Fatal(err)
	}
	return made.Accessor, made.Secret
}

// Leaf joins the mesh as an instance of the service.
func (s *Server) Leaf(service, token string) *tls.Certificate {
	s.t.Helper()
	key, csr, err := ca.NewKeyAndCSR(identity.SPIFFE{TrustDomain: s.TrustDomain(), Datacenter: "dc1", Service: service})
	if err != nil {
		s.t.Fatal(err)
	}
	chain, err := ca.NewClient(s.ConnAs(Caller{Token: token})).Sign(s.t.Context(), csr)
	if err != nil {
		s.t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		s.t.Fatal(err)
	}
	return &pair
}

// Stop ends the server before the test does.
func (s *Server) Stop() { s.stop() }

// Call makes a request and returns the answer's header and body; a status other than 200 fails the test.
func (s *Server) Call(method, path string, body []byte) (http.Header, []byte) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.URL()+path, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		s.t.Fatalf("%s %s: status %d: %s", method, path, resp.StatusCode, b)
	}
	return resp.Header, b
}

// Register registers the services of a definition file's text, with the protocols they ask for.
func (s *Server) Register(file, text string) {
	s.t.Helper()
	defs, err := config.DecodeDefinitions(file, []byte(text))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, d := range defs {
		if d.Protocol != "" {
			s.Write(&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: d.Service.Name, Protocol: d.Protocol})
		}
		body, err := d.MarshalRegistration()
		if err != nil {
			s.t.Fatal(err)
		}
		s.Call(http.MethodPut, "/v1/agent/service/register", body)
		if len(d.Checks) > 0 {
			continue
		}
		// Nothing listens behind a test's registration, so its default checks would never pass.
		side := d.SidecarService()
		if side != nil {
			s.SetChecks(side.ID, "pass")
		}
	}
}

// SetChecks deregisters all checks of a service ("pass"), or adds one that is critical ("fail").
func (s *Server) SetChecks(serviceID, state string) {
	s.t.Helper()
	_, b := s.Call(http.MethodGet, "/v1/agent/checks", nil)
	var checks map[string]struct{ CheckID, ServiceID string }
	if err := json.Unmarshal(b, &checks); err != nil {
		s.t.Fatal(err)
	}
	for _, c := range checks {
		if c.ServiceID == serviceID {
			s.Call(http.MethodPut, "/v1/agent/check/deregister/"+c.CheckID, nil)
		}
	}
	if state == "fail" {
		s.Call(http.MethodPut, "/v1/agent/check/register", []byte(`{"ID": "down-`+serviceID+`", "Name": "down", "ServiceID": "`+serviceID+`", "TTL": "1h"}`))
	}
}

// Write writes a configuration entry.
func (s *Server) Write(e config.Entry) {
	s.t.Helper()
	body, err := config.EncodeEntry(e)
	if err != nil {
		s.t.Fatal(err)
	}
	s.Call(http.MethodPut, "/v1/config", body)
}

// Conn is a gRPC connection to the server, of the test itself.
func (s *Server) Conn() *grpc.ClientConn {
	s.t.Helper()
	if s.operator != "" {
		return s.ConnAs(Caller{Token: s.operator})
	}
	conn, err := grpc.NewClient("passthrough:///"+s.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return conn
}

// Stream opens an ADS stream as the sidecar with that proxy ID; relayed says that it has keys of its own.
func (s *Server) Stream(id string, relayed bool) *xds.Client {
	s.t.Helper()
	return s.stream(s.Conn(), id, relayed)
}

// StreamAs opens an ADS stream of the caller's as the sidecar with that proxy ID.
func (s *Server) StreamAs(c Caller, id string) *xds.Client {
	s.t.Helper()
	return s.stream(s.ConnAs(c), id, true)
}

func (s *Server) stream(conn *grpc.ClientConn, id string, relayed bool) *xds.Client {
	s.t.Helper()
	meta, err := structpb.NewStruct(map[string]any{"crossfade_relay": relayed})
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := xds.Connect(s.t.Context(), conn, &corev3.Node{Id: id, Metadata: meta})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}
