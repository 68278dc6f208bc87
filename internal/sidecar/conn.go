package sidecar

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/crossfade-mesh/crossfade/internal/ca"
)

// firstContact bounds the wait for servers at a start that can do without them.
const firstContact = 2 * time.Second

const (
	// serversTarget is that of gRPC connections whose addresses a resolver of ours gives.
	serversScheme = "crossfade"
	serversTarget = serversScheme + ":///servers"
	// anyServer is a gRPC connection to one server at a time, picked at random. A server that has
	// not finished its handshake after a moment is raced against the next.
	anyServer = `{"loadBalancingConfig":[{"pick_first":{"shuffleAddressList":true}}]}`
)

// contact is the one gRPC connection to the servers, and how their gRPC addresses
// are learned from their HTTP addresses.
type contact struct {
	agent *agent
	dir   *stateDir
	log   *slog.Logger
	// Conn goes to one server at a time, picked at random, and to another when that fails.
	conn     *grpc.ClientConn
	resolver *manual.Resolver
	fixed    []string // gRPC addresses that were given and need no learning
	// found is closed when the datacenter and a gRPC address are known.
	found chan struct{}
	// asked is closed when every server was asked once.
	asked chan struct{}
	// refused is told that a server won't have this instance.
	refused func(error)

	mu     sync.Mutex
	known  servers
	server string // dialled last with success
	wire   net.Conn
	taken  bool // a server has answered us in this life
	once   bool // found is closed
}

// newContact starts from what the state directory remembers. Nothing is dialled
// before the connection is used.
func newContact(o Options, a *agent, dir *stateDir) (*contact, error) {
	c := &contact{
		agent: a, dir: dir, log: o.Log, fixed: o.GRPCAddrs, found: make(chan struct{}), asked: make(chan struct{}),
		resolver: manual.NewBuilderWithScheme(serversScheme),
	}
	if err := dir.readJSON(serversFile, &c.known); err != nil {
		return nil, err
	}
	// Servers that are no longer listed are not asked any more.
	maps.DeleteFunc(c.known.GRPC, func(addr, _ string) bool { return !slices.Contains(a.addrs, addr) })
	if c.known.GRPC == nil {
		c.known.GRPC = map[string]string{}
	}
	c.resolver.InitialState(c.state())
	var d net.Dialer
	conn, err := grpc.NewClient(serversTarget,
		grpc.WithResolvers(c.resolver),
		grpc.WithTransportCredentials(a.cred.transport()),
		grpc.WithDefaultServiceConfig(anyServer),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 250 * time.Millisecond, Multiplier: 1.6, Jitter: 0.3, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 10 * time.Second, // when all come at once handshakes wait for each other
		}),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			conn, err := d.DialContext(ctx, "tcp", addr)
			if err == nil {
				c.mu.Lock()
				c.server, c.wire = addr, conn
				c.mu.Unlock()
			}
			return conn, err
		}),
		grpc.WithNoProxy(),
	)
	if err != nil {
		return nil, err
	}
	c.conn = conn
	c.announce()
	return c, nil
}

func (c *contact) close() { _ = c.conn.Close() }

// addresses are the gRPC addresses known, without repetition.
func (c *contact) addresses() []string {
	if len(c.fixed) > 0 {
		return c.fixed
	}
	var out []string
	for _, http := range c.agent.addrs {
		if a := c.known.GRPC[http]; a != "" && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

func (c *contact) state() resolver.State {
	var st resolver.State
	for _, a := range c.addresses() {
		st.Endpoints = append(st.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: a}}})
	}
	return st
}

// announce closes found if enough is known.
func (c *contact) announce() {
	if !c.once && c.known.Datacenter != "" && len(c.addresses()) > 0 {
		c.once = true
		close(c.found)
	}
}

// datacenter is empty until a server told it.
func (c *contact) datacenter() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known.Datacenter
}

// connectedTo is the server that was dialled last with success.
func (c *contact) connectedTo() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.server
}

// accepted reports whether a server has answered us since the start.
func (c *contact) accepted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.taken
}

// redial gives up the present connection, so that the next one shows the present leaf.
func (c *contact) redial() {
	c.agent.close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wire != nil {
		_ = c.wire.Close()
	}
}

// joiner is a CA client for one who has no leaf yet. It goes to whichever server answers.
func (c *contact) joiner() (client *ca.Client, done func(), err error) {
	c.mu.Lock()
	st := c.state()
	c.mu.Unlock()
	if len(st.Endpoints) == 0 {
		return nil, nil, errors.New("no server has told its gRPC address yet")
	}
	servers := manual.NewBuilderWithScheme(serversScheme)
	servers.InitialState(st)
	conn, err := c.agent.cred.joiner(serversTarget, grpc.WithResolvers(servers), grpc.WithDefaultServiceConfig(anyServer))
	if err != nil {
		return nil, nil, err
	}
	return ca.NewClient(conn), func() { _ = conn.Close() }, nil
}

// run asks each server for its gRPC address until it has told it, or ctx ends.
func (c *contact) run(ctx context.Context) {
	var all, first sync.WaitGroup
	for _, addr := range c.agent.addrs {
		first.Add(1)
		all.Go(func() {
			for attempt := 0; ; attempt++ {
				self, err := c.agent.self(ctx, addr)
				alone := !c.accepted()
				if errors.Is(err, errRefused) && alone && c.agent.cred.fallBack() {
					c.log.Warn("the certificate is refused, joining again with the token", "error", err)
					c.agent.close()
					self, err = c.agent.self(ctx, addr)
				}
				switch {
				case err == nil:
					c.learn(addr, self)
				case errors.Is(err, errRefused) && alone:
					c.refused(err)
				}
				if attempt == 0 {
					first.Done()
				}
				if err == nil {
					return
				}
				if attempt == 0 && ctx.Err() == nil {
					c.log.Warn("a server does not answer, it is asked again", "error", err)
				}
				if !sleep(ctx, backOff(attempt, 250*time.Millisecond, 5*time.Second, rand.Float64())) {
					return
				}
			}
		})
	}
	first.Wait()
	close(c.asked)
	all.Wait()
}

func (c *contact) learn(httpAddr string, self serverSelf) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.taken = true
	if c.known.Datacenter != "" && c.known.Datacenter != self.datacenter {
		c.log.Warn("the server is of another datacenter than the one known before", "server", httpAddr,
			"datacenter", self.datacenter, "before", c.known.Datacenter)
	}
	if c.known.Datacenter == self.datacenter && c.known.GRPC[httpAddr] == self.grpcAddr {
		return
	}
	c.known.Datacenter = self.datacenter
	c.known.GRPC[httpAddr] = self.grpcAddr
	if err := c.dir.writeJSON(serversFile, c.known); err != nil {
		c.log.Error("the servers' addresses cannot be remembered, the next start needs a server", "error", err)
	}
	c.resolver.UpdateState(c.state())
	c.announce()
}
