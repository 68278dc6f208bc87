package grpcway_test

import (
	"context"
	"fmt"
	"log"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/crossfade-mesh/crossfade/client"
	"github.com/crossfade-mesh/crossfade/client/grpcway"
)

// Stubs take a Conn in place of a grpc.ClientConn. The old mesh routes by authority.
func Example() {
	pair, err := client.Open(client.Options{Source: "web", Destination: "catalog", OldAddr: "127.0.0.1:4142"})
	if err != nil {
		log.Fatal(err)
	}
	defer pair.Close()
	conn, err := grpcway.New(pair, grpcway.Options{
		Both: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())},
		Old:  []grpc.DialOption{grpc.WithAuthority("catalog")},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()

	stub := healthpb.NewHealthClient(conn)
	ctx := client.WithKey(context.Background(), "user-1") // sticks to its way
	_, _ = ctx, stub                                      // stub.Check(ctx, …)
	fmt.Println(pair.Percent())
	// Output: 0
}
