package control

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// pushInterval is longer than the time for which a stream gathers changes, so that
// each change is sent at once.
const pushInterval = 40 * time.Millisecond

// streamsEach is how many streams share a connection.
const streamsEach = 50

// audience is clients that hold one shared resource and acknowledge each version.
type audience struct {
	server *xds.Server
	key    xds.Key
	got    chan string // a version, once for each client that received it
}

// listen opens n streams in memory, which subscribe to the same resource, and
// returns when each of them has its first version.
func listen(t testing.TB, n int) *audience {
	t.Helper()
	a := &audience{key: xds.Key{Type: xds.EndpointType, Name: "callee"}, got: make(chan string, 4*n)}
	a.server = xds.NewServer(xds.Options{
		Open: func(_ context.Context, n *corev3.Node) (string, error) { return n.GetId(), nil },
		Log:  slog.New(slog.DiscardHandler),
	})
	g := grpc.NewServer(xds.ServerOptions()...)
	a.server.Register(g)
	lis := bufconn.Listen(1 << 20)
	go g.Serve(lis)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var conns []*grpc.ClientConn
	t.Cleanup(func() {
		cancel()
		for _, c := range conns {
			c.Close()
		}
		g.Stop()
		wg.Wait()
	})
	views := map[string]*xds.View{}
	for i := range n {
		views[fmt.Sprint(i)] = &xds.View{Shared: map[string]struct{}{a.key.Name: {}}}
	}
	a.server.Update(xds.Update{Views: views, Shared: map[xds.Key]*xds.Resource{a.key: a.version(t, []byte("first"))}})
	for i := range n {
		if i%streamsEach == 0 {
			conn, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, conn)
		}
		c, err := xds.Connect(ctx, conns[len(conns)-1], &corev3.Node{Id: fmt.Sprint(i)})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Send(xds.Request{Type: a.key.Type, Subscribe: []string{a.key.Name}}); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for {
				r, err := c.Recv()
				if err != nil {
					return
				}
				for _, res := range r.Resources {
					a.got <- res.Version
				}
				c.Send(xds.Request{Type: r.Type, Nonce: r.Nonce})
			}
		})
	}
	a.await(n, a.version(t, []byte("first")))
	return a
}

func (a *audience) version(t testing.TB, content []byte) *xds.Resource {
	t.Helper()
	r, err := xds.NewResource(a.key.Type, a.key.Name, wrapperspb.Bytes(content))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (a *audience) await(n int, r *xds.Resource) {
	for n > 0 {
		if version := <-a.got; version == r.Version {
			n--
		}
	}
}

// BenchmarkPush: one change of a resource as long as 172 endpoints, until 1,000 streams have it. Clients and
// server share the process.
func BenchmarkPush(b *testing.B) {
	const streams = 1000
	a := listen(b, streams)
	body, err := endpoints(b, fleet(b, 1, 172)).Body()
	if err != nil {
		b.Fatal(err)
	}
	tick := time.NewTicker(pushInterval)
	defer tick.Stop()
	b.ReportAllocs()
	n := 0
	report := cpuTime(b)
	for b.Loop() {
		b.StopTimer()
		n++
		next := a.version(b, fmt.Append(slices.Clip(body), n))
		<-tick.C
		b.StartTimer()
		a.server.Update(xds.Update{Shared: map[xds.Key]*xds.Resource{a.key: next}})
		a.await(streams, next)
	}
	report()
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/streams, "us/stream")
}

// Every stream gets a change once.
func TestAudience(t *testing.T) {
	a := listen(t, 3)
	next := a.version(t, []byte("second"))
	a.server.Update(xds.Update{Shared: map[xds.Key]*xds.Resource{a.key: next}})
	a.await(3, next)
	if settled, total, err := a.server.Settle(t.Context(), a.key); err != nil || settled != 3 || total != 3 {
		t.Errorf("settled %d of %d, %v", settled, total, err)
	}
}
