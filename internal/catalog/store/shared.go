package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Shared is a durable half that several servers have in common: the one order of all their
// commits. [Options].Shared has its rows in memory and, with a directory, the last of them that
// were seen in a file there, so that neither reads nor a start wait for anybody.
//
// The kinds of entries that are Consul's, and the keys of the client convention, others write,
// too. They are here as [Shared].Outside, and the store commits what it finds there.
type Shared interface {
	// Run keeps Outside up to date, and tries to hold locks, until ctx ends.
	Run(ctx context.Context)
	// Load is all rows, and the mark they belong to: the zero one when nothing was ever committed.
	Load(ctx context.Context) ([]Change, Mark, error)
	// Since is what was committed after a mark, in order; it waits until there is something, or
	// for wait. The error is [ErrGap] when that is not kept any more, and [ErrForeign] when the
	// mark is none of this history.
	Since(ctx context.Context, after Mark, wait time.Duration) ([]Batch, error)
	// Commit adds to the history. Entries of Consul's kinds are in Consul before it returns. The
	// error is [ErrBehind] when After is not the newest mark, [ErrOutside] when what is outside is
	// not what Before says, a [HalfDone], a [LockLost], or an [EntryRefused]; only with [ErrUnknown] may it be
	// committed all the same.
	Commit(context.Context, Commit) (Mark, error)
	// Outside is what others write, and a channel that closes when there is something newer.
	Outside() (*Outside, <-chan struct{})
	// Holds reports whether this server has a lock now.
	Holds(lock string) bool
}

// Mark is a place in the order of commits: the registry's index after one, how many there have
// been, and a name that no other has, so that two histories are told apart.
type Mark struct {
	Index uint64 `json:"index"`
	Seq   uint64 `json:"seq"`
	ID    string `json:"id"`
}

// Batch is one commit.
type Batch struct {
	Prev, Mark Mark
	Changes    []Change
}

// Commit is a batch to be.
type Commit struct {
	After   Mark
	Index   uint64
	Changes []Change
	Entries []EntryChange // of Consul's kinds, among Changes; one of a key
	Locks   []string      // that must be held
}

// EntryChange is one entry before and after; nil for none.
type EntryChange struct {
	Key           config.Key
	Before, After config.Entry
}

// Outside is what was last read of what others write, too. It never changes.
type Outside struct {
	Kinds   map[config.Kind]bool // that have been read
	Entries map[config.Key]config.Entry
	Unclear map[config.Key]string // why, for entries that cannot be read: they stay what they were
	Keys    map[string]*KV        // of the client convention
	HasKeys bool                  // that they have been read
}

// ConventionPrefix is that of the client convention's keys.
const ConventionPrefix = "crossfade/"

// What a [Shared] fails with.
var (
	// ErrBehind: others have committed meanwhile.
	ErrBehind = errors.New("others have written meanwhile")
	// ErrOutside: an entry is not what it was when it was committed last.
	ErrOutside = errors.New("others have written an entry meanwhile")
	// ErrGap: the history does not reach back so far.
	ErrGap = errors.New("the history does not reach back to what this server has seen last")
	// ErrForeign: a mark that is not in the history.
	ErrForeign = errors.New("what this server has seen last is not in the history")
	// ErrUnreachable: no answer.
	ErrUnreachable = errors.New("cannot be reached")
	// ErrUnknown: no answer to a commit, which may have been made.
	ErrUnknown = errors.New("it is not known whether it was written")
)

// EntryRefused is why an entry was not taken.
type EntryRefused struct {
	Key config.Key
	Err error
	// Invalid says that the entry is what is wrong, and not who writes it.
	Invalid bool
}

// Error implements error.
func (e *EntryRefused) Error() string { return fmt.Sprintf("%s %q: %v", e.Key.Kind, e.Key.Name, e.Err) }

// Unwrap is the cause.
func (e *EntryRefused) Unwrap() error { return e.Err }

