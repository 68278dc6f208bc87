package envoy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// xdsCluster is the control plane's name in a bootstrap; Consul's for the same thing.
const xdsCluster = "local_agent"

// adminSocketMode lets nobody but the owner at Envoy's admin interface.
const adminSocketMode = 0o600

// How long Envoy waits, at first and at most, before it asks again for a control
// plane that is not there. Reconnects are cheap: nothing equal is sent twice.
const (
	xdsRetryBase = 100 * time.Millisecond
	xdsRetryMax  = 2 * time.Second
)

// statsFlush is how often Envoy adds latencies up, before which nobody can read them.
const statsFlush = 500 * time.Millisecond

// BootstrapOptions say who an Envoy is and whom it asks.
type BootstrapOptions struct {
	NodeID   string // the connect-proxy's service ID
	NodeName string // the catalog node that it is registered on; may be empty
	Service  string // that the proxy stands for
	// Datacenter becomes a label of every stat; may be empty.
	Datacenter string
	// StatsTags are further labels of every stat, each "name=value".
	StatsTags []string

	// Exactly one of XDSSocket, the path of a Unix socket, and XDSAddress, "ip:port"
	// or "host:port" without TLS, is where the control plane is. Not read by
	// [StaticBootstrap].
	XDSSocket  string
	XDSAddress string

	// At most one of AdminSocket, the path of a Unix socket made with mode 0600, and
	// AdminAddress, "ip:port", is where the admin interface is.
	AdminSocket  string
	AdminAddress string

	// MaxDownstreamConnections over all listeners; 0: no limit. It should be less
	// than half of the file descriptors that Envoy may open. With MaxHeapBytes they are
	// [ConnectionLimit] at most.
	MaxDownstreamConnections int64
	// MaxHeapBytes is the heap above which Envoy sheds load; 0: no limit. See [HeapLimit].
	MaxHeapBytes int64
}

// Bootstrap is what an Envoy starts with when the rest comes over ADS, as JSON. It
// holds no secret.
func Bootstrap(o BootstrapOptions) ([]byte, error) {
	boot, err := o.common()
	if err != nil {
		return nil, err
	}
	cluster, err := o.xdsCluster()
	if err != nil {
		return nil, err
	}
	boot.StaticResources = &bootstrapv3.Bootstrap_StaticResources{Clusters: []*clusterv3.Cluster{cluster}}
	boot.DynamicResources = &bootstrapv3.Bootstrap_DynamicResources{
		LdsConfig: ads(),
		CdsConfig: ads(),
		AdsConfig: &corev3.ApiConfigSource{
			ApiType:                   corev3.ApiConfigSource_DELTA_GRPC,
			TransportApiVersion:       corev3.ApiVersion_V3,
			SetNodeOnFirstMessageOnly: true,
			GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
				ClusterName: xdsCluster,
				RetryPolicy: &corev3.RetryPolicy{RetryBackOff: &corev3.BackoffStrategy{
					BaseInterval: duration(xdsRetryBase), MaxInterval: duration(xdsRetryMax),
				}},
			}}}},
		},
	}
	boot.LayeredRuntime.Layers = append(boot.LayeredRuntime.Layers,
		&bootstrapv3.RuntimeLayer{Name: RuntimeName, LayerSpecifier: &bootstrapv3.RuntimeLayer_RtdsLayer_{
			RtdsLayer: &bootstrapv3.RuntimeLayer_RtdsLayer{Name: RuntimeName, RtdsConfig: ads()},
		}},
		adminLayer(),
	)
	return marshal(boot)
}

