package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

const (
	// openWithin is how long opening waits for what is shared.
	openWithin = 10 * time.Second
	// writeWithin is how long a write tries, and troubledWithin how long while nothing could be
	// read lately.
	writeWithin    = 10 * time.Second
	troubledWithin = 2 * time.Second
	// unreachableTries is how often a write that has surely not been made is tried again, and
	// unreachableAgain how soon.
	unreachableTries = 3
	unreachableAgain = 100 * time.Millisecond
	// followWait is how long to wait for others' commits at a time.
	followWait = time.Minute
	// retryAfter is how soon what failed is tried again.
	retryAfter = time.Second
)

// openShared reads what is shared, or the last that was seen of it.
func (s *Store) openShared() error {
	if s.options.Dir != "" {
		if err := s.openCache(); err != nil {
			return err
		}
	}
	ctx := s.ctx
	s.following.Go(func() { s.shared.Run(ctx) })
	err := s.firstLook(ctx)
	switch {
	case err != nil && s.mark == (Mark{}):
		return err
	case err != nil:
		s.options.Log.Error("started from the last state that was seen, which stays in force", "index", s.mark.Index, "reason", err)
		s.trouble.Store(&err)
		s.began()
	}
	s.following.Go(func() { s.follow(ctx) })
	s.following.Go(func() { s.lookOutside(ctx) })
	return nil
}

func (s *Store) openCache() error {
	dir := s.options.Dir
	if _, err := os.Stat(filepath.Join(dir, diskFile)); err == nil {
		return fmt.Errorf("data directory %q: %s holds the state of a server without Consul: move it with crossfade migrate store --from %s --consul ADDRESS, or choose another --data-dir", dir, diskFile, dir)
	}
	var err error
	if s.disk, err = openDisk(dir, cacheFile); err != nil {
		return err
	}
	if s.mark, err = s.disk.mark(); err != nil {
		return err
	}
	return s.load()
}

// firstLook brings memory up to what is shared, and to what is outside.
func (s *Store) firstLook(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, openWithin)
	defer cancel()
	s.commit.Lock()
	var err error
	if s.mark == (Mark{}) {
		err = s.reload(ctx)
	} else {
		err = s.catchUp(ctx)
	}
	s.commit.Unlock()
	if err != nil {
		return err
	}
	for {
		out, newer := s.shared.Outside()
		if out.HasKeys && !slices.ContainsFunc(config.Kinds(), func(k config.Kind) bool { return !Own(k) && !out.Kinds[k] }) {
			return s.record(s.outside(nil))
		}
		select {
		case <-newer:
		case <-ctx.Done():
			return fmt.Errorf("configuration entries of Consul: not all could be read in %s: %w", openWithin, ErrUnreachable)
		}
	}
}

// reload takes all rows anew, as what was committed meanwhile is not known one by one. Rows that
// are the same stay the same. The caller holds commit.
func (s *Store) reload(ctx context.Context) error {
	rows, mark, err := s.shared.Load(ctx)
	if err != nil {
		return err
	}
	if mark.Index < s.mark.Index || mark.Index == s.mark.Index && mark != s.mark {
		return s.hold(ErrForeign)
	}
	if mark == s.mark {
		return nil
	}
	wanted := map[string]map[string][]byte{}
	for _, c := range rows {
		if wanted[c.Table] == nil {
			wanted[c.Table] = map[string][]byte{}
		}
		wanted[c.Table][string(c.Key)] = c.Value
	}
	r := s.reader()
	subjects := map[string]bool{subjectAll: true, subjectFloor: true, subjectKind(""): true}
	var changes []Change
	note := func(table string, key, value []byte) {
		changes = append(changes, Change{table, key, value})
		if kind, name, ok := strings.Cut(printable(key), "/"); ok && table == tableEntries {
			k := config.Key{Kind: config.Kind(kind), Name: name}
			subjects[subjectEntry(k)], subjects[subjectKind(k.Kind)] = true, true
		}
	}
	for _, t := range tables() {
		if !Kept(t.name) {
			continue
		}
		for _, row := range r.list(t.name, "id_prefix", []byte{}) {
			id := t.id(row)
			value, there := wanted[t.name][string(id)]
			switch is, err := encode(row); {
			case err != nil:
				return err
			case !there:
				note(t.name, id, nil)
			case string(is) == string(value):
				delete(wanted[t.name], string(id))
			}
		}
		for _, id := range slices.Sorted(maps.Keys(wanted[t.name])) {
			note(t.name, []byte(id), wanted[t.name][id])
		}
	}
	for _, row := range r.list(tableIndex, "id_prefix", []byte{}) {
		if !subjects[row.(*indexRow).Subject] {
			changes = append(changes, Change{tableIndex, key(row.(*indexRow).Subject), nil})
		}
	}
	for _, subject := range slices.Sorted(maps.Keys(subjects)) {
		value, err := encode(&indexRow{subject, mark.Index})
		if err != nil {
			return err
		}
		changes = append(changes, Change{tableIndex, key(subject), value})
	}
	return s.replay(changes, mark)
}

