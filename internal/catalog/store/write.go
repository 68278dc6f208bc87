package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// ErrClosed is what a write to a closed store fails with.
var ErrClosed = errors.New("registry: closed")

// errUnfinished is what is left when another update of the same batch panics.
var errUnfinished = errors.New("registry: write abandoned")

// maxKey is how long a row's key may be: bbolt's limit.
const maxKey = 32768

// update is one call of [Store.Update] on its way to disk.
type update struct {
	write   func(*Writer) error
	outside bool                // it takes in what is in force elsewhere, and is not judged
	wrote   map[config.Key]bool // entries that it touched in some try
	done    chan struct{}       // closed when err is set
	err     error
}

// Update makes one atomic change. write may look at what is there and then change
// it through the Writer; an error from it, or from the disk, leaves everything as it
// was. Updates that wait together share one fsync. write must do nothing but compute:
// it may be called more than once, and only the last call counts.
func (s *Store) Update(write func(*Writer) error) error {
	u := &update{write: write, done: make(chan struct{})}
	s.mu.Lock()
	s.pending = append(s.pending, u)
	s.mu.Unlock()

	s.commit.Lock()
	defer s.commit.Unlock()
	select {
	case <-u.done:
		return u.err
	default:
	}
	s.mu.Lock()
	batch := s.pending
	s.pending = nil
	s.mu.Unlock()
	s.run(batch)
	return u.err
}

// run commits a batch and settles each of its updates. The caller holds commit.
func (s *Store) run(batch []*update) {
	defer func() {
		for _, u := range batch {
			close(u.done)
		}
	}()
	fail(batch, errUnfinished)
	within := writeWithin
	if s.trouble.Load() != nil {
		within = troubledWithin
	}
	ctx, cancel := context.WithTimeout(s.ctx, within)
	defer cancel()
	left := map[config.Key]EntryChange{}
	defer func() {
		for _, u := range batch {
			for k := range u.wrote {
				if u.err == nil {
					delete(left, k) // it is what was wanted
				}
			}
		}
		if len(left) > 0 {
			s.restore(left)
		}
	}()
	todo, tries := batch, 0
	for len(todo) > 0 {
		if s.isClosed() {
			fail(todo, ErrClosed)
			return
		}
		if held := s.held.Load(); held != nil {
			fail(todo, *held)
			return
		}
		failed, err := s.try(ctx, todo)
		if half, ok := errors.AsType[*HalfDone](err); ok {
			for _, c := range half.Entries {
				if was, known := left[c.Key]; known {
					c.Before = was.Before
				}
				left[c.Key] = c
			}
		}
		if behind := errors.Is(err, ErrBehind); behind || errors.Is(err, ErrOutside) {
			if err = s.catchUp(ctx); err == nil {
				if !behind && !todo[0].outside {
					todo = append([]*update{s.outside(nil)}, todo...)
				}
				continue
			}
			err = fmt.Errorf("nothing was written: %w", err)
		}
		if errors.Is(err, ErrUnreachable) && !errors.Is(err, ErrUnknown) && s.trouble.Load() == nil && tries < unreachableTries {
			tries++ // a connection that broke, say
			if wait(ctx, unreachableAgain) {
				continue
			}
		}
		err = s.because(err)
		if failed == nil {
			fail(todo, err)
			return
		}
		// A failed one may have left half of its work in the transaction: do the others anew.
		failed.err = err
		rest := make([]*update, 0, len(todo)-1)
		for _, u := range todo {
			if u != failed {
				rest = append(rest, u)
			}
		}
		todo = rest
	}
}

// because adds to the lack of an answer what is known to be wrong.
func (s *Store) because(err error) error {
	if trouble := s.trouble.Load(); trouble != nil && errors.Is(err, ErrUnreachable) && !errors.Is(*trouble, ErrUnreachable) {
		return fmt.Errorf("%w; %w", err, *trouble)
	}
	return err
}

func fail(batch []*update, err error) {
	for _, u := range batch {
		u.err = err
	}
}

