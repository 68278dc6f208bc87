package server

import (
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/crossfade-mesh/crossfade/internal/access"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/routing"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// mesh turns snapshots and entries into what connected sidecars are told. One
// goroutine, run, does all rebuilding; it looks only at what changed: a sidecar is
// rebuilt when its registration or an entry that it was made from changed,
// endpoints when an instance behind them did.
type mesh struct {
	datacenter             string
	trustDomain            string
	defaultAllow           bool
	allowHatches           bool
	bindAny, consulCallers bool    // as in [proxy.Input]
	minter                 *minter // for bare Envoys; nil outside development mode, where nobody is served who is not known
	log                    *slog.Logger
	decide                 func(proxy.Input) (*proxy.Proxy, []proxy.Problem) // proxy.Build
	xds                    *xds.Server
	adopt                  func(node, *corev3.Node) // what a sidecar has that the server may have lost; may be nil
	book                   *telemetry.Book          // what sidecars report

	wake chan struct{} // capacity 1

	mu        sync.Mutex // guards the following
	catalog   *catalog.Snapshot
	newer     chan struct{} // closed when catalog is replaced
	there     chan struct{} // closed when there is a catalog
	entries   *config.Set   // in force: base, and over it unsaved
	base      *config.Set   // of the store
	unsaved   map[config.Key]unsaved
	index     uint64               // of entries
	names     proxy.Names          // of legacy addresses
	connected map[string]node      // with an open stream
	away      map[string]time.Time // since when nodes are not connected that may come back
	moved     map[string]struct{}  // keys of connected that came, went or changed since the last step
	applied   uint64               // index of the snapshot that streams are told of
	progress  chan struct{}        // closed when applied, or changes, moves on
	changes   changes              // of entries, that streams are told of
	problems  map[string][]proxy.Problem
	named     map[string][]string // names of endpoint resources, by service
	// known are the services registered at some time since the start. Only run replaces
	// it, by another map: this one never changes.
	known map[string]struct{}

	reconsider map[string]struct{}        // services of which sidecars refuse something else than before
	inForce    map[chainKey]routing.Chain // of entries that make none any more

	cuts []*cut // the last ones, the oldest first

	plans planner
	open  openConnections

	// Only run touches these.
	doneCatalog *catalog.Snapshot
	doneEntries *config.Set
	doneNames   proxy.Names
	doneCuts    []*cut
	sidecars    map[string]*sidecar
	crowd       crowd
	memo        *memo
	endpoints   endpointSets
	chains      *chains
	filters     proxy.Filters
	lastGood    lastGood
}

// node is who is at the other end of a stream.
type node struct {
	id, name string
	relayed  bool // has its own keys; a bare Envoy hasn't
	observer bool // a person looking on, who runs nothing
	// service is that of the instance which opened the stream, and the only one that
	// it is told about; empty for people, and in development mode.
	service string
	streams int
	conn    *entering // by which the last of them came; nil without TLS
}

// sidecar is what was made for one connected node.
type sidecar struct {
	service *catalog.Service // the registration it was made from
	reads   []entryKey
	calls   []proxy.EndpointsRef // endpoints that it needs
	own     map[xds.Type]xds.Resources
	secrets xds.Resources // nil for a relayed one
	shared  map[string]struct{}
	unknown []string // services it calls that nobody knew when it was made
	sources []string // services whose addresses it lets in
	leaving []leaving
	cuts    []proxy.Cut
	refuses bool // sidecars of its service refuse some of what is in own
}

// leaving is endpoints that a sidecar no longer needs, and until when it may ask for
// them: by the time it has got a cluster, that may be one that is to go.
type leaving struct {
	until time.Time
	ref   proxy.EndpointsRef
}

func newMesh(datacenter, trustDomain string, defaultAllow bool, m *minter, log *slog.Logger) *mesh {
	out := &mesh{
		datacenter: datacenter, trustDomain: trustDomain, defaultAllow: defaultAllow, minter: m, log: log, decide: proxy.Build,
		unsaved: map[config.Key]unsaved{}, book: telemetry.NewBook(), wake: make(chan struct{}, 1), connected: map[string]node{}, away: map[string]time.Time{}, progress: make(chan struct{}), newer: make(chan struct{}), there: make(chan struct{}),
		problems: map[string][]proxy.Problem{}, sidecars: map[string]*sidecar{}, endpoints: newEndpointSets(), chains: newChains(),
		lastGood: lastGood{refs: map[string]map[string]proxy.EndpointsRef{}, seen: map[string]time.Time{}},
		named:    map[string][]string{}, crowd: newCrowd(), memo: newMemo(), moved: map[string]struct{}{},
		known: map[string]struct{}{}, plans: newPlanner(), open: openConnections{by: map[string]openReport{}},
	}
	out.xds = xds.NewServer(xds.Options{Open: out.opened, Closed: out.closed, Alike: alike, Refusing: out.refusing, Linger: linger, Log: log})
	return out
}

// linger is how long a cluster outlives what led to it. By default a request is on its
// way to an instance for 3 s at most: three tries, of a second each to connect.
const linger = 10 * time.Second

func (m *mesh) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// setCatalog and setEntries take in the newest of either; they don't block.

func (m *mesh) setCatalog(s *catalog.Snapshot) {
	m.mu.Lock()
	if m.catalog == nil {
		close(m.there)
	}
	m.catalog = s
	close(m.newer)
	m.newer = make(chan struct{})
	m.mu.Unlock()
	m.poke()
}

// snapshot is the newest catalog; empty before there is one.
func (m *mesh) snapshot() *catalog.Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.catalog == nil {
		return catalog.NewSnapshot(m.datacenter, 0, nil)
	}
	return m.catalog
}

