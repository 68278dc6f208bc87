package xds

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
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
	// the order of the stream; must not block.
	Subscribed func(key string, t Type, added, dropped []string)
	// Settled is told what became of a response. May be nil; same rules.
	Settled func(key string, t Type, o Outcome)
	// Alike reports of which resources the nodes of a group are told the same. Of these the
	// last good version is remembered. nil: of none.
	Alike func(Key) bool
	// Refusing is told that what a group refuses has changed. May be nil; must not block.
	Refusing func(group string)
	// Linger is how long clusters stay that nothing refers to any more: a request which
	// is tried again is sent to the cluster that was chosen for it at first.
	Linger time.Duration
	Log    *slog.Logger
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

	memory memory

	sent    atomic.Uint64 // responses
	sending atomic.Int64  // streams on which somebody sends

	updates sync.Mutex // held by Update; taken before stream.mu

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

// Register adds ADS to a gRPC server that was made with [ServerOptions].
func (s *Server) Register(g *grpc.Server) { g.RegisterService(&serviceDesc, s) }

const (
	serviceName = "envoy.service.discovery.v3.AggregatedDiscoveryService"
	deltaStream = "DeltaAggregatedResources"
	deltaMethod = "/" + serviceName + "/" + deltaStream
)

var serviceDesc = grpc.ServiceDesc{
	ServiceName: serviceName,
	HandlerType: (*any)(nil),
	Streams: []grpc.StreamDesc{
		{StreamName: deltaStream, ServerStreams: true, ClientStreams: true, Handler: func(srv any, gs grpc.ServerStream) error {
			return srv.(*Server).serve(gs)
		}},
		{StreamName: "StreamAggregatedResources", ServerStreams: true, ClientStreams: true, Handler: func(any, grpc.ServerStream) error {
			return status.Error(codes.Unimplemented, "state-of-the-world ADS is not served: set api_type DELTA_GRPC in the bootstrap's ads_config")
		}},
	},
}

// Update makes a change visible and wakes the streams that it concerns. A stream sees
// its node's new view at the moment at which it learns what is new in it: otherwise it
// could send a route of it before the cluster that this leads to.
func (s *Server) Update(u Update) {
	s.updates.Lock()
	defer s.updates.Unlock()
	s.mu.Lock()
	touched := map[*stream][]Key{} // of those whose view changes
	views := map[*stream]*View{}
	renewed := map[*stream]struct{}{}
	for node, view := range u.Views {
		old := s.views[node]
		if view == nil {
			delete(s.views, node)
			for st := range s.streams[node] {
				views[st] = nil
			}
			continue
		}
		if !view.Growing {
			view = view.complete()
		}
		s.views[node] = view
		for st := range s.streams[node] {
			views[st] = view
			if old == nil {
				renewed[st] = struct{}{}
				continue
			}
			touched[st] = append(touched[st], Changes(old, view)...)
		}
	}
	type asked struct {
		key     Key
		streams []*stream
	}
	var shared []asked
	for key, res := range u.Shared {
		if res == nil {
			delete(s.shared, key)
		} else {
			s.shared[key] = res
		}
		of := asked{key, make([]*stream, 0, len(s.index[key]))}
		for st := range s.index[key] {
			if _, too := views[st]; too {
				touched[st] = append(touched[st], key)
			} else {
				of.streams = append(of.streams, st)
			}
		}
		shared = append(shared, of)
	}
	s.mu.Unlock()

	for st, view := range views {
		st.mu.Lock()
		st.view = view
		cares := false
		if _, ok := renewed[st]; ok {
			st.session.markAll(st)
			st.learnHeld()
			cares = true
		}
		for _, k := range touched[st] {
			cares = st.session.mark(k.Type, k.Name) || cares
		}
		st.poke(cares || view != nil && view.Growing)
		st.mu.Unlock()
	}
	for _, of := range shared {
		for _, st := range of.streams {
			st.mu.Lock()
			st.poke(st.session.mark(of.key.Type, of.key.Name))
			st.mu.Unlock()
		}
	}
}

// complete is the view with a list, if an empty one, for each wildcard type.
func (v *View) complete() *View {
	if v.Own[ClusterType] != nil && v.Own[ListenerType] != nil {
		return v
	}
	c := *v
	c.Own = maps.Clone(v.Own)
	if c.Own == nil {
		c.Own = map[Type]Resources{}
	}
	for _, t := range []Type{ClusterType, ListenerType} {
		if c.Own[t] == nil {
			c.Own[t] = Resources{}
		}
	}
	return &c
}

// Changes lists what differs between two views of a node, without order.
func Changes(old, new *View) []Key {
	var out []Key
	for _, t := range Types {
		out = old.Own[t].changes(new.Own[t], t, out)
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

// Sent is how many responses were sent so far.
func (s *Server) Sent() uint64 { return s.sent.Load() }

// Sending is how many streams are being told something now.
func (s *Server) Sending() int { return int(s.sending.Load()) }

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

// Resend sends resources to a node again whatever it has acknowledged, and tells it to let go
// those that are not in its view. Of their types a response that the node has not answered is
// given up and sent anew; a key without a name does that alone.
func (s *Server) Resend(node string, keys []Key) {
	names := map[Type][]string{}
	for _, k := range keys {
		if names[k.Type] == nil {
			names[k.Type] = []string{}
		}
		if k.Name != "" {
			names[k.Type] = append(names[k.Type], k.Name)
		}
	}
	s.mu.RLock()
	list := slices.Collect(maps.Keys(s.streams[node]))
	s.mu.RUnlock()
	for _, st := range list {
		st.mu.Lock()
		for t, of := range names {
			st.session.resend(t, of, st)
		}
		st.urgent = true
		st.poke(true)
		st.mu.Unlock()
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
