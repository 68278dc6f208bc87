package protocols

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// grpcApp is gRPC's own interoperability service, as far as it is called here.
type grpcApp struct {
	testgrpc.UnimplementedTestServiceServer
	ended chan time.Time // per call to wait: the deadline it was given, zero if none, once it has ended
}

// UnaryCall answers with as many bytes as asked for, or with the status asked for,
// and with the caller's metadata as header and trailer. Asked for -1 byte it waits
// until the call has ended.
func (a *grpcApp) UnaryCall(ctx context.Context, req *testgrpc.SimpleRequest) (*testgrpc.SimpleResponse, error) {
	if req.ResponseSize < 0 {
		<-ctx.Done()
		deadline, _ := ctx.Deadline()
		a.ended <- deadline
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	md, _ := metadata.FromIncomingContext(ctx)
	echo := metadata.MD{}
	for name, values := range md {
		if strings.HasPrefix(name, "echo") {
			echo[name] = values
		}
	}
	if err := grpc.SetHeader(ctx, echo); err != nil {
		return nil, err
	}
	if err := grpc.SetTrailer(ctx, echo); err != nil {
		return nil, err
	}
	if s := req.ResponseStatus; s != nil {
		return nil, status.Error(codes.Code(s.Code), s.Message)
	}
	return &testgrpc.SimpleResponse{Payload: payload(int(req.ResponseSize)), Username: fmt.Sprint(len(req.GetPayload().GetBody()))}, nil
}

func (a *grpcApp) StreamingInputCall(s grpc.ClientStreamingServer[testgrpc.StreamingInputCallRequest, testgrpc.StreamingInputCallResponse]) error {
	total := 0
	for {
		req, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return s.SendAndClose(&testgrpc.StreamingInputCallResponse{AggregatedPayloadSize: int32(total)})
		}
		if err != nil {
			return err
		}
		total += len(req.Payload.Body)
	}
}

func (a *grpcApp) StreamingOutputCall(req *testgrpc.StreamingOutputCallRequest, s grpc.ServerStreamingServer[testgrpc.StreamingOutputCallResponse]) error {
	for _, p := range req.ResponseParameters {
		if err := s.Send(&testgrpc.StreamingOutputCallResponse{Payload: payload(int(p.Size))}); err != nil {
			return err
		}
	}
	return nil
}

// FullDuplexCall answers each message with one of its size.
func (a *grpcApp) FullDuplexCall(s grpc.BidiStreamingServer[testgrpc.StreamingOutputCallRequest, testgrpc.StreamingOutputCallResponse]) error {
	for {
		req, err := s.Recv()
		if errors.Is(err, io.EOF) {
			s.SetTrailer(metadata.Pairs("echo-end", "the caller was done first"))
			return nil
		}
		if err != nil {
			deadline, _ := s.Context().Deadline()
			a.ended <- deadline
			return err
		}
		if err := s.Send(&testgrpc.StreamingOutputCallResponse{Payload: payload(len(req.Payload.Body))}); err != nil {
			return err
		}
	}
}

func payload(n int) *testgrpc.Payload { return &testgrpc.Payload{Body: make([]byte, n)} }

// grpcTest is a client, with the service far away behind two sidecars.
type grpcTest struct {
	testgrpc.TestServiceClient
	app *grpcApp
}

func TestGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	app := &grpcApp{ended: make(chan time.Time, 10)}
	s := grpc.NewServer()
	testgrpc.RegisterTestServiceServer(s, app)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	m := start(t, service{name: "assignments", protocol: "grpc", port: l.Addr().(*net.TCPAddr).Port})
	conn, err := grpc.NewClient("passthrough:///"+m.out["assignments"], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	g := &grpcTest{testgrpc.NewTestServiceClient(conn), app}
	t.Run("unary", g.testUnary)
	t.Run("metadata", g.testMetadata)
	t.Run("status", g.testStatus)
	t.Run("client stream", g.testClientStream)
	t.Run("server stream", g.testServerStream)
	t.Run("both stream", g.testBoth)
	t.Run("cancel", g.testCancel)
	t.Run("deadline", g.testDeadline)
	m.unchanged(t)
}

