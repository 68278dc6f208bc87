package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// lockWait is how long to wait for another process to let go of the directory:
// enough for one that is just ending.
const lockWait = 200 * time.Millisecond

// disk is the durable half: a bucket per table, a JSON value per row.
type disk struct {
	dir string
	db  *bbolt.DB
}

// change is one row to write, or to delete when value is nil.
type change struct {
	table      string
	key, value []byte
}

func openFile(dir string) (*bbolt.DB, error) {
	return bbolt.Open(filepath.Join(dir, "registry.db"), 0o600, &bbolt.Options{Timeout: lockWait, FreelistType: bbolt.FreelistMapType})
}

// reopen lets go of the file and takes it again. It is mapped into memory, and all of it that was
// read once would stay there, beside the rows made of it.
func (d *disk) reopen() error {
	err := d.db.Close()
	if err == nil {
		var db *bbolt.DB
		if db, err = openFile(d.dir); err == nil {
			d.db = db
			return nil
		}
	}
	return fmt.Errorf("data directory %q: registry.db: %w", d.dir, err)
}

func openDisk(dir string) (*disk, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory %q: %w", dir, err)
	}
	db, err := openFile(dir)
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("data directory %q: in use by another crossfade server%s; stop it or choose another --data-dir", dir, ownerOf(dir))
	}
	if err != nil {
		return nil, fmt.Errorf("data directory %q: registry.db: %w", dir, err)
	}
	d := &disk{dir, db}
	if err := d.prepare(); err != nil {
		db.Close()
		return nil, fmt.Errorf("data directory %q: registry.db: %w", dir, err)
	}
	return d, nil
}

func (d *disk) prepare() error {
	// Only tells a second server whom it met; the lock is bbolt's.
	if err := os.WriteFile(pidFile(d.dir), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
		return err
	}
	missing := false
	err := d.db.View(func(tx *bbolt.Tx) error {
		for _, t := range tables() {
			missing = missing || tx.Bucket([]byte(t.name)) == nil
		}
		return nil
	})
	if err != nil || !missing {
		return err
	}
	return d.db.Update(func(tx *bbolt.Tx) error {
		for _, t := range tables() {
			if _, err := tx.CreateBucketIfNotExists([]byte(t.name)); err != nil {
				return err
			}
		}
		return nil
	})
}

func pidFile(dir string) string { return filepath.Join(dir, "registry.pid") }

func ownerOf(dir string) string {
	raw, err := os.ReadFile(pidFile(dir))
	if err != nil {
		return ""
	}
	return " (pid " + strings.TrimSpace(string(raw)) + ")"
}

func (d *disk) close() error {
	os.Remove(pidFile(d.dir))
	return d.db.Close()
}

// each visits all rows. key and value are valid only during the call.
func (d *disk) each(visit func(t *table, key, value []byte) error) error {
	return d.db.View(func(tx *bbolt.Tx) error {
		for _, t := range tables() {
			err := tx.Bucket([]byte(t.name)).ForEach(func(k, v []byte) error { return visit(t, k, v) })
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// apply writes all changes or, with an error, none.
func (d *disk) apply(changes []change) error {
	return d.db.Update(func(tx *bbolt.Tx) error {
		for _, c := range changes {
			b := tx.Bucket([]byte(c.table))
			var err error
			if c.value == nil {
				err = b.Delete(c.key)
			} else {
				err = b.Put(c.key, c.value)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// has reports whether the file now holds that row.
func (d *disk) has(c change) bool {
	found := false
	err := d.db.View(func(tx *bbolt.Tx) error {
		found = string(tx.Bucket([]byte(c.table)).Get(c.key)) == string(c.value)
		return nil
	})
	return err == nil && found
}
