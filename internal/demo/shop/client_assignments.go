package shop

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/stats"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/crossfade-mesh/crossfade/internal/demo/load"
)

// Assignments is a client of assignments over gRPC. It is safe for concurrent use.
type Assignments struct {
	road     Road
	newEvery uint64
	repeats  repeats

	mu   sync.Mutex // guards kept
	kept map[string]*grpc.ClientConn
}

// NewAssignments calls addr, a host:port. newEvery is as in [NewHTTP].
func NewAssignments(addr string, newEvery uint64) (*Assignments, error) {
	return NewAssignmentsBy(At(addr), newEvery), nil
}

// NewAssignmentsBy calls where a road leads.
func NewAssignmentsBy(road Road, newEvery uint64) *Assignments {
	return &Assignments{road: road, newEvery: newEvery, kept: map[string]*grpc.ClientConn{}}
}

// Close closes the kept connections.
func (a *Assignments) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var err error
	for _, cc := range a.kept {
		err = errors.Join(err, cc.Close())
	}
	a.kept = map[string]*grpc.ClientConn{}
	return err
}

// conn is the kept connection to where the road leads now.
func (a *Assignments) conn() (*grpc.ClientConn, error) {
	addr, host := a.road()
	a.mu.Lock()
	defer a.mu.Unlock()
	if cc := a.kept[addr]; cc != nil {
		return cc, nil
	}
	cc, err := a.dialTo(addr, host)
	if err == nil {
		a.kept[addr] = cc
	}
	return cc, err
}

// Repeats is how many calls grpc sent a second time by itself, which it does for
// a call that the server cannot have seen.
func (a *Assignments) Repeats() uint64 { return a.repeats.n.Load() }

func (a *Assignments) dial() (*grpc.ClientConn, error) { return a.dialTo(a.road()) }

func (a *Assignments) dialTo(addr, host string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority(host),
		grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(), grpc.WithStatsHandler(&a.repeats))
}

// AssignNumbered asks for the variant of visitor n. It is a [load.Call].
func (a *Assignments) AssignNumbered(n uint64, deadline time.Time) (load.Answer, error) {
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	isNew, dial := a.newEvery > 0 && n%a.newEvery == 0, a.conn
	if isNew {
		dial = a.dial
	}
	cc, err := dial()
	if err != nil {
		return load.Answer{}, err
	}
	if isNew {
		defer cc.Close()
	}
	_, from, err := assign(ctx, cc, token("a", n))
	return load.Answer{From: from, NewConnection: isNew}, err
}

// Assign asks for a visitor's variant.
func (a *Assignments) Assign(ctx context.Context, visitor string) (variant, from string, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	cc, err := a.conn()
	if err != nil {
		return "", "", err
	}
	return assign(ctx, cc, visitor)
}

func assign(ctx context.Context, cc *grpc.ClientConn, visitor string) (variant, from string, err error) {
	out := new(wrapperspb.StringValue)
	if err := cc.Invoke(ctx, methodAssign, wrapperspb.String(visitor), out); err != nil {
		return "", "", err
	}
	from, rest, _ := strings.Cut(out.GetValue(), " ")
	if want := visitor + " " + Variant(visitor); from == "" || rest != want {
		return "", "", fmt.Errorf("wrong answer: got %.200q, want an instance and %q", out.GetValue(), want)
	}
	return Variant(visitor), from, nil
}

// Caller is the identity of this client as the server's Envoy authenticated it.
func (a *Assignments) Caller(ctx context.Context) (string, error) {
	out := new(wrapperspb.StringValue)
	cc, err := a.conn()
	if err == nil {
		err = cc.Invoke(ctx, methodCaller, wrapperspb.String(""), out)
	}
	return out.GetValue(), err
}

// Watch is a server stream of numbers that stays open.
type Watch struct {
	*LongLived
	name   string
	client *Assignments
	cc     *grpc.ClientConn
	cancel context.CancelFunc
}

// OpenWatch opens a stream on a connection of its own.
func (a *Assignments) OpenWatch(name string) (*Watch, error) {
	cc, err := a.dial()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &Watch{LongLived: newLongLived(), name: name, client: a, cc: cc, cancel: cancel}
	stream, err := cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, methodWatch)
	if err == nil {
		err = stream.SendMsg(wrapperspb.String(name))
	}
	if err == nil {
		err = stream.CloseSend()
	}
	if err != nil {
		cancel()
		return nil, errors.Join(err, cc.Close())
	}
	go func() {
		for want := uint64(1); ; want++ {
			m := new(wrapperspb.UInt64Value)
			err := stream.RecvMsg(m)
			if err == nil && m.GetValue() != want {
				err = fmt.Errorf("got %d", m.GetValue())
			}
			switch {
			case ctx.Err() != nil:
				w.finish(nil)
				return
			case err != nil:
				w.finish(fmt.Errorf("message %d of the stream: %w", want, err))
				return
			}
			w.message()
		}
	}()
	return w, nil
}

// Finish waits until all that the server has sent so far is here, and says what
// was lost: nil when nothing was.
func (w *Watch) Finish(ctx context.Context) error {
	sent := new(wrapperspb.UInt64Value)
	cc, err := w.client.conn()
	if err == nil {
		err = cc.Invoke(ctx, methodSent, wrapperspb.String(w.name), sent)
	}
	if err != nil {
		return fmt.Errorf("asking how many messages were sent: %w", err)
	}
	tick := time.NewTicker(watchInterval / 10)
	defer tick.Stop()
	for {
		got, _ := w.Messages()
		if got >= sent.GetValue() {
			return w.Err()
		}
		select {
		case <-tick.C:
		case <-w.Done():
			return fmt.Errorf("the stream ended after message %d of %d: %w", got, sent.GetValue(), w.Err())
		case <-ctx.Done():
			return fmt.Errorf("got %d messages of %d: %w", got, sent.GetValue(), ctx.Err())
		}
	}
}

// Close closes the stream.
func (w *Watch) Close() {
	w.cancel()
	<-w.Done()
	w.cc.Close()
}

// repeats counts calls that grpc sends a second time.
type repeats struct{ n atomic.Uint64 }

func (r *repeats) HandleRPC(_ context.Context, s stats.RPCStats) {
	if b, ok := s.(*stats.Begin); ok && b.IsTransparentRetryAttempt {
		r.n.Add(1)
	}
}
func (r *repeats) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (r *repeats) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (r *repeats) HandleConn(context.Context, stats.ConnStats)                       {}
