package xds

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
	"google.golang.org/protobuf/proto"
)

// stream is one ADS stream: a session, its place in the server, and its wires. It has one goroutine, which
// receives; another one sends while there is something to send, and no longer: of ten thousand streams
// most have nothing to say, and a goroutine that waits keeps its stack.
type stream struct {
	server *Server
	node   string
	since  time.Time
	wire   grpc.ServerStream
	ctx    context.Context         // the stream's; RecvMsg and SendMsg return when it ends
	cancel context.CancelCauseFunc // ends it

	mu      sync.Mutex // guards the following
	session *session
	view    *View       // the node's, changed together with what it makes due; nil while there is none
	urgent  bool        // the client waits for an answer: don't coalesce
	ended   bool        // nothing of it may enter the server's index any more, and nobody begins to send
	sending bool        // somebody sends
	poked   bool        // there may be more to send than who sends has seen
	later   *time.Timer // for what is due later; nil: none was yet

	last  time.Time      // when something was sent; for who sends
	sends sync.WaitGroup // done when nobody sends
}

// poke has what is due sent, if anything is. The stream is locked.
func (st *stream) poke(due bool) {
	switch {
	case !due || st.ended:
	case st.sending:
		st.poked = true
	default:
		st.sending = true
		st.server.sending.Add(1)
		st.sends.Go(st.send)
	}
}

// all, get and absent implement source over the node's view. The stream is locked.

func (st *stream) all(t Type) Resources {
	if st.view != nil {
		return st.view.Own[t]
	}
	return nil
}

func (st *stream) get(t Type, name string) *Resource {
	v := st.view
	if v == nil {
		return nil
	}
	if res := v.Own[t].Get(name); res != nil {
		return res
	}
	if _, may := v.Shared[name]; may && t == EndpointType {
		st.server.mu.RLock()
		defer st.server.mu.RUnlock()
		return st.server.shared[Key{t, name}]
	}
	return nil
}

func (st *stream) absent(t Type, name string) bool {
	v := st.view
	if v == nil {
		return false
	}
	if t.wildcard() || !v.Growing {
		return true
	}
	_, gone := v.Removed[Key{t, name}]
	return gone
}

func (st *stream) settled(key Key, version string) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	sub := st.session.of(key.Type)
	if sub == nil || st.get(key.Type, key.Name) == nil && version != absentVersion {
		return true
	}
	acked := sub.acked(key.Name)
	if version == absentVersion {
		return acked == ""
	}
	return acked == version || sub.refused.get(key.Name).Version == version
}

var errEnded = errors.New("stream ended")

// ServerOptions are what a gRPC server needs to serve ADS; its other services don't notice them.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ForceServerCodecV2(Codec()), grpc.InTapHandle(endable)}
}

// endTrailer has the status with which a server ended a stream: gRPC's own says Internal, with the words in it.
const endTrailer = "crossfade-end-bin"

// endKey is of the [ending] that a stream's context is.
type endKey struct{}

// endable lets a stream be ended from outside while its handler waits for a message: gRPC itself ends that
// wait only together with the client or the connection.
func endable(ctx context.Context, info *tap.Info) (context.Context, error) {
	if info.FullMethodName != deltaMethod {
		return ctx, nil
	}
	e := &ending{}
	e.Context, e.end = context.WithCancelCause(ctx)
	return e, nil
}

// ending is the context of a stream that can be ended. It says with Err why it ended: gRPC tells the client that
// when it gives up waiting for a message.
type ending struct {
	context.Context
	end context.CancelCauseFunc
}

// Err implements [context.Context].
func (e *ending) Err() error {
	if e.Context.Err() == nil {
		return nil
	}
	return context.Cause(e.Context)
}

// Value implements [context.Context].
func (e *ending) Value(key any) any {
	if key == (endKey{}) {
		return e
	}
	return e.Context.Value(key)
}

// Ending is what ends a stream of ADS from outside, for a reason that its client is told; nil for another one.
func Ending(gs grpc.ServerStream) context.CancelCauseFunc {
	e, ok := gs.Context().Value(endKey{}).(*ending)
	if !ok {
		return nil
	}
	return func(reason error) {
		if st, ok := status.FromError(reason); ok {
			if b, err := proto.Marshal(st.Proto()); err == nil {
				gs.SetTrailer(metadata.Pairs(endTrailer, string(b)))
			}
		}
		e.end(reason)
	}
}

