package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Type is the type URL of an xDS resource.
type Type string

// The types served, named as in Envoy's xDS protocol reference.
const (
	ClusterType   Type = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EndpointType  Type = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	ListenerType  Type = "type.googleapis.com/envoy.config.listener.v3.Listener"
	RouteType     Type = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	ExtensionType Type = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
	SecretType    Type = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	RuntimeType   Type = "type.googleapis.com/envoy.service.runtime.v3.Runtime"
)

// Types lists all types in the order in which they are sent: what is referred to
// comes before what refers to it.
var Types = [...]Type{SecretType, ClusterType, EndpointType, ExtensionType, RouteType, ListenerType, RuntimeType}

// Short is the message's name without its package, as people say it.
func (t Type) Short() string {
	s := string(t)
	return s[strings.LastIndexByte(s, '.')+1:]
}

// ParseShort is the type whose [Type.Short] is s, or whose URL it is.
func ParseShort(s string) (Type, bool) {
	for _, t := range Types {
		if strings.EqualFold(t.Short(), s) || string(t) == s {
			return t, true
		}
	}
	return "", false
}

// wildcard reports whether Envoy subscribes to the type as a whole rather than by name.
func (t Type) wildcard() bool { return t == ClusterType || t == ListenerType }

// Resource is one named Envoy resource in its wire form. Immutable: streams
// share its bytes, and nothing is encoded again for a further stream.
type Resource struct {
	Type Type
	Name string
	// Version is a hash of type and content: equal content has an equal version on
	// every server, after every restart and through every relay.
	Version string

	// wire is the field "resources" of a DeltaDiscoveryResponse: tag, length and
	// the discovery Resource message, which rest continues.
	wire []byte
	rest *Rest // nil: there is no more
	// endpoints is the name of the endpoint resource that a cluster has, if it has
	// one; empty for other types.
	endpoints string
}

// Numbers of the fields in envoy/service/discovery/v3/discovery.proto,
// envoy/config/cluster/v3/cluster.proto and google/protobuf/any.proto.
const (
	fieldResourceVersion = 1
	fieldResourceBody    = 2
	fieldResourceName    = 3

	fieldEDS            = 3 // eds_cluster_config of a Cluster
	fieldEDSServiceName = 2

	fieldAnyType  = 1
	fieldAnyValue = 2

	fieldResponseVersion   = 1
	fieldResponseResources = 2
	fieldResponseType      = 4
	fieldResponseNonce     = 5
	fieldResponseRemoved   = 6
)

// versionLength is that of a version: the first 8 bytes of a hash, in hexadecimal.
const versionLength = 16

// Rest is what several resources have in common, in its wire form: all that follows on the fields that are
// their own. Immutable.
type Rest struct{ bytes []byte }

