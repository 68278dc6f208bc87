package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Bounds of what an answer names.
const (
	maxWarnings     = 50
	maxDisconnected = 100
)

// refusal is an answer other than 200.
type refusal struct {
	status int
	text   string
}

// Error implements error.
func (r *refusal) Error() string { return r.text }

func refuse(status int, format string, args ...any) error {
	return &refusal{status, fmt.Sprintf(format, args...)}
}

// fail answers with what is wrong. what was asked for stands before what is not its own word.
func (s *Server) fail(w http.ResponseWriter, what string, err error) {
	status, text := http.StatusInternalServerError, what+": "+err.Error()
	if r, ok := errors.AsType[*refusal](err); ok {
		status, text = r.status, r.text
	} else if _, ok := errors.AsType[*store.Refusal](err); ok {
		status, text = http.StatusBadRequest, what+": "+oneLine(err) // entries that would not fit together
	} else {
		s.opts.Log.Error("request failed", "what", what, "reason", err)
	}
	http.Error(w, text, status)
}

// decode reads a body that is one JSON value without unknown fields.
func decode(w http.ResponseWriter, r *http.Request, what string, into any) error {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, api.MaxBody))
	dec.DisallowUnknownFields()
	err := dec.Decode(into)
	if err == nil {
		if _, more := dec.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows the JSON value")
		}
	}
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return refuse(http.StatusRequestEntityTooLarge, "%s: the request is larger than %d bytes", what, api.MaxBody)
	}
	if err != nil {
		return refuse(http.StatusBadRequest, "%s: the request can't be read: %v", what, err)
	}
	return nil
}

// target is a pair to be changed, or the entry of a name with "*".
type target struct {
	api.PairName
	index *uint64 // that the deciding entry must have; nil for any
}

func (t target) what(verb string) string { return fmt.Sprintf("%s %q", verb, clipped(t.String())) }

// checkPairs refuses lists that nobody means. One of service and pairs is given.
func checkPairs(verb, service string, pairs []api.PairName) error {
	if (service == "") == (len(pairs) == 0) {
		return refuse(http.StatusBadRequest, "%s: want either pairs or a service", verb)
	}
	if len(pairs) > api.MaxPairs {
		return refuse(http.StatusBadRequest, "%s: %d pairs: at most %d in one request", verb, len(pairs), api.MaxPairs)
	}
	seen := map[api.PairName]bool{}
	for _, p := range pairs {
		if p.Source == "" || p.Destination == "" {
			return refuse(http.StatusBadRequest, "%s %q: want both a source and a destination", verb, clipped(p.String()))
		}
		if seen[p] {
			return refuse(http.StatusBadRequest, "%s %q: the pair is given twice", verb, clipped(p.String()))
		}
		seen[p] = true
	}
	return nil
}

