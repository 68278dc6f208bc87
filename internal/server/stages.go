package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/routing"
	"github.com/crossfade-mesh/crossfade/internal/shift"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

// silence is for how long a callee must have taken no plaintext to become strict.
const silence = 24 * time.Hour

// checkStage refuses what nobody means.
func checkStage(in api.ShiftRequest) error {
	stages := []string{string(shift.Client), string(shift.PlainStage), string(shift.Permissive), string(shift.StrictStage)}
	switch {
	case !slices.Contains(stages, in.Stage):
		return refuse(http.StatusBadRequest, "shift: stage %.40q: want one of %s", in.Stage, strings.Join(stages, ", "))
	case len(in.Via) > 0 || in.To != "" || in.Do != "" || in.Legacy != nil:
		return refuse(http.StatusBadRequest, "shift: a stage is set by itself, without shares and commands")
	case in.Stage == string(shift.StrictStage) && in.Service == "":
		return refuse(http.StatusBadRequest, "shift: strict belongs to the callee, and holds for all its callers: name it as the service")
	}
	if _, err := windowOf(in); err != nil {
		return err
	}
	return nil
}

func windowOf(in api.ShiftRequest) (time.Duration, error) {
	if in.Window == "" {
		return silence, nil
	}
	d, err := time.ParseDuration(in.Window)
	if err != nil || d <= 0 {
		return 0, refuse(http.StatusBadRequest, "shift: window %.40q: want a duration above 0, such as 24h", in.Window)
	}
	return d, nil
}

// stage sets stages of pairs, and what their callees take, in one write. A callee that takes
// plaintext is one that has said so: what callers send by it follows as its sidecars have it
// in force.
func (s *Server) stage(ctx context.Context, b *books, in api.ShiftRequest, by store.Author) (*api.Changed, error) {
	if in.Stage == string(shift.StrictStage) {
		return s.strict(ctx, b, in, by)
	}
	out := &api.Changed{}
	if !in.Force {
		s.probeOld(b, in)
	}
	write := func(from *store.Reader, w *store.Writer) error {
		*out = api.Changed{Pairs: []api.PairChanged{}}
		targets, err := b.expand(in, from)
		if err != nil {
			return err
		}
		callees := map[string]bool{}
		for _, t := range targets {
			done, e, err := b.restage(t, in, from)
			if err != nil {
				return err
			}
			if e != nil && w != nil {
				if err := w.PutEntry(e, by); err != nil {
					return err
				}
			}
			out.Pairs = append(out.Pairs, done)
			if t.Destination != config.Wildcard && !callees[t.Destination] && w != nil {
				callees[t.Destination] = true
				if err := remode(t.Destination, in.Stage, w, by); err != nil {
					return err
				}
			}
		}
		return nil
	}
	var err error
	if in.DryRun {
		s.store.Read(context.Background(), 0, func(from *store.Reader) { err = write(from, nil) })
	} else {
		out.Index, err = s.change(func(w *store.Writer) error { return write(&w.Reader, w) })
	}
	return out, err
}

// probeOld finds out about the legacy addresses that shares may go back to.
func (s *Server) probeOld(b *books, in api.ShiftRequest) {
	var names []api.PairName
	for _, t := range b.targets(in) {
		names = append(names, b.meant(t.PairName)...)
	}
	if in.Service != "" {
		names = b.names(func(p api.PairName) bool { return p.Destination == in.Service })
	}
	addresses := b.addresses(names)
	b.legacy = s.probes.all(context.Background(), addresses, 0, len(addresses))
}

