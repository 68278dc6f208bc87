// Package load is what the benchmarks load with and what answers: the app, connections
// that check each answer, and crews of them, as fast as answers come back (closed
// loop) or at a rate of their own (open loop).
//
// In: a protocol, an address, a rate, how long. Out: latencies and failures, and the
// arithmetic on them that the benchmarks share.
//
// It leaves to the commands what is between the caller and the app.
package load

// The protocols that an app can speak here.
const (
	HTTP = "http"
	GRPC = "grpc"
	TCP  = "tcp"
)

// Small is the size of a small answer, in bytes.
const Small = 1024
