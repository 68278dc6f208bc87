package envoy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Type URLs of resources that others refer to by name.
const (
	endpointURL  = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	routeURL     = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	extensionURL = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
)

// Reference names a resource that another one needs.
type Reference struct {
	Type string // type URL
	Name string
}

// References lists, in order, the endpoints, routes and extensions that an encoded
// resource makes Envoy ask for. Secrets are left out: they don't come from a server.
func References(typeURL string, body []byte) ([]Reference, error) {
	m, err := (&anypb.Any{TypeUrl: typeURL, Value: body}).UnmarshalNew()
	if err != nil {
		return nil, fmt.Errorf("resource of type %q: %w", typeURL, err)
	}
	var out []Reference
	switch m := m.(type) {
	case *clusterv3.Cluster:
		if m.GetType() == clusterv3.Cluster_EDS {
			name := m.GetEdsClusterConfig().GetServiceName()
			if name == "" {
				name = m.GetName()
			}
			out = append(out, Reference{endpointURL, name})
		}
	case *listenerv3.Listener:
		for _, chain := range chains(m) {
			for _, f := range chain.GetFilters() {
				if f.GetConfigDiscovery() != nil {
					out = append(out, Reference{extensionURL, f.GetName()})
				}
				hcm := &hcmv3.HttpConnectionManager{}
				if c := f.GetTypedConfig(); c.MessageIs(hcm) {
					if err := c.UnmarshalTo(hcm); err != nil {
						return nil, fmt.Errorf("listener %q: filter %q: %w", m.GetName(), f.GetName(), err)
					}
					if name := hcm.GetRds().GetRouteConfigName(); name != "" {
						out = append(out, Reference{routeURL, name})
					}
				}
			}
		}
	}
	return out, nil
}

// JSON is an encoded resource in JSON, as Envoy's documentation writes it.
func JSON(typeURL string, body []byte) (json.RawMessage, error) {
	m, err := (&anypb.Any{TypeUrl: typeURL, Value: body}).UnmarshalNew()
	if err != nil {
		return nil, fmt.Errorf("resource of type %q: %w", typeURL, err)
	}
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("resource of type %q: %w", typeURL, err)
	}
	var out bytes.Buffer // protojson varies its white space on purpose
	if err := json.Compact(&out, b); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// ResourcesJSON is what a sidecar is told, but for secrets, as one JSON object with
// a sorted list per type.
func ResourcesJSON(r Resources, endpoints []*endpointv3.ClusterLoadAssignment) ([]byte, error) {
	var errs []error
	list := func(n int, at func(int) proto.Message) []json.RawMessage {
		out := make([]json.RawMessage, 0, n)
		for i := range n {
			b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(at(i))
			errs = append(errs, err)
			out = append(out, b)
		}
		return out
	}
	doc := struct {
		Clusters   []json.RawMessage `json:"clusters"`
		Endpoints  []json.RawMessage `json:"endpoints"`
		Listeners  []json.RawMessage `json:"listeners"`
		Routes     []json.RawMessage `json:"routes"`
		Extensions []json.RawMessage `json:"extensions"`
		Runtimes   []json.RawMessage `json:"runtimes"`
	}{
		list(len(r.Clusters), func(i int) proto.Message { return r.Clusters[i] }),
		list(len(endpoints), func(i int) proto.Message { return endpoints[i] }),
		list(len(r.Listeners), func(i int) proto.Message { return r.Listeners[i] }),
		list(len(r.Routes), func(i int) proto.Message { return r.Routes[i] }),
		list(len(r.Extensions), func(i int) proto.Message { return r.Extensions[i] }),
		list(len(r.Runtimes), func(i int) proto.Message { return r.Runtimes[i] }),
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetIndent("", "  ")
	if err := e.Encode(doc); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
