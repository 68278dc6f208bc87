package sidecar

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/appport"
	"github.com/crossfade-mesh/crossfade/internal/atomicfile"
	"github.com/crossfade-mesh/crossfade/internal/ca"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/check"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/envoyadmin"
	"github.com/crossfade-mesh/crossfade/internal/envoybin"
	"github.com/crossfade-mesh/crossfade/internal/process"
	"github.com/crossfade-mesh/crossfade/internal/sidecar/drift"
	"github.com/crossfade-mesh/crossfade/internal/sidecar/relay"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// sidecar is one instance's parts. Fields are set by open and read-only after it,
// except those of the last block.
type sidecar struct {
	opts          Options
	log           *slog.Logger
	dir           *stateDir
	sockets       runtimeDir
	port          *reservation
	plaintextPort *reservation     // nil for none
	proxy         *catalog.Service // as registered
	upstreams     []localUpstream
	publicAddress string

	agent        *agent // of the servers
	registry     *agent // where the registration is: the servers, or a Consul agent
	contact      *contact
	health       *health
	registration *registration
	carrier      *carrier // nil: a Consul agent has the checks
	certs        *certificates
	relay        *relay.Relay
	admin        *envoyadmin.Client
	watch        *watch
	envoyVersion string
	group        *cgroup       // Envoy's, or nil
	sizes        SizingStatus  // in force; changed by signals' goroutine alone, once the instance is ready
	asked        config.Sizing // that sizes come from
	envoy        *envoySupervisor
	drain        *drain
	runner       *check.Runner
	board        *board
	reporter     *reporter
	oldWays      *oldWays
	drift        *drift.Watch
	cutter       *cutter
	plaintext    telemetry.Memory // from before the start
	envoyUp      chan struct{}    // closed when Envoy is ready for the first time

	stop                         context.CancelCauseFunc
	registering, serving, envoys *crew
	app                          *process.Process // set before the instance is ready
	started, leaving             atomic.Bool
	envoyServes                  atomic.Int64 // the process ID of an Envoy that is ready, or 0
}

// open checks and prepares everything that can fail at once, so that a mistake is
// one line and nothing was registered or started. It starts nothing.
func open(ctx context.Context, o Options) (_ *sidecar, err error) {
	s := &sidecar{opts: o, log: o.Log, envoyUp: make(chan struct{})}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.dir, err = openStateDir(o.StateDir); err != nil {
		return nil, err
	}
	if s.sockets, err = openRuntimeDir(cmp.Or(o.RuntimeDir, defaultRuntimeDir(o.StateDir, os.Getenv("XDG_RUNTIME_DIR")))); err != nil {
		return nil, err
	}
	path := o.EnvoyPath
	if path == "" {
		if path, err = envoybin.Find(); err != nil {
			return nil, err
		}
	}
	version, err := envoybin.CheckVersion(ctx, path)
	if err != nil {
		return nil, err
	}
	if err := s.openPort(ctx); err != nil {
		return nil, err
	}
	if !s.adopted() {
		if err := checkUpstreamPorts(ctx, s.upstreams); err != nil {
			return nil, err
		}
	}
	if err := s.dir.readJSON(plaintextFile, &s.plaintext); err != nil || !s.plaintext.Sound() {
		s.log.Warn("for how long there was no plaintext is not known any more, it begins anew", "file", s.dir.file(plaintextFile), "error", err)
		s.plaintext = telemetry.Memory{}
	}
	s.board = &board{log: s.log, write: func(b []byte) error { return s.dir.write(StatusFile, b) }, status: Status{
		State: Starting, Service: o.Definition.Service.Name, ID: o.Definition.Service.ID, PublicAddress: s.publicAddress, PID: os.Getpid(),
		Envoy: EnvoyStatus{Version: version, AdminSocket: s.sockets.adminSocket()},
	}}
	s.envoyVersion = version
	s.openSizes()
	if err := s.openParts(); err != nil {
		return nil, err
	}
	s.openEnvoy(path)
	return s, nil
}

