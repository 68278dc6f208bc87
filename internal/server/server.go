// Package server wires one control-plane process together and runs it.
//
// In: [Options]. Out: Consul's HTTP API, and over gRPC delta ADS and Consul's
// ConnectCAService, until the context ends; outside development mode over TLS, to
// callers that show a token or their own certificate. The parts are the embedded registry or
// a real Consul as the source, the CA, the checks, and mesh, which turns what
// changed into resources.
//
// It leaves every decision to the packages it wires. The order of start is the
// order of the data: what is on disk first, listeners last.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/crossfade-mesh/crossfade/internal/access/tokens"
	"github.com/crossfade-mesh/crossfade/internal/ca"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/consul"
	"github.com/crossfade-mesh/crossfade/internal/catalog/consulstore"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/check"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/consulapi"
	"github.com/crossfade-mesh/crossfade/internal/dns"
	"github.com/crossfade-mesh/crossfade/internal/envoybin"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/routing"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// Options say what to run. Zero values take the defaults named beside the fields.
type Options struct {
	// Dev keeps everything in memory, serves every client and mints keys for
	// Envoys that have none. Loopback only.
	Dev bool
	// DataDir holds the registry and the CA. Required unless Dev.
	DataDir    string
	Datacenter string // default "dc1"
	NodeName   string // default: the host's name
	// BindAddr is the address to listen on; default 127.0.0.1. With Dev a loopback one.
	BindAddr string
	// Advertise is the address at which others find this server; default: BindAddr,
	// or where that is "any" the host's first one.
	Advertise string
	// NewOperatorToken makes another operator's token, for whoever has lost theirs.
	NewOperatorToken bool
	// HTTPPort and GRPCPort; 0 picks a free one.
	HTTPPort, GRPCPort int
	// DNSPort, likewise, or negative for no DNS; there is none with Consul, which has
	// its own. DNSBind is its address; default: BindAddr if that is loopback, else
	// 127.0.0.1. With DNSOptional a port that is taken is no failure.
	DNSPort     int
	DNSBind     string
	DNSOptional bool
	// DefaultAllow is what happens to a caller that no intention mentions.
	DefaultAllow bool
	// AllowEscapeHatches honours resources that registrations and entries hold in
	// Envoy's own words: whoever may write those rules the Envoys of the service.
	AllowEscapeHatches bool
	// ConfigDir, if set, is a folder of files whose configuration entries are written at
	// the start and whenever a file changes. With ConfigPrune entries that came from a
	// file which is gone are deleted.
	ConfigDir   string
	ConfigPrune bool
	// Consul, if set, is the address of a real Consul whose catalog and health are read in
	// place of the embedded registry's, and which keeps what servers share.
	Consul       string
	ConsulAccess ConsulAccess
	// Guard is how much the registry may lose at once that nothing explains.
	Guard catalog.GuardPolicy
	// ConsulCA, if set, makes the Connect CA of that Consul the mesh's.
	ConsulCA *ConsulCA
	LeafTTL  time.Duration // default: the CA's
	Version  string
	Log      *slog.Logger
	// Resolver finds what names in legacy addresses stand for; default: the host's.
	Resolver *net.Resolver
}

// Server is a control-plane process. Make it with [New], run it with [Server.Run].
type Server struct {
	opts     Options
	store    *store.Store
	ca       *ca.CA
	guard    *endpointGuard // before the registry, or the Consul
	agent    *consulapi.Agent
	api      http.Handler
	mesh     *mesh
	door     *door
	tokens   *tokens.Tokens
	dir      *configDir // nil for none
	steps    *stepper
	probes   *prober
	names    *names
	engine   *consulstore.Engine // nil without a Consul
	others   others
	leaf     *ca.ServerLeaf // nil in development mode, which has no TLS
	gate     *gate          // nil where leaf is
	strictly sync.Map       // services that [Server.strict] is writing, which has seen the evidence

	builtIn      *ca.BuiltIn    // of this server's ports; nil in development mode with another CA
	consul       *consulServers // nil unless the mesh's CA is Consul's
	operatorFile string
	httpLis      net.Listener
	grpcLis      net.Listener
	dns          *dns.Server    // nil for none
	shutdown     []func() error // in reverse order of opening
}

