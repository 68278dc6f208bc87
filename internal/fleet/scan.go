package fleet

import (
	"encoding/hex"
	"errors"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// kind is a type of resource, in the order in which an Envoy asks for them.
type kind uint8

const (
	clusters kind = iota
	endpoints
	listeners
	routes
	extensions
	runtimes
	kinds
)

var typeOf = [kinds]xds.Type{xds.ClusterType, xds.EndpointType, xds.ListenerType, xds.RouteType, xds.ExtensionType, xds.RuntimeType}

func kindOf(t []byte) (kind, bool) {
	for k, typ := range typeOf {
		if string(t) == string(typ) {
			return kind(k), true
		}
	}
	return 0, false
}

var errMalformed = errors.New("malformed protobuf")

// fields calls f for each length-delimited field of an encoded message.
func fields(b []byte, f func(num protowire.Number, v []byte)) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errMalformed
		}
		b = b[n:]
		if typ == protowire.BytesType {
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return errMalformed
			}
			f(num, v)
			b = b[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return errMalformed
		}
		b = b[n:]
	}
	return nil
}

// walk calls f for what stands at the end of each path of fields from b. What is not a message on
// the way is passed over: an Any may hold something else.
func walk(b []byte, f func([]byte), path ...protowire.Number) {
	if len(path) == 0 {
		f(b)
		return
	}
	_ = fields(b, func(num protowire.Number, v []byte) {
		if num == path[0] {
			walk(v, f, path[1:]...)
		}
	})
}

// Numbers of fields in envoy/service/discovery/v3/discovery.proto and google/protobuf/any.proto.
const (
	responseResources, responseType, responseNonce, responseRemoved = 2, 4, 5, 6
	resourceVersion, resourceBody, resourceName                     = 1, 2, 3
	anyValue                                                        = 2
)

// response is what a sidecar looks at of a DeltaDiscoveryResponse.
type response struct {
	kind      kind
	known     bool
	nonce     []byte
	resources [][]byte // encoded Resource messages
	removed   [][]byte // names
}

// parse fills r from a message, whose bytes it keeps.
func (r *response) parse(message []byte) error {
	*r = response{resources: r.resources[:0], removed: r.removed[:0]}
	return fields(message, func(num protowire.Number, v []byte) {
		switch num {
		case responseType:
			r.kind, r.known = kindOf(v)
		case responseNonce:
			r.nonce = v
		case responseResources:
			r.resources = append(r.resources, v)
		case responseRemoved:
			r.removed = append(r.removed, v)
		}
	})
}

// resource is one of them: name, version and encoded body.
func resource(b []byte) (name []byte, version uint64, body []byte, err error) {
	err = fields(b, func(num protowire.Number, v []byte) {
		switch num {
		case resourceName:
			name = v
		case resourceVersion:
			version = number(v)
		case resourceBody:
			walk(v, func(v []byte) { body = v }, anyValue)
		}
	})
	return name, version, body, err
}

// number reads a version, which is 16 hexadecimal digits.
func number(version []byte) (n uint64) {
	var b [8]byte
	if len(version) != 2*len(b) {
		return 0
	}
	if _, err := hex.Decode(b[:], version); err != nil {
		return 0
	}
	for _, c := range b {
		n = n<<8 | uint64(c)
	}
	return n
}

// appendNumber writes what number reads.
func appendNumber(b []byte, n uint64) []byte {
	for shift := 56; shift >= 0; shift -= 8 {
		b = hex.AppendEncode(b, []byte{byte(n >> shift)})
	}
	return b
}

// Numbers of fields in envoy/config/cluster/v3/cluster.proto and envoy/config/listener/v3/listener.proto
// and what they refer to, down to the names of further resources.
var (
	edsConfig    = []protowire.Number{3}
	edsName      = []protowire.Number{2}
	filterChains = []protowire.Number{3, 25} // filter_chains, default_filter_chain
	filters      = []protowire.Number{3}
	filterName   = []protowire.Number{1}
	discovered   = []protowire.Number{5}    // config_discovery, of network and of HTTP filters
	typedConfig  = []protowire.Number{4, 2} // and in it the Any's value
	routeName    = []protowire.Number{3, 2} // rds, route_config_name
	httpFilters  = []protowire.Number{5}
)

// referred calls f with the names of further resources that one refers to.
func referred(k kind, name, body []byte, f func(kind, []byte)) {
	switch k {
	case clusters:
		walk(body, func(eds []byte) {
			service := name
			walk(eds, func(v []byte) { service = v }, edsName...)
			f(endpoints, service)
		}, edsConfig...)
	case listeners:
		for _, chains := range filterChains {
			walk(body, func(filter []byte) {
				extension(filter, f)
				walk(filter, func(manager []byte) {
					walk(manager, func(name []byte) { f(routes, name) }, routeName...)
					walk(manager, func(filter []byte) { extension(filter, f) }, httpFilters...)
				}, typedConfig...)
			}, append([]protowire.Number{chains}, filters...)...)
		}
	}
}

// extension reports a filter that comes by itself, under its own name.
func extension(filter []byte, f func(kind, []byte)) {
	var name []byte
	walk(filter, func(v []byte) { name = v }, filterName...)
	walk(filter, func([]byte) { f(extensions, name) }, discovered...)
}
