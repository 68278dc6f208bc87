package xds

import (
	"errors"

	"google.golang.org/protobuf/encoding/protowire"
)

// AppendRecord appends resources of one type to b, in a form that [ParseRecords]
// reads: a length and a DeltaDiscoveryResponse.
func AppendRecord(b []byte, t Type, list []*Resource) []byte {
	var msg []byte
	msg = protowire.AppendTag(msg, fieldResponseType, protowire.BytesType)
	msg = protowire.AppendString(msg, string(t))
	for _, res := range list {
		msg = append(msg, res.wire...)
	}
	return protowire.AppendBytes(b, msg)
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
