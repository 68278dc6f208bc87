package xds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Limits on what one stream may ask for.
const (
	maxNames      = 20_000
	maxNameLength = 1024
)

// Coalesce is the least time between two pushes of changes on one stream. The
// first change after a pause goes out at once.
const Coalesce = 25 * time.Millisecond

// Options configure a [Server].
type Options struct {
	// Open admits a stream by its first message and gives the key of the view it
	// reads from. An error refuses the stream. The view may come later. Required.
	Open func(ctx context.Context, node *corev3.Node) (key string, err error)
	// Closed is told when an admitted stream ended. May be nil.
	Closed func(key string)
	// Subscribed is told of names asked for and given up. May be nil. Called in
	// the order of the stream; must not block or call the server.
	Subscribed func(key string, t Type, added, dropped []string)
	// Settled is told what became of a response. May be nil; same rules.
	Settled func(key string, t Type, o Outcome)
	Log     *slog.Logger
}

// Outcome is a client's verdict on what it was sent.
type Outcome struct {
	Acked   map[string]string  // name -> version now held
	Removed []string           // names it let go
	Refused map[string]Refusal // name -> the version it won't take, and why
}

// Server serves delta ADS from the views it is given. Safe for concurrent use.
type Server struct {
	opts Options

	mu      sync.RWMutex // guards the following; taken after stream.mu where both are held
	views   map[string]*View
	shared  map[Key]*Resource
	streams map[string]map[*stream]struct{} // by node key
	index   map[Key]map[*stream]struct{}    // streams that asked for a name
	news    chan struct{}                   // closed when any stream's state moves on; nil while nobody waits
}

// NewServer makes a server that serves nothing yet.
func NewServer(o Options) *Server {
	return &Server{
		opts: o, views: map[string]*View{}, shared: map[Key]*Resource{},
		streams: map[string]map[*stream]struct{}{}, index: map[Key]map[*stream]struct{}{},
	}
}

// Register adds ADS to a gRPC server, which must use [Codec].
func (s *Server) Register(g *grpc.Server) { g.RegisterService(&serviceDesc, s) }

var serviceDesc = grpc.ServiceDesc{
	ServiceName: "envoy.service.discovery.v3.AggregatedDiscoveryService",
	HandlerType: (*any)(nil),
	Streams: []grpc.StreamDesc{
		{StreamName: "DeltaAggregatedResources", ServerStreams: true, ClientStreams: true, Handler: func(srv any, gs grpc.ServerStream) error {
			return srv.(*Server).serve(gs)
		}},
		{StreamName: "StreamAggregatedResources", ServerStreams: true, ClientStreams: true, Handler: func(any, grpc.ServerStream) error {
			return status.Error(codes.Unimplemented, "state-of-the-world ADS is not served: set api_type DELTA_GRPC in the bootstrap's ads_config")
		}},
	},
}

// Update makes a change visible and wakes the streams that it concerns.
func (s *Server) Update(u Update) {
	s.mu.Lock()
	touched := map[*stream][]Key{}
	for key, res := range u.Shared {
		if res == nil {
			delete(s.shared, key)
		} else {
			s.shared[key] = res
		}
		for st := range s.index[key] {
			touched[st] = append(touched[st], key)
		}
	}
	renewed := map[*stream]struct{}{}
	for node, view := range u.Views {
		old := s.views[node]
		if view == nil {
			delete(s.views, node)
			continue
		}
		if !view.Growing {
			view = view.complete()
		}
		s.views[node] = view
		for st := range s.streams[node] {
			if old == nil {
				renewed[st] = struct{}{}
				continue
			}
			if changes := viewChanges(old, view); len(changes) > 0 || view.Growing {
				touched[st] = append(touched[st], changes...)
			}
		}
	}
	s.mu.Unlock()

	for st := range renewed {
		st.mu.Lock()
		st.session.markAll(st)
		st.mu.Unlock()
		st.poke()
	}
	for st, keys := range touched {
		st.mu.Lock()
		cares := len(keys) == 0
		for _, k := range keys {
			cares = st.session.mark(k.Type, k.Name) || cares
		}
		st.mu.Unlock()
		if cares {
			st.poke()
		}
	}
}

// complete is the view with a map, if an empty one, for each wildcard type.
func (v *View) complete() *View {
	if v.Own[ClusterType] != nil && v.Own[ListenerType] != nil {
		return v
	}
	c := *v
	c.Own = maps.Clone(v.Own)
	if c.Own == nil {
		c.Own = map[Type]map[string]*Resource{}
	}
	for _, t := range []Type{ClusterType, ListenerType} {
		if c.Own[t] == nil {
			c.Own[t] = map[string]*Resource{}
		}
	}
	return &c
}

