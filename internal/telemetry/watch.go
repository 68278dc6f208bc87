package telemetry

import (
	"cmp"
	"slices"
	"time"
)

// Watch is for how long a callee's sidecar has looked for plaintext. Time in which its Envoy
// did not run, or its counts were lost, is not in For.
type Watch struct {
	Since time.Time     `json:"since,omitzero"` // when it began to
	For   time.Duration `json:"for,omitempty"`
	Quiet time.Duration `json:"quiet,omitempty"` // the part of For since plaintext was last seen
}

// Memory is what a sidecar remembers over its own restarts: how long it watched, and who sent
// plaintext, maxSources of them, the latest. Plain data, so that it can be kept in a file.
type Memory struct {
	Watch
	Senders []Plaintext `json:"senders,omitempty"` // by address
}

// Add takes in a stretch of time and what was seen in it. over is 0 where nobody looked.
func (m *Memory) Add(now time.Time, over time.Duration, seen []Plaintext) {
	if m.Since.IsZero() || m.Since.After(now) {
		m.Since = now
	}
	over = max(0, over)
	m.For, m.Quiet = m.For+over, m.Quiet+over
	if len(seen) == 0 {
		return
	}
	m.Quiet = 0
	m.Senders = newest(addPlaintext(m.Senders, seen), maxSources)
}

// Sound reports whether the memory can be true: a file may have been edited.
func (m *Memory) Sound() bool {
	return m.For >= 0 && m.Quiet >= 0 && m.Quiet <= m.For && len(m.Senders) <= maxSources
}

// Told are the senders as a server is told them that may not know of them: without counts,
// which it has been told, or which were lost with the one before.
func (m *Memory) Told() []Plaintext {
	out := slices.Clone(m.Senders)
	for i := range out {
		out[i].Count = 0
	}
	return out
}

// newest keeps n at most, the latest, by address.
func newest(list []Plaintext, n int) []Plaintext {
	if len(list) <= n {
		return list
	}
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b Plaintext) int { return cmp.Or(b.Last.Compare(a.Last), cmp.Compare(a.Address, b.Address)) })
	list = list[:n]
	slices.SortFunc(list, func(a, b Plaintext) int { return cmp.Compare(a.Address, b.Address) })
	return list
}

// addPlaintext merges by address.
func addPlaintext(a, b []Plaintext) []Plaintext {
	from := map[string]Plaintext{}
	for _, p := range slices.Concat(a, b) {
		was := from[p.Address]
		p.Count += was.Count
		if was.Last.After(p.Last) {
			p.Last = was.Last
		}
		from[p.Address] = p
	}
	out := make([]Plaintext, 0, len(from))
	for _, p := range from {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Plaintext) int { return cmp.Compare(a.Address, b.Address) })
	if len(out) == 0 {
		return nil
	}
	return out
}
