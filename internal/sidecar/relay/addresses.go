package relay

import (
	"iter"
	"net/netip"

	"google.golang.org/protobuf/encoding/protowire"
)

// Numbers of the fields that lead from a ClusterLoadAssignment to an address, in Envoy's
// endpoint.proto, endpoint_components.proto and address.proto.
const (
	fieldEndpoints     protowire.Number = 2 // of a ClusterLoadAssignment: localities
	fieldLbEndpoints   protowire.Number = 2 // of a locality
	fieldEndpoint      protowire.Number = 1 // of an LbEndpoint
	fieldAddress       protowire.Number = 1 // of an Endpoint
	fieldSocketAddress protowire.Number = 1 // of an Address
	fieldHost          protowire.Number = 2 // of a SocketAddress
	fieldPort          protowire.Number = 3
)

// addressesIn lists the socket addresses of an encoded ClusterLoadAssignment. It looks at
// nothing else, and ends where the bytes are no message.
func addressesIn(load []byte) iter.Seq[netip.AddrPort] {
	return func(yield func(netip.AddrPort) bool) {
		for group := range messages(load, fieldEndpoints) {
			for lb := range messages(group, fieldLbEndpoints) {
				socket := message(message(message(lb, fieldEndpoint), fieldAddress), fieldSocketAddress)
				if at, ok := socketAddress(socket); ok && !yield(at) {
					return
				}
			}
		}
	}
}

// message is the last payload of a length-delimited field, or nil.
func message(b []byte, field protowire.Number) (last []byte) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil
		}
		b = b[n:]
		v := b
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return nil
		}
		if num == field && typ == protowire.BytesType {
			last, _ = protowire.ConsumeBytes(v)
		}
		b = b[n:]
	}
	return last
}

// messages lists the payloads of a length-delimited field.
func messages(b []byte, field protowire.Number) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for len(b) > 0 {
			num, typ, n := protowire.ConsumeTag(b)
			if n < 0 {
				return
			}
			b = b[n:]
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return
			}
			if num == field && typ == protowire.BytesType {
				if v, _ := protowire.ConsumeBytes(b); !yield(v) {
					return
				}
			}
			b = b[n:]
		}
	}
}

func socketAddress(b []byte) (netip.AddrPort, bool) {
	var port uint64
	var ip netip.Addr
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return netip.AddrPort{}, false
		}
		b = b[n:]
		switch {
		case num == fieldPort && typ == protowire.VarintType:
			port, n = protowire.ConsumeVarint(b)
		case num == fieldHost && typ == protowire.BytesType:
			var host []byte
			host, n = protowire.ConsumeBytes(b)
			ip, _ = netip.ParseAddr(string(host))
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return netip.AddrPort{}, false
		}
		b = b[n:]
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(port)), ip.IsValid()
}