// restage is one pair's entry in another stage. Shares on ways that it closes go to the old
// way, if that takes them or it is forced.
func (b *books) restage(t target, in api.ShiftRequest, from *store.Reader) (api.PairChanged, *config.TrafficShift, error) {
	old, row := decidingOf(t.PairName, from.Entry)
	done := api.PairChanged{PairName: t.PairName, Before: api.Shares(sharesBefore(old)), Index: entryIndex(row)}
	if t.index != nil && *t.index != done.Index {
		return done, nil, lost(t, done.Index, row, from)
	}
	e := next(t.PairName, old)
	e.Stage = in.Stage
	shares, back := sharesOfEntry(e.Shares), shift.Way(oldWay(e))
	for _, w := range shift.Ways() {
		if n := shares.Of(w); n > 0 && !shift.Stage(e.Stage).Opens(w) {
			shares = shares.With(w, 0)
			shares = shares.With(back, shares.Of(back)+n)
		}
	}
	if after := entryShares(shares); after != e.Shares && !in.Force {
		if why := b.cannotGoBack(t.PairName, e); why != "" {
			return done, nil, refuse(http.StatusConflict, "%s: stage %s moves shares to the old way, which does not take them: %s; --force does it all the same", t.what("shift"), in.Stage, why)
		}
	}
	e.Shares = entryShares(shares)
	done.After = api.Shares(e.Shares)
	done.Stage = e.Stage
	if err := checked(e); err != nil {
		return done, nil, refuse(http.StatusBadRequest, "%s: %v", t.what("shift"), err)
	}
	if old != nil && old.Source == e.Source && old.Destination == e.Destination && old.Stage == e.Stage && old.Shares == e.Shares {
		return done, nil, nil
	}
	var err error
	done.Entry, err = config.EncodeEntry(e)
	return done, e, err
}

// cannotGoBack says why the old way of an entry does not take the requests of a pair, or of
// all that "*" stands for.
func (b *books) cannotGoBack(p api.PairName, e *config.TrafficShift) string {
	for _, one := range b.meant(p) {
		if one.Destination == config.Wildcard {
			continue
		}
		if r := b.revertible(one, e); r.State != api.Yes {
			return r.Why
		}
	}
	return ""
}

// remode makes a callee take what a stage needs of it.
func remode(service, stage string, w *store.Writer, by store.Author) error {
	own, have := modesOf(service, &w.Reader)
	switch {
	case have == config.MutualTLSPermissive:
		return nil
	case stage != string(shift.Client):
		return putMode(service, config.MutualTLSPermissive, w, by)
	case have != config.MutualTLSStrict:
		return nil
	case own == config.MutualTLSStrict:
		if err := putMode(service, "", w, by); err != nil {
			return err
		}
		if _, have = modesOf(service, &w.Reader); have != config.MutualTLSStrict {
			return nil
		}
	}
	return putMode(service, config.MutualTLSPermissive, w, by) // for proxy-defaults say strict
}

// modesOf are a service's own MutualTLSMode, as it is in the store, and what counts for it.
func modesOf(service string, from *store.Reader) (own, have string) {
	if row := from.Entry(config.Key{Kind: config.KindServiceDefaults, Name: service}); row != nil {
		if e, ok := row.Entry.(*config.ServiceDefaults); ok && e.MutualTLSMode != "" {
			return e.MutualTLSMode, e.MutualTLSMode
		}
	}
	if row := from.Entry(config.Key{Kind: config.KindProxyDefaults, Name: config.Global}); row != nil {
		if e, ok := row.Entry.(*config.ProxyDefaults); ok {
			return "", e.MutualTLSMode
		}
	}
	return "", ""
}

func putMode(service, mode string, w *store.Writer, by store.Author) error {
	e := &config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: service}
	if row := w.Entry(config.KeyOf(e)); row != nil {
		if old, ok := row.Entry.(*config.ServiceDefaults); ok {
			copied := *old
			e = &copied
		}
	}
	e.MutualTLSMode = mode
	e.Normalize()
	if err := e.Validate(); err != nil {
		return err
	}
	return w.PutEntry(e, by)
}

