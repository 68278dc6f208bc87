package meshtest

import (
	"context"
	"net"
	"sync"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// Thief stands between an Envoy and whoever tells it what to run. It can keep responses to
// itself, so that Envoy misses them.
type Thief struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	relay *grpc.ClientConn

	mu   sync.Mutex
	take func(*discoveryv3.DeltaDiscoveryResponse) Verdict // nil: nothing is taken
}

// Verdict is what becomes of a response.
type Verdict int

// The verdicts.
const (
	Pass   Verdict = iota
	Lie            // its sender is told that Envoy has acknowledged it
	Silent         // nobody hears of it again
)

// StartThief listens on one Unix socket for Envoy, and asks another for what Envoy asks for.
func StartThief(t testing.TB, socket, from string) *Thief {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+from, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	th := &Thief{relay: conn}
	lis, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, th)
	go g.Serve(lis)
	t.Cleanup(g.Stop)
	return th
}

// Take decides from now on what becomes of each response, which it may change. It must not block.
func (th *Thief) Take(take func(*discoveryv3.DeltaDiscoveryResponse) Verdict) {
	th.mu.Lock()
	defer th.mu.Unlock()
	th.take = take
}

// Steal takes the next responses of a type, so many. left is how many are still to come.
func (th *Thief) Steal(typ xds.Type, count int, how Verdict) (left func() int) {
	th.Take(func(r *discoveryv3.DeltaDiscoveryResponse) Verdict {
		if r.GetTypeUrl() != string(typ) || count == 0 {
			return Pass
		}
		count--
		return how
	})
	return func() int {
		th.mu.Lock()
		defer th.mu.Unlock()
		return count
	}
}

func (th *Thief) judge(r *discoveryv3.DeltaDiscoveryResponse) Verdict {
	th.mu.Lock()
	defer th.mu.Unlock()
	if th.take == nil {
		return Pass
	}
	return th.take(r)
}

// DeltaAggregatedResources passes on what both sides say.
func (th *Thief) DeltaAggregatedResources(envoy discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	ctx, end := context.WithCancel(envoy.Context())
	defer end()
	relay, err := discoveryv3.NewAggregatedDiscoveryServiceClient(th.relay).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	var sending sync.Mutex
	send := func(r *discoveryv3.DeltaDiscoveryRequest) error {
		sending.Lock()
		defer sending.Unlock()
		return relay.Send(r)
	}
	go func() {
		defer end()
		for {
			r, err := envoy.Recv()
			if err != nil || send(r) != nil {
				return
			}
		}
	}()
	for {
		r, err := relay.Recv()
		if err != nil {
			return err
		}
		switch th.judge(r) {
		case Pass:
			err = envoy.Send(r)
		case Lie:
			err = send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
		case Silent:
		}
		if err != nil {
			return err
		}
	}
}