// openPort settles who the instance is and where its sidecar listens.
func (s *sidecar) openPort(ctx context.Context) error {
	d := &s.opts.Definition
	var was ports
	if err := s.dir.readJSON(portsFile, &was); err != nil {
		return err
	}
	if was.ID != "" && (was.ID != d.Service.ID || was.Service != d.Service.Name) {
		return fmt.Errorf("state directory %q: belongs to service %q with id %q, not to %q with id %q: give this one its own --state-dir",
			s.dir.path, was.Service, was.ID, d.Service.Name, d.Service.ID)
	}
	if s.adopted() {
		return s.openAdopted(was)
	}
	side := d.SidecarService()
	address := cmp.Or(side.Address, s.opts.NodeAddress)
	bind := address
	if b, ok := side.Proxy.Config["bind_address"].(string); ok && b != "" {
		bind = b
	}
	port, held, err := choosePort(ctx, bind, wantedPort{d.Service.ID, side.Port, was.PublicPort})
	if err != nil {
		return fmt.Errorf("service %q: %w", d.Service.ID, err)
	}
	s.port = held
	if was.PublicPort != 0 && was.PublicPort != port {
		s.log.Warn("the public port has changed", "service", d.Service.ID, "from", was.PublicPort, "to", port)
	}
	now := ports{Service: d.Service.Name, ID: d.Service.ID, PublicPort: port}
	if _, given := side.Proxy.Config["plaintext_port"]; !given && !config.IsHTTP(d.Protocol) {
		if now.PlaintextPort, s.plaintextPort = choosePlaintextPort(bind, d.Service.ID, was.PlaintextPort, declaredPorts(side)); now.PlaintextPort != 0 {
			proxy := catalog.Proxy{}
			if d.Sidecar.Service.Proxy != nil {
				proxy = *d.Sidecar.Service.Proxy
			}
			if proxy.Config = maps.Clone(proxy.Config); proxy.Config == nil {
				proxy.Config = map[string]any{}
			}
			proxy.Config["plaintext_port"] = now.PlaintextPort
			d.Sidecar.Service.Proxy = &proxy
		}
	}
	if now != was {
		if err := s.dir.writeJSON(portsFile, now); err != nil {
			return fmt.Errorf("state directory %q: cannot be written: %w", s.dir.path, cause(err))
		}
	}
	d.Sidecar.Service.Port = port
	s.proxy = d.SidecarService()
	s.upstreams = localUpstreams(s.proxy.Proxy)
	s.publicAddress = net.JoinHostPort(address, strconv.Itoa(port))
	return nil
}

// adopted reports whether the registration is not the sidecar's own.
func (s *sidecar) adopted() bool { return s.opts.consul != nil && s.opts.consul.Proxy != nil }