// strict makes a callee refuse plaintext, if nothing speaks against it or it is forced.
func (s *Server) strict(ctx context.Context, b *books, in api.ShiftRequest, by store.Author) (*api.Changed, error) {
	window, err := windowOf(in)
	if err != nil {
		return nil, err
	}
	against := s.againstStrict(b, s.mesh.config(), in.Service, window, by.Time)
	if len(against) == 0 && !in.DryRun {
		s.hearAll(ctx, b, in.Service, by.Time) // plaintext of the last seconds
		against = s.againstStrict(s.books(ctx), s.mesh.config(), in.Service, window, time.Now())
	}
	if len(against) > 0 && !in.Force {
		return nil, refuse(http.StatusConflict, "shift: service %q cannot be strict: %s", clipped(in.Service), strings.Join(against, "; "))
	}
	switch {
	case len(against) > 0:
		by.What = "forced strict in spite of: " + clipped(strings.Join(against, "; "))
	case s.mesh.config().MutualTLSMode(in.Service) == config.MutualTLSPermissive:
		by.What = fmt.Sprintf("made strict after %v without plaintext", window)
	}
	out := &api.Changed{Pairs: []api.PairChanged{}}
	for _, p := range b.names(func(p api.PairName) bool { return p.Destination == in.Service }) {
		e, row := b.deciding(p)
		shares := api.Shares(sharesBefore(e))
		out.Pairs = append(out.Pairs, api.PairChanged{PairName: p, Before: shares, After: shares, Index: entryIndex(row), Stage: string(shift.StrictStage)})
	}
	if !in.DryRun {
		s.strictly.Store(in.Service, true)
		defer s.strictly.Delete(in.Service)
		out.Index, err = s.change(func(w *store.Writer) error { return putMode(in.Service, config.MutualTLSStrict, w, by) })
	}
	if len(against) > 0 {
		out.Warnings = append(out.Warnings, against...)
	}
	return out, err
}

// judgeStrict refuses a write of entries, by whatever means, that makes a callee strict against
// the evidence, or takes its permission for plaintext away from under those who send it. A callee
// without an instance is nobody's yet. It waits for no report, so that plaintext of the last two
// seconds may be missed.
func (s *Server) judgeStrict(before, after *config.Set, now time.Time) error {
	becomes := func(service string) bool {
		return after.MutualTLSMode(service) == config.MutualTLSStrict && before.MutualTLSMode(service) != config.MutualTLSStrict
	}
	closes := func(service string) bool {
		return after.MutualTLSMode(service) == "" && before.MutualTLSMode(service) == config.MutualTLSPermissive
	}
	var errs []error
	if s.mesh == nil { // a server that starts, with entries of a folder: it knows of nobody yet
		for _, k := range before.Keys() {
			if k.Kind == config.KindServiceDefaults && before.MutualTLSMode(k.Name) == config.MutualTLSPermissive && (becomes(k.Name) || closes(k.Name)) {
				errs = append(errs, fmt.Errorf("service %q cannot refuse plaintext: it took it, and a server that has just started does not know from whom", k.Name))
			}
		}
		return errors.Join(errs...)
	}
	var b *books
	for _, service := range s.mesh.snapshot().Services() {
		closed := closes(service)
		if !closed && !becomes(service) {
			continue
		}
		if _, judged := s.strictly.Load(service); judged {
			continue
		}
		if b == nil {
			b = s.books(context.Background())
		}
		if b.callee(service).Instances == 0 {
			continue
		}
		if closed {
			if against := s.sentLately(b, service, silence, now); len(against) > 0 {
				errs = append(errs, fmt.Errorf("service %q cannot do without MutualTLSMode = %q, its sidecars would refuse plaintext: %s: move who sends it, or crossfade shift --service %s --stage strict --force", service, config.MutualTLSPermissive, clipped(strings.Join(against, ", ")), service))
			}
			continue
		}
		if against := s.againstStrict(b, before, service, silence, now); len(against) > 0 {
			errs = append(errs, fmt.Errorf("service %q cannot be strict: %s; crossfade shift --service %s --stage strict asks for the same, and takes --force", service, clipped(strings.Join(against, ", ")), service))
		}
		if len(errs) == maxNamed {
			break
		}
	}
	return errors.Join(errs...)
}

