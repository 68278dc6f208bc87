package server

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/shift"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// maxBehind bounds the sidecars that are named of one pair.
const maxBehind = 100

// books are all that is known of pairs at one moment. What is worked out once for many
// pairs is kept beside it; not for concurrent use.
type books struct {
	datacenter string
	snap       *catalog.Snapshot
	shifts     map[string]*store.Entry // traffic-shift entries by name
	newest     map[string]*store.Version
	streams    map[*catalog.Service]stream            // of registered sidecars with an open one; nil before they are asked for
	runsThere  map[*catalog.Service]map[string]uint64 // of those that are connected to another server: up to which index services run entries there; with streams
	look       func()                                 // fills in both
	legacy     map[string]error                       // what probing addresses has found
	history    func(address string) (since, last time.Time)
	book       *telemetry.Book

	sources map[string]*source // nil before they are asked for
	callees map[string]api.Callee
	hosts   map[string][]netip.Addr
	plain   map[string]int                                             // sidecars that take plaintext now, by service
	probed  func(p api.PairName, way, address string) telemetry.Probed // what callers say of an old way; may be nil
	strays  map[api.PairName]telemetry.Sender                          // undeclared pairs; nil before they are looked for
	unsaved map[string]string                                          // entries in force that are not saved, and why
	decides map[string][]api.PairName                                  // pairs by the name of the entry that counts for them; nil before it is asked for
}

// stream is how far a connected sidecar is.
type stream struct{ behind string } // why it does not run all that it was told; empty: it does

// source is a service that calls others, with all its sidecars.
type source struct {
	sidecars []catalog.Instance
	calls    map[string][]catalog.Instance // of the sidecars, by the upstream that they declare
}

// books reads what there is now, but for probes.
func (s *Server) books(ctx context.Context) *books {
	b := &books{datacenter: s.mesh.datacenter, snap: s.mesh.snapshot(), callees: map[string]api.Callee{}, plain: map[string]int{},
		unsaved: map[string]string{}, book: s.mesh.book, history: s.probes.history}
	b.look = func() {
		b.streams = s.mesh.standing(b.snap)
		there, _ := s.others.moments()
		b.elsewhere(there)
	}
	s.store.Read(ctx, 0, func(r *store.Reader) {
		b.shifts, b.newest = map[string]*store.Entry{}, map[string]*store.Version{}
		for _, row := range r.Entries(config.KindTrafficShift) {
			b.shifts[row.EntryName()] = row
			b.newest[row.EntryName()] = r.Latest(config.KeyOf(row))
		}
	})
	for name, u := range s.mesh.notSaved() {
		row := &store.Entry{Entry: u.entry}
		if was := b.shifts[name]; was != nil {
			row.CreateIndex, row.ModifyIndex = was.CreateIndex, was.ModifyIndex
		}
		b.shifts[name] = row
		b.unsaved[name] = u.why
	}
	now := time.Now()
	b.probed = func(p api.PairName, way, address string) telemetry.Probed {
		return s.mesh.book.Probes(shift.Pair{Source: p.Source, Destination: p.Destination}, shift.Way(way), address, now)
	}
	return b
}

// declared is who declares what. It and connected look at the whole fleet when they are first
// called, which many a look at the books does without.
func (b *books) declared() map[string]*source {
	if b.sources == nil {
		b.sources = sourcesOf(b.snap, b.datacenter)
	}
	return b.sources
}

// connected says how far a registered sidecar is that has an open stream.
func (b *books) connected(in catalog.Instance) (st stream, ok bool) {
	if b.streams == nil {
		b.look()
	}
	st, ok = b.streams[in.Service]
	return st, ok
}

// sourcesOf lists who declares what.
func sourcesOf(snap *catalog.Snapshot, datacenter string) map[string]*source {
	out := map[string]*source{}
	for _, in := range snap.Proxies() {
		name := in.Service.Proxy.DestinationServiceName
		if out[name] == nil {
			out[name] = &source{calls: map[string][]catalog.Instance{}}
		}
		out[name].add(in, datacenter)
	}
	return out
}

// sourceOf is one of [sourcesOf], or nil.
func sourceOf(snap *catalog.Snapshot, datacenter, service string) (out *source) {
	for _, in := range snap.Connect(service) {
		if in.Service.Kind != catalog.ConnectProxy {
			continue
		}
		if out == nil {
			out = &source{calls: map[string][]catalog.Instance{}}
		}
		out.add(in, datacenter)
	}
	return out
}