// HalfDone is a commit that others were faster than, some of whose entries are in Consul already.
// They are not taken back there: another server may have found and committed them meanwhile.
type HalfDone struct {
	Entries []EntryChange
	Err     error // [ErrBehind] or [ErrOutside]
}

// Error implements error.
func (h *HalfDone) Error() string { return h.Err.Error() }

// Unwrap says why it is to be tried again.
func (h *HalfDone) Unwrap() error { return h.Err }

// LockLost is a commit that somebody else may make now.
type LockLost struct{ Lock string }

// Error implements error.
func (e *LockLost) Error() string {
	return fmt.Sprintf("lock %q: another server holds it: nothing was written", e.Lock)
}

// TableKV is the table whose rows are the keys of the client convention.
const TableKV = tableKV

// Own reports whether a kind is crossfade's own, and so in no Consul's entries.
func Own(k config.Kind) bool { return k == config.KindTrafficPolicy || k == config.KindTrafficShift }

// outsider is the author of what is found outside.
const outsider = "consul"

// Kept reports whether rows of a table are to be kept beside the history. Those of indexes
// travel with the batches, and are made anew when all rows are loaded.
func Kept(table string) bool {
	return slices.Contains([]string{tableEntries, tableHistory, tableStates, tableKV, tableGraves}, table)
}

// Holds reports whether this server holds a lock that only one server has at a time. Where
// nobody shares, it always does.
func (s *Store) Holds(lock string) bool { return s.shared == nil || s.shared.Holds(lock) }

// Holding lets the update fail with a [LockLost], unless this server holds the lock when it is
// committed.
func (w *Writer) Holding(lock string) { w.locks = append(w.locks, lock) }

