package tokens

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
)

// leafRow is which token a leaf came through, for a leaf that cannot name it itself.
type leafRow struct {
	Accessor string    `json:"accessor"`
	NotAfter time.Time `json:"not_after"`
}

// tidyLeaves is after how many new leaves those that have expired are dropped.
const tidyLeaves = 1000

// NoteLeaf remembers that a leaf came through a token, until the leaf ends.
func (t *Tokens) NoteLeaf(leaf *x509.Certificate, accessor string) error {
	key, row := sha256.Sum256(leaf.Raw), leafRow{accessor, leaf.NotAfter}
	t.writing.Lock()
	defer t.writing.Unlock()
	now := t.opts.Now()
	t.mu.Lock()
	tidy := len(t.leaves) >= t.leavesAt
	t.mu.Unlock()
	if t.disk != nil {
		if err := t.disk.putLeaf(key, row, tidy, now); err != nil {
			return fmt.Errorf("which token the certificate comes through cannot be kept: %w", err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.leaves[key] = row
	if tidy {
		for k, r := range t.leaves {
			if now.After(r.NotAfter) {
				delete(t.leaves, k)
			}
		}
		t.leavesAt = len(t.leaves) + tidyLeaves
	}
	return nil
}

// LeafThrough is the accessor of the token that a leaf came through, or "".
func (t *Tokens) LeafThrough(leaf *x509.Certificate) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.leaves[sha256.Sum256(leaf.Raw)].Accessor
}

func (d *disk) putLeaf(key [32]byte, row leafRow, tidy bool, now time.Time) error {
	text, err := json.Marshal(row)
	if err != nil {
		return err
	}
	return d.db.Update(func(tx *bbolt.Tx) error {
		leaves := tx.Bucket([]byte(leafBucket))
		if tidy {
			c := leaves.Cursor()
			for k, v := c.First(); k != nil; k, v = c.Next() {
				var r leafRow
				if json.Unmarshal(v, &r) != nil || now.After(r.NotAfter) {
					if err := c.Delete(); err != nil {
						return err
					}
				}
			}
		}
		return leaves.Put(key[:], text)
	})
}

// loadLeaves skips rows that cannot be read: their owners join again.
func (d *disk) loadLeaves(now time.Time) (map[[32]byte]leafRow, error) {
	out := map[[32]byte]leafRow{}
	err := d.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(leafBucket)).ForEach(func(k, v []byte) error {
			var r leafRow
			if len(k) == sha256.Size && json.Unmarshal(v, &r) == nil && !now.After(r.NotAfter) {
				out[[32]byte(k)] = r
			}
			return nil
		})
	})
	return out, err
}
