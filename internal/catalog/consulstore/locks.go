package consulstore

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"errors"
)

const (
	// sessionTTL is the shortest that Consul allows. Consul ends a session after one to two of
	// it, which is how long a lock of a server that was killed stays taken.
	sessionTTL       = 10 * time.Second
	renewEvery       = sessionTTL / 4
	lockWait         = renewEvery
	destroyEnd       = 2 * time.Second
	lockAgainAtLeast = 200 * time.Millisecond
)

// locks holds locks by one session of Consul's.
type locks struct {
	e     *Engine
	wake  chan struct{} // capacity 1: look again now
	names []string

	mu    sync.Mutex
	id    string          // of the session; guarded by mu
	until time.Time       // when it may be over, with its monotonic part; guarded by mu
	held  map[string]bool // guarded by mu
}

func newLocks(e *Engine) *locks {
	return &locks{e: e, names: e.opts.Locks, wake: make(chan struct{}, 1), held: map[string]bool{}}
}

// holds reports whether the lock is this server's, unless Consul has let go of it early.
func (l *locks) holds(name string) bool { return l.session(name) != "" }

// session is that which holds the lock, or "".
func (l *locks) session(name string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.held[name] || !time.Now().Before(l.until) {
		return ""
	}
	return l.id
}

// current is the session, or "" when it may be over.
func (l *locks) current() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !time.Now().Before(l.until) {
		return ""
	}
	return l.id
}

// lost lets go of what turned out not to be held.
func (l *locks) lost() {
	l.mu.Lock()
	clear(l.held)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *locks) run(ctx context.Context) {
	if len(l.names) == 0 {
		return
	}
	said := ""
	for ctx.Err() == nil {
		err := l.look(ctx)
		pause := time.Duration(0)
		if err != nil && ctx.Err() == nil {
			if said != err.Error() {
				l.e.log.Error("locks that one server at a time holds cannot be had: what they are for stands still here", "reason", err)
			}
			said, pause = err.Error(), watchAgain
		} else {
			said = ""
			l.await(ctx)
			pause = lockAgainAtLeast
		}
		if !wait(ctx, pause) {
			break
		}
	}
	l.end()
}

// look keeps its Consul session alive and takes what nobody holds.
func (l *locks) look(ctx context.Context) error {
	l.mu.Lock()
	id := l.id
	l.mu.Unlock()
	asked := time.Now()
	if id != "" {
		a, err := l.e.do(ctx, http.MethodPut, "/v1/session/renew/"+id, nil, nil, http.StatusNotFound)
		switch {
		case err != nil:
			return err
		case a.Status == http.StatusNotFound:
			id = ""
		}
	}
	if id == "" {
		body, err := json.Marshal(map[string]any{"Name": "crossfade server " + l.e.opts.Node, "TTL": sessionTTL.String(), "LockDelay": "0s", "Behavior": "release", "NodeChecks": []string{}})
		if err != nil {
			return err
		}
		l.mu.Lock()
		l.id = ""
		clear(l.held)
		l.mu.Unlock()
		a, err := l.e.do(ctx, http.MethodPut, "/v1/session/create", nil, body)
		if err != nil {
			return err
		}
		var made struct{ ID string }
		if err := json.Unmarshal(a.Body, &made); err != nil || made.ID == "" {
			return errors.New("session: the answer is not Consul's")
		}
		id = made.ID
	}
	l.mu.Lock()
	l.id, l.until = id, asked.Add(sessionTTL)
	l.mu.Unlock()
	for _, name := range l.names {
		a, err := l.e.do(ctx, http.MethodPut, "/v1/kv/"+belowLocks+name, url.Values{"acquire": {id}}, []byte(l.e.opts.Node))
		if err != nil {
			return err
		}
		got := strings.TrimSpace(string(a.Body)) == "true"
		l.mu.Lock()
		news := got && !l.held[name]
		l.held[name] = got
		l.mu.Unlock()
		if news {
			l.e.log.Info("this server holds a lock now", "lock", name)
		}
	}
	return nil
}

// await returns when a lock may be free, or it is time to renew the session.
func (l *locks) await(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	all := true
	for _, name := range l.names {
		all = all && l.holds(name)
	}
	if all {
		select {
		case <-ctx.Done():
		case <-l.wake:
		}
		return
	}
	after := uint64(0)
	for ctx.Err() == nil {
		free, index, err := l.free(ctx, after)
		if free || err != nil {
			return
		}
		after = index
	}
}

// free reports whether somebody may take a lock, and the index of the answer.
func (l *locks) free(ctx context.Context, after uint64) (bool, uint64, error) {
	a, err := l.e.ask(ctx, http.MethodGet, "/v1/kv/"+belowLocks, url.Values{"recurse": {""}}, nil, after, lockWait, http.StatusNotFound)
	if err != nil {
		return false, 0, err
	}
	index, err := a.Index()
	if err != nil || a.Status == http.StatusNotFound {
		return true, index, err
	}
	var pairs []kvPair
	if err := json.Unmarshal(a.Body, &pairs); err != nil {
		return false, 0, err
	}
	for _, p := range pairs {
		if p.Session == "" {
			return true, index, nil
		}
	}
	return len(pairs) < len(l.names), index, nil
}

// end gives up what is held, so that others need not wait until its Consul session is over.
func (l *locks) end() {
	l.mu.Lock()
	id := l.id
	l.id = ""
	clear(l.held)
	l.mu.Unlock()
	if id == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), destroyEnd)
	defer cancel()
	if _, err := l.e.do(ctx, http.MethodDelete, "/v1/kv/"+belowServers+id, nil, nil); err != nil {
		l.e.log.Debug("what this server has told others is not cleared away", "reason", err)
	}
	if _, err := l.e.do(ctx, http.MethodPut, "/v1/session/destroy/"+id, nil, nil); err != nil {
		l.e.log.Debug("session not ended, its TTL does it", "reason", err)
	}
}