func (g *grpcTest) testUnary(t *testing.T) {
	for _, n := range []int{0, 1, 16384, 65536, 3 << 20} {
		resp, err := g.UnaryCall(t.Context(), &testgrpc.SimpleRequest{ResponseSize: int32(n), Payload: payload(n)})
		if err != nil {
			t.Fatal(err)
		}
		if resp.Username != fmt.Sprint(n) || len(resp.Payload.Body) != n {
			t.Errorf("%s bytes arrived and %d came back of %d", resp.Username, len(resp.Payload.Body), n)
		}
	}
	if _, err := g.UnimplementedCall(t.Context(), &testgrpc.Empty{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("%v, want Unimplemented", err)
	}
}

func (g *grpcTest) testMetadata(t *testing.T) {
	want := metadata.Pairs("echo-a", "1", "echo-a", "2", "echo_under", "3", "echo-bin", "\x00\xff\n")
	var header, trailer metadata.MD
	if _, err := g.UnaryCall(metadata.NewOutgoingContext(t.Context(), want), &testgrpc.SimpleRequest{}, grpc.Header(&header), grpc.Trailer(&trailer)); err != nil {
		t.Fatal(err)
	}
	for name, values := range want {
		if fmt.Sprint(header[name]) != fmt.Sprint(values) || fmt.Sprint(trailer[name]) != fmt.Sprint(values) {
			t.Errorf("%s: header %q, trailer %q, want %q", name, header[name], trailer[name], values)
		}
	}
}

func (g *grpcTest) testStatus(t *testing.T) {
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		message := fmt.Sprintf("\t%d%% of ☃ & \r\n%s", code, strings.Repeat("x", int(code)*100))
		_, err := g.UnaryCall(t.Context(), &testgrpc.SimpleRequest{ResponseStatus: &testgrpc.EchoStatus{Code: int32(code), Message: message}})
		if status.Code(err) != code || status.Convert(err).Message() != message {
			t.Errorf("%v, want %s with %q", err, code, message)
		}
	}
}

func (g *grpcTest) testClientStream(t *testing.T) {
	s, err := g.StreamingInputCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := 0
	for i := range 1000 {
		if err := s.Send(&testgrpc.StreamingInputCallRequest{Payload: payload(i)}); err != nil {
			t.Fatal(err)
		}
		want += i
	}
	if resp, err := s.CloseAndRecv(); err != nil || int(resp.AggregatedPayloadSize) != want {
		t.Errorf("%v, %v, want %d bytes", resp, err, want)
	}
}

func (g *grpcTest) testServerStream(t *testing.T) {
	req := &testgrpc.StreamingOutputCallRequest{}
	for i := range 1000 {
		req.ResponseParameters = append(req.ResponseParameters, &testgrpc.ResponseParameters{Size: int32(i)})
	}
	s, err := g.StreamingOutputCall(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		if resp, err := s.Recv(); err != nil || len(resp.Payload.Body) != i {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("%v, want the end", err)
	}
}

func (g *grpcTest) testBoth(t *testing.T) {
	s, err := g.FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 { // each waits for the one before
		if err := s.Send(&testgrpc.StreamingOutputCallRequest{Payload: payload(i)}); err != nil {
			t.Fatal(err)
		}
		if resp, err := s.Recv(); err != nil || len(resp.Payload.Body) != i {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); !errors.Is(err, io.EOF) || len(s.Trailer()["echo-end"]) != 1 {
		t.Errorf("%v, trailer %v, want the end", err, s.Trailer())
	}
}

func (g *grpcTest) testCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s, err := g.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&testgrpc.StreamingOutputCallRequest{Payload: payload(1)}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := s.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("%v, want Canceled", err)
	}
	if !g.awaitEnd(t).IsZero() {
		t.Error("the app was given a deadline that the caller did not set")
	}
}

// The app gets the deadline that the caller set, and is told when it is over.
func (g *grpcTest) testDeadline(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	want, _ := ctx.Deadline()
	if _, err := g.UnaryCall(ctx, &testgrpc.SimpleRequest{ResponseSize: -1}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("%v, want DeadlineExceeded", err)
	}
	if off := g.awaitEnd(t).Sub(want).Abs(); off > 250*time.Millisecond {
		t.Errorf("the app's deadline is %v off the caller's", off)
	}
}

func (g *grpcTest) awaitEnd(t *testing.T) time.Time {
	t.Helper()
	select {
	case deadline := <-g.app.ended:
		return deadline
	case <-time.After(patience):
		t.Fatal("the app was not told that the call is over")
		return time.Time{}
	}
}