// againstStrict says all that speaks against refusing plaintext.
func (s *Server) againstStrict(b *books, entries *config.Set, service string, window time.Duration, now time.Time) (out []string) {
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, p := range b.names(func(p api.PairName) bool { return p.Destination == service }) {
		if e, _ := b.deciding(p); e != nil && e.Shares.Hundredths(config.WayMTLS) != whole {
			add("%s goes by %s", p, api.Shares(e.Shares))
		}
	}
	c := b.callee(service)
	switch {
	case c.Instances == 0:
		add("no instance is registered")
	case c.Sidecars < c.Instances:
		add("%d of %d instances have a sidecar", c.Sidecars, c.Instances)
	}
	if entries.MutualTLSMode(service) == config.MutualTLSPermissive {
		out = append(out, s.heard(b, service, window, now)...)
	}
	for _, in := range b.snap.Connect(service) {
		if in.Service.Kind == catalog.ConnectProxy {
			if why := s.pastSidecar(in, now); why != "" {
				out = append(out, why)
			}
		}
	}
	return out
}

// heard says who sent plaintext inside the window, or that it is not known.
func (s *Server) heard(b *books, service string, window time.Duration, now time.Time) (out []string) {
	w := s.steps.watched(service)
	if senders := s.mesh.book.Plaintext(service); len(senders) > 0 { // perhaps newer than the last look
		w = w.Step(now, false, senders[0].Last, senders[0].Address)
	}
	if w.Quiet >= window {
		return nil
	}
	if w.Last.IsZero() {
		return []string{fmt.Sprintf("no plaintext was seen so far, in %v of time in which all its instances were watched: it takes %v", w.Quiet.Truncate(time.Second), window)}
	}
	if out = s.sentLately(b, service, window, now); len(out) == 0 {
		out = []string{cameFrom(b, w.From, w.Last)}
	}
	out = append(out, fmt.Sprintf("it was silent for %v of watched time since: it takes %v", w.Quiet.Truncate(time.Second), window))
	if protocol, _, _ := routing.Protocol(s.mesh.config(), service); !config.IsHTTP(protocol) {
		out = append(out, "of tcp, who takes more than 250 ms to begin a handshake counts as well, unless it has server_first: true")
	}
	return out
}

// sentLately says who is known to have sent plaintext inside the window.
func (s *Server) sentLately(b *books, service string, window time.Duration, now time.Time) (out []string) {
	for _, from := range s.mesh.book.Plaintext(service) { // the latest first
		if now.Sub(from.Last) > window || len(out) == maxNamed {
			break
		}
		out = append(out, cameFrom(b, from.Address, from.Last))
	}
	if w := s.steps.watched(service); len(out) == 0 && !w.Last.IsZero() && now.Sub(w.Last) <= window { // before a restart
		out = append(out, cameFrom(b, w.From, w.Last))
	}
	return out
}

func cameFrom(b *books, address string, at time.Time) string {
	return fmt.Sprintf("plaintext came from %s%s at %s", address, ofServices(b.snap, address), at.UTC().Format(time.RFC3339))
}

// maxNamed bounds the senders that are named at once.
const maxNamed = 10

func ofServices(snap *catalog.Snapshot, address string) string {
	if names := servicesAt(snap, address); len(names) > 0 {
		return " (a host of " + clipped(strings.Join(names, ", ")) + ")"
	}
	return ""
}

// watch looks once at who takes plaintext.
func (p *stepper) watch(now time.Time, b *books) {
	entries := p.s.mesh.config()
	keep := map[string]shift.Watch{}
	for service := range b.snap.All() {
		if entries.MutualTLSMode(service) != config.MutualTLSPermissive {
			continue
		}
		sidecars, watched := 0, true
		for _, in := range b.snap.Connect(service) {
			if in.Service.Kind == catalog.ConnectProxy {
				sidecars++
				watched = watched && p.s.mesh.book.Reporting(keyOf(in), now).Watching
			}
		}
		if sidecars == 0 {
			continue
		}
		var last telemetry.Sender
		if senders := p.s.mesh.book.Plaintext(service); len(senders) > 0 {
			last = senders[0]
		}
		keep[service] = p.watches[service].Step(now, watched && b.callee(service).Sidecars >= b.callee(service).Instances, last.Last, last.Address)
	}
	p.watches = keep
}

// watched is for how long a callee was silent.
func (p *stepper) watched(service string) shift.Watch {
	return p.sight().watches[service]
}

// remembered is what the stepper keeps over a restart.
type remembered struct {
	State   shift.State            `json:"state"`
	Watches map[string]shift.Watch `json:"watches,omitempty"`
}
