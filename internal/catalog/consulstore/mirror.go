package consulstore

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

const (
	// watchWait is how long a query blocks.
	watchWait = time.Minute
	// watchAgain is how soon one that failed is made again.
	watchAgain = time.Second
	// watchPace is the least time between two queries of the same.
	watchPace = 50 * time.Millisecond
	// undoWithin is how long to take back what was written of a commit that is none.
	undoWithin = 5 * time.Second
	// maxUndone bounds how often entries that refuse each other are tried.
	maxUndone = 10
)

// mirror is what was last read of Consul's configuration entries and of the client convention.
type mirror struct {
	e *Engine

	mu    sync.Mutex
	kinds map[config.Kind]*mirrored // of Consul's; guarded by mu
	keys  map[string]*store.KV      // nil: not read yet; guarded by mu
	now   *store.Outside            // made of them, or nil; guarded by mu
	newer chan struct{}             // guarded by mu
	ask   chan struct{}             // capacity 1: read the keys anew
	said  map[config.Key]string     // of entries that cannot be read; guarded by mu

	// least are the indexes below which what was read is older than what is committed, and
	// keysAsked from when on keys must have been asked for. Guarded by mu.
	least     map[config.Kind]uint64
	keysAsked time.Time
	readAt    time.Time // when the keys were asked for that were read last; guarded by mu
}

// mirrored is a kind as it was last read.
type mirrored struct {
	index   uint64
	entries map[string]theirs
}

// theirs is an entry in Consul.
type theirs struct {
	entry   config.Entry // nil: it cannot be read
	unclear string       // why
	modify  uint64
}

func newMirror(e *Engine) *mirror {
	return &mirror{e: e, kinds: map[config.Kind]*mirrored{}, newer: make(chan struct{}), ask: make(chan struct{}, 1), said: map[config.Key]string{}, least: map[config.Kind]uint64{}}
}

// consulKinds are those that Consul holds.
func consulKinds() []config.Kind { return slices.DeleteFunc(config.Kinds(), store.Own) }

func (m *mirror) run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, kind := range consulKinds() {
		wg.Go(func() { m.watch(ctx, func(after uint64) (uint64, error) { return m.readKind(ctx, kind, after) }) })
	}
	wg.Go(func() { m.watch(ctx, func(after uint64) (uint64, error) { return m.readKeys(ctx, after) }) })
	for {
		select {
		case <-m.ask:
			if _, err := m.readKeys(ctx, 0); err != nil && wait(ctx, watchAgain) {
				select {
				case m.ask <- struct{}{}:
				default:
				}
			}
		case <-ctx.Done():
			wg.Wait()
			return
		}
	}
}

// watch calls read again and again. It returns the index to wait after, or 0 for not to wait.
func (m *mirror) watch(ctx context.Context, read func(after uint64) (uint64, error)) {
	after, said := uint64(0), ""
	for ctx.Err() == nil {
		asked := time.Now()
		index, err := read(after)
		pause := watchPace - time.Since(asked)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if said != err.Error() {
				m.e.log.Error("what others write in Consul cannot be read: what was read last stays in force", "reason", err)
			}
			said = err.Error()
			index = 0 // what answers next may have another history
			pause = watchAgain
		case said != "":
			said = ""
			m.e.log.Info("what others write in Consul can be read again")
		}
		after = index
		if pause > 0 && !wait(ctx, pause) {
			return
		}
	}
}

// require lets what was read before a commit count no more for what that was about.
func (m *mirror) require(r record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for kind, index := range r.Kinds {
		m.least[kind] = max(m.least[kind], index)
	}
	if slices.ContainsFunc(r.Changes, func(c row) bool { return c.Table == store.TableKV }) {
		// A prefix's index may fall in Consul: it must be asked again.
		m.keysAsked = time.Now()
		select {
		case m.ask <- struct{}{}:
		default:
		}
	}
	m.now = nil
}

// indexes are those at which the kinds of entries were read.
func (m *mirror) indexes(list []store.EntryChange) map[config.Kind]uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[config.Kind]uint64{}
	for _, c := range list {
		if of := m.kinds[c.Key.Kind]; of != nil {
			out[c.Key.Kind] = of.index
			m.least[c.Key.Kind] = max(m.least[c.Key.Kind], of.index)
		}
	}
	return out
}

