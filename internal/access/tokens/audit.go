package tokens

import (
	"slices"
	"time"
)

// maxEntries is how many writes the trail keeps: the last.
const maxEntries = 10_000

// Entry is one write, or one that was refused.
type Entry struct {
	Index    uint64    `json:"index"`
	Time     time.Time `json:"time"`
	Who      string    `json:"who"`
	Role     string    `json:"role"`
	Accessor string    `json:"accessor,omitempty"`
	From     string    `json:"from,omitempty"` // the caller's address
	Action   string    `json:"action"`         // method and path, or the gRPC call
	Target   string    `json:"target,omitempty"`
	Outcome  string    `json:"outcome"` // "done", or the status and the reason
}

// trail is the newest entries, oldest first.
type trail struct {
	entries []Entry
	next    uint64 // index of the newest
	saved   uint64 // index of the newest on disk
}

// Record adds an entry. It is on disk soon after, or when the store is closed.
func (t *Tokens) Record(e Entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.trail.next++
	e.Index = t.trail.next
	if e.Time.IsZero() {
		e.Time = t.opts.Now().UTC()
	}
	if len(t.trail.entries) >= maxEntries {
		// Half of it at once, so that an entry costs the same whatever the trail's length.
		t.trail.entries = slices.Clone(t.trail.entries[len(t.trail.entries)-maxEntries/2:])
	}
	t.trail.entries = append(t.trail.entries, e)
	t.poke()
}

// Trail is the last n entries, newest first.
func (t *Tokens) Trail(n int) []Entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := t.trail.entries
	out := slices.Clone(all[max(0, len(all)-max(0, n)):])
	slices.Reverse(out)
	return out
}

// poke wakes keep.
func (t *Tokens) poke() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// flushPause is between two writes of what does not have to be on disk at once.
const flushPause = 100 * time.Millisecond

// keep writes to the disk what does not have to be there at once.
func (t *Tokens) keep() {
	defer close(t.done)
	defer t.flush()
	for {
		select {
		case <-t.wake:
			t.flush()
		case <-t.quit:
			return
		}
		select {
		case <-time.After(flushPause):
		case <-t.quit:
			return
		}
	}
}

func (t *Tokens) flush() {
	t.writing.Lock()
	defer t.writing.Unlock()
	t.mu.Lock()
	var rows []*row
	for accessor := range t.dirty {
		if r := t.by[accessor]; r != nil {
			c := *r
			rows = append(rows, &c)
		}
	}
	clear(t.dirty)
	unsaved := int(min(t.trail.next-t.trail.saved, uint64(len(t.trail.entries))))
	entries := slices.Clone(t.trail.entries[len(t.trail.entries)-unsaved:])
	newest := t.trail.next
	t.mu.Unlock()
	if len(rows)+len(entries) == 0 {
		return
	}
	if t.opts.Shelf != nil && len(rows) > 0 {
		if err := t.shelve(rows, nil, false); err != nil {
			t.opts.Log.Warn("when tokens were used last cannot be kept", "reason", err)
		}
		rows = nil
	}
	oldest := uint64(0)
	if newest > maxEntries {
		oldest = newest - maxEntries
	}
	if err := t.disk.write(rows, nil, entries, oldest); err != nil {
		t.opts.Log.Error("the trail of writes cannot be kept on disk", "reason", err)
		return
	}
	t.mu.Lock()
	t.trail.saved = newest
	t.mu.Unlock()
}