// follow takes what others commit, until ctx ends.
func (s *Store) follow(ctx context.Context) {
	for ctx.Err() == nil {
		s.commit.Lock()
		after := s.mark
		s.commit.Unlock()
		patience := followWait
		if s.trouble.Load() != nil {
			patience = 0 // that all is well again is news as well
		}
		batches, err := s.shared.Since(ctx, after, patience)
		if ctx.Err() != nil {
			return
		}
		if err != nil && !errors.Is(err, ErrGap) && !errors.Is(err, ErrForeign) {
			s.note(err) // at once: a write that waits for the same holds commit
			if !wait(ctx, retryAfter) {
				return
			}
			continue
		}
		s.commit.Lock()
		if after != s.mark && errors.Is(err, ErrForeign) {
			err = nil // it has moved on meanwhile
		}
		err = s.take(ctx, batches, err)
		s.commit.Unlock()
		s.note(err)
		if err != nil && !wait(ctx, retryAfter) {
			return
		}
	}
}

// note remembers whether what is shared can be had, so that writes need not wait to learn it.
func (s *Store) note(err error) {
	if err == nil {
		if s.trouble.Swap(nil) != nil {
			s.options.Log.Info("the state that servers share can be read again")
		}
		return
	}
	if s.trouble.Swap(&err) == nil {
		s.began()
		s.options.Log.Error("the state that servers share cannot be read: the last that was seen stays in force, and nothing is written", "reason", err)
	}
}

// restore takes back entries that are in Consul, of updates that are none after all: what is
// there is committed first, and then what was there before. The caller holds commit.
func (s *Store) restore(left map[config.Key]EntryChange) {
	back := &update{outside: true, done: make(chan struct{}), write: func(w *Writer) error {
		for _, k := range slices.SortedFunc(maps.Keys(left), config.Key.Compare) {
			by := Author{Who: outsider, Time: time.Now()}
			now := w.Entry(k)
			if now == nil && left[k].After != nil || now != nil && !sameContent(now.Entry, left[k].After) {
				continue // somebody has written another since
			}
			var err error
			if left[k].Before == nil {
				err = w.DeleteEntry(k, by)
			} else {
				err = w.PutEntry(left[k].Before, by)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}}
	for _, u := range []*update{s.outside(nil), back} {
		s.run([]*update{u})
		if u.err != nil {
			s.options.Log.Error("entries of a write that was refused are left in Consul", "entries", len(left), "reason", u.err)
			return
		}
	}
}

// sameContent compares entries; nil is none.
func sameContent(a, b config.Entry) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return same(&Entry{Entry: a}, &Entry{Entry: b})
}

// wait is false when ctx ends first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// began notes that there is trouble from now on.
func (s *Store) began() {
	now := time.Now()
	s.since.Store(&now)
}

// Since is when the trouble began that [Store.Trouble] tells of.
func (s *Store) Since() time.Time {
	if at := s.since.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

// Trouble says what keeps what is shared from being read or written, or nil.
func (s *Store) Trouble() error {
	if held := s.held.Load(); held != nil {
		return *held
	}
	if trouble := s.trouble.Load(); trouble != nil {
		return *trouble
	}
	return nil
}