// openParts makes what speaks to the servers.
func (s *sidecar) openParts() (err error) {
	o, d := s.opts, &s.opts.Definition
	roots, err := s.dir.read(rootsFile)
	if err != nil {
		return fmt.Errorf("roots %q: cannot be read: %w", s.dir.file(rootsFile), cause(err))
	}
	cred, err := newCredential(o, roots)
	if err != nil {
		return err
	}
	s.agent = newAgent(o, cred)
	s.registry = s.agent
	if o.Consul != "" {
		s.registry = newConsulAgent(o)
		if err := s.dir.writeJSON(registrationFile, o.consul); err != nil {
			return fmt.Errorf("state directory %q: cannot be written: %w", s.dir.path, cause(err))
		}
	}
	if s.contact, err = newContact(o, s.agent, s.dir); err != nil {
		return err
	}
	s.contact.refused = func(err error) { s.stop(fmt.Errorf("service %q: cannot join the mesh: %w", d.Service.Name, err)) }
	s.certs = &certificates{
		dir: s.dir, client: ca.NewClient(s.contact.conn), cred: cred, joiner: s.contact.joiner, redial: s.contact.redial, idle: s.agent.close, service: d.Service.Name, datacenter: s.contact.datacenter, log: s.log,
		give:   func(leaf, roots *xds.Resource) { s.relay.SetSecrets(leaf, roots) },
		report: func(c *CertificateStatus) { s.board.set(func(st *Status) { st.Certificate = c }) },
	}
	if err := s.certs.load(time.Now()); err != nil {
		return err
	}
	if err := cred.check(); err != nil {
		return err
	}
	s.relay, err = relay.New(relay.Options{
		Conn: s.contact.conn, Socket: s.sockets.xdsSocket(), StateFile: s.dir.file(lastGoodFile), LocalFile: s.dir.file(LocalFile),
		NodeID: s.proxy.ID, NodeName: o.Node, Cluster: d.Service.Name, Log: s.log,
	})
	if err != nil {
		return err
	}
	s.health = newHealth(d, s.proxy.ID)
	if o.Consul == "" { // else the checks are where no server pulses them
		s.carrier = &carrier{health: s.health, port: d.Sidecar.Service.Port}
	}
	s.runner = check.New(check.Options{Report: s.health.report, Log: s.log})
	s.registration = &registration{
		carrier: s.carrier, agent: s.registry, entries: s.agent, adopted: s.adopted(), health: s.health, def: *d, proxyID: s.proxy.ID, log: s.log, tried: make(chan struct{}), first: make(chan struct{}),
		confirmed: func(ok bool) { s.board.set(func(st *Status) { st.Registered = ok }) },
	}
	return nil
}

// openEnvoy prepares the supervisor.
func (s *sidecar) openEnvoy(path string) {
	o := s.opts
	s.admin = envoyadmin.New(s.sockets.adminSocket(), adminTimeout)
	s.watch = &watch{admin: s.admin}
	s.reporter = &reporter{
		admin: s.admin, conn: s.contact.conn, node: o.Node, sidecar: s.proxy.ID, log: s.log, envoy: s.envoyServes.Load,
		memory: s.plaintext, keep: func(m telemetry.Memory) error { return s.dir.writeJSON(plaintextFile, m) },
	}
	s.reporter.carrier = s.carrier
	s.reporter.permissive = func() bool { return s.health.plaintextPort() != 0 }
	ports := &portWatch{sockets: appport.Sockets{Log: s.log}}
	if p := s.proxy.Proxy; p.LocalServiceSocketPath == "" {
		ports.port = p.LocalServicePort
	}
	s.reporter.local = func() []string {
		if l := s.relay.Status().Local; l != nil {
			return l.Destinations
		}
		return nil
	}
	s.oldWays = newOldWays(s.relay.OldWays)
	s.drift = &drift.Watch{
		Relay: s.relay, Admin: envoyadmin.New(s.sockets.adminSocket(), drift.AskWithin), Log: s.log,
		Envoy: func() int64 {
			if s.leaving.Load() {
				return 0 // its listeners close
			}
			return s.envoyServes.Load()
		},
		Changed: func(r api.Drift) { s.board.set(func(st *Status) { st.Drift = &r }) },
	}
	s.cutter = &cutter{
		orders: s.relay.Cuts, changed: s.relay.Changed, onlyOn: s.relay.OnlyOn, places: s.relay.Places, envoy: s.envoyServes.Load, admin: s.admin, log: s.log, known: map[string]telemetry.Cut{},
	}
	s.reporter.cuts = s.cutter.told
	s.reporter.more = func(r *telemetry.Report) {
		ports.add(r, time.Now())
		s.oldWays.add(r)
	}
	_, port := listensAt(s.proxy)
	s.envoy = &envoySupervisor{
		argv:          envoyArgv(path, s.sockets.bootstrap(), o.EnvoyLogLevel, s.sizes.Concurrency),
		group:         s.group,
		crashed:       s.crashed,
		admin:         s.admin,
		sockets:       s.sockets,
		out:           &process.Lines{Out: o.Stderr, Prefix: "envoy[" + o.Definition.Service.ID + "]: "},
		want:          wantedListeners{publicPort: port, told: func() []string { return s.relay.Status().Listeners }},
		configuration: func() string { return s.relay.Status().Version },
		changed:       s.envoyChanged,
		log:           s.log,
	}
	s.drain = &drain{
		admin: s.admin, service: o.Definition.Service.ID, ports: inboundPorts(s.proxy), outbound: outboundPorts(s.upstreams), bound: o.DrainTime, log: s.log,
		callerWait: o.CallerWait,
		goodbye: func(ctx context.Context, wait time.Duration) (string, error) {
			if s.adopted() {
				return "", s.registry.maintenance(ctx, s.proxy.ID, true)
			}
			return s.registry.deregister(ctx, o.Definition.Service.ID, wait)
		},
		taken: func() bool { return s.adopted() && othersListen(port, int(s.envoyServes.Load())) },
	}
}