// serve runs one stream until either side ends it.
func (s *Server) serve(gs grpc.ServerStream) error {
	ctx := gs.Context()
	cancel := Ending(gs)
	if cancel == nil {
		return status.Error(codes.Internal, "the gRPC server was made without xds.ServerOptions")
	}
	first := &discoveryv3.DeltaDiscoveryRequest{}
	if err := gs.RecvMsg(first); err != nil {
		return err
	}
	key, err := s.opts.Open(ctx, first.GetNode())
	if _, worded := status.FromError(err); err != nil && !worded {
		err = status.Error(codes.PermissionDenied, err.Error())
	}
	if err != nil {
		return err
	}
	if err := gs.SendHeader(metadata.MD{}); err != nil { // see Client.Admitted
		s.closed(key)
		return err
	}
	st := &stream{server: s, node: key, since: time.Now(), wire: gs, ctx: ctx, cancel: cancel, session: newSession(s.opts.Linger)}
	s.mu.Lock()
	if s.streams[key] == nil {
		s.streams[key] = map[*stream]struct{}{}
	}
	s.streams[key][st] = struct{}{}
	st.view = s.views[key]
	s.mu.Unlock()

	cancel(st.receive(first))
	s.leave(st)
	err = context.Cause(ctx)
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Unavailable, err.Error())
}

// leave takes out of the server what a stream has there, once nobody sends on it any more.
func (s *Server) leave(st *stream) {
	st.mu.Lock()
	st.ended = true
	if st.later != nil {
		st.later.Stop()
	}
	var asked []Key
	for t, sub := range st.session.all() {
		for name := range sub.names.all() {
			asked = append(asked, Key{t, name})
		}
	}
	st.mu.Unlock()
	st.sends.Wait()

	s.mu.Lock()
	for _, k := range asked {
		s.unindex(k, st)
	}
	delete(s.streams[st.node], st)
	if len(s.streams[st.node]) == 0 {
		delete(s.streams, st.node)
	}
	s.mu.Unlock()
	s.announce()
	s.closed(st.node)
}

func (s *Server) closed(key string) {
	if s.opts.Closed != nil {
		s.opts.Closed(key)
	}
}

// unindex needs s.mu.
func (s *Server) unindex(k Key, st *stream) {
	delete(s.index[k], st)
	if len(s.index[k]) == 0 {
		delete(s.index, k)
	}
}

func (st *stream) receive(req *discoveryv3.DeltaDiscoveryRequest) error {
	for {
		if err := st.handle(req); err != nil {
			return err
		}
		req.Reset() // what it had is not kept while the stream waits
		if err := st.wire.RecvMsg(req); err != nil {
			return err
		}
	}
}

