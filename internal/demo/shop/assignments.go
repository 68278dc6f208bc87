package shop

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The methods of the gRPC service shop.Assignments. Messages are protobuf's
// well-known wrappers.
const (
	assignmentsService = "shop.Assignments"
	methodAssign       = "/" + assignmentsService + "/Assign" // StringValue visitor → StringValue "<instance> <visitor> <variant>"
	methodCaller       = "/" + assignmentsService + "/Caller" // StringValue → StringValue: the caller's identity as Envoy wrote it
	methodSent         = "/" + assignmentsService + "/Sent"   // StringValue watch → UInt64Value: messages sent on that watch so far
	methodWatch        = "/" + assignmentsService + "/Watch"  // StringValue watch → stream of UInt64Value 1, 2, 3, …
)

// watchInterval is the time between two messages of a watch.
const watchInterval = 100 * time.Millisecond

type assignmentsServer struct {
	instance string
	stop     <-chan struct{} // closed when watches have to end

	mu   sync.Mutex // guards sent
	sent map[string]uint64
}

func (a App) serveAssignments(ctx context.Context, ln net.Listener) error {
	srv := grpc.NewServer()
	srv.RegisterService(assignmentsDesc(), &assignmentsServer{instance: a.Instance, stop: ctx.Done(), sent: map[string]uint64{}})
	healthpb.RegisterHealthServer(srv, health.NewServer())
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		srv.GracefulStop()
	}()
	select {
	case <-stopped:
		return nil
	case <-time.After(stopTimeout):
		srv.Stop()
		<-stopped
		return errors.New("calls were still unanswered when the time to stop was over")
	}
}

func (s *assignmentsServer) assign(_ context.Context, visitor string) (string, error) {
	if strings.ContainsAny(visitor, " \n") {
		return "", status.Error(codes.InvalidArgument, "visitor: want no white space")
	}
	return s.instance + " " + visitor + " " + Variant(visitor), nil
}

func (s *assignmentsServer) caller(ctx context.Context, _ string) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	return strings.Join(md.Get(callerHeader), ","), nil
}

func (s *assignmentsServer) countSent(watch string) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent[watch]
}

func (s *assignmentsServer) watch(watch string, stream grpc.ServerStream) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for n := uint64(1); ; n++ {
		if err := stream.SendMsg(wrapperspb.UInt64(n)); err != nil {
			return err
		}
		s.mu.Lock()
		s.sent[watch] = n
		s.mu.Unlock()
		select {
		case <-tick.C:
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-s.stop:
			return nil
		}
	}
}

// assignmentsDesc describes shop.Assignments to grpc as generated code would.
func assignmentsDesc() *grpc.ServiceDesc {
	text := func(name string, answer func(*assignmentsServer, context.Context, string) (string, error)) grpc.MethodDesc {
		return grpc.MethodDesc{MethodName: name, Handler: func(srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := new(wrapperspb.StringValue)
			if err := decode(in); err != nil {
				return nil, err
			}
			out, err := answer(srv.(*assignmentsServer), ctx, in.GetValue())
			if err != nil {
				return nil, err
			}
			return wrapperspb.String(out), nil
		}}
	}
	return &grpc.ServiceDesc{
		ServiceName: assignmentsService,
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{
			text("Assign", (*assignmentsServer).assign),
			text("Caller", (*assignmentsServer).caller),
			{MethodName: "Sent", Handler: func(srv any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				in := new(wrapperspb.StringValue)
				if err := decode(in); err != nil {
					return nil, err
				}
				return wrapperspb.UInt64(srv.(*assignmentsServer).countSent(in.GetValue())), nil
			}},
		},
		Streams: []grpc.StreamDesc{{StreamName: "Watch", ServerStreams: true, Handler: func(srv any, stream grpc.ServerStream) error {
			in := new(wrapperspb.StringValue)
			if err := stream.RecvMsg(in); err != nil {
				return err
			}
			return srv.(*assignmentsServer).watch(in.GetValue(), stream)
		}}},
	}
}