// old reports whether a kind was read before what is committed of it. The caller holds mu.
func (m *mirror) old(kind config.Kind) bool {
	return m.kinds[kind] == nil || m.kinds[kind].index < m.least[kind]
}

// readKind takes the entries of a kind in.
func (m *mirror) readKind(ctx context.Context, kind config.Kind, after uint64) (uint64, error) {
	a, err := m.e.ask(ctx, http.MethodGet, "/v1/config/"+string(kind), nil, nil, after, watchWait, http.StatusBadRequest, http.StatusInternalServerError)
	if err != nil {
		return 0, err
	}
	index, err := a.Index()
	if a.Status != http.StatusOK {
		if strings.Contains(string(a.Body), "invalid config entry kind") { // of a later Consul
			return 1, m.take(kind, 1, nil)
		}
		return 0, fmt.Errorf("Consul at %s: entries of kind %s: %w", m.e.opts.Address, kind, refused(a, "/v1/config/"+string(kind), http.MethodGet))
	}
	if err == nil && index == 0 {
		err = errors.New("the answer has no X-Consul-Index; is this a Consul agent?")
	}
	if err != nil {
		return 0, fmt.Errorf("Consul at %s: entries of kind %s: %w", m.e.opts.Address, kind, err)
	}
	if index < after {
		return 0, nil // it runs backwards: a fresh answer decides
	}
	if index == after {
		return index, nil
	}
	var list []json.RawMessage
	if err := json.Unmarshal(a.Body, &list); err != nil || list == nil {
		return 0, fmt.Errorf("Consul at %s: entries of kind %s: want a list, got %.40q", m.e.opts.Address, kind, a.Body)
	}
	return index, m.take(kind, index, list)
}

// take puts a list in the place of what was read before.
func (m *mirror) take(kind config.Kind, index uint64, list []json.RawMessage) error {
	next := &mirrored{index: index, entries: map[string]theirs{}}
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.kinds[kind]
	for _, raw := range list {
		var head struct {
			Kind, Name  string
			ModifyIndex uint64
		}
		err := json.Unmarshal(raw, &head)
		if kind == config.KindMesh {
			head.Name = config.MeshName // Consul leaves it out
		}
		if err != nil || head.Kind != string(kind) || head.Name == "" {
			return fmt.Errorf("Consul at %s: entries of kind %s: %.80q is none", m.e.opts.Address, kind, raw)
		}
		k, t := config.Key{Kind: kind, Name: head.Name}, theirs{modify: head.ModifyIndex}
		if old != nil && old.entries[head.Name].modify == head.ModifyIndex {
			next.entries[head.Name] = old.entries[head.Name]
			continue
		}
		e, err := config.DecodeEntryJSON(raw)
		if err == nil {
			t.entry = e
			delete(m.said, k)
		} else {
			t.unclear = err.Error()
			if m.said[k] != t.unclear {
				m.e.log.Error("configuration entry in Consul not taken, it stays what it was when it was last right", "entry", k.String(), "reason", t.unclear)
			}
			m.said[k] = t.unclear
		}
		next.entries[head.Name] = t
	}
	if old != nil && index <= old.index {
		for name := range old.entries {
			if _, there := next.entries[name]; !there && index < old.index {
				return nil // an old answer
			} else if !there {
				return fmt.Errorf("Consul at %s: entries of kind %s: %q is missing, and the index is still %d: the answer is not believed", m.e.opts.Address, kind, name, index)
			}
		}
		if index < old.index {
			return nil
		}
	}
	m.kinds[kind] = next
	m.changed()
	return nil
}

