// Package grpcway picks the old or the new way of each gRPC call and stream.
//
// In: a [client.Pair] and dial options. Out: a [grpc.ClientConnInterface] for generated
// stubs, with a connection per way behind it. Left to the pair: which way; left to
// grpc-go: everything about a connection.
package grpcway

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/crossfade-mesh/crossfade/client"
)

// Options of a [Conn]: what the connections of both ways are dialled with, then what
// each one adds. A way that needs another authority has grpc.WithAuthority, one
// behind TLS its credentials; of the new way, which is a sidecar's port on loopback,
// they are usually insecure.
type Options struct {
	Both, Old, New []grpc.DialOption
}

// Conn sends each call and each stream on the way that the pair picks for it. Calls
// whose context has a key of [client.WithKey] stick to the way of the key. A stream
// stays on its way.
type Conn struct {
	pair  *client.Pair
	conns [2]*grpc.ClientConn // by way; nil where the pair has no address
}

var _ grpc.ClientConnInterface = (*Conn)(nil)

// New returns a Conn for the pair. A way connects at its first call, so one that is not
// used costs nothing. An error means that dial options are wrong.
func New(p *client.Pair, o Options) (*Conn, error) {
	c := &Conn{pair: p}
	for way, own := range [][]grpc.DialOption{client.Old: o.Old, client.New: o.New} {
		at, ok := p.Address(client.Way(way))
		if !ok {
			continue
		}
		conn, err := grpc.NewClient("dns:///"+at.Addr, slices.Concat(o.Both, own)...)
		if err != nil {
			c.Close()
			return nil, fmt.Errorf("%s way %q: %w", at.Way, at.Addr, err)
		}
		c.conns[way] = conn
	}
	return c, nil
}

// Invoke implements [grpc.ClientConnInterface].
func (c *Conn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	conn, err := c.pick(ctx)
	if err != nil {
		return err
	}
	return conn.Invoke(ctx, method, args, reply, opts...)
}

// NewStream implements [grpc.ClientConnInterface].
func (c *Conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	conn, err := c.pick(ctx)
	if err != nil {
		return nil, err
	}
	return conn.NewStream(ctx, desc, method, opts...)
}

func (c *Conn) pick(ctx context.Context) (*grpc.ClientConn, error) {
	choice, err := c.pair.Choose(client.Key(ctx))
	if err != nil {
		return nil, noAddress{err}
	}
	return c.conns[choice.Way], nil
}

// Close closes both connections, and leaves the pair open.
func (c *Conn) Close() error {
	var errs []error
	for _, conn := range c.conns {
		if conn != nil {
			errs = append(errs, conn.Close())
		}
	}
	return errors.Join(errs...)
}

// noAddress has a status of its own: Unavailable would invite retries of what no retry helps.
type noAddress struct{ error }

func (e noAddress) GRPCStatus() *status.Status {
	return status.New(codes.FailedPrecondition, e.Error())
}

func (e noAddress) Unwrap() error { return e.error }