func viewChanges(old, new *View) []Key {
	var out []Key
	for _, t := range Types {
		before, after := old.Own[t], new.Own[t]
		for name, res := range after {
			if b := before[name]; b == nil || b.Version != res.Version {
				out = append(out, Key{t, name})
			}
		}
		for name := range before {
			if after[name] == nil {
				out = append(out, Key{t, name})
			}
		}
	}
	for name := range new.Shared {
		if _, ok := old.Shared[name]; !ok {
			out = append(out, Key{EndpointType, name})
		}
	}
	for name := range old.Shared {
		if _, ok := new.Shared[name]; !ok {
			out = append(out, Key{EndpointType, name})
		}
	}
	for k := range new.Removed {
		if _, ok := old.Removed[k]; !ok {
			out = append(out, k)
		}
	}
	return out
}

// Connected lists the keys of nodes that have a stream, sorted.
func (s *Server) Connected() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Sorted(maps.Keys(s.streams))
}

// View is the node's present view, or nil.
func (s *Server) View(key string) *View {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.views[key]
}

// Disconnect ends all streams of a node; its client connects again.
func (s *Server) Disconnect(key string, reason error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for st := range s.streams[key] {
		st.cancel(reason)
	}
}

// Settle waits until every stream that asked for a resource has answered for its
// present version: acknowledged it or refused it. It gives up with ctx, and
// then says how many of how many had.
func (s *Server) Settle(ctx context.Context, key Key) (settled, total int, err error) {
	for {
		s.mu.Lock()
		if s.news == nil {
			s.news = make(chan struct{})
		}
		news := s.news
		version := absentVersion
		if res := s.shared[key]; res != nil {
			version = res.Version
		}
		waiting := slices.Collect(maps.Keys(s.index[key]))
		s.mu.Unlock()

		settled, total = 0, len(waiting)
		for _, st := range waiting {
			if st.settled(key, version) {
				settled++
			}
		}
		if settled == total {
			return settled, total, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return settled, total, ctx.Err()
		}
	}
}

func (s *Server) announce() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.news != nil {
		close(s.news)
		s.news = nil
	}
}

// stream is one ADS stream: a session, its place in the server, and its wires.
type stream struct {
	server *Server
	node   string
	since  time.Time
	cancel context.CancelCauseFunc

	mu      sync.Mutex // guards the following
	session *session
	urgent  bool // the client waits for an answer: don't coalesce
	ended   bool // nothing of it may enter the server's index any more

	wake chan struct{} // capacity 1
}

func (st *stream) poke() {
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// all, get and absent implement source over the node's view.

func (st *stream) all(t Type) map[string]*Resource {
	if v := st.server.View(st.node); v != nil {
		return v.Own[t]
	}
	return nil
}

func (st *stream) get(t Type, name string) *Resource {
	st.server.mu.RLock()
	defer st.server.mu.RUnlock()
	v := st.server.views[st.node]
	if v == nil {
		return nil
	}
	if res := v.Own[t][name]; res != nil {
		return res
	}
	if _, may := v.Shared[name]; may && t == EndpointType {
		return st.server.shared[Key{t, name}]
	}
	return nil
}

func (st *stream) absent(t Type, name string) bool {
	v := st.server.View(st.node)
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
		_, holds := sub.acked[key.Name]
		return !holds
	}
	return sub.acked[key.Name] == version || sub.refused[key.Name].Version == version
}

var errEnded = errors.New("stream ended")

// serve runs one stream until either side ends it.
func (s *Server) serve(gs grpc.ServerStream) error {
	first := &discoveryv3.DeltaDiscoveryRequest{}
	if err := gs.RecvMsg(first); err != nil {
		return err
	}
	key, err := s.opts.Open(gs.Context(), first.GetNode())
	if err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	if err := gs.SendHeader(metadata.MD{}); err != nil { // see Client.Admitted
		return err
	}
	ctx, cancel := context.WithCancelCause(gs.Context())
	defer cancel(errEnded)
	st := &stream{server: s, node: key, since: time.Now(), cancel: cancel, session: newSession(), wake: make(chan struct{}, 1)}
	s.mu.Lock()
	if s.streams[key] == nil {
		s.streams[key] = map[*stream]struct{}{}
	}
	s.streams[key][st] = struct{}{}
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
		for name := range sub.names {
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
	names := len(st.session.subs[t].names)
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
		return status.Errorf(codes.ResourceExhausted, "%s: %d names asked for on one stream, at most %d are allowed", t.Short(), names, maxNames)
	}
	if s.opts.Subscribed != nil && len(added)+len(dropped) > 0 {
		s.opts.Subscribed(st.node, t, added, dropped)
	}
	if out != nil {
		st.report(t, out)
	}
	st.poke()
	return nil
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
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-st.wake:
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
			r := st.pending()
			if r == nil {
				break
			}
			if err := gs.SendMsg(r); err != nil {
				return fmt.Errorf("send %s: %w", r.typ.Short(), err)
			}
			last = time.Now()
		}
	}
}

func (st *stream) pending() *response {
	if st.server.View(st.node) == nil {
		return nil
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.session.next(st)
}
