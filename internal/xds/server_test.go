package xds_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

func start(t *testing.T) (*xds.Server, *grpc.ClientConn) {
	t.Helper()
	return startWith(t, xds.Options{})
}

// startWith serves every node that has an id.
func startWith(t *testing.T, o xds.Options) (*xds.Server, *grpc.ClientConn) {
	t.Helper()
	o.Log = slog.New(slog.DiscardHandler)
	o.Open = func(_ context.Context, n *corev3.Node) (string, error) {
		if n.GetId() == "" {
			return "", errors.New("node without an id")
		}
		return n.GetId(), nil
	}
	srv := xds.NewServer(o)
	g := grpc.NewServer(xds.ServerOptions()...)
	srv.Register(g)
	return srv, serve(t, g)
}

// serve is a connection to a server.
func serve(t *testing.T, g *grpc.Server) *grpc.ClientConn {
	t.Helper()
	lis := bufconn.Listen(1 << 20)
	go g.Serve(lis)
	t.Cleanup(g.Stop)
	conn, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func connect(t *testing.T, conn *grpc.ClientConn, node string) *xds.Client {
	t.Helper()
	c, err := xds.Connect(t.Context(), conn, &corev3.Node{Id: node})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func send(t *testing.T, c *xds.Client, r xds.Request) {
	t.Helper()
	if err := c.Send(r); err != nil {
		t.Fatal(err)
	}
}

// receive wants one response and acknowledges it.
func receive(t *testing.T, c *xds.Client, typ xds.Type, want ...*xds.Resource) xds.Response {
	t.Helper()
	r, err := c.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if r.Type != typ || len(r.Resources) != len(want) {
		t.Fatalf("received %d of %s, want %d of %s", len(r.Resources), r.Type.Short(), len(want), typ.Short())
	}
	for i := range want {
		if r.Resources[i].Name != want[i].Name || r.Resources[i].Version != want[i].Version {
			t.Fatalf("received %s@%s, want %s@%s", r.Resources[i].Name, r.Resources[i].Version, want[i].Name, want[i].Version)
		}
	}
	send(t, c, xds.Request{Type: typ, Nonce: r.Nonce})
	return r
}

func resource(t *testing.T, typ xds.Type, name, content string) *xds.Resource {
	t.Helper()
	r, err := xds.NewResource(typ, name, wrapperspb.String(content))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func names(ns ...string) map[string]struct{} {
	out := map[string]struct{}{}
	for _, n := range ns {
		out[n] = struct{}{}
	}
	return out
}

func key(name string) xds.Key { return xds.Key{Type: xds.EndpointType, Name: name} }

func TestStreamWaitsForItsViewAndGetsChanges(t *testing.T) {
	srv, conn := start(t)
	c := connect(t, conn, "web")
	send(t, c, xds.Request{Type: xds.ClusterType})
	send(t, c, xds.Request{Type: xds.EndpointType, Subscribe: []string{"a"}})
	cluster, eds := resource(t, xds.ClusterType, "a", "1"), resource(t, xds.EndpointType, "a", "1")
	srv.Update(xds.Update{
		Views:  map[string]*xds.View{"web": {Own: xds.Own(cluster), Shared: names("a")}},
		Shared: map[xds.Key]*xds.Resource{key("a"): eds},
	})
	receive(t, c, xds.ClusterType, cluster)
	receive(t, c, xds.EndpointType, eds)
	eds2 := resource(t, xds.EndpointType, "a", "2")
	srv.Update(xds.Update{Shared: map[xds.Key]*xds.Resource{key("a"): eds2}})
	got := receive(t, c, xds.EndpointType, eds2)
	if body, err := got.Resources[0].Body(); err != nil || string(body) != "\n\x012" {
		t.Errorf("body = %q, %v", body, err)
	}
}

func TestForeignEndpointsAreNeverSent(t *testing.T) {
	srv, conn := start(t)
	secret := resource(t, xds.EndpointType, "secret", "1")
	mine := resource(t, xds.EndpointType, "mine", "1")
	srv.Update(xds.Update{
		Views:  map[string]*xds.View{"web": {Shared: names("mine")}},
		Shared: map[xds.Key]*xds.Resource{key("secret"): secret, key("mine"): mine},
	})
	c := connect(t, conn, "web")
	send(t, c, xds.Request{Type: xds.EndpointType, Subscribe: []string{"mine", "secret"}})
	r := receive(t, c, xds.EndpointType, mine)
	if len(r.Removed) != 1 || r.Removed[0] != "secret" {
		t.Errorf("removed = %v, want the foreign name only", r.Removed)
	}
	srv.Update(xds.Update{Shared: map[xds.Key]*xds.Resource{
		key("secret"): resource(t, xds.EndpointType, "secret", "2"), key("mine"): resource(t, xds.EndpointType, "mine", "2")}})
	receive(t, c, xds.EndpointType, resource(t, xds.EndpointType, "mine", "2"))
}

func TestRefusedStream(t *testing.T) {
	_, conn := start(t)
	c := connect(t, conn, "")
	send(t, c, xds.Request{Type: xds.ClusterType})
	_, err := c.Recv()
	if status.Code(err) != codes.PermissionDenied {
		t.Fatalf("a node without an id got %v, want PermissionDenied", err)
	}
}

func TestStateOfTheWorldSaysWhatToDo(t *testing.T) {
	_, conn := start(t)
	st, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources")
	if err != nil {
		t.Fatal(err)
	}
	if err := st.RecvMsg(&wrapperspb.StringValue{}); status.Code(err) != codes.Unimplemented {
		t.Fatalf("state-of-the-world stream ended with %v, want Unimplemented", err)
	}
}

func TestSettleWaitsForEveryStream(t *testing.T) {
	srv, conn := start(t)
	v1, v2 := resource(t, xds.EndpointType, "a", "1"), resource(t, xds.EndpointType, "a", "2")
	views := map[string]*xds.View{}
	for i := range 3 {
		views[fmt.Sprint(i)] = &xds.View{Shared: names("a")}
	}
	srv.Update(xds.Update{Views: views, Shared: map[xds.Key]*xds.Resource{key("a"): v1}})
	var clients []*xds.Client
	for i := range 3 {
		c := connect(t, conn, fmt.Sprint(i))
		send(t, c, xds.Request{Type: xds.EndpointType, Subscribe: []string{"a"}})
		receive(t, c, xds.EndpointType, v1)
		clients = append(clients, c)
	}
	srv.Update(xds.Update{Shared: map[xds.Key]*xds.Resource{key("a"): v2}})

	short, cancel := context.WithCancel(t.Context())
	cancel()
	if n, of, err := srv.Settle(short, key("a")); err == nil || of != 3 || n != 0 {
		t.Fatalf("before any ACK Settle = %d/%d, %v", n, of, err)
	}
	receive(t, clients[0], xds.EndpointType, v2)
	receive(t, clients[1], xds.EndpointType, v2)
	r, err := clients[2].Recv()
	if err != nil {
		t.Fatal(err)
	}
	send(t, clients[2], xds.Request{Type: xds.EndpointType, Nonce: r.Nonce, Error: "won't"}) // a verdict, too
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if n, of, err := srv.Settle(ctx, key("a")); err != nil || n != 3 || of != 3 {
		t.Fatalf("Settle = %d/%d, %v; want 3/3", n, of, err)
	}
	var refused int
	for _, st := range srv.Status() {
		refused += len(st.Types["ClusterLoadAssignment"].Refused)
	}
	if refused != 1 {
		t.Errorf("Status shows %d refused resources, want 1", refused)
	}
}

// A stream that doesn't read costs the others nothing and holds the newest only.
func TestSlowStreamDelaysNobody(t *testing.T) {
	srv, conn := start(t)
	big := make([]byte, 256<<10)
	srv.Update(xds.Update{Views: map[string]*xds.View{"slow": {Shared: names("a")}, "quick": {Shared: names("a")}}})
	slow, quick := connect(t, conn, "slow"), connect(t, conn, "quick")
	send(t, slow, xds.Request{Type: xds.EndpointType, Subscribe: []string{"a"}})
	send(t, quick, xds.Request{Type: xds.EndpointType, Subscribe: []string{"a"}})
	for _, c := range []*xds.Client{slow, quick} { // "a" doesn't exist yet
		if r := receive(t, c, xds.EndpointType); len(r.Removed) != 1 {
			t.Fatalf("removed = %v", r.Removed)
		}
	}
	var last *xds.Resource
	for i := range 20 {
		big[0] = byte('a' + i)
		last = resource(t, xds.EndpointType, "a", string(big))
		srv.Update(xds.Update{Shared: map[xds.Key]*xds.Resource{key("a"): last}})
		receive(t, quick, xds.EndpointType, last)
	}
	for n := 0; ; n++ {
		r, err := slow.Recv()
		if err != nil {
			t.Fatal(err)
		}
		send(t, slow, xds.Request{Type: xds.EndpointType, Nonce: r.Nonce})
		if r.Resources[0].Version == last.Version {
			break
		}
		if n > 1 {
			t.Fatal("more than one old version was kept for the slow stream")
		}
	}
}

// One who never reads, one who asks and gives up without end, and one with 10,000 names: changes still reach
// the others at once, and none of them makes the server keep more than it has.
func TestHostileStreams(t *testing.T) {
	srv, conn := start(t)
	const many = 10_000
	all := map[string]struct{}{}
	shared := map[xds.Key]*xds.Resource{}
	for i := range many {
		name := fmt.Sprint("s", i)
		all[name] = struct{}{}
		shared[key(name)] = resource(t, xds.EndpointType, name, "1")
	}
	views := map[string]*xds.View{}
	for _, node := range []string{"deaf", "restless", "greedy", "beyond", "good"} {
		views[node] = &xds.View{Shared: all}
	}
	srv.Update(xds.Update{Views: views, Shared: shared})

	good := connect(t, conn, "good")
	send(t, good, xds.Request{Type: xds.EndpointType, Subscribe: []string{"s0"}})
	receive(t, good, xds.EndpointType, shared[key("s0")])
	change := func(n int) time.Duration {
		res := resource(t, xds.EndpointType, "s0", fmt.Sprint("change ", n, strings.Repeat("x", 100<<10)))
		began := time.Now()
		srv.Update(xds.Update{Shared: map[xds.Key]*xds.Resource{key("s0"): res}})
		receive(t, good, xds.EndpointType, res)
		return time.Since(began)
	}

	deaf := connect(t, conn, "deaf") // it never reads
	send(t, deaf, xds.Request{Type: xds.EndpointType, Subscribe: slices.Sorted(maps.Keys(all))})
	greedy := connect(t, conn, "greedy")
	send(t, greedy, xds.Request{Type: xds.EndpointType, Subscribe: slices.Sorted(maps.Keys(all))})
	if r, err := greedy.Recv(); err != nil || len(r.Resources) != many {
		t.Fatalf("%d resources, %v", len(r.Resources), err)
	}
	restless := connect(t, conn, "restless")
	ctx, end := context.WithCancel(t.Context())
	done := make(chan struct{})
	asked := 0
	go func() {
		defer close(done)
		for ; ctx.Err() == nil; asked++ {
			if restless.Send(xds.Request{Type: xds.EndpointType, Subscribe: []string{"s1", "s2"}}) != nil ||
				restless.Send(xds.Request{Type: xds.EndpointType, Unsubscribe: []string{"s1"}}) != nil {
				return
			}
		}
	}()
	go func() {
		for {
			r, err := restless.Recv()
			if err != nil || restless.Send(xds.Request{Type: xds.EndpointType, Nonce: r.Nonce}) != nil {
				return
			}
		}
	}()

	size := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := size()
	var took []time.Duration
	const changes = 100 // of 100 KiB each, all of which the deaf one misses
	for n := range changes {
		took = append(took, change(n))
	}
	end()
	<-done
	slices.Sort(took)
	t.Logf("changes reach the good one within %s (median %s), the restless one asked %d times", took[changes*99/100-1], took[changes/2], asked)
	if p99 := took[changes*99/100-1]; p99 > time.Second {
		t.Errorf("more than a hundredth of the changes took %s or more", p99)
	}
	if asked < 100 {
		t.Errorf("%d requests are no loop", asked)
	}
	// What is under way, and the pools of gRPC's buffers, go by themselves; what a stream keeps does not.
	meshtest.Within(t, 10*time.Second, "nothing keeps what is old", func() error {
		if grown := int64(size()) - int64(before); grown > changes*100<<10/4 {
			return fmt.Errorf("the heap has grown by %d KiB", grown>>10)
		}
		return nil
	})

	beyond := connect(t, conn, "beyond")
	names := slices.Sorted(maps.Keys(all))
	for i := range many + 1 {
		names = append(names, fmt.Sprint("more", i))
	}
	send(t, beyond, xds.Request{Type: xds.EndpointType, Subscribe: names})
	for {
		_, err := beyond.Recv()
		if err == nil {
			continue
		}
		if status.Code(err) != codes.ResourceExhausted {
			t.Errorf("more than 20,000 names: %v", err)
		}
		break
	}
}

// A stream that is ended from outside tells its client why, also while it waits for a message, or for a
// client that takes nothing; and nobody is left who sends on it.
func TestDisconnectHasWords(t *testing.T) {
	srv, conn := start(t)
	for _, tc := range []struct {
		name string
		busy bool
	}{{"idle", false}, {"its client reads nothing", true}} {
		t.Run(tc.name, func(t *testing.T) {
			c := connect(t, conn, tc.name)
			send(t, c, xds.Request{Type: xds.ClusterType})
			meshtest.Within(t, 10*time.Second, tc.name, func() error {
				if !slices.Contains(srv.Connected(), tc.name) {
					return errors.New("not connected")
				}
				return nil
			})
			if tc.busy {
				large := resource(t, xds.ClusterType, "a", strings.Repeat("a", 1<<20)) // more than a client's window takes
				srv.Update(xds.Update{Views: map[string]*xds.View{tc.name: {Own: xds.Own(large)}}})
			}
			srv.Disconnect(tc.name, status.Error(codes.Aborted, "its id has become another's"))
			meshtest.Within(t, 10*time.Second, tc.name, func() error {
				if slices.Contains(srv.Connected(), tc.name) {
					return errors.New("still connected")
				}
				return nil
			})
			var err error
			for err == nil {
				_, err = c.Recv()
			}
			if status.Code(err) != codes.Aborted || status.Convert(err).Message() != "its id has become another's" {
				t.Errorf("the client was told %v", err)
			}
		})
	}
}

func TestServerOptionsAreNeeded(t *testing.T) {
	g := grpc.NewServer(grpc.ForceServerCodecV2(xds.Codec()))
	xds.NewServer(xds.Options{}).Register(g)
	c := connect(t, serve(t, g), "web")
	if _, err := c.Recv(); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "ServerOptions") {
		t.Errorf("the client was told %v", err)
	}
}
