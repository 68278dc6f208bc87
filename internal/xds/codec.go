package xds

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that ours falls back to
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// codec encodes a response as a small head of its own followed by the shared,
// already encoded resources, and hands received responses over undecoded. All
// other messages take the ordinary protobuf codec.
type codec struct{ encoding.CodecV2 }

// Codec is for [google.golang.org/grpc.ForceCodecV2] of a client, and part of [ServerOptions].
func Codec() encoding.CodecV2 { return codec{encoding.GetCodecV2("proto")} }

// rawResponse is a received DeltaDiscoveryResponse, not decoded.
type rawResponse struct{ bytes []byte }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	r, ok := v.(*response)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	head := make([]byte, 0, 64+len(r.typ))
	head = protowire.AppendTag(head, fieldResponseType, protowire.BytesType)
	head = protowire.AppendString(head, string(r.typ))
	head = protowire.AppendTag(head, fieldResponseNonce, protowire.BytesType)
	head = protowire.AppendString(head, r.nonce)
	for _, name := range r.removed {
		head = protowire.AppendTag(head, fieldResponseRemoved, protowire.BytesType)
		head = protowire.AppendString(head, name)
	}
	out := make(mem.BufferSlice, 0, 1+2*len(r.resources))
	out = append(out, mem.SliceBuffer(head))
	for _, res := range r.resources {
		out = append(out, mem.SliceBuffer(res.wire))
		if res.rest != nil {
			out = append(out, mem.SliceBuffer(res.rest.bytes))
		}
	}
	return out, nil
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if raw, ok := v.(*rawResponse); ok {
		raw.bytes = data.Materialize()
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

// parseResponse takes a received response apart. Resources keep pointing into its bytes.
func parseResponse(raw []byte) (*response, error) {
	r := &response{}
	var bodies [][]byte
	err := fields(raw, func(num protowire.Number, v []byte) error {
		switch num {
		case fieldResponseType:
			r.typ = Type(v)
		case fieldResponseNonce:
			r.nonce = string(v)
		case fieldResponseRemoved:
			r.removed = append(r.removed, string(v))
		case fieldResponseResources:
			bodies = append(bodies, v)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("discovery response: %w", err)
	}
	for _, b := range bodies {
		res, err := parseResource(r.typ, b)
		if err != nil {
			return nil, fmt.Errorf("discovery response: %w", err)
		}
		r.resources = append(r.resources, res)
	}
	return r, nil
}
