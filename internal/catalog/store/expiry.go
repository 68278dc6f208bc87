package store

import (
	"sync"
	"time"
)

// expireRetry is how long to wait with a session whose end could not be written.
const expireRetry = time.Second

// expiry ends sessions whose TTL has run out. All of its times are monotonic: a
// clock that is set ends nothing.
type expiry struct {
	end func(id string) error

	mu      sync.Mutex
	closed  bool             // guarded by mu
	running map[string]*life // by session ID; guarded by mu
}

// life is when a session ends unless it is renewed.
type life struct {
	until time.Time
	timer *time.Timer
}

func newExpiry(end func(id string) error) *expiry {
	return &expiry{end: end, running: map[string]*life{}}
}

// start gives a session twice its TTL, as Consul does: a holder whose renewal is
// late by less than a TTL keeps its locks.
func (e *expiry) start(id string, ttl time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.set(id, 2*ttl)
}

// renew is start for a session that has not ended meanwhile.
func (e *expiry) renew(id string, ttl time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.running[id] != nil {
		e.set(id, 2*ttl)
	}
}

// set is called with mu held.
func (e *expiry) set(id string, left time.Duration) {
	if e.closed {
		return
	}
	if l := e.running[id]; l != nil {
		l.timer.Stop()
	}
	e.running[id] = &life{until: time.Now().Add(left), timer: time.AfterFunc(left, func() { e.fire(id) })}
}

func (e *expiry) stop(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if l := e.running[id]; l != nil {
		l.timer.Stop()
		delete(e.running, id)
	}
}

// due reports whether a session was not renewed in time.
func (e *expiry) due(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	l := e.running[id]
	return l != nil && !e.closed && !time.Now().Before(l.until)
}

func (e *expiry) fire(id string) {
	if !e.due(id) || e.end(id) == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.running[id] != nil {
		e.set(id, expireRetry)
	}
}

func (e *expiry) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	for _, l := range e.running {
		l.timer.Stop()
	}
	clear(e.running)
}

// expire ends a session whose time is over when the write is its turn.
func (s *Store) expire(id string) error {
	err := s.Update(func(w *Writer) error {
		if !s.expiry.due(id) {
			return nil
		}
		return w.DeleteSession(id)
	})
	if err != nil {
		s.options.Log.Error("session whose TTL is over not ended", "session", id, "reason", err)
	}
	return err
}