// commitShared commits what a batch of updates has changed. The update that is refused is
// returned with the reason.
func (s *Store) commitShared(ctx context.Context, writers []*Writer, updates []*update, changes []Change) (*update, error) {
	last := writers[len(writers)-1]
	c := Commit{After: s.mark, Index: last.Index(), Changes: changes}
	now := s.reader()
	touched := map[config.Key]*update{}
	for i, w := range writers {
		c.Locks = append(c.Locks, w.locks...)
		for _, k := range w.touched {
			if !Own(k.Kind) {
				touched[k] = updates[i]
			}
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(touched), config.Key.Compare) {
		e := EntryChange{Key: k}
		if row := now.Entry(k); row != nil {
			e.Before = row.Entry
		}
		if row := last.Entry(k); row != nil {
			e.After = row.Entry
		}
		c.Entries = append(c.Entries, e)
	}
	mark, err := s.shared.Commit(ctx, c)
	if refused, ok := errors.AsType[*EntryRefused](err); ok {
		if refused.Invalid {
			return touched[refused.Key], &Refusal{refused}
		}
		return touched[refused.Key], refused
	}
	if lost, ok := errors.AsType[*LockLost](err); ok {
		for i, w := range writers {
			if slices.Contains(w.locks, lost.Lock) {
				return updates[i], lost
			}
		}
	}
	if err != nil {
		return nil, err
	}
	s.mark = mark
	s.cache(changes)
	return nil, nil
}

// cache writes what was seen to the directory, if there is one.
func (s *Store) cache(changes []Change) {
	if s.disk == nil {
		return
	}
	if err := s.disk.applyAt(changes, s.mark); err != nil {
		s.options.Log.Error("the last state that was seen cannot be kept: a restart needs Consul until it can", "dir", s.options.Dir, "reason", err)
	}
}

// take brings memory up to batches that others have committed. The caller holds commit.
func (s *Store) take(ctx context.Context, batches []Batch, err error) error {
	switch {
	case errors.Is(err, ErrGap):
		return s.reload(ctx)
	case errors.Is(err, ErrForeign):
		return s.hold(err)
	case err != nil:
		return err
	}
	if s.held.Swap(nil) != nil {
		s.options.Log.Info("the state that servers share has the history again that this server has seen: writes go on")
	}
	for _, b := range batches {
		if b.Mark.Index <= s.mark.Index {
			continue // its own, or taken already
		}
		if b.Prev != s.mark {
			return s.hold(ErrForeign)
		}
		if err := s.replay(b.Changes, b.Mark); err != nil {
			return err
		}
	}
	return nil
}

// hold stops all writes: what is in memory stays in force, and nothing is lost.
func (s *Store) hold(why error) error {
	err := fmt.Errorf("nothing is written, and what is in force stays: %w", why)
	if s.held.Swap(&err) == nil {
		s.began()
		s.options.Log.Error("the state that servers share has another history than what this server has seen: what is in force stays, and nothing is written", "reason", why)
	}
	return err
}

// catchUp takes what others have committed. The caller holds commit.
func (s *Store) catchUp(ctx context.Context) error {
	batches, err := s.shared.Since(ctx, s.mark, 0)
	return s.take(ctx, batches, err)
}

// replay makes in memory, and in the cache, the changes of one commit. The caller holds commit.
func (s *Store) replay(changes []Change, mark Mark) error {
	txn := s.txn(true)
	defer txn.Abort()
	var touched []config.Key
	for _, c := range changes {
		t := s.tables[c.Table]
		if t == nil {
			continue // of a newer version
		}
		old := txn.first(t.name, "id", c.Key)
		var row any
		var err error
		if c.Value != nil {
			if row, err = t.decode(c.Value, nil); err != nil {
				s.options.Log.Error("row ignored: it cannot be read", "table", t.name, "row", printable(c.Key), "reason", err)
				s.unread[string(c.Key)] = s.unread[string(c.Key)] || t.name == tableEntries
				continue
			}
		}
		if t.name == tableEntries {
			delete(s.unread, string(c.Key))
			if e, ok := cmpOr(row, old).(*Entry); ok {
				touched = append(touched, config.KeyOf(e.Entry))
			}
		}
		s.count(t.name, old, row)
		if row != nil {
			err = txn.put(t, row)
		} else if old != nil {
			err = txn.remove(t, old)
		}
		if err != nil {
			return err
		}
	}
	if err := txn.commit(); err != nil {
		return err
	}
	s.mark = mark
	s.rejudge(touched)
	s.cache(changes)
	return nil
}

func cmpOr(a, b any) any {
	if a != nil {
		return a
	}
	return b
}

// count keeps the store's counters of rows true.
func (s *Store) count(table string, old, row any) {
	by := 0
	switch {
	case old == nil && row != nil:
		by = 1
	case old != nil && row == nil:
		by = -1
	}
	switch table {
	case tableHistory:
		s.versions += by
	case tableGraves:
		s.graves += by
	}
}

// rejudge lets the judge know of entries that were not judged here.
func (s *Store) rejudge(touched []config.Key) {
	if s.options.Judge == nil || len(touched) == 0 {
		return
	}
	s.judged = s.reader().over(s.judged, touched)
}

// over is a set with the entries of these keys as the reader has them.
func (r *Reader) over(set *config.Set, keys []config.Key) *config.Set {
	var put []config.Entry
	var drop []config.Key
	for _, k := range keys {
		if e := r.Entry(k); e != nil {
			put = append(put, e.Entry)
		} else {
			drop = append(drop, k)
		}
	}
	return set.With(put, drop)
}

// States lists what parts of the server remember under names with a prefix, by name. It can be
// waited for.
func (r *Reader) States(prefix string) map[string][]byte {
	it, err := r.txn.Get(tableStates, "id_prefix", []byte(prefix))
	must(err)
	if r.watch != nil {
		r.watch.Add(it.WatchCh())
	}
	out := map[string][]byte{}
	for row := it.Next(); row != nil; row = it.Next() {
		state := row.(*stateRow)
		out[strings.TrimPrefix(state.Name, prefix)] = state.Value
	}
	return out
}

// DeleteState forgets what is remembered under a name.
func (w *Writer) DeleteState(name string) error {
	row, ok := w.first(tableStates, "id", name).(*stateRow)
	if !ok {
		return nil
	}
	return w.remove(tableStates, row)
}
