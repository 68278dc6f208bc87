package store

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// grace is how long an entry that is found outside is left to the server that may have just written it
// and is about to commit it, with the name of who did.
const grace = 200 * time.Millisecond

// lookOutside commits what others write outside, until ctx ends.
func (s *Store) lookOutside(ctx context.Context) {
	found, said := strangers{}, ""
	for ctx.Err() == nil {
		out, newer := s.shared.Outside()
		err := s.record(s.conventionKeys()) // keys have no author
		var differ map[config.Key]config.Entry
		s.Read(ctx, 0, func(r *Reader) { differ = r.differences(out) })
		ripe, next := found.look(differ, time.Now())
		if err == nil && len(ripe) > 0 {
			err = s.record(s.outside(ripe))
		}
		if err != nil && ctx.Err() == nil {
			if err.Error() != said {
				s.options.Log.Error("what others have written in Consul is not taken yet, it is tried again", "reason", err)
			}
			said = err.Error()
			if !wait(ctx, retryAfter) {
				return
			}
			continue
		}
		said = ""
		timer := time.NewTimer(next)
		select {
		case <-newer:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// strangers are entries that are outside, or are there no more, and are not committed so.
type strangers map[config.Key]stranger

type stranger struct {
	entry config.Entry // nil: it is gone
	ripe  time.Time    // from when on nobody is about to commit it
}

// look takes in what is not committed now. It returns what is ripe, and when to look again.
func (f strangers) look(differ map[config.Key]config.Entry, now time.Time) (ripe map[config.Key]config.Entry, next time.Duration) {
	maps.DeleteFunc(f, func(k config.Key, _ stranger) bool { _, still := differ[k]; return !still })
	ripe, next = map[config.Key]config.Entry{}, time.Hour
	for k, e := range differ {
		was, known := f[k]
		if !known || !sameContent(was.entry, e) {
			was = stranger{e, now.Add(grace + rand.N(grace/2))} // not all servers at the same time
			f[k] = was
		}
		if left := was.ripe.Sub(now); left > 0 {
			next = min(next, left)
		} else {
			ripe[k] = e
		}
	}
	return ripe, next
}

// record makes an update by itself.
func (s *Store) record(u *update) error {
	s.commit.Lock()
	defer s.commit.Unlock()
	s.run([]*update{u})
	return u.err
}

// outside is the update that takes in the entries that are outside, all or those of some that still are as
// they were found, and the keys of the convention.
func (s *Store) outside(some map[config.Key]config.Entry) *update {
	return &update{outside: true, done: make(chan struct{}), write: func(w *Writer) error {
		out, _ := s.shared.Outside()
		if err := w.takeKeys(out); err != nil {
			return err
		}
		by := Author{Who: outsider, Time: time.Now()}
		differ := w.differences(out)
		for _, k := range slices.SortedFunc(maps.Keys(differ), config.Key.Compare) {
			if e, ripe := some[k]; some != nil && (!ripe || !sameContent(e, differ[k])) {
				continue
			}
			var err error
			if differ[k] == nil {
				err = w.DeleteEntry(k, by)
			} else {
				err = w.PutEntry(differ[k], by)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}}
}

// conventionKeys is the update that takes in the keys of the convention.
func (s *Store) conventionKeys() *update {
	return &update{outside: true, done: make(chan struct{}), write: func(w *Writer) error {
		out, _ := s.shared.Outside()
		return w.takeKeys(out)
	}}
}

// differences are the entries that are outside in another form than here, nil for those that are not there.
func (r *Reader) differences(out *Outside) map[config.Key]config.Entry {
	differ := map[config.Key]config.Entry{}
	for _, row := range r.Entries("") {
		k := config.KeyOf(row.Entry)
		if _, unclear := out.Unclear[k]; Own(k.Kind) || !out.Kinds[k.Kind] || unclear {
			continue
		}
		if e := out.Entries[k]; !sameContent(e, row.Entry) {
			differ[k] = e
		}
	}
	for k, e := range out.Entries {
		if r.Entry(k) == nil {
			differ[k] = e
		}
	}
	return differ
}

// takeKeys commits the keys of the client convention that are outside.
func (w *Writer) takeKeys(out *Outside) error {
	if !out.HasKeys {
		return nil
	}
	for _, pair := range w.KVs(ConventionPrefix) {
		if out.Keys[pair.Key] == nil {
			if err := w.DeleteKV(pair.Key); err != nil {
				return err
			}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(out.Keys)) {
		if err := w.PutKV(k, out.Keys[k].Value, out.Keys[k].Flags); err != nil {
			return err
		}
	}
	return nil
}