// declaredPorts are those that a registration gives to other listeners, and the app's.
func declaredPorts(p *catalog.Service) []int {
	out := []int{p.Port, p.Proxy.LocalServicePort}
	for _, u := range p.Proxy.Upstreams {
		out = append(out, u.LocalBindPort)
	}
	for _, e := range p.Proxy.Expose.Paths {
		out = append(out, e.ListenerPort)
	}
	return out
}

// inboundPorts are where callers reach the sidecar.
func inboundPorts(p *catalog.Service) []int {
	_, port := listensAt(p)
	out := []int{port}
	if c, _, _ := config.DecodeProxyConfig(p.Proxy.Config); c.PlaintextPort != 0 {
		out = append(out, c.PlaintextPort)
	}
	return out
}

func outboundPorts(upstreams []localUpstream) (out []int) {
	for _, u := range upstreams {
		out = append(out, u.port)
	}
	return out
}

// writeBootstrap writes what Envoy starts with. It holds no secret.
func (s *sidecar) writeBootstrap(heap int64) error {
	bootstrap, err := envoy.Bootstrap(envoy.BootstrapOptions{
		NodeID: s.proxy.ID, NodeName: s.opts.Node, Service: s.opts.Definition.Service.Name, Datacenter: s.contact.datacenter(),
		StatsTags: s.opts.Definition.StatsTags(), XDSSocket: s.sockets.xdsSocket(), AdminSocket: s.sockets.adminSocket(),
		MaxDownstreamConnections: s.sizes.Connections, MaxHeapBytes: heap,
	})
	if err != nil {
		return err
	}
	if err := atomicfile.Write(s.sockets.bootstrap(), bootstrap); err != nil {
		return fmt.Errorf("runtime directory %q: Envoy's bootstrap cannot be written: %w", s.sockets, cause(err))
	}
	return nil
}

// appAddress is where the app is to accept connections; empty for one that takes none.
func (s *sidecar) appAddress() (network, address string) {
	p := s.proxy.Proxy
	switch {
	case p.LocalServiceSocketPath != "":
		return "unix", p.LocalServiceSocketPath
	case p.LocalServicePort != 0:
		return "tcp", net.JoinHostPort(p.LocalServiceAddress, strconv.Itoa(p.LocalServicePort))
	default:
		return "", ""
	}
}

// close gives back what open took.
func (s *sidecar) close() {
	if s.runner != nil {
		s.runner.Close()
	}
	if s.drift != nil {
		s.drift.Admin.Close()
	}
	if s.admin != nil {
		s.admin.Close()
	}
	if s.contact != nil {
		s.contact.close()
	}
	if s.agent != nil {
		s.agent.close()
		s.registry.close()
	}
	if s.group != nil {
		s.group.close()
	}
	s.port.release()
	s.plaintextPort.release()
	if s.sockets != "" {
		s.sockets.remove()
	}
	if s.dir != nil {
		s.dir.close()
	}
}
