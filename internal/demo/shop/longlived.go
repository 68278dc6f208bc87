package shop

import (
	"sync"
	"time"
)

// LongLived watches one stream or connection that is meant to stay open. Its
// messages are counted only while they come in sequence.
type LongLived struct {
	mu       sync.Mutex // guards all below
	messages uint64
	last     time.Time
	gap      time.Duration
	err      error

	done chan struct{} // closed when it has ended
}

func newLongLived() *LongLived {
	return &LongLived{last: time.Now(), done: make(chan struct{})}
}

func (l *LongLived) message() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.messages++
	l.gap = max(l.gap, now.Sub(l.last))
	l.last = now
}

// finish is called once.
func (l *LongLived) finish(err error) {
	l.mu.Lock()
	l.err = err
	l.mu.Unlock()
	close(l.done)
}

// Messages is how many came in sequence so far, and the longest time between two.
func (l *LongLived) Messages() (n uint64, longestGap time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.messages, l.gap
}

// Err says why it ended; nil while it is open, and when it was ended on purpose.
func (l *LongLived) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Done is closed when it has ended.
func (l *LongLived) Done() <-chan struct{} { return l.done }
