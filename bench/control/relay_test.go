package control

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/sidecar/relay"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// passage is a server, the relay of one sidecar, and a client that asks and acknowledges as
// its Envoy does.
type passage struct {
	server *xds.Server
	got    chan string // versions of endpoints that the client has taken
}

const passenger = "web-sidecar-proxy"

// pass returns when the client holds all that the sidecar of web is told. Each upstream has
// the same three endpoints, and routes are asked for by name.
func pass(t testing.TB, upstreams int) *passage {
	t.Helper()
	p, problems := proxy.Build(input(t, fleet(t, upstreams, 1)))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	made, err := envoy.Build(p)
	if err != nil {
		t.Fatal(err)
	}
	var own []*xds.Resource
	view := &xds.View{Shared: map[string]struct{}{}}
	shared := map[xds.Key]*xds.Resource{}
	routes, ends := []string{}, []string{}
	add := func(typ xds.Type, name string, m proto.Message) {
		own = append(own, resource(t, typ, name, m))
	}
	for _, m := range made.Clusters {
		add(xds.ClusterType, m.Name, m)
		if m.GetEdsClusterConfig() != nil {
			ends = append(ends, m.Name)
			view.Shared[m.Name] = struct{}{}
			shared[xds.Key{Type: xds.EndpointType, Name: m.Name}] = resource(t, xds.EndpointType, m.Name, three(m.Name, 0))
		}
	}
	for _, m := range made.Listeners {
		add(xds.ListenerType, m.Name, m)
	}
	for _, m := range made.Routes {
		add(xds.RouteType, m.Name, m)
		routes = append(routes, m.Name)
	}
	out := &passage{got: make(chan string, 4*len(ends)+4)}
	out.server = xds.NewServer(xds.Options{
		Open: func(_ context.Context, n *corev3.Node) (string, error) { return n.GetId(), nil },
		Log:  slog.New(slog.DiscardHandler),
	})
	view.Own = xds.Own(own...)
	out.server.Update(xds.Update{Views: map[string]*xds.View{passenger: view}, Shared: shared})

	ctx, cancel := context.WithCancel(context.Background())
	g := grpc.NewServer(xds.ServerOptions()...)
	out.server.Register(g)
	lis := bufconn.Listen(1 << 20)
	var wg sync.WaitGroup
	wg.Go(func() { g.Serve(lis) })
	conn := connect(t, "passthrough:///bufconn", grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	dir := t.TempDir()
	socket := filepath.Join(dir, "xds.sock")
	r, err := relay.New(relay.Options{Conn: conn, Socket: socket, StateFile: filepath.Join(dir, "lastgood.pb"), NodeID: passenger, NodeName: "n1", Cluster: "web"})
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		g.Stop()
		wg.Wait()
	})
	c, err := xds.Connect(ctx, connect(t, "unix:"+socket), &corev3.Node{Id: "envoy"}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	for _, ask := range []xds.Request{{Type: xds.ClusterType}, {Type: xds.EndpointType, Subscribe: ends}, {Type: xds.ListenerType}, {Type: xds.RouteType, Subscribe: routes}} {
		if err := c.Send(ask); err != nil {
			t.Fatal(err)
		}
	}
	wg.Go(func() {
		for {
			resp, err := c.Recv()
			if err != nil {
				return
			}
			if err := c.Send(xds.Request{Type: resp.Type, Nonce: resp.Nonce}); err != nil {
				return
			}
			if resp.Type == xds.EndpointType {
				for _, res := range resp.Resources {
					out.got <- res.Version
				}
			}
		}
	})
	for range ends {
		<-out.got
	}
	out.settle(t, ends[0])
	return out
}

func connect(t testing.TB, target string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(target, append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func resource(t testing.TB, typ xds.Type, name string, m proto.Message) *xds.Resource {
	t.Helper()
	r, err := xds.NewResource(typ, name, m)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// three endpoints, at ports that n moves.
func three(cluster string, n int) *endpointv3.ClusterLoadAssignment {
	group := &endpointv3.LocalityLbEndpoints{}
	for i := range 3 {
		group.LbEndpoints = append(group.LbEndpoints, &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
			Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
				Address: fmt.Sprintf("10.0.0.%d", i+1), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(1 + (n+i)%60_000)},
			}}},
		}}})
	}
	return &endpointv3.ClusterLoadAssignment{ClusterName: cluster, Endpoints: []*endpointv3.LocalityLbEndpoints{group}}
}

// change gives a cluster other endpoints and returns when the server has the client's word for them.
func (p *passage) change(t testing.TB, cluster string, n int) {
	next := resource(t, xds.EndpointType, cluster, three(cluster, n))
	p.server.Update(xds.Update{Shared: map[xds.Key]*xds.Resource{{Type: xds.EndpointType, Name: cluster}: next}})
	for version := range p.got {
		if version == next.Version {
			break
		}
	}
	p.settle(t, cluster)
}

func (p *passage) settle(t testing.TB, cluster string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if n, total, err := p.server.Settle(ctx, xds.Key{Type: xds.EndpointType, Name: cluster}); err != nil || n != 1 || total != 1 {
		t.Fatalf("%d of %d streams have settled: %v", n, total, err)
	}
}

// BenchmarkRelay: one change of an upstream's three endpoints, from a server through the relay to Envoy and its
// acknowledgement back, at a sidecar with 50 upstreams and at one with 1,000. All is in one process.
func BenchmarkRelay(b *testing.B) {
	for _, upstreams := range []int{50, 1000} {
		b.Run(fmt.Sprint(upstreams), func(b *testing.B) {
			p := pass(b, upstreams)
			cluster := clusterOf(b)
			tick := time.NewTicker(pushInterval)
			defer tick.Stop()
			b.ReportAllocs()
			n := 0
			report := cpuTime(b)
			for b.Loop() {
				b.StopTimer()
				n++
				<-tick.C
				b.StartTimer()
				p.change(b, cluster, n)
			}
			report()
		})
	}
}

func clusterOf(t testing.TB) string { return endpoints(t, fleet(t, 1, 1)).Name }

// A change passes to the client, and its word for it to the server.
func TestPassage(t *testing.T) {
	p := pass(t, 3)
	p.change(t, clusterOf(t), 1)
	p.change(t, clusterOf(t), 2)
}
