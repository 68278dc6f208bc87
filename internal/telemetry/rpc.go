package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Server takes reports in. The first two fields are required.
type Server struct {
	// Admit says who is at the other end, by the node and the sidecar that it says it is. An
	// error ends the stream.
	Admit func(ctx context.Context, node, sidecar string) (Key, error)
	// Take is given every report that is within bounds.
	Take func(Key, Report, time.Time)
	// Pulse is given what a report says of checks. An error ends the stream: the registry has lost
	// the instance, or it is another's. nil: they are not pulsed here.
	Pulse func(Key, Alive) error
	// Connections is given what a report says of them. nil: nothing takes it here.
	Connections func(Key, Connections) error
}

// takes is the header, sent with the first answer, in which a server says what reports to it may
// hold besides counts. Others ignore that.
const (
	takes            = "crossfade-takes"
	takesAlive       = "alive"
	takesConnections = "connections"
)

// Register adds the service to a gRPC server.
func (s *Server) Register(g *grpc.Server) { g.RegisterService(&serviceDesc, s) }

var serviceDesc = grpc.ServiceDesc{
	ServiceName: "crossfade.telemetry.v1.TelemetryService",
	HandlerType: (*any)(nil),
	Streams: []grpc.StreamDesc{{StreamName: "Report", ServerStreams: true, ClientStreams: true, Handler: func(srv any, gs grpc.ServerStream) error {
		return srv.(*Server).serve(gs)
	}}},
}

// leastBetween is how often a sidecar may report in the long run; reportBurst at once.
const (
	leastBetween = 200 * time.Millisecond
	reportBurst  = 20
)

// serve reads "node/sidecar" first, then reports, and answers each with its number.
func (s *Server) serve(gs grpc.ServerStream) error {
	var hello wrapperspb.StringValue
	if err := gs.RecvMsg(&hello); err != nil {
		return err
	}
	node, sidecar, ok := cut(hello.GetValue())
	if !ok {
		return status.Error(codes.InvalidArgument, "telemetry: the first message names the node and the sidecar")
	}
	key, err := s.Admit(gs.Context(), node, sidecar)
	if err != nil {
		return err
	}
	also := metadata.MD{}
	if s.Pulse != nil {
		also.Append(takes, takesAlive)
	}
	if s.Connections != nil {
		also.Append(takes, takesConnections)
	}
	if err := gs.SetHeader(also); err != nil {
		return err
	}
	var full time.Time
	for {
		var m wrapperspb.BytesValue
		if err := gs.RecvMsg(&m); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		now := time.Now()
		if full.Before(now) {
			full = now
		}
		if full = full.Add(leastBetween); full.Sub(now) > reportBurst*leastBetween {
			return status.Errorf(codes.ResourceExhausted, "telemetry of sidecar %q: more than %d reports at once: send one a second", sidecar, reportBurst)
		}
		r, err := Decode(m.GetValue())
		if err != nil {
			return status.Errorf(codes.InvalidArgument, "telemetry of sidecar %q: %v", sidecar, err)
		}
		if s.Pulse != nil && r.Alive != nil {
			if err := s.Pulse(key, *r.Alive); err != nil {
				return err
			}
		}
		if s.Connections != nil && r.Connections != nil {
			if err := s.Connections(key, *r.Connections); err != nil {
				return status.Errorf(codes.InvalidArgument, "telemetry of sidecar %q: %v", sidecar, err)
			}
		}
		s.Take(key, r, now)
		if err := gs.SendMsg(wrapperspb.UInt64(r.Seq)); err != nil {
			return err
		}
	}
}

// Client is a sidecar's end of a stream.
type Client struct {
	stream grpc.ClientStream
	takes  []string // nil before the first answer
}

// Connect opens a stream, which ends with ctx.
func Connect(ctx context.Context, conn grpc.ClientConnInterface, node, sidecar string) (*Client, error) {
	st, err := conn.NewStream(ctx, &serviceDesc.Streams[0], "/"+serviceDesc.ServiceName+"/Report")
	if err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	err = st.SendMsg(wrapperspb.String(node + "/" + sidecar))
	if errors.Is(err, io.EOF) { // refused already: the reason follows
		err = st.RecvMsg(&wrapperspb.UInt64Value{})
	}
	if err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	return &Client{stream: st}, nil
}

// Send sends a report and returns when it is acknowledged.
func (c *Client) Send(r Report) error {
	b, err := r.Encode()
	if err != nil {
		return fmt.Errorf("telemetry: %w", err)
	}
	if err := c.stream.SendMsg(wrapperspb.Bytes(b)); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("telemetry: %w", err)
	}
	var ack wrapperspb.UInt64Value // after io.EOF it gives the server's reason
	if err := c.stream.RecvMsg(&ack); err != nil {
		return fmt.Errorf("telemetry: %w", err)
	}
	if c.takes == nil {
		header, err := c.stream.Header()
		if err != nil {
			return fmt.Errorf("telemetry: %w", err)
		}
		c.takes = append([]string{}, header.Get(takes)...)
	}
	if ack.GetValue() != r.Seq {
		return fmt.Errorf("telemetry: report %d is acknowledged as %d", r.Seq, ack.GetValue())
	}
	return nil
}

// Pulses reports whether the server has said that a report may pulse checks: see [Report.Alive].
func (c *Client) Pulses() bool { return slices.Contains(c.takes, takesAlive) }

// TakesConnections reports whether the server has said that a report may tell of connections.
func (c *Client) TakesConnections() bool { return slices.Contains(c.takes, takesConnections) }

// cut parts at the last slash: a node may be anything, a sidecar has none.
func cut(hello string) (node, sidecar string, ok bool) {
	i := strings.LastIndexByte(hello, '/')
	if i <= 0 || i == len(hello)-1 || len(hello) > 2*maxText {
		return "", "", false
	}
	return hello[:i], hello[i+1:], true
}
