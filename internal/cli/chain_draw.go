package cli

import (
	"encoding/xml"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// graph is a chain to be drawn: boxes in columns, and arrows from left to right.
type graph struct {
	title   string
	columns [][]*box // none is empty
	arrows  []arrow
	boxes   map[string]*box // by kind and name
}

// box is a service, a route, a splitter or a target.
type box struct {
	id    string // "n1", in the order of making
	kind  string // service, route, splitter or target
	lines []string
	idle  bool // no instance is in service

	x, y, w, h int // where an SVG has it
}

// arrow leads from a box to another.
type arrow struct {
	from, to *box
	label    string
	dashed   bool // for a failover
}

// graphOf lays out what a chain is made of.
func graphOf(v routing.View) *graph {
	g := &graph{title: "chain of " + v.Service, boxes: map[string]*box{}}
	drawn := map[*box]bool{} // with their failovers
	add := func(level int, kind, name string, lines ...string) (b *box, known bool) {
		if b, known = g.boxes[kind+" "+name]; known {
			return b, true
		}
		b = &box{id: fmt.Sprintf("n%d", len(g.boxes)+1), kind: kind, lines: lines}
		g.boxes[kind+" "+name] = b
		for len(g.columns) <= level {
			g.columns = append(g.columns, nil)
		}
		g.columns[level] = append(g.columns[level], b)
		return b, false
	}
	target := func(level int, t routing.TargetView) *box {
		lines := []string{t.Target}
		if t.Healthy != nil {
			lines = append(lines, fmt.Sprintf("%d healthy", *t.Healthy))
		}
		b, _ := add(level, "target", t.Target, lines...)
		b.idle = t.Healthy != nil && *t.Healthy == 0
		return b
	}
	lines := []string{v.Service + "." + v.Datacenter, v.Protocol}
	if v.Broken != "" {
		lines = append(lines, "broken: "+v.Broken)
	}
	if v.LastGood {
		lines = append(lines, "in force: the chain of before")
	}
	start, _ := add(0, "service", "", lines...)
	for i, r := range v.Routes {
		at := start
		if v.Routed {
			at, _ = add(1, "route", fmt.Sprint(i), fmt.Sprintf("route %d", i+1), r.Match)
			g.arrows = append(g.arrows, arrow{from: start, to: at})
		}
		if r.Splitter != "" {
			splitter, known := add(2, "splitter", r.Splitter, "service-splitter", r.Splitter)
			g.arrows = append(g.arrows, arrow{from: at, to: splitter})
			if at = splitter; known {
				continue // its legs are there already
			}
		}
		for _, l := range r.Legs {
			b := target(3, l.TargetView)
			g.arrows = append(g.arrows, arrow{from: at, to: b, label: shares(l)})
			if drawn[b] {
				continue
			}
			drawn[b] = true
			for n, f := range l.Failover {
				g.arrows = append(g.arrows, arrow{from: b, to: target(4, f), label: fmt.Sprintf("else %d", n+1), dashed: true})
			}
		}
	}
	kept := g.columns[:0]
	for _, c := range g.columns {
		if len(c) > 0 {
			kept = append(kept, c)
		}
	}
	g.columns = kept
	return g
}

// shares is what an arrow to a leg says.
func shares(l routing.LegView) string {
	if l.Wanted == l.Effective {
		return fmt.Sprintf("%.2f %%", l.Wanted)
	}
	return fmt.Sprintf("%.2f %%, now %.2f %%", l.Wanted, l.Effective)
}

// dot is the graph in Graphviz' language.
func (g *graph) dot() string {
	var b strings.Builder
	quote := func(s string) string {
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
	}
	fmt.Fprintf(&b, "digraph %s {\n  rankdir=LR\n  node [shape=box, style=rounded, fontname=\"sans-serif\"]\n  edge [fontname=\"sans-serif\"]\n", quote(g.title))
	for _, c := range g.columns {
		for _, n := range c {
			style := ""
			if n.idle {
				style = ", color=red"
			}
			fmt.Fprintf(&b, "  %s [label=%s%s]\n", n.id, quote(strings.Join(n.lines, "\n")), style)
		}
	}
	for _, a := range g.arrows {
		style := ""
		if a.dashed {
			style = ", style=dashed"
		}
		fmt.Fprintf(&b, "  %s -> %s [label=%s%s]\n", a.from.id, a.to.id, quote(a.label), style)
	}
	b.WriteString("}\n")
	return b.String()
}

// Sizes of a picture, in pixels.
const (
	letter    = 7 // width of a character, at most, in 12 pixel sans-serif
	lineGap   = 17
	inside    = 10
	rowGap    = 22
	columnGap = 90
	margin    = 16
	longest   = 60 // characters of a line
)

// svg is the graph as a picture: text and shapes alone.
func (g *graph) svg() string {
	width, height := g.place()
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, "<title>%s</title>\n", escaped(g.title))
	b.WriteString(`<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#555"/></marker></defs>` + "\n")
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	var labels strings.Builder // over the arrows
	arrived := map[*box]int{}
	for _, a := range g.arrows {
		// Arrows to one box end beside each other.
		shift := (2*arrived[a.to] - g.arriving(a.to) + 1) * 8
		arrived[a.to]++
		x1, y1, x2, y2 := a.from.x+a.from.w, a.from.y+a.from.h/2, a.to.x, a.to.y+a.to.h/2+shift
		from, to := (x1+x2)/2, (x1+x2)/2
		width := utf8.RuneCountInString(a.label)*letter + 6
		x, y := x2-width/2-18, y2
		if a.back() {
			x2 = a.to.x + a.to.w
			from, to = max(x1, x2)+columnGap/2, max(x1, x2)+columnGap/2
			x, y = from, (y1+y2)/2
		}
		dashed := ""
		if a.dashed {
			dashed = ` stroke-dasharray="5 4"`
		}
		fmt.Fprintf(&b, `<path d="M%d,%d C%d,%d %d,%d %d,%d" fill="none" stroke="#555"%s marker-end="url(#tip)"/>`+"\n", x1, y1, from, y1, to, y2, x2, y2, dashed)
		if a.label != "" {
			fmt.Fprintf(&labels, `<rect x="%d" y="%d" width="%d" height="15" fill="#fff"/><text x="%d" y="%d" text-anchor="middle" fill="#333">%s</text>`+"\n", x-width/2, y-8, width, x, y+4, escaped(a.label))
		}
	}
	b.WriteString(labels.String())
	for _, c := range g.columns {
		for _, n := range c {
			g.draw(&b, n)
		}
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// back reports whether an arrow does not lead to the right: to a target that stands in
// for one of its own column.
func (a arrow) back() bool { return a.to.x <= a.from.x }

func (g *graph) arriving(at *box) (n int) {
	for _, a := range g.arrows {
		if a.to == at {
			n++
		}
	}
	return n
}

func (g *graph) draw(b *strings.Builder, n *box) {
	fill := map[string]string{"service": "#e8eef7", "route": "#f3ecd9", "splitter": "#e9e3f4", "target": "#e2f1e4"}[n.kind]
	stroke := "#888"
	if n.idle {
		fill, stroke = "#f9e1e0", "#c33"
	}
	fmt.Fprintf(b, `<rect x="%d" y="%d" width="%d" height="%d" rx="5" fill="%s" stroke="%s"/>`+"\n", n.x, n.y, n.w, n.h, fill, stroke)
	for i, line := range n.lines {
		weight := ""
		if i == 0 {
			weight = ` font-weight="bold"`
		}
		fmt.Fprintf(b, `<text x="%d" y="%d"%s>%s</text>`+"\n", n.x+inside, n.y+inside+lineGap*i+11, weight, escaped(clip(line, longest)))
	}
}

// place gives every box its place and returns the size of all.
func (g *graph) place() (width, height int) {
	column := map[*box]int{}
	for i, c := range g.columns {
		for _, n := range c {
			column[n] = i
		}
	}
	gaps := make([]int, len(g.columns)+1) // before each column, and behind the last
	for _, a := range g.arrows {
		need := utf8.RuneCountInString(a.label)*letter + 50
		if from, to := column[a.from], column[a.to]; to <= from {
			gaps[from+1] = max(gaps[from+1], need+columnGap)
		} else {
			gaps[to] = max(gaps[to], need, columnGap)
		}
	}
	heights := make([]int, len(g.columns))
	x := margin
	for i, c := range g.columns {
		if i > 0 {
			x += gaps[i]
		}
		w := 0
		for _, n := range c {
			for _, line := range n.lines {
				w = max(w, min(utf8.RuneCountInString(line), longest)*letter+2*inside+8)
			}
			n.h = max(len(n.lines)*lineGap+2*inside-3, 16*g.arriving(n)+4)
			heights[i] += n.h + rowGap
		}
		heights[i] -= rowGap
		for _, n := range c {
			n.x, n.w = x, w
		}
		x += w
		height = max(height, heights[i])
	}
	for i, c := range g.columns {
		y := margin + (height-heights[i])/2
		for _, n := range c {
			n.y = y
			y += n.h + rowGap
		}
	}
	return x + margin + gaps[len(g.columns)], height + 2*margin
}

// escaped is a text as XML has it. Characters that XML cannot have become U+FFFD.
func escaped(s string) string {
	var b strings.Builder
	if err := xml.EscapeText(&b, []byte(s)); err != nil {
		return "" // a strings.Builder takes everything
	}
	return b.String()
}