// New opens all that the server needs and starts to listen, but serves nothing yet.
func New(o Options) (_ *Server, err error) {
	if o, err = o.withDefaults(); err != nil {
		return nil, err
	}
	s := &Server{opts: o}
	s.names = newNames(o.Resolver, func(n proxy.Names) { s.mesh.setNames(n) }, o.Log)
	s.probes = newProber(s.names.dial)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.engine, err = o.engine(); err != nil {
		return nil, err
	}
	if s.store, err = s.openStore(); err != nil {
		return nil, err
	}
	s.shutdown = append(s.shutdown, s.store.Close)
	if o.ConfigDir != "" {
		s.dir = newConfigDir(o.ConfigDir, o.ConfigPrune, s.store, o.Log)
		if err := s.dir.look(time.Now()); err != nil {
			return nil, err
		}
	}
	s.door = newDoor(o.Dev, o.Log)
	who := tokens.Options{Dir: o.DataDir, Revoked: s.door.revoked, Log: o.Log}
	if o.Consul != "" {
		who.Shelf = shelf{s.store}
	}
	if s.tokens, err = tokens.Open(who); err != nil {
		return nil, err
	}
	s.shutdown = append(s.shutdown, s.tokens.Close)
	var registry catalog.Source = s.store
	var source *consul.Source
	if o.Consul != "" {
		if source, err = consul.New(consul.Options{Address: o.Consul, Token: o.ConsulAccess.Token, TLS: o.ConsulAccess.TLS, Datacenter: o.Datacenter, Log: o.Log}); err != nil {
			return nil, err
		}
		registry = source
	}
	s.guard = newEndpointGuard(registry, o.Guard, o.DataDir, o.Log)
	if err := s.openCA(source); err != nil {
		return nil, err
	}
	s.door.ca, s.door.tokens = s.ca, s.tokens
	if err := s.openSecurity(); err != nil {
		return nil, err
	}
	var mint *minter
	if o.Dev {
		mint = newMinter(s.ca)
	}
	s.mesh = newMesh(o.Datacenter, s.ca.TrustDomain(), o.DefaultAllow, mint, o.Log)
	s.mesh.allowHatches, s.mesh.bindAny, s.mesh.consulCallers = o.AllowEscapeHatches, o.Consul != "", o.ConsulCA != nil
	s.mesh.adopt = s.adopt
	if o.DataDir != "" {
		s.mesh.recallGood(filepath.Join(o.DataDir, lastGoodFile), time.Now())
		s.names.recall(filepath.Join(o.DataDir, namesFile))
	}
	s.steps = newStepper(s)
	if err := s.steps.open(); err != nil {
		return nil, err
	}
	if s.httpLis, err = listen("HTTP", o.BindAddr, o.HTTPPort, "--http-port"); err != nil {
		return nil, err
	}
	s.shutdown = append(s.shutdown, func() error { return ignoreClosed(s.httpLis.Close()) })
	if s.grpcLis, err = listenStreams("gRPC", o.BindAddr, o.GRPCPort, "--grpc-port"); err != nil {
		return nil, err
	}
	s.shutdown = append(s.shutdown, func() error { return ignoreClosed(s.grpcLis.Close()) })
	if err = s.openDNS(); err != nil {
		return nil, err
	}
	s.agent = consulapi.NewAgent(s.store, o.Log)
	policy := config.Deny
	if o.DefaultAllow {
		policy = config.Allow
	}
	api := consulapi.Options{
		Store: s.store, Agent: s.agent, DefaultIntention: policy, Authorize: authorize,
		Server: s.own(),
		Who:    s.door.author, TrustDomain: s.ca.TrustDomain(),
		Roots:   func() (any, <-chan struct{}) { return s.ca.Watch() },
		Version: o.Version, EnvoyVersions: []string{envoybin.Floor}, Log: o.Log,
	}
	if s.leaf != nil {
		api.HTTPSAddr, api.GRPCTLSAddr = s.HTTPAddr(), s.GRPCAddr()
		s.gate = newGate(s.mesh.there, s.mesh.xds.Sending)
	} else {
		api.HTTPAddr, api.GRPCAddr = s.HTTPAddr(), s.GRPCAddr()
	}
	s.api = consulapi.New(api)
	return s, nil
}

// judge refuses a write of entries that would break what is in force.
func (s *Server) judge(before, after *config.Set) error {
	var refusal error
	if err := isolated(func() error {
		refusal = errors.Join(judge(before, after, s.opts.Datacenter), s.judgeStrict(before, after, time.Now()))
		return nil
	}); err != nil {
		s.opts.Log.Error("entries can't be judged, they are not written", "reason", err)
		return errors.New("entries cannot be judged; the server's log says why")
	}
	return refusal
}

// judge says in a line each what would no longer fit together.
func judge(before, after *config.Set, datacenter string) error {
	return errors.Join(config.CheckProviders(before, after), config.CheckMutualTLS(before, after), routing.CheckPermissions(before, after), routing.Check(before, after, datacenter))
}

// runChecks runs the registry's checks until ctx ends.
func (s *Server) runChecks(ctx context.Context) error {
	runner := check.New(check.Options{
		Report: func(node, id string, r check.Result) {
			if err := s.agent.Report(node, id, r.Status, r.Output); err != nil {
				s.opts.Log.Error("result of a check not recorded", "node", node, "check", id, "status", string(r.Status), "reason", err)
			}
		},
		Alias: s.agent.Alias,
		Deregister: func(node, service string) {
			if _, err := s.agent.Expire(node, service); err != nil {
				s.opts.Log.Error("service that was critical for too long not deregistered", "service", service, "node", node, "reason", err)
			}
		},
		Log: s.opts.Log,
	})
	defer runner.Close()
	s.agent.Start(runner)
	<-ctx.Done()
	return nil
}

