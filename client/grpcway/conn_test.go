package grpcway_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/crossfade-mesh/crossfade/client"
	"github.com/crossfade-mesh/crossfade/client/grpcway"
)

// serve starts a server of a call Say and a stream Talk, which answer with the
// server's name and the authority they were called by. It returns its address.
func serve(t *testing.T, name string) string {
	t.Helper()
	say := func(ctx context.Context) *wrapperspb.StringValue {
		md, _ := metadata.FromIncomingContext(ctx)
		return wrapperspb.String(name + " " + strings.Join(md[":authority"], ","))
	}
	s := grpc.NewServer()
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Catalog",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Say", Handler: func(_ any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			return say(ctx), dec(&wrapperspb.StringValue{})
		}}},
		Streams: []grpc.StreamDesc{{StreamName: "Talk", ServerStreams: true, ClientStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
			for {
				if err := stream.RecvMsg(&wrapperspb.StringValue{}); errors.Is(err, io.EOF) {
					return nil
				} else if err != nil {
					return err
				}
				if err := stream.SendMsg(say(stream.Context())); err != nil {
					return err
				}
			}
		}}},
	}, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

func dial(t *testing.T, percent, old, new string, o grpcway.Options) *grpcway.Conn {
	t.Helper()
	env := map[string]string{
		"CROSSFADE_PERCENT_catalog": percent, "CROSSFADE_LEGACY_ADDR_catalog": old, "NOMAD_UPSTREAM_ADDR_catalog": new,
	}
	p, err := client.Open(client.Options{Destination: "catalog", Getenv: func(name string) string { return env[name] }})
	if err != nil {
		t.Fatal(err)
	}
	o.Both = append(o.Both, grpc.WithTransportCredentials(insecure.NewCredentials()))
	c, err := grpcway.New(p, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); p.Close() })
	return c
}

func say(ctx context.Context, c grpc.ClientConnInterface) (string, error) {
	var reply wrapperspb.StringValue
	err := c.Invoke(ctx, "/test.Catalog/Say", wrapperspb.String("?"), &reply)
	return reply.GetValue(), err
}

// talk opens a stream and returns what it says to each of n messages.
func talk(ctx context.Context, c grpc.ClientConnInterface, n int) ([]string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.Catalog/Talk")
	if err != nil {
		return nil, err
	}
	var said []string
	for range n {
		if err := stream.SendMsg(wrapperspb.String("?")); err != nil {
			return nil, err
		}
		var reply wrapperspb.StringValue
		if err := stream.RecvMsg(&reply); err != nil {
			return nil, err
		}
		said = append(said, reply.GetValue())
	}
	return said, nil
}

func TestEnds(t *testing.T) {
	old, new := serve(t, "old"), serve(t, "new")
	for percent, want := range map[string]string{"0": "old " + old, "100": "new " + new} {
		c := dial(t, percent, old, new, grpcway.Options{})
		for range 200 {
			if got, err := say(t.Context(), c); err != nil || got != want {
				t.Fatalf("%s percent: %q, %v, want %q", percent, got, err, want)
			}
		}
		for range 20 {
			if got, err := talk(t.Context(), c, 1); err != nil || got[0] != want {
				t.Fatalf("%s percent: a stream says %q, %v, want %q", percent, got, err, want)
			}
		}
	}
}

func TestHalf(t *testing.T) {
	c := dial(t, "50", serve(t, "old"), serve(t, "new"), grpcway.Options{})
	calls, streams := map[string]int{}, map[string]int{}
	for range 400 {
		got, err := say(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		calls[got[:3]]++
		said, err := talk(t.Context(), c, 3)
		if err != nil {
			t.Fatal(err)
		}
		if said[0] != said[1] || said[1] != said[2] {
			t.Fatalf("a stream says %q: it left its way", said)
		}
		streams[said[0][:3]]++
	}
	// Six sigma of 400 coins.
	for what, n := range map[string]int{"calls": calls["new"], "streams": streams["new"]} {
		if n < 140 || n > 260 {
			t.Errorf("%d of 400 %s are new", n, what)
		}
	}
}

func TestKeySticks(t *testing.T) {
	c := dial(t, "50", serve(t, "old"), serve(t, "new"), grpcway.Options{})
	ways := map[string]bool{}
	for i := range 20 {
		ctx := client.WithKey(t.Context(), fmt.Sprintf("user-%d", i))
		first, err := say(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		ways[first] = true
		for range 5 {
			if got, err := say(ctx, c); err != nil || got != first {
				t.Errorf("user %d: %q after %q, %v", i, got, first, err)
			}
			if got, err := talk(ctx, c, 1); err != nil || got[0] != first {
				t.Errorf("user %d: a stream says %q after %q, %v", i, got, first, err)
			}
		}
	}
	if len(ways) != 2 {
		t.Errorf("all of 20 users go %v", ways)
	}
}

func TestAuthorityPerWay(t *testing.T) {
	old, new := serve(t, "old"), serve(t, "new")
	o := grpcway.Options{Old: []grpc.DialOption{grpc.WithAuthority("catalog.linkerd")}}
	for percent, want := range map[string]string{"0": "old catalog.linkerd", "100": "new " + new} {
		if got, err := say(t.Context(), dial(t, percent, old, new, o)); err != nil || got != want {
			t.Errorf("%s percent: %q, %v, want %q", percent, got, err, want)
		}
	}
}

func TestOneAddressIsEnough(t *testing.T) {
	at := serve(t, "it")
	for _, c := range []*grpcway.Conn{dial(t, "100", at, "", grpcway.Options{}), dial(t, "0", "", at, grpcway.Options{})} {
		if got, err := say(t.Context(), c); err != nil || got != "it "+at {
			t.Errorf("%q, %v", got, err)
		}
	}
}

func TestNoAddress(t *testing.T) {
	c := dial(t, "50", "", "", grpcway.Options{})
	_, unary := say(t.Context(), c)
	_, stream := talk(t.Context(), c, 1)
	for _, err := range []error{unary, stream} {
		if !errors.Is(err, client.ErrNoAddress) || status.Code(err) != codes.FailedPrecondition {
			t.Errorf("error %v, code %v", err, status.Code(err))
		}
	}
}

func TestDialOptionsAreJudged(t *testing.T) {
	p, err := client.Open(client.Options{Destination: "catalog", OldAddr: "10.0.0.1:80", Getenv: func(string) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := grpcway.New(p, grpcway.Options{}); err == nil {
		t.Error("no error without credentials")
	}
}
