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
)

// stream is one ADS stream: a session, its place in the server, and its wires.
type stream struct {
	server *Server
	node   string
	since  time.Time
	cancel context.CancelCauseFunc

	mu      sync.Mutex // guards the following
	session *session
	view    *View // the node's, changed together with what it makes due; nil while there is none
	urgent  bool  // the client waits for an answer: don't coalesce
	ended   bool  // nothing of it may enter the server's index any more

	wake chan struct{} // capacity 1
}

func (st *stream) poke() {
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// all, get and absent implement source over the node's view. The stream is locked.

func (st *stream) all(t Type) map[string]*Resource {
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
	if res := v.Own[t][name]; res != nil {
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
	sub := st.session.subs[key.Type]
	if sub == nil || st.get(key.Type, key.Name) == nil && version != absentVersion {
		return true
	}
	if version == absentVersion {
		holds := sub.acked.has(key.Name)
		return !holds
	}
	return sub.acked.get(key.Name) == version || sub.refused.get(key.Name).Version == version
}

var errEnded = errors.New("stream ended")

// serve runs one stream until either side ends it.
func (s *Server) serve(gs grpc.ServerStream) error {
	first := &discoveryv3.DeltaDiscoveryRequest{}
	if err := gs.RecvMsg(first); err != nil {
		return err
	}
	key, err := s.opts.Open(gs.Context(), first.GetNode())
	if _, worded := status.FromError(err); err != nil && !worded {
		err = status.Error(codes.PermissionDenied, err.Error())
	}
	if err != nil {
		return err
	}
	if err := gs.SendHeader(metadata.MD{}); err != nil { // see Client.Admitted
		return err
	}
	ctx, cancel := context.WithCancelCause(gs.Context())
	defer cancel(errEnded)
	st := &stream{server: s, node: key, since: time.Now(), cancel: cancel, session: newSession(s.opts.Linger), wake: make(chan struct{}, 1)}
	s.mu.Lock()
	if s.streams[key] == nil {
		s.streams[key] = map[*stream]struct{}{}
	}
	s.streams[key][st] = struct{}{}
	st.view = s.views[key]
	s.mu.Unlock()
	defer s.leave(st)

	go func() { cancel(st.receive(gs, first)) }()
	err = st.send(ctx, gs)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Unavailable, err.Error())
}

func (s *Server) leave(st *stream) {
	st.mu.Lock()
	st.ended = true
	var asked []Key
	for t, sub := range st.session.subs {
		for name := range sub.names.all() {
			asked = append(asked, Key{t, name})
		}
	}
	st.mu.Unlock()

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
	if s.opts.Closed != nil {
		s.opts.Closed(st.node)
	}
}

// unindex needs s.mu.
func (s *Server) unindex(k Key, st *stream) {
	delete(s.index[k], st)
	if len(s.index[k]) == 0 {
		delete(s.index, k)
	}
}

func (st *stream) receive(gs grpc.ServerStream, req *discoveryv3.DeltaDiscoveryRequest) error {
	for {
		if err := st.handle(req); err != nil {
			return err
		}
		req = &discoveryv3.DeltaDiscoveryRequest{}
		if err := gs.RecvMsg(req); err != nil {
			return err
		}
	}
}

func (st *stream) handle(req *discoveryv3.DeltaDiscoveryRequest) error {
	t := Type(req.GetTypeUrl())
	if !slices.Contains(Types[:], t) {
		return nil // Envoy may ask for types that nobody makes here; silence is a valid answer
	}
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
	names := st.session.subs[t].names.size()
	if len(added)+len(r.subscribe) > 0 {
		st.urgent = true
	}
	s.mu.Lock()
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
	s.mu.Unlock()
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
	st.poke()
	return nil
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
	if s.opts.Settled != nil && !out.retry {
		s.opts.Settled(st.node, t, Outcome{Acked: out.acked, Removed: out.removed, Refused: out.refused})
	}
}

// send is the only goroutine that writes to the stream.
func (st *stream) send(ctx context.Context, gs grpc.ServerStream) error {
	var last time.Time
	var later <-chan time.Time // nil: nothing is due later
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-st.wake:
		case <-later:
		}
		st.mu.Lock()
		urgent := st.urgent
		st.urgent = false
		st.mu.Unlock()
		if pause := Coalesce - time.Since(last); !urgent && pause > 0 {
			timer := time.NewTimer(pause)
			select {
			case <-ctx.Done():
				timer.Stop()
				return ctx.Err()
			case <-timer.C:
			}
		}
		for {
			r, at := st.pending(time.Now())
			if r == nil {
				if later = nil; !at.IsZero() {
					later = time.After(time.Until(at))
				}
				break
			}
			if err := gs.SendMsg(r); err != nil {
				return fmt.Errorf("send %s: %w", r.typ.Short(), err)
			}
			last = time.Now()
		}
	}
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
