package tokens

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Shelf keeps tokens where several servers have them in common. The trail stays each server's own.
type Shelf interface {
	// Update makes one atomic change; get is what is kept under an accessor, put replaces it and
	// with nil removes it. change may be called more than once, and only the last call counts.
	Update(change func(get func(accessor string) []byte, put func(accessor string, value []byte) error) error) error
	// Follow gives take all that is kept, now and after each change, until ctx ends.
	Follow(ctx context.Context, take func(all map[string][]byte))
}

// openShelf reads what is kept, and follows it.
func (t *Tokens) openShelf() error {
	ctx, stop := context.WithCancel(context.Background())
	first := make(chan error, 1)
	t.unfollow = stop
	t.following.Go(func() {
		t.opts.Shelf.Follow(ctx, func(all map[string][]byte) {
			err := t.take(all)
			select {
			case first <- err:
			default:
				if err != nil {
					t.opts.Log.Error("tokens that other servers have changed cannot be read, those read last stay in force", "reason", err)
				}
			}
		})
	})
	if err := <-first; err != nil {
		stop()
		t.following.Wait()
		return err
	}
	return nil
}

// take puts all tokens in the place of those there were, and tells of those that others have revoked.
func (t *Tokens) take(all map[string][]byte) error {
	by, secret := map[string]*row{}, map[[32]byte]*row{}
	for accessor, value := range all {
		r := &row{}
		if err := json.Unmarshal(value, r); err != nil {
			return fmt.Errorf("token %q: cannot be read: %w", accessor, err)
		}
		by[accessor], secret[r.Hash] = r, r
	}
	var revoked []Token
	t.mu.Lock()
	for accessor, was := range t.by {
		switch now := by[accessor]; {
		case now == nil:
			if was.Revoked.IsZero() {
				gone := was.Token
				gone.Revoked = t.opts.Now().UTC()
				revoked = append(revoked, gone)
			}
		case was.Revoked.IsZero() && !now.Revoked.IsZero():
			revoked = append(revoked, now.Token)
		case was.Used.After(now.Used):
			now.Used = was.Used // not yet written
		}
	}
	t.by, t.secret = by, secret
	t.mu.Unlock()
	if t.opts.Revoked != nil {
		for _, tok := range revoked {
			t.opts.Revoked(tok)
		}
	}
	return nil
}

// shelve writes rows and removes others. What another server has revoked stays so; with made, rows that
// are not kept are new ones.
func (t *Tokens) shelve(put []*row, gone []string, made bool) error {
	return t.opts.Shelf.Update(func(get func(string) []byte, set func(string, []byte) error) error {
		for _, r := range put {
			next := *r
			if old := get(r.Accessor); old != nil {
				var was row
				if err := json.Unmarshal(old, &was); err != nil {
					return fmt.Errorf("token %q: cannot be read: %w", r.Accessor, err)
				}
				if !was.Revoked.IsZero() {
					next.Revoked = was.Revoked
				}
				if was.Used.After(next.Used) {
					next.Used = was.Used
				}
			} else if !made {
				continue // removed meanwhile
			}
			value, err := json.Marshal(next)
			if err != nil {
				return err
			}
			if err := set(r.Accessor, value); err != nil {
				return err
			}
		}
		for _, accessor := range gone {
			if err := set(accessor, nil); err != nil {
				return err
			}
		}
		return nil
	})
}

// ReadDir is the tokens that a folder keeps, as a [Shelf] would. No server may be using it.
func ReadDir(dir string) (out map[string][]byte, err error) {
	if _, err := os.Stat(filepath.Join(dir, fileName)); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	d, err := openDisk(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	rows, _, err := d.load()
	if err != nil {
		return nil, err
	}
	out = map[string][]byte{}
	for _, r := range rows {
		if out[r.Accessor], err = json.Marshal(r); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// WriteDir puts tokens of a [Shelf] into a folder, over those of the same accessor.
func WriteDir(dir string, all map[string][]byte) (err error) {
	var rows []*row
	for accessor, value := range all {
		r := &row{}
		if err := json.Unmarshal(value, r); err != nil {
			return fmt.Errorf("token %q: cannot be read: %w", accessor, err)
		}
		rows = append(rows, r)
	}
	d, err := openDisk(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	return d.write(rows, nil, nil, 0)
}