func (s *source) add(in catalog.Instance, datacenter string) {
	s.sidecars = append(s.sidecars, in)
	once := map[string]bool{}
	for _, u := range in.Service.Proxy.Upstreams {
		service := u.DestinationType == "" || u.DestinationType == "service"
		here := u.DestinationPeer == "" && (u.Datacenter == "" || u.Datacenter == datacenter)
		if service && here && !once[u.DestinationName] {
			once[u.DestinationName] = true
			s.calls[u.DestinationName] = append(s.calls[u.DestinationName], in)
		}
	}
}

// standing is how far each registered sidecar with an open stream is.
func (m *mesh) standing(snap *catalog.Snapshot) map[*catalog.Service]stream {
	m.mu.Lock()
	connected := maps.Clone(m.connected)
	m.mu.Unlock()
	out := map[*catalog.Service]stream{}
	behind := map[string]string{}
	for _, st := range m.xds.Status() {
		behind[st.Node] = cmp.Or(behind[st.Node], lacking(st))
	}
	for key, n := range connected {
		if in, ok := snap.Proxy(n.id, n.name); ok && !n.observer {
			out[in.Service] = stream{cmp.Or(out[in.Service].behind, behind[key])}
		}
	}
	return out
}

// lacking says in what a stream's client does not run what it was told.
func lacking(st xds.StreamStatus) string {
	left := 0
	for _, short := range slices.Sorted(maps.Keys(st.Types)) {
		t := st.Types[short]
		for _, name := range slices.Sorted(maps.Keys(t.Refused)) {
			return fmt.Sprintf("refused %s %q: %s", short, name, t.Refused[name].Message)
		}
		left += t.Sent - t.Acked
	}
	switch left {
	case 0:
		return ""
	case 1:
		return "has not acknowledged 1 resource"
	}
	return fmt.Sprintf("has not acknowledged %d resources", left)
}

// deciding is the entry that counts for a pair, or nil.
func (b *books) deciding(p api.PairName) (*config.TrafficShift, *store.Entry) {
	return decidingOf(p, func(k config.Key) *store.Entry { return b.shifts[k.Name] })
}

func decidingOf(p api.PairName, entry func(config.Key) *store.Entry) (*config.TrafficShift, *store.Entry) {
	for _, k := range config.TrafficShiftKeys(p.Source, p.Destination) {
		if row := entry(k); row != nil {
			if e, ok := row.Entry.(*config.TrafficShift); ok {
				return e, row
			}
		}
	}
	return nil, nil
}

// names lists the pairs that are declared or have an entry of their own, sorted.
func (b *books) names(keep func(api.PairName) bool) []api.PairName {
	found := map[api.PairName]struct{}{}
	for source, of := range b.declared() {
		for destination := range of.calls {
			found[api.PairName{Source: source, Destination: destination}] = struct{}{}
		}
	}
	for _, row := range b.shifts {
		if e, ok := row.Entry.(*config.TrafficShift); ok && e.Source != config.Wildcard && e.Destination != config.Wildcard {
			found[api.PairName{Source: e.Source, Destination: e.Destination}] = struct{}{}
		}
	}
	out := make([]api.PairName, 0, len(found))
	for p := range found {
		if keep(p) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, comparePairs)
	return out
}

func comparePairs(a, b api.PairName) int {
	return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Destination, b.Destination))
}

// decided lists the pairs that an entry counts for.
func (b *books) decided(name string) []api.PairName {
	if b.decides == nil {
		b.decides = map[string][]api.PairName{}
		for _, p := range b.names(func(api.PairName) bool { return true }) {
			if e, _ := b.deciding(p); e != nil {
				b.decides[e.EntryName()] = append(b.decides[e.EntryName()], p)
			}
		}
	}
	return b.decides[name]
}

// callee counts a service's instances.
func (b *books) callee(service string) api.Callee {
	if c, ok := b.callees[service]; ok {
		return c
	}
	var c api.Callee
	sided := map[string]bool{} // by node and ID of the instance that a proxy stands for
	for _, in := range b.snap.Connect(service) {
		if in.Service.Kind == catalog.ConnectProxy {
			sided[in.Node.Name+"/"+in.Service.Proxy.DestinationServiceID] = true
			if in.PlaintextPort() != 0 {
				b.plain[service]++
			}
		}
	}
	if set := b.snap.Set(service); set != nil {
		for _, in := range set.Instances {
			if in.Service.Kind != catalog.Typical {
				continue
			}
			c.Instances++
			if in.Weight() > 0 {
				c.Healthy++
			}
			// A proxy may leave out for which of the node's instances it stands.
			if in.Service.Connect.Native || sided[in.Node.Name+"/"+in.Service.ID] || sided[in.Node.Name+"/"] {
				c.Sidecars++
			}
		}
	}
	b.callees[service] = c
	return c
}