// common is what both kinds of bootstrap have: node, admin, stats, overload.
func (o BootstrapOptions) common() (*bootstrapv3.Bootstrap, error) {
	if o.NodeID == "" {
		return nil, errors.New("bootstrap: node ID is empty")
	}
	boot := &bootstrapv3.Bootstrap{
		Node:               &corev3.Node{Id: o.NodeID, Cluster: o.Service, Metadata: o.metadata()},
		StatsConfig:        statsConfig(o.Service, o.Datacenter, o.StatsTags),
		StatsFlushInterval: duration(statsFlush),
		LayeredRuntime:     &bootstrapv3.LayeredRuntime{},
	}
	if o.AdminSocket != "" && o.AdminAddress != "" {
		return nil, fmt.Errorf("bootstrap %q: both an admin socket and an admin address: choose one", o.NodeID)
	}
	if o.AdminSocket != "" {
		boot.Admin = &bootstrapv3.Admin{Address: pipeAddress(o.AdminSocket, adminSocketMode)}
	}
	if o.AdminAddress != "" {
		host, port, err := splitAddress(o.AdminAddress)
		if err != nil {
			return nil, fmt.Errorf("bootstrap %q: admin: %w", o.NodeID, err)
		}
		boot.Admin = &bootstrapv3.Admin{Address: socketAddress(host, port)}
	}
	b := &builder{}
	o.overload(boot, b)
	if b.err != nil {
		return nil, fmt.Errorf("bootstrap %q: %w", o.NodeID, b.err)
	}
	return boot, nil
}

func (o BootstrapOptions) metadata() *structpb.Struct {
	fields := map[string]*structpb.Value{"namespace": structpb.NewStringValue("default"), "partition": structpb.NewStringValue("default")}
	if o.NodeName != "" {
		fields["node_name"] = structpb.NewStringValue(o.NodeName)
	}
	return &structpb.Struct{Fields: fields}
}

func (o BootstrapOptions) xdsCluster() (*clusterv3.Cluster, error) {
	if (o.XDSSocket == "") == (o.XDSAddress == "") {
		return nil, fmt.Errorf("bootstrap %q: want exactly one of an xDS socket and an xDS address", o.NodeID)
	}
	address, kind := pipeAddress(o.XDSSocket, 0), clusterv3.Cluster_STATIC
	if o.XDSAddress != "" {
		host, port, err := splitAddress(o.XDSAddress)
		if err != nil {
			return nil, fmt.Errorf("bootstrap %q: xDS: %w", o.NodeID, err)
		}
		if _, err := netip.ParseAddr(host); err != nil {
			kind = clusterv3.Cluster_STRICT_DNS
		}
		address = socketAddress(host, port)
	}
	b := &builder{}
	cluster := &clusterv3.Cluster{
		Name:                 xdsCluster,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: kind},
		ConnectTimeout:       seconds(1),
		LoadAssignment:       oneEndpoint(xdsCluster, address),
		TypedExtensionProtocolOptions: b.httpOptions(&httpv3.HttpProtocolOptions{UpstreamProtocolOptions: explicitHTTP2(&corev3.Http2ProtocolOptions{
			ConnectionKeepalive: &corev3.KeepaliveSettings{Interval: seconds(30), Timeout: seconds(5)},
		})}),
	}
	if b.err != nil {
		return nil, fmt.Errorf("bootstrap %q: %w", o.NodeID, b.err)
	}
	return cluster, nil
}

// adminLayer lets an operator override runtime by hand. The last layer wins.
func adminLayer() *bootstrapv3.RuntimeLayer {
	return &bootstrapv3.RuntimeLayer{Name: "admin", LayerSpecifier: &bootstrapv3.RuntimeLayer_AdminLayer_{AdminLayer: &bootstrapv3.RuntimeLayer_AdminLayer{}}}
}

// splitAddress parts "host:port", where an IPv6 address stands in brackets.
func splitAddress(s string) (string, int, error) {
	i := strings.LastIndexByte(s, ':')
	if i <= 0 {
		return "", 0, fmt.Errorf("address %q: want host:port", s)
	}
	host := s[:i]
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		host = host[1 : len(host)-1]
	} else if strings.Contains(host, ":") {
		return "", 0, fmt.Errorf("address %q: write an IPv6 address in brackets", s)
	}
	port, err := strconv.ParseUint(s[i+1:], 10, 16)
	if err != nil || port == 0 {
		return "", 0, fmt.Errorf("address %q: want a port from 1 to 65535", s)
	}
	return host, int(port), nil
}

// marshal writes m as JSON that is the same every time: protojson varies its white space.
func marshal(m proto.Message) ([]byte, error) {
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "  "); err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}