// readKeys takes the keys of the client convention in.
func (m *mirror) readKeys(ctx context.Context, after uint64) (uint64, error) {
	asked := time.Now()
	a, err := m.e.ask(ctx, http.MethodGet, "/v1/kv/"+store.ConventionPrefix, url.Values{"recurse": {""}}, nil, after, watchWait, http.StatusNotFound)
	if err != nil {
		return 0, err
	}
	index, err := a.Index()
	if err == nil && index == 0 {
		err = errors.New("the answer has no X-Consul-Index; is this a Consul agent?")
	}
	var pairs []kvPair
	if err == nil && a.Status == http.StatusOK {
		if err = json.Unmarshal(a.Body, &pairs); err == nil && pairs == nil {
			err = errors.New("want a list, got null")
		}
	}
	if err != nil {
		return 0, fmt.Errorf("Consul at %s: keys below %s: %w", m.e.opts.Address, store.ConventionPrefix, err)
	}
	if index < after {
		return 0, nil
	}
	keys := map[string]*store.KV{}
	for _, p := range pairs {
		keys[p.Key] = &store.KV{Key: p.Key, Value: p.Value, Flags: p.Flags}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if asked.Before(m.readAt) {
		return 0, nil // somebody has asked later: a fresh answer decides
	}
	fresh := m.readAt.Before(m.keysAsked) && !asked.Before(m.keysAsked)
	m.readAt = asked
	if fresh || m.keys == nil || !maps.EqualFunc(m.keys, keys, func(a, b *store.KV) bool { return a.Flags == b.Flags && bytes.Equal(a.Value, b.Value) }) {
		m.keys = keys
		m.changed()
	}
	return index, nil
}

// changed tells who waits. The caller holds mu.
func (m *mirror) changed() {
	m.now = nil
	close(m.newer)
	m.newer = make(chan struct{})
}

func (m *mirror) read() (*store.Outside, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.now == nil {
		out := &store.Outside{Kinds: map[config.Kind]bool{}, Entries: map[config.Key]config.Entry{}, Unclear: map[config.Key]string{}, Keys: m.keys, HasKeys: m.keys != nil && !m.readAt.Before(m.keysAsked)}
		for kind, of := range m.kinds {
			if m.old(kind) {
				continue
			}
			out.Kinds[kind] = true
			for name, t := range of.entries {
				if k := (config.Key{Kind: kind, Name: name}); t.entry != nil {
					out.Entries[k] = t.entry
				} else {
					out.Unclear[k] = t.unclear
				}
			}
		}
		m.now = out
	}
	return m.now, m.newer
}

// of is an entry as it was last read, and whether there is one.
func (m *mirror) of(k config.Key) (theirs, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.kinds[k.Kind] == nil {
		return theirs{}, false
	}
	t, ok := m.kinds[k.Kind].entries[k.Name]
	return t, ok
}

// write brings entries into Consul, all or none, and returns those that it wrote; undo takes them
// back. What refuses another of them is tried again when that is written.
func (m *mirror) write(ctx context.Context, list []store.EntryChange) (done []store.EntryChange, undo func(), err error) {
	var todo []store.EntryChange
	for _, c := range list {
		m.mu.Lock()
		old := m.old(c.Key.Kind)
		m.mu.Unlock()
		if old {
			if err := m.refresh(ctx, []store.EntryChange{c}); err != nil {
				return nil, nil, err
			}
		}
		is, ok := m.of(c.Key)
		switch {
		case sameEntry(is.entry, c.After) && is.unclear == "":
		case ok && is.unclear == "" && !sameEntry(is.entry, c.Before), !ok && c.Before != nil:
			return nil, nil, store.ErrOutside
		default:
			todo = append(todo, c)
		}
	}
	undo = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWithin)
		defer cancel()
		var back []store.EntryChange
		for _, c := range slices.Backward(done) {
			back = append(back, store.EntryChange{Key: c.Key, Before: c.After, After: c.Before})
		}
		if _, _, err := m.writeAll(ctx, back); err != nil {
			m.e.log.Error("entries of a write that failed are left in Consul", "entries", len(back), "reason", err)
		}
	}
	if len(todo) == 0 {
		return done, undo, nil
	}
	done, failed, err := m.writeAll(ctx, todo)
	if errors.Is(err, store.ErrOutside) && len(done) > 0 {
		return nil, nil, &store.HalfDone{Entries: done, Err: store.ErrOutside}
	}
	if err != nil {
		undo()
		if errors.Is(err, store.ErrOutside) || failed == (config.Key{}) {
			return nil, nil, err
		}
		return nil, nil, &store.EntryRefused{Key: failed, Err: err, Invalid: invalid(err)}
	}
	return done, undo, nil
}

// invalid reports whether it is the entry that Consul does not take, and not the moment.
func invalid(err error) bool {
	if errors.As(err, new(*denied)) || errors.Is(err, store.ErrUnreachable) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return false
	}
	return !slices.ContainsFunc([]string{"leader", "rpc error making call", "timeout", "EOF", "connection refused"}, func(s string) bool {
		return strings.Contains(err.Error(), s)
	})
}

