package server

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
)

const (
	// tidyLeaves is after how many new leaves those that have expired are dropped.
	tidyLeaves = 1000
	// leafWithin is how long another server's word on a leaf is waited for.
	leafWithin = 2 * time.Second
)

// leaves is which join token a leaf came through that cannot name it, since Consul's CA made it. It is
// part of what servers share: whichever server a leaf is shown to knows its token, and a revocation ends it there.
type leaves struct {
	store *store.Store
	noted atomic.Int64
}

// leafRow is kept until the leaf ends.
type leafRow struct {
	Accessor string    `json:"accessor"`
	NotAfter time.Time `json:"not_after"`
}

func leafState(leaf *x509.Certificate) string {
	sum := sha256.Sum256(leaf.Raw)
	return stateLeaves + base64.RawURLEncoding.EncodeToString(sum[:])
}

// note is [ca.Options].Issued.
func (l *leaves) note(leaf *x509.Certificate, through string) error {
	row, err := json.Marshal(leafRow{through, leaf.NotAfter})
	if err != nil {
		return err
	}
	tidy := l.noted.Add(1)%tidyLeaves == 0
	err = l.store.Update(func(w *store.Writer) error {
		if tidy {
			if err := dropExpired(w, time.Now()); err != nil {
				return err
			}
		}
		return w.PutState(leafState(leaf), row)
	})
	if err != nil {
		return fmt.Errorf("which token the certificate comes through cannot be kept: %w", err)
	}
	return nil
}

// dropExpired drops rows that cannot be read, too: who has their leaves joins again.
func dropExpired(w *store.Writer, now time.Time) error {
	for hash, text := range w.States(stateLeaves) {
		var row leafRow
		if json.Unmarshal(text, &row) == nil && !now.After(row.NotAfter) {
			continue
		}
		if err := w.DeleteState(stateLeaves + hash); err != nil {
			return err
		}
	}
	return nil
}

// through is [ca.Options].Through. A leaf that another server has just had made may be shown here before
// its row is: so what is not known is waited for.
func (l *leaves) through(leaf *x509.Certificate) string {
	ctx, cancel := context.WithTimeout(context.Background(), leafWithin)
	defer cancel()
	var row leafRow
	l.store.ReadUntil(ctx, func(r *store.Reader) bool {
		text, ok := r.States(leafState(leaf))[""]
		return ok && json.Unmarshal(text, &row) == nil
	})
	return row.Accessor
}