func (m *mesh) setEntries(s *config.Set, index uint64) {
	m.mu.Lock()
	m.base, m.index = s, max(m.index, index)
	m.overlay()
	m.mu.Unlock()
	m.poke()
}

// setNames takes in what names in legacy addresses stand for.
func (m *mesh) setNames(n proxy.Names) {
	m.mu.Lock()
	m.names = n
	m.mu.Unlock()
	m.poke()
}

// resolved is what names in legacy addresses stand for now.
func (m *mesh) resolved() proxy.Names {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.names
}

// registrationWait is how long a stream may be ahead of the catalog that its
// registration is in.
const registrationWait = 2 * time.Second

// opened admits a stream by its node: id is a connect-proxy's service ID,
// metadata.node_name its catalog node (only needed where two nodes share the ID).
// Outside development mode an instance may only be a proxy of its own service.
func (m *mesh) opened(ctx context.Context, n *corev3.Node) (string, error) {
	if n.GetId() == "" {
		return "", errors.New("the node has no id: it must be the service ID of a registered connect-proxy")
	}
	meta := n.GetMetadata().GetFields()
	in := node{id: n.GetId(), name: meta["node_name"].GetStringValue(), relayed: meta["crossfade_relay"].GetBoolValue()}
	key := in.name + "/" + in.id
	switch caller := callerOf(ctx); {
	case m.minter != nil && !in.relayed:
		key += " (bare)" // has secrets in its view, which no relay is to see
	case m.minter != nil:
	case !in.relayed:
		return "", status.Errorf(codes.PermissionDenied, "sidecar %q: a bare Envoy has no key, and only a server with --dev makes one for it: run crossfade sidecar", in.id)
	case caller.Role == access.Service || caller.Role == access.Join:
		in.service = caller.Services[0]
		if err := m.awaitOwn(ctx, in); err != nil {
			return "", err
		}
		key += " of " + in.service // so that an id which becomes another's has another view
	default:
		if err := access.Decide(caller, access.Need{Kind: access.Read}); err != nil {
			return "", status.Error(codes.PermissionDenied, err.Error())
		}
		key += " (observer)"
		in.observer = true
	}
	if m.adopt != nil && in.relayed && !in.observer {
		m.adopt(in, n)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.catalog != nil {
		if _, ok := m.catalog.Proxy(in.id, in.name); !ok {
			m.log.Info("sidecar connected that is not registered, it is served as soon as it is", "sidecar", in.id, "node", in.name)
		}
	}
	in.streams, in.conn = m.connected[key].streams+1, visitorOf(ctx).conn
	m.enterLocked(key, in)
	return key, nil
}

// enterLocked takes in a node as it is now.
func (m *mesh) enterLocked(key string, n node) {
	m.connected[key] = n
	delete(m.away, key)
	m.moved[key] = struct{}{}
	m.poke()
}

// awaitOwn waits until the node is registered, and refuses one that stands for
// another service than the caller's.
func (m *mesh) awaitOwn(ctx context.Context, n node) error {
	ctx, cancel := context.WithTimeout(ctx, registrationWait)
	defer cancel()
	for {
		m.mu.Lock()
		snap, newer := m.catalog, m.newer
		m.mu.Unlock()
		if snap != nil {
			if in, ok := snap.Proxy(n.id, n.name); ok {
				return n.mayBe(in)
			}
		}
		select {
		case <-newer:
		case <-ctx.Done():
			return status.Errorf(codes.Unavailable, "sidecar %q on node %q: not registered, or not yet: it is served as soon as it is", n.id, n.name)
		}
	}
}

// mayBe refuses a proxy that stands for another service than the node's caller.
func (n node) mayBe(in catalog.Instance) error {
	if of := in.Service.Proxy.DestinationServiceName; n.service != "" && n.service != of {
		return status.Errorf(codes.PermissionDenied, "sidecar %q: stands for service %q, and the caller is an instance of %q", n.id, of, n.service)
	}
	return nil
}

func (m *mesh) closed(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	in := m.connected[key]
	if in.streams--; in.streams > 0 {
		m.connected[key] = in
		return
	}
	delete(m.connected, key)
	m.away[key] = time.Now()
	m.moved[key] = struct{}{}
	m.poke()
	time.AfterFunc(awayFor, func() { m.awayNoMore(key) })
}

// awayFor is how long what was made for a node is kept, and kept up to date, when its last stream has ended. When a network
// fails for a moment thousands come back, and have at once what is theirs.
const awayFor = time.Minute

// awayNoMore has the next step forget a node, if it is still away.
func (m *mesh) awayNoMore(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, is := m.away[key]; is {
		m.moved[key] = struct{}{}
		m.poke()
	}
}

// run rebuilds until ctx ends.
func (m *mesh) run(ctx context.Context) {
	tick := time.NewTicker(time.Minute) // secrets of bare Envoys grow old
	defer tick.Stop()
	for {
		all := false
		select {
		case <-ctx.Done():
			return
		case <-m.wake:
		case <-tick.C:
			m.keepBook(time.Now())
			m.forgetGood(time.Now())
			m.lastGood.stale, all = true, true
		}
		m.step(time.Now(), all)
		m.keepGood()
	}
}

func (m *mesh) stale(s *sidecar, n node, snap *catalog.Snapshot, cuts []*cut, changed map[entryKey]struct{}, appeared, moved []string, now time.Time) bool {
	in, ok := snap.Proxy(n.id, n.name)
	if !ok {
		return false // not registered yet, or no longer: then it keeps what it has while it drains
	}
	if s == nil || s.service != in.Service || !slices.Equal(s.cuts, cutsOf(cuts, in)) {
		return true
	}
	if !n.relayed && m.minter != nil && m.minter.due(n.id, now) {
		return true
	}
	return s.readsAny(changed) || slices.ContainsFunc(moved, func(name string) bool {
		_, found := slices.BinarySearch(s.sources, name)
		return found
	}) || slices.ContainsFunc(appeared, func(name string) bool {
		return slices.Contains(s.unknown, name)
	})
}

// movedServices are those of names whose instances have other addresses than before.
func movedServices(before, now *catalog.Snapshot, names []string) (out []string) {
	for _, name := range names {
		if before == nil || !slices.Equal(before.Addresses(name), now.Addresses(name)) {
			out = append(out, name)
		}
	}
	return out
}

// entryKey stands for an entry in few bytes, which the collector need not look at: a sidecar reads some
// fifty entries. That two have one is as unlikely as harmless: a sidecar would be looked at in vain.
type entryKey uint64

var entrySeed = maphash.MakeSeed()

func entryKeys(keys []config.Key) []entryKey {
	out := make([]entryKey, len(keys))
	for i, k := range keys {
		out[i] = entryKey(maphash.Comparable(entrySeed, k))
	}
	return out
}

func (s *sidecar) readsAny(changed map[entryKey]struct{}) bool {
	return len(changed) > 0 && slices.ContainsFunc(s.reads, func(k entryKey) bool {
		_, has := changed[k]
		return has
	})
}

// build makes all that one sidecar needs. When that fails, the sidecar keeps what it has.
func (m *mesh) build(key string, n node, snap *catalog.Snapshot, entries *config.Set, cuts []*cut, now time.Time, update xds.Update) {
	in, _ := snap.Proxy(n.id, n.name)
	input := m.input(in, snap, entries, m.known)
	input.Chain = m.chains.compile
	input.Cuts = cutsOf(cuts, in)
	made, err := m.makeOf(input)
	p, problems := made.proxy, made.problems
	for _, pr := range problems {
		m.log.Warn("part of a sidecar's configuration can't be honoured, the rest is", "sidecar", n.id, "problem", pr.String())
	}
	m.mu.Lock()
	if len(problems) > 0 {
		m.problems[key] = problems
	} else {
		delete(m.problems, key)
	}
	m.mu.Unlock()
	if err != nil {
		m.log.Error("sidecar's configuration can't be built, it keeps the one it has", "sidecar", n.id, "reason", err)
		return
	}
	spares := m.spare(n, input, &made)
	next := &sidecar{service: in.Service, cuts: input.Cuts, sources: p.Sources, reads: entryKeys(p.Reads), own: made.own, shared: map[string]struct{}{}}
	for _, u := range p.Upstreams {
		if u.Unknown {
			next.unknown = append(next.unknown, u.Target.Service)
		}
	}
	for _, ref := range slices.Concat(p.Endpoints(), spares) {
		if e := m.endpoints.byName[ref.ClusterName]; e != nil && e.ref.Equal(ref) {
			ref = e.ref // what others hold, too
		}
		next.calls = append(next.calls, ref)
		next.shared[ref.ClusterName] = struct{}{}
	}
	if !n.relayed && m.minter != nil {
		if next.secrets, err = m.minter.secrets(n.id, p.Identity, now); err != nil {
			m.log.Error("no certificate for a bare Envoy", "sidecar", n.id, "reason", err)
		}
	}
	old := m.sidecars[key]
	m.standBy(next)
	m.use(next.calls, toldMore(m.sidecars[key], next), snap, update)
	shared := next.shared
	if old != nil {
		next.leaving = m.left(old.leaving, now, update)
		for _, ref := range old.calls {
			if _, needed := next.shared[ref.ClusterName]; needed {
				m.release([]proxy.EndpointsRef{ref}, update)
			} else {
				next.leaving = append(next.leaving, leaving{now.Add(linger), ref})
			}
		}
		if len(next.leaving) > 0 {
			shared = maps.Clone(shared)
		}
		for _, l := range next.leaving {
			shared[l.ref.ClusterName] = struct{}{}
		}
	}
	if len(next.leaving) > 0 {
		m.crowd.leaving[key] = struct{}{}
	}
	var let []string
	if old != nil {
		let = old.sources
	}
	m.crowd.lets(key, let, next.sources)
	m.sidecars[key] = next
	view := &xds.View{Own: next.own, Shared: shared}
	if !n.observer {
		view.Group = next.of()
	}
	if next.secrets != nil {
		view.Own = maps.Clone(next.own)
		view.Own[xds.SecretType] = next.secrets
	}
	update.Views[key] = view
}

// toldMore reports whether a sidecar is told of more than other endpoints.
func toldMore(old, next *sidecar) bool {
	return old != nil && len(xds.Changes(&xds.View{Own: old.own}, &xds.View{Own: next.own})) > 0
}

// left are those whose time has not come; the others are given up.
func (m *mesh) left(list []leaving, now time.Time, update xds.Update) []leaving {
	i := slices.IndexFunc(list, func(l leaving) bool { return l.until.After(now) })
	if i < 0 {
		i = len(list)
	}
	for _, l := range list[:i] {
		m.release([]proxy.EndpointsRef{l.ref}, update)
	}
	return slices.Clone(list[i:])
}

func (m *mesh) forget(key string, update xds.Update) {
	m.release(m.sidecars[key].calls, update)
	for _, l := range m.sidecars[key].leaving {
		m.release([]proxy.EndpointsRef{l.ref}, update)
	}
	m.crowd.lets(key, m.sidecars[key].sources, nil)
	delete(m.crowd.leaving, key)
	delete(m.sidecars, key)
	update.Views[key] = nil
}

// waitIndex waits until streams are told of a snapshot at least that new.
func (m *mesh) waitIndex(ctx context.Context, index uint64) error {
	for {
		m.mu.Lock()
		applied, progress := m.applied, m.progress
		m.mu.Unlock()
		if applied >= index {
			return nil
		}
		select {
		case <-progress:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