// shift changes shares of pairs, of all or of none.
func (s *Server) shift(w http.ResponseWriter, r *http.Request) {
	var in api.ShiftRequest
	if err := decode(w, r, "shift", &in); err != nil {
		s.fail(w, "shift", err)
		return
	}
	names := make([]api.PairName, len(in.Pairs))
	for i, p := range in.Pairs {
		names[i] = p.PairName
	}
	err := checkPairs("shift", in.Service, names)
	switch {
	case err != nil:
	case in.Stage != "":
		err = checkStage(in)
	default:
		err = checkShift(in)
	}
	if err != nil {
		s.fail(w, "shift", err)
		return
	}
	b := s.books(r.Context())
	if in.Do != "" {
		s.answer(w, s.command(b, in, s.door.author(r)))
		return
	}
	if err := s.answering(r.Context(), b, in); err != nil {
		s.fail(w, "shift", err)
		return
	}
	by := store.Author{Who: s.door.author(r), Time: time.Now()}
	if in.Stage != "" {
		out, err := s.stage(r.Context(), b, in, by)
		if err != nil {
			s.fail(w, "shift", err)
			return
		}
		b.conclude(out)
		s.answer(w, out)
		return
	}
	out := &api.Changed{}
	change := func(from *store.Reader, w *store.Writer) error {
		*out = api.Changed{Pairs: []api.PairChanged{}}
		targets, err := b.expand(in, from)
		if err != nil {
			return err
		}
		for _, t := range targets {
			one := shiftOne
			if in.To != "" {
				one = s.start
			} else if err := s.taken(t, in); err != nil {
				return err
			}
			done, e, err := one(t, in, from)
			if no, is := errors.AsType[*refusal](err); is && in.To != "" && len(targets) > 1 && t.index == nil {
				done.Refused, err = no.text, nil // the others do not wait for it
			}
			if err != nil {
				return err
			}
			if e != nil && w != nil {
				if err := w.PutEntry(e, by); err != nil {
					return err
				}
			}
			out.Pairs = append(out.Pairs, done)
		}
		if in.Force || in.To != "" {
			return nil
		}
		return s.cramped(b, out.Pairs, by.Time)
	}
	if in.DryRun {
		s.store.Read(r.Context(), 0, func(from *store.Reader) { err = change(from, nil) })
	} else {
		out.Index, err = s.change(func(w *store.Writer) error { return change(&w.Reader, w) })
	}
	if err != nil {
		s.fail(w, "shift", err)
		return
	}
	if in.To != "" {
		if !in.DryRun {
			s.begin(out, in, by.Who)
		}
		s.tooLarge(b, out, in.To, by.Time)
	}
	b.conclude(out)
	s.answer(w, out)
}

// answering refuses a legacy address that is new to a pair and takes no connections.
func (s *Server) answering(ctx context.Context, b *books, in api.ShiftRequest) error {
	if in.Legacy == nil || in.Force {
		return nil
	}
	e := next(api.PairName{Source: config.Wildcard, Destination: config.Wildcard}, nil)
	e.Legacy = &config.LegacyWay{Address: in.Legacy.Address, Host: in.Legacy.Host}
	known := len(in.Pairs) > 0 && !slices.ContainsFunc(in.Pairs, func(p api.PairIndex) bool {
		e, _ := b.deciding(p.PairName)
		return e == nil || e.Legacy == nil || e.Legacy.Address != in.Legacy.Address
	})
	if known || checked(e) != nil { // what is wrong with it is said in other words
		return nil
	}
	err := s.probes.all(ctx, []string{in.Legacy.Address}, 0, 1)[in.Legacy.Address]
	if err != nil && ctx.Err() == nil {
		return refuse(http.StatusConflict, "shift: legacy address %s: cannot be connected to from the server: %v; --force takes it all the same", clipped(in.Legacy.Address), err)
	}
	return ctx.Err()
}

// change makes one atomic change of entries, and returns its index, or 0 when everything
// was so already.
func (s *Server) change(write func(*store.Writer) error) (index uint64, err error) {
	err = s.store.Update(func(w *store.Writer) error {
		before := w.Index()
		err := write(w)
		if index = w.Index(); index == before {
			index = 0
		}
		return err
	})
	return index, err
}

func (b *books) targets(in api.ShiftRequest) []target {
	out := make([]target, 0, len(in.Pairs))
	for _, p := range in.Pairs {
		out = append(out, target{p.PairName, p.Index})
	}
	slices.SortFunc(out, func(a, b target) int { return comparePairs(a.PairName, b.PairName) })
	return out
}

// expand is what a request is about: its pairs, or those of all callers of its service.
func (b *books) expand(in api.ShiftRequest, from *store.Reader) ([]target, error) {
	if in.Service == "" {
		out := b.targets(in)
		if in.Force {
			return out, nil
		}
		known := b.known(from)
		for _, t := range out {
			wrong := checked(next(t.PairName, nil)) != nil // which is said in other words
			for _, name := range []string{t.Source, t.Destination} {
				if _, ok := known[name]; !ok && !wrong {
					return nil, refuse(http.StatusNotFound, "%s: nobody has registered %q, declares it as an upstream, or names it in an entry; --force shifts the pair all the same", t.what("shift"), clipped(name))
				}
			}
		}
		return out, nil
	}
	out := b.callers(in.Service, from)
	if len(out) == 0 {
		return nil, refuse(http.StatusNotFound, "shift: service %q: nobody declares it as an upstream, and no traffic-shift names a caller of it", clipped(in.Service))
	}
	return out, nil
}

