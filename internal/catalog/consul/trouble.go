package consul

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// maxLoud is how many queries may be reported as failing at once; a Consul in
// trouble fails them all.
const maxLoud = 3

// trouble knows which queries fail now, and logs when that begins and ends.
type trouble struct {
	log *slog.Logger

	mu  sync.Mutex
	now map[string]*failing // by path; "" stands for Consul being out of reach
}

type failing struct {
	since    time.Time
	failures int
	last     error
	loud     bool // it was logged where people look
}

func newTrouble(log *slog.Logger) *trouble { return &trouble{log: log, now: map[string]*failing{}} }

// fail records a failed query. That Consul cannot be reached is one trouble, whatever
// was asked; that it takes too long to answer may be true of one query alone.
func (t *trouble) fail(path string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key, loud := path, len(t.now) < maxLoud
	if errors.As(err, new(Unreachable)) && !errors.Is(err, context.DeadlineExceeded) {
		key, loud = "", true
	}
	f := t.now[key]
	if f == nil {
		f = &failing{since: time.Now(), loud: loud}
		t.now[key] = f
		level := slog.LevelDebug
		if loud {
			level = slog.LevelWarn
		}
		t.log.Log(context.Background(), level, "Consul cannot be read; what was read last stays in force", "query", path, "err", err)
	}
	f.failures++
	f.last = err
}

// ok records that what was failing, if it was, fails no more, and whether it was.
func (t *trouble) ok(keys ...string) (was bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, key := range keys {
		f := t.now[key]
		if f == nil {
			continue
		}
		was = true
		delete(t.now, key)
		level := slog.LevelDebug
		if f.loud {
			level = slog.LevelInfo
		}
		t.log.Log(context.Background(), level, "Consul can be read again", "query", key, "failures", f.failures, "after", time.Since(f.since).Round(time.Millisecond))
	}
	return was
}

// forget drops a query that is asked no more.
func (t *trouble) forget(path string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.now, path)
}

// Stale is a query that fails, of which what was read last stays in force.
type Stale struct {
	Path   string // empty: Consul is out of reach
	Since  time.Time
	Reason string
}

// Stale lists the queries that fail now, the oldest first.
func (s *Source) Stale() (out []Stale) {
	t := s.trouble
	t.mu.Lock()
	defer t.mu.Unlock()
	for path, f := range t.now {
		out = append(out, Stale{path, f.since, f.last.Error()})
	}
	slices.SortFunc(out, func(a, b Stale) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Path, b.Path)) })
	return out
}
