// Package servertest runs control-plane servers inside tests.
//
// In: a test and options. Out: a server that serves on loopback ports of its own
// until the test ends, with verbs for the HTTP API and for ADS streams.
//
// Test only: nothing outside of tests imports it.
package servertest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// Server is a running server.
type Server struct {
	*server.Server
	t    testing.TB
	stop func()
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
	return s
}

// Stop ends the server before the test does.
func (s *Server) Stop() { s.stop() }

// Call makes a request and returns the answer's header and body; a status other than 200 fails the test.
func (s *Server) Call(method, path string, body []byte) (http.Header, []byte) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, "http://"+s.HTTPAddr()+path, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
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

// Conn is a gRPC connection to the server.
func (s *Server) Conn() *grpc.ClientConn {
	s.t.Helper()
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
	meta, err := structpb.NewStruct(map[string]any{"crossfade_relay": relayed})
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := xds.Connect(s.t.Context(), s.Conn(), &corev3.Node{Id: id, Metadata: meta})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}