func (st *stream) handle(req *discoveryv3.DeltaDiscoveryRequest) error {
	i := slices.Index(Types[:], Type(req.GetTypeUrl()))
	if i < 0 {
		return nil // Envoy may ask for types that nobody makes here; silence is a valid answer
	}
	t := Types[i] // and not the text that came with the message, which would stay as long as the stream
	r := request{
		typ: t, subscribe: req.GetResourceNamesSubscribe(), unsubscribe: req.GetResourceNamesUnsubscribe(),
		initial: req.GetInitialResourceVersions(), nonce: req.GetResponseNonce(),
		message: req.GetErrorDetail().GetMessage(), nack: req.GetErrorDetail() != nil,
	}
	if n := max(len(r.subscribe), len(r.initial)); n > maxNames {
		return tooMany(t, n)
	}
	for _, name := range r.subscribe {
		if len(name) > maxNameLength {
			return status.Errorf(codes.InvalidArgument, "%s: a resource name has %d bytes, at most %d are allowed", t.Short(), len(name), maxNameLength)
		}
	}
	s := st.server
	st.mu.Lock()
	if st.ended {
		st.mu.Unlock()
		return errEnded
	}
	added, dropped, out := st.session.handle(r, st)
	refusing := ""
	switch {
	case out != nil && st.learn(t, out):
		refusing = st.view.Group
	case len(r.initial) > 0:
		st.learnHeld()
	}
	names := st.session.of(t).names.size()
	if len(added)+len(r.subscribe) > 0 {
		st.urgent = true
	}
	if len(added)+len(dropped) > 0 {
		s.reindex(st, t, added, dropped)
	}
	st.mu.Unlock()
	if names > maxNames {
		return tooMany(t, names)
	}
	if refusing != "" && s.opts.Refusing != nil {
		s.opts.Refusing(refusing)
	}
	if s.opts.Subscribed != nil && len(added)+len(dropped) > 0 {
		s.opts.Subscribed(st.node, t, added, dropped)
	}
	if out != nil {
		st.report(t, out)
	} else if len(r.initial) > 0 {
		s.announce() // whoever waits for what it holds already
		if s.opts.Settled != nil {
			s.opts.Settled(st.node, t, Outcome{Acked: r.initial})
		}
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.poke(st.session.restless())
	return nil
}

// reindex notes what a stream asks for and what no more. The stream is locked.
func (s *Server) reindex(st *stream, t Type, added, dropped []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range added {
		k := Key{t, name}
		if s.index[k] == nil {
			s.index[k] = map[*stream]struct{}{}
		}
		s.index[k][st] = struct{}{}
	}
	for _, name := range dropped {
		s.unindex(Key{t, name}, st)
	}
}

func tooMany(t Type, names int) error {
	return status.Errorf(codes.ResourceExhausted, "%s: %d names asked for on one stream, at most %d are allowed", t.Short(), names, maxNames)
}

func (st *stream) report(t Type, out *outcome) {
	s := st.server
	switch {
	case out.retry:
		s.opts.Log.Warn("response with several resources refused, sending them one by one", "node", st.node, "type", t.Short(), "reason", out.message)
	case out.message != "":
		for name, r := range out.refused {
			s.opts.Log.Error("resource refused, the last good version stays in force", "node", st.node, "type", t.Short(), "name", name, "version", r.Version, "reason", r.Message)
		}
	}
	s.announce()
	if s.opts.Settled == nil || out.retry {
		return
	}
	o := Outcome{Acked: make(map[string]string, len(out.taken)), Removed: out.removed, Refused: out.refused}
	for _, res := range out.taken {
		o.Acked[res.Name] = res.Version
	}
	s.opts.Settled(st.node, t, o)
}

// send sends what is due, and ends when nothing is; nobody else writes to the stream meanwhile.
func (st *stream) send() {
	for {
		st.mu.Lock()
		urgent := st.urgent
		st.urgent, st.poked = false, false
		st.mu.Unlock()
		if pause := Coalesce - time.Since(st.last); !urgent && pause > 0 {
			timer := time.NewTimer(pause)
			select {
			case <-st.ctx.Done():
			case <-timer.C:
			}
			timer.Stop()
		}
		for {
			if st.ctx.Err() != nil {
				st.rest(time.Time{})
				return
			}
			r, at := st.pending(time.Now())
			if r == nil {
				if st.rest(at) {
					return
				}
				break
			}
			if err := st.wire.SendMsg(r); err != nil {
				st.cancel(fmt.Errorf("send %s: %w", r.typ.Short(), err))
				continue
			}
			st.last = time.Now()
			st.server.sent.Add(1)
		}
	}
}

// rest notes that nobody sends any more, until at if that is not zero, and reports whether it is so: not
// when more has come up meanwhile.
func (st *stream) rest(at time.Time) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.poked && st.ctx.Err() == nil {
		return false
	}
	st.sending = false
	st.server.sending.Add(-1)
	switch {
	case st.ended || at.IsZero():
	case st.later == nil:
		st.later = time.AfterFunc(time.Until(at), func() {
			st.mu.Lock()
			defer st.mu.Unlock()
			st.poke(true)
		})
	default:
		st.later.Reset(time.Until(at))
	}
	return true
}

// pending is what to send now or, while that is nothing, when to look again: of the same moment, since
// what comes due between two would be seen by neither.
func (st *stream) pending(now time.Time) (*response, time.Time) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.view == nil {
		return nil, time.Time{}
	}
	if r := st.session.next(st, now); r != nil {
		return r, time.Time{}
	}
	return nil, st.session.wakeup(now)
}