// known are the names that stand for something: services that are registered or declared as an upstream, and
// what entries name.
func (b *books) known(from *store.Reader) map[string]struct{} {
	out := map[string]struct{}{config.Wildcard: {}}
	for _, name := range b.snap.Services() {
		out[name] = struct{}{}
	}
	for source, of := range b.declared() {
		out[source] = struct{}{}
		for destination := range of.calls {
			out[destination] = struct{}{}
		}
	}
	for _, row := range from.Entries("") {
		if e, ok := row.Entry.(*config.TrafficShift); ok {
			out[e.Source], out[e.Destination] = struct{}{}, struct{}{}
		} else {
			out[config.KeyOf(row.Entry).Name] = struct{}{}
		}
	}
	return out
}

// callers are the pairs of a destination that are declared or have an entry.
func (b *books) callers(service string, from *store.Reader) (out []target) {
	found := map[api.PairName]struct{}{}
	for source, of := range b.declared() {
		if len(of.calls[service]) > 0 {
			found[api.PairName{Source: source, Destination: service}] = struct{}{}
		}
	}
	for _, row := range from.Entries(config.KindTrafficShift) {
		if e, ok := row.Entry.(*config.TrafficShift); ok && e.Destination == service && e.Source != config.Wildcard {
			found[api.PairName{Source: e.Source, Destination: service}] = struct{}{}
		}
	}
	for _, p := range slices.SortedFunc(maps.Keys(found), comparePairs) {
		out = append(out, target{PairName: p})
	}
	return out
}

// shiftOne works out one pair's change. The entry is nil where there is nothing to write.
func shiftOne(t target, in api.ShiftRequest, from *store.Reader) (api.PairChanged, *config.TrafficShift, error) {
	old, row := decidingOf(t.PairName, from.Entry)
	done := api.PairChanged{PairName: t.PairName, Before: api.Shares(sharesBefore(old))}
	if row != nil {
		done.Index = row.ModifyIndex
	}
	if t.index != nil && *t.index != done.Index {
		return done, nil, lost(t, done.Index, row, from)
	}
	e := next(t.PairName, old)
	if in.Legacy != nil {
		e.Legacy = &config.LegacyWay{Address: in.Legacy.Address, Host: in.Legacy.Host}
	}
	shares, err := reshare(config.Shares(done.Before), oldWay(e), in.Via)
	if err != nil {
		return done, nil, refuse(http.StatusBadRequest, "%s: %v", t.what("shift"), err)
	}
	e.Shares = shares
	done.After = api.Shares(shares)
	if err := checked(e); err != nil {
		return done, nil, refuse(http.StatusBadRequest, "%s: %v", t.what("shift"), err)
	}
	if old != nil && old.Shares == e.Shares && sameLegacy(old.Legacy, e.Legacy) {
		return done, nil, nil
	}
	done.Entry, err = config.EncodeEntry(e)
	return done, e, err
}

func sharesBefore(e *config.TrafficShift) config.Shares {
	if e == nil {
		return unshifted()
	}
	return e.Shares
}

func sameLegacy(a, b *config.LegacyWay) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}

// next is the pair's own entry, to be changed: as it is, or like the one that counts for the
// pair until now.
func next(p api.PairName, old *config.TrafficShift) *config.TrafficShift {
	e := &config.TrafficShift{Kind: config.KindTrafficShift, Source: p.Source, Destination: p.Destination, Shares: unshifted()}
	if old != nil {
		e.Legacy, e.Shares, e.Sticky, e.Stage = old.Legacy, old.Shares, old.Sticky, old.Stage
		e.Slots = old.Slots
		e.Generation, e.Steps, e.Dwell, e.Windows, e.Guard = old.Generation, old.Steps, old.Dwell, old.Windows, old.Guard
		if old.Source == p.Source && old.Destination == p.Destination {
			e.Meta = old.Meta
		}
	}
	return e
}

