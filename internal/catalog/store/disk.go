package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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

// Change is one row to write, or to delete when Value, which is JSON, is nil.
type Change struct {
	Table      string
	Key, Value []byte
}

// Names of the files in a data directory.
const (
	diskFile  = "registry.db" // all there is
	cacheFile = "consul.db"   // the last that was seen of what several servers share
)

// bucketMark holds, in a cache, the [Mark] that the rows belong to.
const bucketMark = "mark"

func openFile(dir, file string) (*bbolt.DB, error) {
	return bbolt.Open(filepath.Join(dir, file), 0o600, &bbolt.Options{Timeout: lockWait, FreelistType: bbolt.FreelistMapType})
}

// reopen lets go of the file and takes it again. It is mapped into memory, and all of it that was
// read once would stay there, beside the rows made of it.
func (d *disk) reopen() error {
	file := filepath.Base(d.db.Path())
	err := d.db.Close()
	if err == nil {
		var db *bbolt.DB
		if db, err = openFile(d.dir, file); err == nil {
			d.db = db
			return nil
		}
	}
	return fmt.Errorf("data directory %q: %s: %w", d.dir, file, err)
}

func openDisk(dir, file string) (*disk, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory %q: %w", dir, err)
	}
	db, err := openFile(dir, file)
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("data directory %q: in use by another crossfade server%s; stop it or choose another --data-dir", dir, ownerOf(dir))
	}
	if err != nil {
		return nil, fmt.Errorf("data directory %q: %s: %w", dir, file, err)
	}
	d := &disk{dir, db}
	if err := d.prepare(); err != nil {
		db.Close()
		return nil, fmt.Errorf("data directory %q: %s: %w", dir, file, err)
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
		for _, name := range buckets() {
			missing = missing || tx.Bucket([]byte(name)) == nil
		}
		return nil
	})
	if err != nil || !missing {
		return err
	}
	return d.db.Update(func(tx *bbolt.Tx) error {
		for _, name := range buckets() {
			if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		return nil
	})
}

func buckets() []string {
	out := []string{bucketMark}
	for _, t := range tables() {
		out = append(out, t.name)
	}
	return out
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
	return d.db.View(func(tx *bbolt.Tx) error { return rows(tx, visit) })
}

// rows visits all rows. key and value are valid as long as the transaction.
func rows(tx *bbolt.Tx, visit func(t *table, key, value []byte) error) error {
	for _, t := range tables() {
		err := tx.Bucket([]byte(t.name)).ForEach(func(k, v []byte) error { return visit(t, k, v) })
		if err != nil {
			return err
		}
	}
	return nil
}

// apply writes all changes or, with an error, none.
func (d *disk) apply(changes []Change) error {
	return d.db.Update(func(tx *bbolt.Tx) error {
		for _, c := range changes {
			b := tx.Bucket([]byte(c.Table))
			var err error
			if c.Value == nil {
				err = b.Delete(c.Key)
			} else {
				err = b.Put(c.Key, c.Value)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// applyAt is apply for a cache, whose rows then belong to a mark.
func (d *disk) applyAt(changes []Change, m Mark) error {
	value, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return d.apply(append(slices.Clip(changes), Change{bucketMark, []byte(bucketMark), value}))
}

// mark is the one that the rows belong to, or the zero one.
func (d *disk) mark() (m Mark, err error) {
	err = d.db.View(func(tx *bbolt.Tx) error {
		if value := tx.Bucket([]byte(bucketMark)).Get([]byte(bucketMark)); value != nil {
			return json.Unmarshal(value, &m)
		}
		return nil
	})
	if err != nil {
		err = fmt.Errorf("data directory %q: %s: its mark cannot be read: %w", d.dir, cacheFile, err)
	}
	return m, err
}

// notShared refuses a directory whose server had its state in a Consul.
func notShared(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, cacheFile)); err != nil {
		return nil
	}
	return fmt.Errorf("data directory %q: %s says that the state of its server is in a Consul: start it with --consul, or move the state here with crossfade migrate store --consul ADDRESS --to %s", dir, cacheFile, dir)
}

// has reports whether the file now holds that row.
func (d *disk) has(c Change) bool {
	found := false
	err := d.db.View(func(tx *bbolt.Tx) error {
		found = string(tx.Bucket([]byte(c.Table)).Get(c.Key)) == string(c.Value)
		return nil
	})
	return err == nil && found
}
