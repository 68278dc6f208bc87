package server

import (
	"context"
	"crypto/x509"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
)

// A leaf's token is forgotten once the leaf has ended, and not before.
func TestLeavesThatHaveEndedAreDropped(t *testing.T) {
	st, err := store.Open(store.Options{Datacenter: "dc1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	l := &leaves{store: st}
	l.noted.Store(tidyLeaves - 3)
	ended := &x509.Certificate{Raw: []byte("ended"), NotAfter: time.Now().Add(-time.Minute)}
	lives := &x509.Certificate{Raw: []byte("lives"), NotAfter: time.Now().Add(time.Hour)}
	kept := func() (n int) {
		st.Read(context.Background(), 0, func(r *store.Reader) { n = len(r.States(stateLeaves)) })
		return n
	}
	for i, leaf := range []*x509.Certificate{ended, lives} {
		if err := l.note(leaf, "accessor"); err != nil || kept() != i+1 {
			t.Fatalf("%d rows are kept, %v", kept(), err)
		}
	}
	if err := l.note(&x509.Certificate{Raw: []byte("another"), NotAfter: lives.NotAfter}, "other"); err != nil {
		t.Fatal(err)
	}
	if kept() != 2 || l.through(lives) != "accessor" {
		t.Errorf("%d rows are kept, want those of the two that live; one came through %q", kept(), l.through(lives))
	}
}
