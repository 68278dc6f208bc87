package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"

	_ "github.com/crossfade-mesh/crossfade/internal/envoy" // all types that a sidecar is sent, to be decoded

	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// inSyncWithin bounds how long all clients may take to have what they ask for.
const inSyncWithin = 3 * time.Minute

// changesEach is how many changes are made, one after the other.
const changesEach = 6

// client is a delta-ADS client on the generated stubs: plaintext, a connection of its own, each
// resource decoded, each response acknowledged.
type client struct {
	node   *corev3.Node
	target string
	told   func(endpoints *endpointv3.ClusterLoadAssignment) // of each that it decodes
}

// run goes on until ctx or the stream ends.
func (c *client) run(ctx context.Context) error {
	conn, err := grpc.NewClient(c.target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	node, asked := c.node, map[string]bool{}
	ask := func(t xds.Type, names ...string) error {
		names = slices.DeleteFunc(names, func(name string) bool {
			known := asked[string(t)+name]
			asked[string(t)+name] = true
			return known
		})
		if len(names) == 0 && t != xds.ClusterType && t != xds.ListenerType {
			return nil
		}
		err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: string(t), ResourceNamesSubscribe: names})
		node = nil
		return err
	}
	for _, t := range []xds.Type{xds.ClusterType, xds.ListenerType} {
		if err := ask(t); err != nil {
			return err
		}
	}
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		names := map[xds.Type][]string{}
		for _, res := range r.Resources {
			m, err := res.GetResource().UnmarshalNew()
			if err != nil {
				return fmt.Errorf("%s: %w", res.GetName(), err)
			}
			switch m := m.(type) {
			case *clusterv3.Cluster:
				if m.GetEdsClusterConfig() != nil {
					names[xds.EndpointType] = append(names[xds.EndpointType], m.GetName())
				}
			case *listenerv3.Listener:
				names[xds.RouteType] = append(names[xds.RouteType], routesOf(m)...)
			case *endpointv3.ClusterLoadAssignment:
				c.told(m)
			}
		}
		if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}); err != nil {
			return err
		}
		for t, of := range names {
			if err := ask(t, of...); err != nil {
				return err
			}
		}
	}
}

// routesOf are the names of the routes that a listener asks for.
func routesOf(l *listenerv3.Listener) (out []string) {
	for _, chain := range append(l.GetFilterChains(), l.GetDefaultFilterChain()) {
		for _, f := range chain.GetFilters() {
			var hcm hcmv3.HttpConnectionManager
			if f.GetTypedConfig().UnmarshalTo(&hcm) == nil && hcm.GetRds() != nil {
				out = append(out, hcm.GetRds().GetRouteConfigName())
			}
		}
	}
	return out
}

// foreign is one endpoint of the service that all call, critical and passing again.
func foreign(ctx context.Context, w *world, l *line) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }()
	type news struct {
		at      time.Time
		healthy int
	}
	told, failed := make(chan news, w.Streams), make(chan error, w.Streams)
	for i := range w.Streams {
		c := &client{
			target: w.mesh.GRPCAddr,
			node: &corev3.Node{
				Id: proxyID(i), Cluster: service(i),
				Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"node_name": structpb.NewStringValue(node(i))}},
			},
			told: func(e *endpointv3.ClusterLoadAssignment) {
				if strings.HasPrefix(e.GetClusterName(), everyone+".") {
					told <- news{time.Now(), healthy(e)}
				}
			},
		}
		wg.Go(func() {
			if err := c.run(ctx); ctx.Err() == nil {
				failed <- err
			}
		})
	}
	// all waits until each has so many healthy endpoints. None is told the same twice.
	all := func(want int) (times []time.Time, err error) {
		limit := time.NewTimer(inSyncWithin)
		defer limit.Stop()
		for len(times) < w.Streams {
			select {
			case n := <-told:
				if n.healthy == want {
					times = append(times, n.at)
				}
			case err := <-failed:
				return times, fmt.Errorf("a stream ended: %w", err)
			case <-limit.C:
				return times, fmt.Errorf("%d of %d have %d endpoints after %v", len(times), w.Streams, want, inSyncWithin)
			case <-ctx.Done():
				return times, ctx.Err()
			}
		}
		return times, nil
	}
	if _, err := all(3); err != nil {
		return err
	}
	before, err := w.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	var took []time.Duration
	for change := range changesEach {
		status, want := "critical", 2
		if change%2 == 1 {
			status, want = "passing", 3
		}
		at := time.Now()
		if err := w.pulse(ctx, everyone+"-0", alive(-1), status); err != nil {
			return err
		}
		times, err := all(want)
		if err != nil {
			return err
		}
		for _, t := range times {
			took = append(took, t.Sub(at))
		}
	}
	after, err := w.cpu()
	slices.Sort(took)
	at := func(q float64) float64 { return took[int(q*float64(len(took)-1))].Seconds() }
	l.Changes, l.Seconds, l.CPU = changesEach, time.Since(began).Seconds(), (after - before).Seconds()
	l.Each, l.P50, l.P99, l.Last = l.CPU/changesEach, at(0.5), at(0.99), at(1)
	return err
}

func healthy(e *endpointv3.ClusterLoadAssignment) (n int) {
	for _, group := range e.GetEndpoints() {
		for _, ep := range group.GetLbEndpoints() {
			if h := ep.GetHealthStatus(); h == corev3.HealthStatus_UNKNOWN || h == corev3.HealthStatus_HEALTHY {
				n++
			}
		}
	}
	return n
}
