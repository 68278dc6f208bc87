package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/crossfade-mesh/crossfade/internal/ca"
	"github.com/crossfade-mesh/crossfade/internal/catalog/consul"
)

const (
	// consulWithin is how long a start waits for Consul where nothing is known of its CA yet.
	consulWithin = 15 * time.Second
	// serversEvery is how often Consul is asked where its servers are.
	serversEvery = 30 * time.Second
)

// ConsulCA says how to reach the Connect CA of [Options].Consul.
type ConsulCA struct {
	// GRPCAddr is host:port, or https://host:port for TLS, of a Consul server; empty: all
	// that Consul's catalog names.
	GRPCAddr string
	// CAFile holds the certificates that Consul's servers are known by, in PEM, and makes
	// it TLS; empty with TLS: the host's.
	CAFile string
	// ServerName is the name in their certificates; empty: as they are addressed.
	ServerName string
}

// openCA opens the CA of the mesh, and the server's own. They are the same unless the
// mesh's is Consul's: the certificates of this server's ports are of its own always. In
// development mode, which has none, there is nothing but Consul's then.
func (s *Server) openCA(source *consul.Source) error {
	o := s.opts
	options := ca.Options{Datacenter: o.Datacenter, LeafTTL: o.LeafTTL, Authorize: s.door.mayHave, Log: o.Log}
	if o.DataDir != "" {
		options.Dir = filepath.Join(o.DataDir, caDir)
	}
	var err error
	if o.ConsulCA == nil || !o.Dev {
		own := options
		if o.Consul != "" {
			own.Dir, own.Keep = "", s.keepRoot // one for all servers
		}
		if s.builtIn, err = ca.Open(own); err != nil {
			return err
		}
		s.shutdown = append(s.shutdown, func() error { s.builtIn.Close(); return nil })
	}
	if o.ConsulCA == nil {
		s.ca = s.builtIn.CA
		return nil
	}
	if source == nil {
		return errors.New("CA consul: there is no Consul: set --consul")
	}
	if o.LeafTTL != 0 {
		return errors.New("CA consul: how long a certificate is valid is Consul's to say (leaf_cert_ttl of its CA's configuration): leave out --leaf-cert-ttl")
	}
	ctx, cancel := context.WithTimeout(context.Background(), consulWithin)
	defer cancel()
	s.consul = &consulServers{source: source, options: *o.ConsulCA, resolver: manual.NewBuilderWithScheme("consul")}
	conn, err := s.consul.dial(ctx, o.ConsulAccess.Token)
	if err != nil {
		return fmt.Errorf("Consul's CA: %w", err)
	}
	s.shutdown = append(s.shutdown, conn.Close)
	known := &leaves{store: s.store}
	options.LeafTTL, options.Issued, options.Through = 0, known.note, known.through
	theirs, err := ca.OpenConsul(ctx, options, conn)
	if err != nil {
		return err
	}
	s.shutdown = append(s.shutdown, func() error { theirs.Close(); return nil })
	s.ca, s.consul.ca = theirs.CA, theirs
	return nil
}

// runCA follows Consul's CA until ctx ends, where that is the mesh's.
func (s *Server) runCA(ctx context.Context) {
	if s.consul == nil {
		return
	}
	done := make(chan struct{})
	go func() { defer close(done); s.consul.ca.Run(ctx) }()
	defer func() { <-done }()
	tick := time.NewTicker(serversEvery)
	defer tick.Stop()
	for {
		_, changed := s.ca.Watch()
		select {
		case <-ctx.Done():
			return
		case <-changed:
			s.mesh.poke() // bare Envoys get their roots from there
		case <-tick.C:
			s.consul.look(ctx)
		}
	}
}

// consulServers is the way to Consul's servers.
type consulServers struct {
	source   *consul.Source
	options  ConsulCA
	resolver *manual.Resolver
	secure   bool
	ca       *ca.Consul
}

func (c *consulServers) dial(ctx context.Context, token string) (*grpc.ClientConn, error) {
	if err := c.start(ctx); err != nil {
		return nil, err
	}
	transport, err := c.transport()
	if err != nil {
		return nil, err
	}
	return grpc.NewClient("consul:///servers",
		grpc.WithResolvers(c.resolver),
		grpc.WithTransportCredentials(transport),
		grpc.WithPerRPCCredentials(consulToken(token)),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"pick_first":{"shuffleAddressList":true}}]}`),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.3, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		grpc.WithNoProxy(),
	)
}

// start finds out where the servers are. A Consul that cannot be asked is no failure
// yet: what is known of its CA may be on disk.
func (c *consulServers) start(ctx context.Context) error {
	if addr := c.options.GRPCAddr; addr != "" {
		rest, secure := strings.CutPrefix(addr, "https://")
		rest = strings.TrimPrefix(rest, "http://")
		c.secure = secure || c.options.CAFile != ""
		c.resolver.InitialState(state([]string{rest}))
		return nil
	}
	c.secure = c.options.CAFile != ""
	c.resolver.InitialState(resolver.State{})
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	found, err := c.source.Servers(ctx)
	if err != nil {
		return nil
	}
	c.secure = c.secure || len(found.Plaintext) == 0
	addrs := c.pick(found)
	if len(addrs) == 0 {
		return errors.New("its servers have no gRPC port for TLS: set ports { grpc_tls = 8503 } there, or leave out $CONSUL_GRPC_CACERT")
	}
	c.resolver.InitialState(state(addrs))
	return nil
}

func (c *consulServers) pick(s consul.Servers) []string {
	if c.secure {
		return s.TLS
	}
	return s.Plaintext
}

// look asks again where the servers are.
func (c *consulServers) look(ctx context.Context) {
	if c.options.GRPCAddr != "" {
		return
	}
	if found, err := c.source.Servers(ctx); err == nil && len(c.pick(found)) > 0 {
		c.resolver.UpdateState(state(c.pick(found)))
	}
}

func state(addrs []string) (st resolver.State) {
	for _, a := range addrs {
		st.Endpoints = append(st.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: a}}})
	}
	return st
}

func (c *consulServers) transport() (credentials.TransportCredentials, error) {
	if !c.secure {
		return insecure.NewCredentials(), nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.options.ServerName}
	if c.options.CAFile != "" {
		text, err := os.ReadFile(c.options.CAFile)
		if err != nil {
			return nil, fmt.Errorf("certificates of its servers' CA: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("certificates of its servers' CA: %q has none in PEM", c.options.CAFile)
		}
	}
	return credentials.NewTLS(config), nil
}

// consulToken goes along with each call.
type consulToken string

// GetRequestMetadata implements [credentials.PerRPCCredentials].
func (t consulToken) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	if t == "" {
		return nil, nil
	}
	return map[string]string{"x-consul-token": string(t)}, nil
}

// RequireTransportSecurity implements [credentials.PerRPCCredentials]. Consul's own
// default is a plaintext port.
func (t consulToken) RequireTransportSecurity() bool { return false }
