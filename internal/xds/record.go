package xds

import (
	"errors"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
)

// AppendRecord appends resources of one type to b, in a form that [ParseRecords]
// reads: a length and a DeltaDiscoveryResponse.
func AppendRecord(b []byte, t Type, list []*Resource) []byte {
	b = append(b, recordHead(t, list)...)
	for _, res := range list {
		b = append(append(b, res.wire...), res.rest.Bytes()...)
	}
	return b
}

// WriteRecord writes what [AppendRecord] appends.
func WriteRecord(w io.Writer, t Type, list []*Resource) error {
	if _, err := w.Write(recordHead(t, list)); err != nil {
		return err
	}
	for _, res := range list {
		for _, part := range [][]byte{res.wire, res.rest.Bytes()} {
			if _, err := w.Write(part); err != nil {
				return err
			}
		}
	}
	return nil
}

// recordHead is what stands before the resources.
func recordHead(t Type, list []*Resource) []byte {
	size := protowire.SizeTag(fieldResponseType) + protowire.SizeBytes(len(t))
	for _, res := range list {
		size += res.Size()
	}
	b := protowire.AppendVarint(nil, uint64(size))
	b = protowire.AppendTag(b, fieldResponseType, protowire.BytesType)
	return protowire.AppendString(b, string(t))
}

// ParseRecords reads what [AppendRecord] wrote. Resources point into b.
func ParseRecords(b []byte) ([]*Resource, error) {
	var out []*Resource
	for len(b) > 0 {
		msg, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return nil, errors.New("record cut short")
		}
		b = b[n:]
		r, err := parseResponse(msg)
		if err != nil {
			return nil, err
		}
		out = append(out, r.resources...)
	}
	return out, nil
}
