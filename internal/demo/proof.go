package demo

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/demo/load"
)

// Proof is one promise and what was seen of it.
type Proof struct {
	Name    string         `json:"name"`
	Claim   string         `json:"claim"`
	Held    bool           `json:"held"`
	Checks  []Check        `json:"checks"`
	Figures map[string]any `json:"figures,omitempty"`
	Seconds float64        `json:"seconds"`

	out *console
}

// Check is one thing that was looked at.
type Check struct {
	OK   bool   `json:"ok"`
	Text string `json:"text"`
}

// check records and shows one finding; the proof holds only if all are ok.
func (p *Proof) check(ok bool, format string, args ...any) bool {
	c := Check{OK: ok, Text: fmt.Sprintf(format, args...)}
	p.Checks = append(p.Checks, c)
	p.Held = p.Held && ok
	p.out.check(c)
	return ok
}

// figure records a number for machines.
func (p *Proof) figure(name string, value any) {
	if p.Figures == nil {
		p.Figures = map[string]any{}
	}
	p.Figures[name] = value
}

// nothingFailed checks that no request failed since m, on any pair, and that
// what has to stay open is open.
func (d *demo) nothingFailed(ctx context.Context, p *Proof, m mark) error {
	if err := d.traffic.settle(ctx); err != nil {
		return err
	}
	requests, failed := d.traffic.since(m)
	p.figure("requests", requests)
	p.figure("failed", failed)
	if p.check(failed == 0, "%s of %s requests failed meanwhile", count(failed), count(requests)); failed > 0 {
		for _, line := range reasons(d.traffic.failuresSince(m)) {
			p.check(false, "%s", line)
		}
	}
	if err := d.traffic.broken(); err != nil {
		p.check(false, "%v", err)
	}
	return nil
}

// reasons groups failures by pair and reason, most frequent first, three a pair.
func reasons(failures map[*pair][]load.Failure) []string {
	type group struct {
		reason string
		first  load.Failure
		n      int
	}
	var out []string
	for _, p := range slices.SortedFunc(maps.Keys(failures), func(a, b *pair) int { return strings.Compare(a.key(), b.key()) }) {
		groups := map[string]*group{}
		for _, f := range failures[p] {
			if groups[f.Reason] == nil {
				groups[f.Reason] = &group{reason: f.Reason, first: f}
			}
			groups[f.Reason].n++
		}
		list := slices.SortedFunc(maps.Values(groups), func(a, b *group) int {
			if a.n != b.n {
				return b.n - a.n
			}
			return strings.Compare(a.reason, b.reason)
		})
		for i, g := range list {
			if i == 3 {
				out = append(out, fmt.Sprintf("%s: and %d other reasons", p.key(), len(list)-i))
				break
			}
			out = append(out, fmt.Sprintf("%s: %d × %s (first sent %s, ended after %s)", p.key(), g.n, g.reason,
				g.first.Sent.Format("15:04:05.000"), g.first.Ended.Sub(g.first.Sent).Round(millisecond)))
		}
	}
	return out
}
