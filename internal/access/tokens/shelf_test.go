package tokens

import (
	"context"
	"errors"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/access"
)

// memory is a [Shelf] that several have in common.
type memory struct {
	mu    sync.Mutex
	rows  map[string][]byte
	newer chan struct{}
	fails error
}

func newMemory() *memory { return &memory{rows: map[string][]byte{}, newer: make(chan struct{})} }

func (m *memory) Update(change func(get func(string) []byte, put func(string, []byte) error) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fails != nil {
		return m.fails
	}
	next := maps.Clone(m.rows)
	err := change(func(k string) []byte { return next[k] }, func(k string, v []byte) error {
		next[k] = v
		if v == nil {
			delete(next, k)
		}
		return nil
	})
	if err == nil {
		m.rows = next
		close(m.newer)
		m.newer = make(chan struct{})
	}
	return err
}

func (m *memory) Follow(ctx context.Context, take func(map[string][]byte)) {
	for ctx.Err() == nil {
		m.mu.Lock()
		rows, newer := m.rows, m.newer
		m.mu.Unlock()
		take(rows)
		select {
		case <-newer:
		case <-ctx.Done():
		}
	}
}

// soon waits for what another server has done.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

func TestTokensInCommon(t *testing.T) {
	shelf := newMemory()
	revoked := make(chan string, 10)
	a := open(t, Options{Shelf: shelf})
	b := open(t, Options{Shelf: shelf, Dir: t.TempDir(), Revoked: func(tok Token) { revoked <- tok.Accessor }})
	secret, tok := create(t, a, New{Role: access.Join, Services: []string{"web"}})
	soon(t, "a token of one is not known to the other", func() bool { _, _, err := b.Bearer(secret); return err == nil })
	if _, err := a.Revoke(tok.Accessor); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-revoked:
		if got != tok.Accessor {
			t.Errorf("%s is revoked, want %s", got, tok.Accessor)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the other is not told of the revocation")
	}
	if _, _, err := b.Bearer(secret); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("a token that the other server has revoked: %v", err)
	}

	// What is written late of its use takes no revocation back.
	b.mu.Lock()
	late := *b.by[tok.Accessor]
	b.mu.Unlock()
	late.Revoked, late.Used = time.Time{}, time.Now()
	if err := b.shelve([]*row{&late}, nil, false); err != nil {
		t.Fatal(err)
	}
	soon(t, "the use is not known", func() bool { got, _ := a.Get(tok.Accessor); return !got.Used.IsZero() })
	if got, _ := a.Get(tok.Accessor); got.State(time.Now()) != "revoked" {
		t.Errorf("the token is %s again", got.State(time.Now()))
	}

	shelf.fails = errors.New("no shelf")
	if _, _, err := a.Create(New{Role: access.Reader}); err == nil || len(a.List()) != 1 {
		t.Errorf("a token that cannot be kept is made: %v", err)
	}
}
