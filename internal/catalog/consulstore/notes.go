package consulstore

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// belowServers are what servers tell each other, by the Consul session of who does.
const belowServers = Prefix + "servers/"

const (
	// MaxNote is how large a note may be, in bytes.
	MaxNote = maxPart
	// sayEvery is the least time between two notes of a server.
	sayEvery = time.Second
)

// notes are what servers tell each other of the moment. One is gone with the Consul session of who wrote
// it, is in no history, and may be overtaken by the next before anybody has read it.
type notes struct {
	e *Engine

	mu     sync.Mutex
	mine   []byte            // guarded by mu
	others map[string][]byte // by session; guarded by mu
	newer  chan struct{}     // guarded by mu
}

func newNotes(e *Engine) *notes { return &notes{e: e, newer: make(chan struct{})} }

// Say tells the other servers something, of at most [MaxNote] bytes, in the place of what was said
// before. It does not wait.
func (e *Engine) Say(note []byte) {
	e.notes.mu.Lock()
	defer e.notes.mu.Unlock()
	e.notes.mine = note
}

// Heard is what other servers that are alive have said last, by their session, and a channel that
// closes when there is something newer.
func (e *Engine) Heard() (map[string][]byte, <-chan struct{}) {
	e.notes.mu.Lock()
	defer e.notes.mu.Unlock()
	return e.notes.others, e.notes.newer
}

func (n *notes) run(ctx context.Context) {
	if len(n.e.locks.names) == 0 {
		return // it takes no part
	}
	var wg sync.WaitGroup
	wg.Go(func() { n.e.outside.watch(ctx, func(after uint64) (uint64, error) { return n.read(ctx, after) }) })
	var said []byte
	var as string
	for wait(ctx, sayEvery) {
		n.mu.Lock()
		mine := n.mine
		n.mu.Unlock()
		id := n.e.locks.current()
		if id == "" || len(mine) == 0 || id == as && bytes.Equal(said, mine) {
			continue
		}
		a, err := n.e.do(ctx, http.MethodPut, "/v1/kv/"+belowServers+id, url.Values{"acquire": {id}}, mine)
		if err != nil || strings.TrimSpace(string(a.Body)) != "true" {
			n.e.log.Debug("other servers are not told of the moment", "reason", err)
			continue
		}
		said, as = mine, id
	}
	wg.Wait()
}

// read takes in what others have said, and clears away what the dead have.
func (n *notes) read(ctx context.Context, after uint64) (uint64, error) {
	a, err := n.e.ask(ctx, http.MethodGet, "/v1/kv/"+belowServers, url.Values{"recurse": {""}}, nil, after, watchWait, http.StatusNotFound)
	if err != nil {
		return 0, err
	}
	index, err := a.Index()
	var pairs []kvPair
	if err == nil && a.Status == http.StatusOK {
		err = json.Unmarshal(a.Body, &pairs)
	}
	if err != nil || index < after {
		return 0, err
	}
	own, others := n.e.locks.current(), map[string][]byte{}
	for _, p := range pairs {
		switch id := strings.TrimPrefix(p.Key, belowServers); {
		case p.Session == "":
			if n.e.Holds(n.e.locks.names[0]) {
				if _, err := n.e.do(ctx, http.MethodDelete, "/v1/kv/"+p.Key, nil, nil); err != nil {
					return 0, err
				}
			}
		case id != own:
			others[id] = p.Value
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.others = others
	close(n.newer)
	n.newer = make(chan struct{})
	return index, nil
}
