package drift

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// thief stands between an Envoy and its relay. It can keep responses to itself.
type thief struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	relay *grpc.ClientConn

	mu   sync.Mutex
	take func(*discoveryv3.DeltaDiscoveryResponse) verdict // nil: nothing is taken
}

// verdict is what becomes of a response.
type verdict int

const (
	pass   verdict = iota
	lie            // the relay is told that Envoy has acknowledged it
	silent         // nobody hears of it again
)

// startThief listens in a folder; Envoy is to use the socket that is returned.
func startThief(t *testing.T, dir, relaySocket string) (*thief, string) {
	conn, err := grpc.NewClient("unix:"+relaySocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	th := &thief{relay: conn}
	socket := filepath.Join(dir, "thief.sock")
	lis, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, th)
	go g.Serve(lis)
	t.Cleanup(g.Stop)
	return th, socket
}

// steal takes the next count responses of a type for which of says so.
func (th *thief) steal(typ xds.Type, count int, how verdict) (left func() int) {
	th.mu.Lock()
	defer th.mu.Unlock()
	th.take = func(r *discoveryv3.DeltaDiscoveryResponse) verdict {
		if r.GetTypeUrl() != string(typ) || count == 0 {
			return pass
		}
		count--
		return how
	}
	return func() int {
		th.mu.Lock()
		defer th.mu.Unlock()
		return count
	}
}

// spoil changes the next response of a type so that Envoy will refuse it.
func (th *thief) spoil(typ xds.Type, how func(*discoveryv3.DeltaDiscoveryResponse)) {
	th.mu.Lock()
	defer th.mu.Unlock()
	done := false
	th.take = func(r *discoveryv3.DeltaDiscoveryResponse) verdict {
		if r.GetTypeUrl() == string(typ) && !done {
			done = true
			how(r)
		}
		return pass
	}
}

func (th *thief) judge(r *discoveryv3.DeltaDiscoveryResponse) verdict {
	th.mu.Lock()
	defer th.mu.Unlock()
	if th.take == nil {
		return pass
	}
	return th.take(r)
}

// DeltaAggregatedResources passes on what both sides say.
func (th *thief) DeltaAggregatedResources(envoy discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
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
		case pass:
			err = envoy.Send(r)
		case lie:
			err = send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
		case silent:
		}
		if err != nil {
			return err
		}
	}
}