// writeAll writes entries one by one, those that are refused again as long as others were
// written, and reads them anew. It returns those that were written, in order.
func (m *mirror) writeAll(ctx context.Context, todo []store.EntryChange) (done []store.EntryChange, failed config.Key, err error) {
	defer func() {
		if e := m.refresh(ctx, done); e != nil && err == nil {
			err = e
		}
	}()
	todo = slices.Clone(todo)
	for range maxUndone {
		err = nil
		var again []store.EntryChange
		for _, c := range todo {
			is, ok := m.of(c.Key)
			if ok && is.unclear == "" && sameEntry(is.entry, c.After) {
				continue
			}
			switch e := m.conclude(ctx, c, is.modify); {
			case errors.Is(e, store.ErrOutside), errors.Is(e, store.ErrUnreachable), e != nil && errors.As(e, new(*denied)):
				if errors.Is(e, store.ErrOutside) {
					if err := m.refresh(ctx, []store.EntryChange{c}); err != nil {
						return done, c.Key, err
					}
				}
				return done, c.Key, e
			case e != nil:
				again = append(again, c)
				failed, err = cmp.Or(failed, c.Key), cmpErr(err, e)
			default:
				done = append(done, c)
			}
		}
		if len(again) == 0 || len(again) == len(todo) {
			return done, failed, err
		}
		todo, failed = again, config.Key{}
	}
	return done, failed, err
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// conclude writes or deletes one entry. A write without an answer, as over a connection that Consul had closed, is
// looked up and made once more if it was not made. It is [store.ErrUnknown] when that cannot be.
func (m *mirror) conclude(ctx context.Context, c store.EntryChange, modify uint64) error {
	err := m.writeOne(ctx, c, modify)
	if !errors.Is(err, store.ErrUnreachable) {
		return err
	}
	verify, cancel := context.WithTimeout(ctx, verifyWithin)
	defer cancel()
	if m.refresh(verify, []store.EntryChange{c}) != nil {
		if failed, ok := errors.AsType[*net.OpError](err); ok && failed.Op == "dial" {
			return err // it was not even sent
		}
		return fmt.Errorf("%w: %w", store.ErrUnknown, err)
	}
	is, _ := m.of(c.Key)
	switch {
	case is.modify == modify:
		return m.writeOne(ctx, c, modify)
	case is.unclear == "" && sameEntry(is.entry, c.After):
		return nil
	}
	return store.ErrOutside
}

// writeOne writes or deletes one entry, if Consul has it still at that index.
func (m *mirror) writeOne(ctx context.Context, c store.EntryChange, modify uint64) error {
	query := url.Values{"cas": {strconv.FormatUint(modify, 10)}}
	method, path := http.MethodPut, "/v1/config"
	var body []byte
	if c.After == nil {
		method, path = http.MethodDelete, "/v1/config/"+string(c.Key.Kind)+"/"+url.PathEscape(c.Key.Name)
	} else {
		var err error
		if body, err = config.EncodeEntry(c.After); err != nil {
			return err
		}
	}
	a, err := m.e.do(ctx, method, path, query, body, http.StatusForbidden)
	switch {
	case err != nil:
		return err
	case a.Status == http.StatusForbidden:
		return refused(a, "/v1/config/"+string(c.Key.Kind), method)
	case strings.TrimSpace(string(a.Body)) == "true":
		return nil
	}
	return store.ErrOutside
}

// refresh reads the kinds of entries anew.
func (m *mirror) refresh(ctx context.Context, list []store.EntryChange) error {
	read := map[config.Kind]bool{}
	for _, c := range list {
		if read[c.Key.Kind] {
			continue
		}
		read[c.Key.Kind] = true
		if _, err := m.readKind(ctx, c.Key.Kind, 0); err != nil {
			return err
		}
	}
	return nil
}

// sameEntry compares content; nil is no entry.
func sameEntry(a, b config.Entry) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	x, err := config.EncodeEntry(a)
	if err != nil {
		return false
	}
	y, err := config.EncodeEntry(b)
	return err == nil && bytes.Equal(x, y)
}

// wait is false when ctx ends first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
