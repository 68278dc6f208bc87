package catalog

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// decide carries out a decision on what is held.
func decide(g Guard, d Decision) (Guard, *Snapshot, bool) {
	r, ok := g.Rule("catalog", d, ops)
	g, _ = g.Heed("catalog", r)
	return g, g.Passed(), ok
}

// two are guards that see the same registry.
type two struct {
	t    *testing.T
	w    *world
	now  time.Time
	a, b Guard
}

func newTwo(t *testing.T, ids ...string) *two {
	p := &two{t: t, w: newWorld(ids...), now: noon}
	for i, id := range ids {
		p.w.services[id].CreateIndex = uint64(10 + i)
	}
	p.a, _ = p.a.Step(noon, p.w.now(), p.w)
	p.b, _ = p.b.Step(noon, p.w.now(), p.w)
	return p
}

// sees lets a guard look a second later.
func (p *two) sees(g *Guard, want, held string) {
	p.t.Helper()
	p.now = p.now.Add(time.Second)
	var snap *Snapshot
	*g, snap = g.Step(p.now, p.w.now(), p.w)
	p.told(*g, want, held)
	if snap != g.Passed() {
		p.t.Error("another snapshot than was passed")
	}
}

func (p *two) told(g Guard, want, held string) {
	p.t.Helper()
	var got []string
	for _, h := range g.Held() {
		for _, in := range h.Instances {
			got = append(got, in.Service.ID)
		}
	}
	if ids(g.Passed()) != want || strings.Join(got, " ") != held {
		p.t.Errorf("%q, held %q; want %q, held %q", ids(g.Passed()), got, want, held)
	}
}

// again registers an instance anew.
func (p *two) again(ids ...string) {
	for _, id := range ids {
		was := *p.w.services[id]
		was.CreateIndex += 100
		p.w.services[id], p.w.present[id] = &was, true
	}
}

// A release lets go what it is about, each once, and nothing that vanishes later.
func TestRelease(t *testing.T) {
	p := newTwo(t, "a", "b", "c")
	p.w.gone("a", "b")
	p.sees(&p.a, "a b c", "a b")
	r, ok := p.a.Rule("catalog", Release, ops)
	if !ok || len(r.Of) != 2 {
		t.Fatalf("rules %+v, %v", r, ok)
	}
	var rest Ruling
	p.a, rest = p.a.Heed("catalog", r)
	p.told(p.a, "c", "")
	if len(rest.Of) != 0 {
		t.Errorf("left to be heeded: %+v", rest)
	}

	// Another guard has heard of it before it sees anything, and sees then that more is gone.
	if p.b, rest = p.b.Heed("catalog", r); len(rest.Of) != 2 {
		t.Errorf("left to be heeded: %+v", rest)
	}
	p.w.gone("c")
	p.sees(&p.b, "a b c", "a b c")
	p.b, rest = p.b.Heed("catalog", rest)
	p.told(p.b, "c", "c")
	p.sees(&p.b, "c", "c")

	// What is registered again is another.
	p.again("a", "b", "c")
	p.sees(&p.b, "a b c", "")
	p.w.gone("a", "b", "c")
	p.sees(&p.b, "a b c", "a b c")
	for _, one := range []Ruling{r, rest} {
		p.b, _ = p.b.Heed("catalog", one)
		p.told(p.b, "a b c", "a b c")
	}
}

// A keep is heeded by whoever holds one that it is about, until it is registered again, or released.
func TestKeepElsewhere(t *testing.T) {
	p := newTwo(t, "a")
	p.w.gone("a")
	p.sees(&p.a, "a", "a")
	p.sees(&p.b, "a", "a")
	keep, _ := p.a.Rule("catalog", Keep, ops)
	p.b, _ = p.b.Heed("catalog", keep)
	p.w.explained["a"] = "its sidecar said goodbye"
	p.sees(&p.a, "", "")
	p.sees(&p.b, "a", "a")
	release, _ := p.b.Rule("catalog", Release, ops)
	p.b, _ = p.b.Heed("catalog", release)
	p.told(p.b, "", "")

	p.again("a")
	delete(p.w.explained, "a")
	p.sees(&p.b, "a", "")
	p.w.gone("a")
	p.sees(&p.b, "a", "a")
	p.b, _ = p.b.Heed("catalog", keep)
	if kept := p.b.Held()[0].Kept; kept != (Decided{}) {
		t.Errorf("kept by a word about another registration: %+v", kept)
	}
}

// Who is released from a silence is told as silent, the others of the floor stay, and a later
// silence is another.
func TestReleaseOfSilence(t *testing.T) {
	h := newHeard()
	at := func(index uint64, text string) *Snapshot {
		s := h.says(text)
		for _, in := range instances(s.Set("catalog")) {
			for _, c := range in.Checks {
				c.ModifyIndex = index
			}
		}
		return s
	}
	whole := at(1, "a b c d")
	g, _ := Guard{}.Step(noon, whole, nothing{})
	other, _ := Guard{}.Step(noon, whole, nothing{})
	g, snap := g.Step(noon, at(2, "a? b? c d"), nothing{})
	if told(snap) != "a! b! c d" {
		t.Fatalf("told %q", told(snap))
	}
	all := at(2, "a? b? c? d?")
	g, _ = g.Step(noon, all, nothing{})
	r, ok := g.Rule("catalog", Release, ops)
	if !ok || len(r.Of) != 4 {
		t.Fatalf("rules %+v, %v", r, ok)
	}
	// The other has another floor: it saw them fall silent together.
	other, snap = other.Step(noon, all, nothing{})
	if told(snap) != "a b c! d!" {
		t.Fatalf("told %q", told(snap))
	}
	some := r
	some.Of = slices.DeleteFunc(slices.Clone(r.Of), func(a Absent) bool { return a.ID == "b" })
	other, rest := other.Heed("catalog", some)
	if told(other.Passed()) != "a! b c! d!" || len(rest.Of) != 0 {
		t.Errorf("told %q, left to be heeded: %+v", told(other.Passed()), rest)
	}
	if other, snap = other.Step(noon, h.snap, nothing{}); told(snap) != "a! b c! d!" || len(other.Held()) != 1 {
		t.Errorf("told %q, held %v", told(snap), other.Held())
	}
	other, _ = other.Heed("catalog", r)
	if other, snap = other.Step(noon, h.snap, nothing{}); told(snap) != "a! b! c! d!" || other.Held() != nil {
		t.Errorf("told %q, held %v", told(snap), other.Held())
	}
	other, _ = other.Step(noon, at(3, "a b c d"), nothing{})
	other, _ = other.Step(noon, at(4, "a? b? c? d?"), nothing{})
	if other, _ = other.Heed("catalog", r); told(other.Passed()) != "a b c! d!" {
		t.Errorf("told %q by a word about another silence", told(other.Passed()))
	}
}
