package store

import (
	"fmt"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

// What becomes of the keys that a session holds when it ends.
const (
	ReleaseKeys = "release" // they stay, without a holder
	DeleteKeys  = "delete"
)

// maxLockDelay bounds [Session.LockDelay] when it is applied.
const maxLockDelay = time.Minute

// Session may hold keys. It ends when it is deleted, when its TTL runs out, and with
// its node or one of its checks: when that turns critical or is removed.
type Session struct {
	ID        string
	Name      string
	Node      string
	LockDelay time.Duration // for how long nobody may acquire a key that the session's end released
	Behavior  string        // [ReleaseKeys] or [DeleteKeys]
	// TTL is how long a session lives without being renewed, as it was given; ""
	// and "0s" for ever. Nobody ends it before that, and the registry does after
	// twice as long.
	TTL           string
	NodeChecks    []string
	ServiceChecks []ServiceCheck
	CreateIndex   uint64
	ModifyIndex   uint64
}

// ServiceCheck names a check of a service on a session's node.
type ServiceCheck struct {
	ID        string
	Namespace string
}

func (s *Session) checks() []string {
	out := slices.Clone(s.NodeChecks)
	for _, c := range s.ServiceChecks {
		out = append(out, c.ID)
	}
	return out
}

// ttl is the session's TTL, or 0 when it lives for ever.
func (s *Session) ttl() time.Duration {
	d, err := time.ParseDuration(s.TTL)
	if err != nil {
		return 0 // "" as well
	}
	return d
}

// lockDelay is a key that nobody may acquire yet. It is kept in memory only: a
// restart of the server ends all delays.
type lockDelay struct {
	Key   string
	Until time.Time // with its monotonic part
}

// Session is that with the ID, or nil.
func (r *Reader) Session(id string) *Session {
	r.look(subjectSessions)
	s, _ := r.first(tableSessions, "id", id).(*Session)
	return s
}

// Sessions lists all sessions by ID.
func (r *Reader) Sessions() []*Session { return r.sessions("id_prefix", []byte{}) }

// NodeSessions lists the sessions of a node by ID.
func (r *Reader) NodeSessions(node string) []*Session { return r.sessions("node", node) }

func (r *Reader) sessions(index string, args ...any) []*Session {
	r.look(subjectSessions)
	var out []*Session
	for _, row := range r.list(tableSessions, index, args...) {
		out = append(out, row.(*Session))
	}
	return out
}

// PutSession starts a session and gives it an ID, which it returns. Its node and its
// checks must be registered, and no check of it critical.
func (w *Writer) PutSession(s Session) (string, error) {
	if w.node(s.Node) == nil {
		return "", fmt.Errorf("session: node %q is not registered; register the node first", s.Node)
	}
	for _, id := range s.checks() {
		c, ok := w.first(tableChecks, "id", s.Node, id).(*checkRow)
		switch {
		case !ok:
			return "", fmt.Errorf("session: check %q is not registered on node %q", id, s.Node)
		case c.Check.Status == catalog.Critical:
			return "", fmt.Errorf("session: check %q on node %q is critical", id, s.Node)
		}
	}
	s.ID, s.CreateIndex, s.ModifyIndex = uuid(), w.next, w.next
	if err := w.put(tableSessions, &s); err != nil {
		return "", err
	}
	w.bump(subjectSessions)
	if ttl := s.ttl(); ttl > 0 {
		w.after = append(w.after, func() { w.store.expiry.start(s.ID, ttl) })
	}
	return s.ID, nil
}

// DeleteSession ends a session and gives up the keys it holds, as its behavior says.
// One that is not there is no error.
func (w *Writer) DeleteSession(id string) error {
	s, ok := w.first(tableSessions, "id", id).(*Session)
	if !ok {
		return nil
	}
	if err := w.remove(tableSessions, s); err != nil {
		return err
	}
	if err := w.forgetDelays(); err != nil {
		return err
	}
	w.bump(subjectSessions)
	w.after = append(w.after, func() { w.store.expiry.stop(id) })
	for _, row := range w.list(tableKV, "session", id) {
		pair := row.(*KV)
		if err := w.delay(pair.Key, s.LockDelay); err != nil {
			return err
		}
		if s.Behavior == DeleteKeys {
			if err := w.DeleteKV(pair.Key); err != nil {
				return err
			}
			continue
		}
		free := *pair
		free.Session, free.ModifyIndex = "", w.next
		if err := w.put(tableKV, &free); err != nil {
			return err
		}
	}
	return nil
}

// endSessions ends those of a node that depend on a check; an empty check is the
// node itself.
func (w *Writer) endSessions(node, check string) error {
	for _, row := range w.list(tableSessions, "node", node) {
		s := row.(*Session)
		if check != "" && !slices.Contains(s.checks(), check) {
			continue
		}
		if err := w.DeleteSession(s.ID); err != nil {
			return err
		}
	}
	return nil
}

// delay keeps everybody from acquiring a key for a while.
func (w *Writer) delay(key string, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	return w.txn.Insert(tableDelays, &lockDelay{key, time.Now().Add(min(d, maxLockDelay))})
}

// forgetDelays drops those that are over.
func (w *Writer) forgetDelays() error {
	now := time.Now()
	for _, row := range w.list(tableDelays, "id_prefix", []byte{}) {
		if !row.(*lockDelay).Until.After(now) {
			if err := w.txn.Delete(tableDelays, row); err != nil {
				return err
			}
		}
	}
	return nil
}

// Delayed reports whether a lock delay keeps everybody from acquiring a key now.
func (r *Reader) Delayed(key string) bool {
	d, ok := r.first(tableDelays, "id", key).(*lockDelay)
	return ok && d.Until.After(time.Now())
}

// Acquire writes a pair and makes a session its holder, unless another holds it or a
// delay is on it; it reports whether it did.
func (w *Writer) Acquire(k string, value []byte, flags uint64, session string) (bool, error) {
	if w.Session(session) == nil {
		return false, fmt.Errorf("invalid session %q", session)
	}
	n := &KV{Key: k, Value: value, Flags: flags, Session: session, LockIndex: 1}
	old := w.KV(k)
	switch {
	case w.Delayed(k) || old != nil && old.Session != "" && old.Session != session:
		return false, nil
	case old != nil && old.Session == session:
		n.LockIndex = old.LockIndex
	case old != nil:
		n.LockIndex = old.LockIndex + 1
	}
	return true, w.setKV(n, old)
}

// Release writes a pair and leaves it without a holder, if session holds it; it
// reports whether it was.
func (w *Writer) Release(k string, value []byte, flags uint64, session string) (bool, error) {
	old := w.KV(k)
	if old == nil || old.Session == "" || old.Session != session {
		return false, nil
	}
	return true, w.setKV(&KV{Key: k, Value: value, Flags: flags, LockIndex: old.LockIndex}, old)
}

// Renew lets a session's TTL start anew. It returns nil when there is no such session.
func (s *Store) Renew(id string) *Session {
	r := s.reader()
	session := r.Session(id)
	if session != nil && session.ttl() > 0 {
		s.expiry.renew(id, session.ttl())
	}
	return session
}