func (o Options) withDefaults() (Options, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Datacenter = cmp.Or(o.Datacenter, "dc1")
	o.BindAddr = cmp.Or(o.BindAddr, "127.0.0.1")
	if o.NodeName == "" {
		host, err := os.Hostname()
		if err != nil {
			return o, fmt.Errorf("node name: %w: set --node", err)
		}
		o.NodeName = host
	}
	switch {
	case o.Dev && o.DataDir != "":
		return o, fmt.Errorf("data directory %q: --dev keeps everything in memory: leave out --dev or --data-dir", o.DataDir)
	case !o.Dev && o.DataDir == "":
		return o, errors.New("data directory: not given: set --data-dir DIR, or --dev to keep everything in memory")
	}
	return o.addresses()
}

// HTTPAddr and GRPCAddr are where the server listens, host:port.
func (s *Server) HTTPAddr() string { return s.httpLis.Addr().String() }

// GRPCAddr is where ADS and the CA are served.
func (s *Server) GRPCAddr() string { return s.grpcLis.Addr().String() }

// Sent is how many xDS responses were sent so far.
func (s *Server) Sent() uint64 { return s.mesh.xds.Sent() }

// Coming is how many clients of ADS and CA have spoken and are not served yet.
func (s *Server) Coming() int {
	if s.gate == nil {
		return 0
	}
	return s.gate.coming()
}

// TrustDomain is the CA's.
func (s *Server) TrustDomain() string { return s.ca.TrustDomain() }

// streamWindow is how many bytes a client may send ahead on one stream, HTTP/2's own default.
const streamWindow = 65535

// Run serves until ctx ends, then stops in order. It returns nil after an orderly stop.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	part := func(name string, run func() error) {
		wg.Go(func() {
			if err := run(); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	part("catalog", func() error { return s.guard.Run(ctx, s.mesh.setCatalog) })
	part("decisions about what is held", func() error { s.followRulings(ctx); return nil })
	part("configuration entries", func() error {
		return s.store.RunConfig(ctx, func(set *config.Set, index uint64) {
			s.names.want(ctx, namesIn(set)) // before anything needs them
			s.mesh.setEntries(set, index)
		})
	})
	part("names of legacy addresses", func() error { s.names.run(ctx); return nil })
	if s.dir != nil {
		part("configuration directory", func() error { s.dir.run(ctx); return nil })
	}
	part("CA", func() error { s.runCA(ctx); return nil })
	part("mesh", func() error { s.mesh.run(ctx); return nil })
	part("shifts", func() error { s.steps.run(ctx); return nil })
	if s.opts.Consul != "" {
		part("commands of other servers", func() error { s.steps.hear(ctx); return nil })
		part("what servers tell each other", func() error { s.tell(ctx, s.engine); return nil })
	}
	part("old ways", func() error { s.watchOldWays(ctx); return nil })
	part("checks", func() error { return s.runChecks(ctx) })
	part("DNS", func() error { return s.runDNS(ctx) })

	g := grpc.NewServer(append(append(s.grpcSecurity(), xds.ServerOptions()...),
		grpc.ConnectionTimeout(handshakeTimeout),
		// A stream says little and mostly waits: no buffer of its own for reading, beside that of TLS, and
		// windows that are not measured, as each measurement is a ping and its answer.
		grpc.ReadBufferSize(0),
		grpc.StaticStreamWindowSize(streamWindow), grpc.StaticConnWindowSize(2*streamWindow),
		grpc.MaxHeaderListSize(64<<10),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 20 * time.Second, MaxConnectionIdle: 5 * time.Minute}),
	)...)
	s.mesh.xds.Register(g)
	s.ca.Register(g)
	s.reporters().Register(g)
	part("gRPC", func() error { return g.Serve(s.grpcLis) })

	h := &http.Server{
		Handler: s.handler(), ErrorLog: slog.NewLogLogger(s.opts.Log.Handler(), slog.LevelDebug), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx }, // ends blocking queries
	}
	part("HTTP", func() error {
		if s.leaf == nil {
			return h.Serve(s.httpLis)
		}
		h.TLSConfig = tlsConfig(s.leaf)
		return h.ServeTLS(s.httpLis, "", "")
	})

	<-ctx.Done()
	cause := context.Cause(ctx)
	g.Stop()
	stop, done := context.WithTimeout(context.Background(), 2*time.Second)
	defer done()
	if err := h.Shutdown(stop); err != nil {
		h.Close()
	}
	err := s.close()
	wg.Wait()
	if !errors.Is(cause, context.Canceled) {
		return errors.Join(cause, err)
	}
	return err
}

func (s *Server) close() error {
	var errs []error
	for _, end := range slices.Backward(s.shutdown) {
		errs = append(errs, end())
	}
	s.shutdown = nil
	return errors.Join(errs...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