// row is the ledger's row of a pair.
func (b *books) row(p api.PairName) api.Pair {
	out := api.Pair{PairName: p, Shares: api.Shares(unshifted()), Callee: b.callee(p.Destination)}
	e, entry := b.deciding(p)
	if e != nil {
		out.Unsaved = b.unsaved[e.EntryName()]
		out.Shares, out.Entry, out.Index, out.Legacy = api.Shares(e.Shares), e.EntryName(), entry.ModifyIndex, legacyOf(e)
		if v := b.newest[e.EntryName()]; v != nil {
			shares := out.Shares
			out.Changed = &api.Change{Index: v.Index, Time: v.Time, Who: v.Who, What: v.What, Shares: &shares}
		}
	}
	if of := b.declared()[p.Source]; of != nil {
		out.Declared = len(of.calls[p.Destination]) > 0
		out.Sidecars.Registered = len(of.sidecars)
		for _, in := range of.sidecars {
			st, connected := b.connected(in)
			if !connected {
				continue
			}
			out.Sidecars.Connected++
			if st.behind == "" {
				out.Sidecars.Acknowledged++
			}
		}
	}
	out.Revertible = b.revertible(p, e)
	return out
}

func legacyOf(e *config.TrafficShift) *api.LegacyWay {
	if e == nil || e.Legacy == nil {
		return nil
	}
	return &api.LegacyWay{Address: e.Legacy.Address, Host: e.Legacy.Host}
}

// addresses are the legacy addresses of the entries that decide for the pairs.
func (b *books) addresses(pairs []api.PairName) []string {
	found := map[string]struct{}{}
	for _, p := range pairs {
		if e, _ := b.deciding(p); e != nil && e.Legacy != nil {
			found[e.Legacy.Address] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// behind are the sidecars of a source that do not run all that they should.
func (b *books) behind(service string) (out []api.Behind) {
	of := b.declared()[service]
	if of == nil {
		return nil
	}
	for _, in := range of.sidecars {
		st, connected := b.connected(in)
		why := st.behind
		if !connected {
			why = "is not connected to this server"
		}
		if why != "" && len(out) < maxBehind {
			out = append(out, api.Behind{Sidecar: in.Service.ID, Why: why})
		}
	}
	return out
}

// pairs is the ledger.
func (s *Server) pairs(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	source, destination := q.Get("source"), q.Get("destination")
	b := s.books(r.Context())
	keep := func(p api.PairName) bool {
		return (source == "" || p.Source == source) && (destination == "" || p.Destination == destination)
	}
	names := b.withStrays(b.names(keep), keep)
	ctx, cancel := context.WithTimeout(r.Context(), ledgerWait)
	defer cancel()
	b.legacy = s.probes.all(ctx, b.addresses(names), probeFresh, ledgerProbes)
	out := make([]api.Pair, 0, len(names))
	for _, p := range names {
		out = append(out, b.row(p))
	}
	s.measure(b, out, time.Now())
	s.answer(w, out)
}

// pair is all that is known of one pair.
func (s *Server) pair(w http.ResponseWriter, r *http.Request) {
	p := api.PairName{Source: r.PathValue("source"), Destination: r.PathValue("destination")}
	b := s.books(r.Context())
	keep := func(of api.PairName) bool { return of == p }
	names := b.withStrays(b.names(keep), keep)
	if len(names) == 0 {
		http.Error(w, fmt.Sprintf("pair %q: there is none: no registered sidecar declares it, and it has no traffic-shift of its own", clipped(p.String())), http.StatusNotFound)
		return
	}
	b.legacy = s.probes.all(r.Context(), b.addresses(names), 0, ledgerProbes)
	rows := []api.Pair{b.row(p)}
	s.measure(b, rows, time.Now())
	out := api.PairDetail{Pair: rows[0], Behind: b.behind(p.Source)}
	if out.Entry != "" {
		s.store.Read(r.Context(), 0, func(r *store.Reader) {
			out.History = nil
			for _, v := range r.History(config.Key{Kind: config.KindTrafficShift, Name: out.Entry}) {
				out.History = append(out.History, changeOf(v))
			}
		})
	}
	s.answer(w, out)
}

func changeOf(v *store.Version) api.Change {
	out := api.Change{Index: v.Index, Time: v.Time, Who: v.Who, What: v.What}
	if v.Entry == nil {
		return out
	}
	if e, err := config.DecodeEntryJSON(v.Entry); err == nil {
		if t, ok := e.(*config.TrafficShift); ok {
			shares := api.Shares(t.Shares)
			out.Shares = &shares
		}
	}
	return out
}
