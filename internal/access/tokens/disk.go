package tokens

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
)

// disk is the durable half: a bucket of tokens by accessor, and one of entries by index.
type disk struct{ db *bbolt.DB }

const (
	fileName    = "access.db"
	tokenBucket = "tokens"
	trailBucket = "trail"
	lockWait    = 200 * time.Millisecond
)

func openDisk(dir string) (*disk, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("tokens in %q: %w", dir, err)
	}
	path := filepath.Join(dir, fileName)
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockWait, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return nil, fmt.Errorf("tokens %q: %w", path, err)
	}
	d := &disk{db}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range []string{tokenBucket, trailBucket} {
			if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("tokens %q: %w", path, err)
	}
	return d, nil
}

func (d *disk) close() error { return d.db.Close() }

func (d *disk) load() (rows []*row, entries []Entry, err error) {
	err = d.db.View(func(tx *bbolt.Tx) error {
		if err := tx.Bucket([]byte(tokenBucket)).ForEach(func(k, v []byte) error {
			r := &row{}
			if err := json.Unmarshal(v, r); err != nil {
				return fmt.Errorf("token %q: %w", k, err)
			}
			rows = append(rows, r)
			return nil
		}); err != nil {
			return err
		}
		return tx.Bucket([]byte(trailBucket)).ForEach(func(_, v []byte) error {
			var e Entry
			if err := json.Unmarshal(v, &e); err != nil {
				return fmt.Errorf("entry of the trail: %w", err)
			}
			entries = append(entries, e)
			return nil
		})
	})
	if err != nil {
		return nil, nil, fmt.Errorf("tokens %q: %w", d.db.Path(), err)
	}
	return rows, entries, nil
}

// write puts and deletes tokens, adds entries, and lets go of those up to oldest.
func (d *disk) write(put []*row, gone []string, entries []Entry, oldest uint64) error {
	return d.db.Update(func(tx *bbolt.Tx) error {
		tokens, trail := tx.Bucket([]byte(tokenBucket)), tx.Bucket([]byte(trailBucket))
		for _, r := range put {
			b, err := json.Marshal(r)
			if err != nil {
				return err
			}
			if err := tokens.Put([]byte(r.Accessor), b); err != nil {
				return err
			}
		}
		for _, accessor := range gone {
			if err := tokens.Delete([]byte(accessor)); err != nil {
				return err
			}
		}
		for _, e := range entries {
			b, err := json.Marshal(e)
			if err != nil {
				return err
			}
			if err := trail.Put(binary.BigEndian.AppendUint64(nil, e.Index), b); err != nil {
				return err
			}
		}
		c := trail.Cursor()
		for k, _ := c.First(); k != nil && binary.BigEndian.Uint64(k) <= oldest; k, _ = c.First() {
			if err := c.Delete(); err != nil {
				return err
			}
		}
		return nil
	})
}