// checked normalizes an entry that nobody has written yet, and says what is wrong with it.
func checked(e *config.TrafficShift) error {
	e.Normalize()
	return e.Validate()
}

// lost is what somebody is told who looked at a pair that another has changed meanwhile.
func lost(t target, now uint64, row *store.Entry, from *store.Reader) error {
	who := ""
	if row != nil {
		if v := from.Latest(config.KeyOf(row)); v != nil && v.Who != "" {
			who = " by " + v.Who
		}
	}
	return refuse(http.StatusConflict, "%s: nothing is changed: the pair was changed meanwhile%s (index %d, not %d): look at it with crossfade pairs show %s %s and shift again",
		t.what("shift"), who, now, *t.index, clipped(t.Source), clipped(t.Destination))
}

// conclude adds to an answer who does not hear of the change now, and why requests may fail.
func (b *books) conclude(out *api.Changed) {
	deaf := map[string]struct{}{}
	for _, done := range out.Pairs {
		if done.Refused != "" {
			continue
		}
		for _, p := range b.meant(done.PairName) {
			if !done.Same() || done.Stage != "" {
				for _, in := range b.deaf(p) {
					deaf[in.Service.ID] = struct{}{}
				}
			}
			if done.Stage != "" {
				for _, in := range b.deafCallees(p.Destination) {
					deaf[in.Service.ID] = struct{}{}
				}
			}
			for _, text := range b.doubts(p, done.After) {
				if len(out.Warnings) < maxWarnings {
					out.Warnings = append(out.Warnings, text)
				}
			}
		}
	}
	out.Disconnected = slices.Sorted(maps.Keys(deaf))
	out.DisconnectedTotal = len(out.Disconnected)
	if len(out.Disconnected) > maxDisconnected {
		out.Disconnected = out.Disconnected[:maxDisconnected]
	}
}

// meant is the pair, or all that an entry with "*" decides for.
func (b *books) meant(p api.PairName) []api.PairName {
	if p.Source != config.Wildcard && p.Destination != config.Wildcard {
		return []api.PairName{p}
	}
	return b.decided(config.PairName(p.Source, p.Destination))
}

// deaf are the sidecars of a pair that are registered and have no stream.
func (b *books) deaf(p api.PairName) (out []catalog.Instance) {
	of := b.declared()[p.Source]
	if of == nil {
		return nil
	}
	for _, in := range of.calls[p.Destination] {
		if _, connected := b.connected(in); !connected {
			out = append(out, in)
		}
	}
	return out
}

// deafCallees are the sidecars of a callee that are registered and have no stream.
func (b *books) deafCallees(service string) (out []catalog.Instance) {
	for _, in := range b.snap.Connect(service) {
		if _, connected := b.connected(in); !connected && in.Service.Kind == catalog.ConnectProxy {
			out = append(out, in)
		}
	}
	return out
}

// doubts say why requests may fail on a way that has a share.
func (b *books) doubts(p api.PairName, shares api.Shares) (out []string) {
	add := func(format string, args ...any) {
		out = append(out, fmt.Sprintf("pair %q: ", clipped(p.String()))+fmt.Sprintf(format, args...))
	}
	c := b.callee(p.Destination)
	if of := b.declared()[p.Source]; of == nil || len(of.calls[p.Destination]) == 0 {
		add("no registered sidecar of %q declares it: nothing follows these shares yet", clipped(p.Source))
	}
	if shares.MTLS > 0 && c.Sidecars == 0 {
		add("way mtls: none of %d instances of %q has a sidecar", c.Instances, clipped(p.Destination))
	}
	if shares.Plain > 0 && b.plain[p.Destination] == 0 {
		add("way plain: no sidecar of %q takes plaintext now", clipped(p.Destination))
	}
	if shares.Direct > 0 && c.Healthy == 0 {
		add("way direct: none of %d instances of %q is healthy", c.Instances, clipped(p.Destination))
	}
	return out
}