// try commits all of batch, or nothing. The update that refused is returned with its
// error; without one, the error (or nil) is that of the disk and concerns all.
func (s *Store) try(ctx context.Context, batch []*update) (*update, error) {
	txn := s.txn(true)
	defer txn.Abort()
	var changes []Change
	var writers []*Writer
	var after []func()
	entries := s.judged
	for _, u := range batch {
		w := &Writer{Reader: Reader{txn: txn, datacenter: s.options.Datacenter}, store: s, outside: u.outside, bumped: map[string]bool{}}
		w.next = w.Index() + 1
		if err := u.write(w); err != nil {
			return u, err
		}
		if w.err != nil {
			return u, w.err
		}
		var err error
		if entries, err = w.judge(entries); err != nil {
			return u, err
		}
		if s.shared != nil {
			if u.wrote == nil {
				u.wrote = map[config.Key]bool{}
			}
			for _, k := range w.touched {
				u.wrote[k] = true
			}
		}
		writers = append(writers, w)
		changes = append(changes, w.changes...)
		after = append(after, w.after...)
	}
	commit := func() {
		must(txn.commit())
		s.judged = entries
		for _, f := range after {
			f()
		}
	}
	if len(changes) == 0 {
		return nil, nil
	}
	switch {
	case s.shared != nil:
		if failed, err := s.commitShared(ctx, writers, batch, changes); err != nil {
			return failed, err
		}
	case s.disk != nil:
		if err := s.disk.apply(changes); err != nil {
			err = fmt.Errorf("data directory %q: nothing was written: %w", s.options.Dir, err)
			// When only the last sync failed the file shows the change already. Memory
			// then follows the file, though nobody is told that the write is safe.
			if last := changes[len(changes)-1]; !s.disk.has(last) {
				return nil, err
			}
			commit()
			return nil, fmt.Errorf("data directory %q: the last write may be lost in a power failure", s.options.Dir)
		}
	}
	commit()
	return nil, nil
}

// Writer changes the registry inside [Store.Update]. Its embedded Reader sees the
// changes made so far. What is put belongs to the registry as of then; indexes in it
// are ignored.
type Writer struct {
	Reader
	store   *Store
	next    uint64 // the index of all changes of this writer
	changes []Change
	bumped  map[string]bool
	touched []config.Key // entries that were written or deleted
	locks   []string     // that must be held
	outside bool         // see [update]
	after   []func()     // to call once the changes are in force
	err     error        // the first failure of put, remove or bump
}

// Refusal is why [Options.Judge] does not allow a write.
type Refusal struct{ reason error }

// Error implements error.
func (r *Refusal) Error() string { return r.reason.Error() }

// Unwrap is the judge's own error.
func (r *Refusal) Unwrap() error { return r.reason }

// judge returns the entries as they are after the writer, or why they must not be so.
func (w *Writer) judge(before *config.Set) (*config.Set, error) {
	if w.store.options.Judge == nil || len(w.touched) == 0 {
		return before, nil
	}
	after := w.over(before, w.touched)
	if w.outside {
		return after, nil
	}
	if err := w.store.options.Judge(before, after); err != nil {
		return before, &Refusal{err}
	}
	return after, nil
}

// put stores the row as it will be read back from disk, so that a restart changes
// nothing and the caller's value stays the caller's.
func (w *Writer) put(name string, row any) error {
	t := w.store.tables[name]
	id := t.id(row)
	if len(id) > maxKey {
		return fmt.Errorf("%s %.40q…: name of %d bytes, at most %d", t.name, printable(id), len(id), maxKey)
	}
	value, err := encode(row)
	if err != nil {
		return fmt.Errorf("%s %q: %w", t.name, printable(id), err)
	}
	kept, err := t.decode(value, nil)
	if err != nil {
		return fmt.Errorf("%s %q: %w", t.name, printable(id), err)
	}
	if !bytes.Equal(t.id(kept), id) {
		return fmt.Errorf("%s %q: the name is not valid UTF-8", t.name, printable(id))
	}
	likeOthers(w.txn, kept)
	if err := w.txn.put(t, kept); err != nil {
		return fmt.Errorf("%s %q: %w", t.name, printable(id), err)
	}
	w.change(Change{t.name, id, value})
	return nil
}

func (w *Writer) remove(name string, row any) error {
	t := w.store.tables[name]
	if err := w.txn.remove(t, row); err != nil {
		return fmt.Errorf("%s %q: %w", t.name, printable(t.id(row)), err)
	}
	w.change(Change{t.name, t.id(row), nil})
	return nil
}

func (w *Writer) change(c Change) {
	w.changes = append(w.changes, c)
	w.bump(subjectAll)
}

// same reports whether two rows, indexes included, are equal.
func same(a, b any) bool {
	x, err := encode(a)
	if err != nil {
		return false
	}
	y, err := encode(b)
	return err == nil && bytes.Equal(x, y)
}

// nameError refuses names that cannot be keys.
func nameError(what, name string) error {
	if name == "" {
		return fmt.Errorf("%s: name is empty", what)
	}
	if strings.ContainsRune(name, 0) {
		return fmt.Errorf("%s %q: name holds a NUL byte", what, name)
	}
	return nil
}
