package store

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

func openSession(t *testing.T, s *Store, session Session) string {
	t.Helper()
	var id string
	write(t, s, func(w *Writer) (err error) {
		session.Node = "self"
		id, err = w.PutSession(session)
		return err
	})
	return id
}

func write(t *testing.T, s *Store, change func(*Writer) error) {
	t.Helper()
	if err := s.Update(change); err != nil {
		t.Fatal(err)
	}
}

func acquire(t *testing.T, s *Store, key, session string) (did bool) {
	t.Helper()
	write(t, s, func(w *Writer) (err error) {
		did, err = w.Acquire(key, nil, 0, session)
		return err
	})
	return did
}

func lives(s *Store, id string) bool { return s.reader().Session(id) != nil }

func TestSessionTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(Options{NodeName: "self", NodeAddress: "127.0.0.1"})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		id := openSession(t, s, Session{TTL: "10s", Behavior: DeleteKeys, LockDelay: 5 * time.Second})
		forever := openSession(t, s, Session{TTL: "0s", Behavior: ReleaseKeys})
		if !acquire(t, s, "k", id) || acquire(t, s, "k", forever) {
			t.Fatal("want the first to hold the key, and nobody else")
		}
		for range 3 {
			<-time.After(19 * time.Second)
			if s.Renew(id) == nil {
				t.Fatal("ended before twice its TTL")
			}
		}
		<-time.After(21 * time.Second)
		synctest.Wait()
		if lives(s, id) || s.reader().KV("k") != nil || s.Renew(id) != nil {
			t.Error("want it gone after twice its TTL, with its key")
		}
		if acquire(t, s, "k", forever) {
			t.Error("acquired within the lock delay")
		}
		<-time.After(5 * time.Second)
		if !acquire(t, s, "k", forever) || !lives(s, forever) {
			t.Error("not acquired after the lock delay")
		}
	})
}

func TestSessionsOutliveARestart(t *testing.T) {
	dir := t.TempDir()
	options := Options{Dir: dir, NodeName: "self", NodeAddress: "127.0.0.1"}
	s, err := Open(options)
	if err != nil {
		t.Fatal(err)
	}
	id := openSession(t, s, Session{TTL: "30s", Name: "n", NodeChecks: []string{"serfHealth"}, Behavior: ReleaseKeys})
	acquire(t, s, "k", id)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(options); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	session, pair := s.reader().Session(id), s.reader().KV("k")
	if session == nil || session.TTL != "30s" || pair == nil || pair.Session != id || pair.LockIndex != 1 {
		t.Fatalf("after a restart: %+v, %+v", session, pair)
	}
	if s.expiry.running[id] == nil {
		t.Error("its TTL does not run")
	}
	write(t, s, func(w *Writer) error {
		_, err := w.UpdateCheck("self", "serfHealth", catalog.Critical, "")
		return err
	})
	if pair := s.reader().KV("k"); lives(s, id) || pair == nil || pair.Session != "" || len(s.expiry.running) != 0 {
		t.Errorf("after its check turned critical: %+v, %+v", s.reader().Session(id), pair)
	}
}

// A failed update must leave no timer, no delay and no session behind.
func TestSessionOfAFailedUpdate(t *testing.T) {
	s, err := Open(Options{NodeName: "self", NodeAddress: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	id := openSession(t, s, Session{TTL: "30s", LockDelay: time.Minute, Behavior: ReleaseKeys})
	acquire(t, s, "k", id)
	err = s.Update(func(w *Writer) error {
		if _, err := w.PutSession(Session{Node: "self", TTL: "30s"}); err != nil {
			return err
		}
		if err := w.DeleteSession(id); err != nil {
			return err
		}
		return ErrClosed
	})
	r := s.reader()
	if err == nil || !lives(s, id) || len(s.expiry.running) != 1 || r.KV("k").Session != id || r.Delayed("k") {
		t.Errorf("%v: %d timers, %+v", err, len(s.expiry.running), r.KV("k"))
	}
}
