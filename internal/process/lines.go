package process

import (
	"bytes"
	"io"
	"slices"
	"sync"
)

// keptLines is how many of the last lines [Lines] remembers.
const keptLines = 50

// maxLine bounds a line that never ends.
const maxLine = 16 << 10

// Lines passes output on, whole line by whole line with a prefix, and remembers the
// last ones.
type Lines struct {
	Out    io.Writer
	Prefix string

	mu   sync.Mutex
	part []byte
	last []string // oldest first, at most keptLines
}

// Write implements io.Writer. A failing Out loses lines but never stops the writer's child.
func (w *Lines) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	rest := p
	for len(rest) > 0 {
		line, after, found := bytes.Cut(rest, []byte("\n"))
		w.part = append(w.part, line...)
		rest = after
		if found || len(w.part) >= maxLine {
			w.flush()
		}
	}
	return len(p), nil
}

func (w *Lines) flush() {
	line := string(bytes.ToValidUTF8(w.part, []byte("?")))
	w.part = w.part[:0]
	if len(w.last) == keptLines {
		w.last = slices.Delete(w.last, 0, 1)
	}
	w.last = append(w.last, line)
	_, _ = io.WriteString(w.Out, w.Prefix+line+"\n")
}

// Take returns the remembered lines and forgets them.
func (w *Lines) Take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.part) > 0 {
		w.flush()
	}
	lines := append([]string{}, w.last...)
	w.last = nil
	return lines
}