// NewRest encodes m, whose fields have higher numbers than those that the resources are to have for themselves.
func NewRest(m proto.Message) (*Rest, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("%s: encode: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return &Rest{b}, nil
}

// Bytes are not to be changed; nil has none.
func (r *Rest) Bytes() []byte {
	if r == nil {
		return nil
	}
	return r.bytes
}

// NewResource encodes and hashes body, once.
func NewResource(t Type, name string, body proto.Message) (*Resource, error) {
	return NewResourceOf(t, name, body, nil)
}

// NewResourceOf is [NewResource] of a body of which a part is encoded already: own has the other fields. It is the same as
// if it had been encoded whole.
func NewResourceOf(t Type, name string, own proto.Message, rest *Rest) (*Resource, error) {
	options := proto.MarshalOptions{Deterministic: true}
	ownSize := options.Size(own)
	options.UseCachedSize = true
	size := ownSize + len(rest.Bytes())
	anySize := protowire.SizeTag(fieldAnyType) + protowire.SizeBytes(len(t)) + protowire.SizeTag(fieldAnyValue) + protowire.SizeBytes(size)
	total := protowire.SizeTag(fieldResourceVersion) + protowire.SizeBytes(versionLength) +
		protowire.SizeTag(fieldResourceName) + protowire.SizeBytes(len(name)) +
		protowire.SizeTag(fieldResourceBody) + protowire.SizeBytes(anySize)

	b := make([]byte, 0, protowire.SizeTag(fieldResponseResources)+protowire.SizeBytes(total)-size+ownSize)
	b = protowire.AppendTag(b, fieldResponseResources, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(total))
	b = protowire.AppendTag(b, fieldResourceVersion, protowire.BytesType)
	b = protowire.AppendVarint(b, versionLength)
	at := len(b)
	b = append(b, make([]byte, versionLength)...) // filled in below, when the body is there to be hashed
	b = protowire.AppendTag(b, fieldResourceName, protowire.BytesType)
	b = protowire.AppendString(b, name)
	b = protowire.AppendTag(b, fieldResourceBody, protowire.BytesType) // last, as rest follows
	b = protowire.AppendVarint(b, uint64(anySize))
	b = protowire.AppendTag(b, fieldAnyType, protowire.BytesType)
	b = protowire.AppendString(b, string(t))
	b = protowire.AppendTag(b, fieldAnyValue, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	begin := len(b)
	b, err := options.MarshalAppend(b, own)
	if err == nil && len(b)-begin != ownSize {
		err = fmt.Errorf("it has %d bytes in place of %d: it was changed meanwhile", len(b)-begin, ownSize)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %q: encode: %w", t.Short(), name, err)
	}
	h := sha256.New()
	h.Write([]byte(t))
	h.Write([]byte{0})
	h.Write(b[begin:])
	h.Write(rest.Bytes())
	hex.Encode(b[at:at+versionLength], h.Sum(nil)[:versionLength/2])
	texts := string(b[at:at+versionLength]) + name // one object in place of two
	r := &Resource{Type: t, Name: texts[versionLength:], Version: texts[:versionLength], wire: b, rest: rest}
	return r, r.findEndpoints()
}

// whole is wire with what continues it.
func (r *Resource) whole() []byte {
	if r.rest == nil {
		return r.wire
	}
	return slices.Concat(r.wire, r.rest.bytes)
}

// findEndpoints notes which endpoints a cluster has, by its encoded message.
func (r *Resource) findEndpoints() error {
	if r.Type != ClusterType {
		return nil
	}
	body, err := r.Body()
	if err != nil {
		return err
	}
	r.endpoints = r.Name
	err = fields(body, func(num protowire.Number, eds []byte) error {
		if num != fieldEDS {
			return nil
		}
		return fields(eds, func(num protowire.Number, v []byte) error {
			if num == fieldEDSServiceName && len(v) > 0 {
				r.endpoints = string(v)
			}
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("%s %q: %w", r.Type.Short(), r.Name, err)
	}
	return nil
}

var errMalformed = errors.New("malformed protobuf")

// fields calls f for each field of an encoded message; v is the payload of a
// length-delimited field and nil for any other.
func fields(b []byte, f func(num protowire.Number, v []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errMalformed
		}
		b = b[n:]
		var v []byte
		if typ == protowire.BytesType {
			v, n = protowire.ConsumeBytes(b)
			if v == nil {
				v = []byte{}
			}
		} else {
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return errMalformed
		}
		if err := f(num, v); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// parseResource reads the payload of one "resources" field. The version is the
// sender's. The bytes are kept, not copied.
func parseResource(t Type, payload []byte) (*Resource, error) {
	r := &Resource{Type: t}
	err := fields(payload, func(num protowire.Number, v []byte) error {
		switch num {
		case fieldResourceName:
			r.Name = string(v)
		case fieldResourceVersion:
			r.Version = string(v)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.Short(), err)
	}
	if r.Name == "" {
		return nil, fmt.Errorf("%s: resource without a name", t.Short())
	}
	r.wire = make([]byte, 0, 1+protowire.SizeBytes(len(payload)))
	r.wire = protowire.AppendTag(r.wire, fieldResponseResources, protowire.BytesType)
	r.wire = protowire.AppendBytes(r.wire, payload)
	return r, r.findEndpoints()
}

// Body is the encoded resource message itself (a Cluster, a Listener, …).
func (r *Resource) Body() ([]byte, error) {
	var body []byte
	err := fields(r.whole(), func(_ protowire.Number, res []byte) error {
		return fields(res, func(num protowire.Number, v []byte) error {
			if num != fieldResourceBody {
				return nil
			}
			return fields(v, func(num protowire.Number, v []byte) error {
				if num == fieldAnyValue {
					body = v
				}
				return nil
			})
		})
	})
	if err != nil {
		return nil, fmt.Errorf("%s %q: %w", r.Type.Short(), r.Name, err)
	}
	return body, nil
}

// Renamed is the same content under another name, with the same version.
func (r *Resource) Renamed(name string) (*Resource, error) {
	body, err := r.Body()
	if err != nil {
		return nil, err
	}
	wrapped := protowire.AppendTag(nil, fieldAnyType, protowire.BytesType)
	wrapped = protowire.AppendString(wrapped, string(r.Type))
	wrapped = protowire.AppendTag(wrapped, fieldAnyValue, protowire.BytesType)
	wrapped = protowire.AppendBytes(wrapped, body)
	inner := protowire.AppendTag(nil, fieldResourceVersion, protowire.BytesType)
	inner = protowire.AppendString(inner, r.Version)
	inner = protowire.AppendTag(inner, fieldResourceBody, protowire.BytesType)
	inner = protowire.AppendBytes(inner, wrapped)
	inner = protowire.AppendTag(inner, fieldResourceName, protowire.BytesType)
	inner = protowire.AppendString(inner, name)
	out := *r
	out.Name, out.rest = name, nil
	out.wire = protowire.AppendBytes(protowire.AppendTag(nil, fieldResponseResources, protowire.BytesType), inner)
	return &out, nil
}

// SparePrefix begins the names of resources that no Envoy asks for: what a relay puts in the
// place of those named after it when it goes back to old ways by itself.
const SparePrefix = "revert~"

// Endpoints is the name of the endpoint resource that a cluster has, or "".
func (r *Resource) Endpoints() string { return r.endpoints }

// Size is the number of bytes the resource takes in a response.
func (r *Resource) Size() int { return len(r.wire) + len(r.rest.Bytes()) }
