package xds

import (
	"context"
	"fmt"
	"sync"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Client is the client's end of one delta ADS stream. Send may be called from
// several goroutines, Recv from one.
type Client struct {
	stream grpc.ClientStream

	mu   sync.Mutex // serialises sends
	node *corev3.Node
}

// Request is what a client says about one type. Nonce answers a response: an ACK,
// or with Error a NACK.
type Request struct {
	Type        Type
	Subscribe   []string
	Unsubscribe []string
	Initial     map[string]string // name -> version held; on the first request of a type only
	Nonce       string
	Error       string
}

// Response is what a server sent, undecoded.
type Response struct {
	Type      Type
	Nonce     string
	Resources []*Resource
	Removed   []string
}

// Connect opens a stream. It ends with ctx.
func Connect(ctx context.Context, conn grpc.ClientConnInterface, node *corev3.Node, opts ...grpc.CallOption) (*Client, error) {
	st, err := conn.NewStream(ctx, &serviceDesc.Streams[0], deltaMethod, append(opts, grpc.ForceCodecV2(Codec()))...)
	if err != nil {
		return nil, fmt.Errorf("open ADS stream: %w", err)
	}
	return &Client{stream: st, node: node}, nil
}

// Send sends one request; the first carries the node.
func (c *Client) Send(r Request) error {
	req := &discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: string(r.Type), ResourceNamesSubscribe: r.Subscribe, ResourceNamesUnsubscribe: r.Unsubscribe,
		InitialResourceVersions: r.Initial, ResponseNonce: r.Nonce,
	}
	if r.Error != "" {
		req.ErrorDetail = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: r.Error}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	req.Node, c.node = c.node, nil
	return c.stream.SendMsg(req)
}

// Admitted waits until the server has taken the stream, after the first Send; an
// error is the server's refusal. Servers of this package say so at once, others with
// their first response.
func (c *Client) Admitted() error {
	header, err := c.stream.Header()
	if err == nil && header == nil { // it has ended without a word of its own
		err = c.stream.RecvMsg(&rawResponse{})
	}
	return err
}

// ended is the error with which the server ended the stream, where it says that; err otherwise.
func (c *Client) ended(err error) error {
	said := c.stream.Trailer().Get(endTrailer)
	end := &rpcstatus.Status{}
	if len(said) == 0 || proto.Unmarshal([]byte(said[0]), end) != nil || end.GetCode() == int32(codes.OK) {
		return err
	}
	return status.FromProto(end).Err()
}

// Recv waits for the next response.
func (c *Client) Recv() (Response, error) {
	raw := &rawResponse{}
	if err := c.stream.RecvMsg(raw); err != nil {
		return Response{}, c.ended(err)
	}
	r, err := parseResponse(raw.bytes)
	if err != nil {
		return Response{}, err
	}
	return Response{Type: r.typ, Nonce: r.nonce, Resources: r.resources, Removed: r.removed}, nil
}
