package catalog

import (
	"cmp"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// heard is a registry of one service: who is there, and who is silent or says that it is ill.
type heard struct {
	snap  *Snapshot
	nodes map[string]*Node
	made  map[string]*Service
}

func newHeard() *heard {
	return &heard{snap: NewSnapshot("dc1", 0, nil), nodes: map[string]*Node{}, made: map[string]*Service{}}
}

// says is the snapshot for "a b! c? d~ e~?": b says that it is ill, c is silent, d's check has not run, e is both. What
// follows a slash is the node, "a/n1"; else each has its own.
func (h *heard) says(text string) *Snapshot {
	var list []Instance
	for word := range strings.FieldsSeq(text) {
		word, node, _ := strings.Cut(word, "/")
		id := strings.TrimRight(word, "!?~")
		if node == "" {
			node = "node-" + id
		}
		if h.made[id] == nil {
			h.made[id] = &Service{ID: id, Name: "catalog"}
		}
		if h.nodes[node] == nil {
			h.nodes[node] = &Node{Name: node}
		}
		own, serf := &Check{CheckID: "own", ServiceID: id, Status: Passing, Type: "tcp", Output: "connected"}, &Check{CheckID: SerfHealth, Status: Passing}
		switch word[len(id):] {
		case "!":
			own.Status, own.Output = Critical, "refused"
		case "~":
			own.Status, own.Output = Critical, ""
		case "?":
			serf.Status = Critical
		case "~?":
			own.Status, own.Output, serf.Status = Critical, "", Critical
		}
		list = append(list, Instance{Node: h.nodes[node], Service: h.made[id], Checks: []*Check{serf, own}})
	}
	h.snap = h.snap.With(h.snap.Index+1, map[string]*Set{"catalog": NewSet("catalog", list)})
	return h.snap
}

// told is the reverse: "a b!".
func told(s *Snapshot) string {
	var out []string
	for _, in := range instances(s.Set("catalog")) {
		word := in.Service.ID
		if in.Status() == Critical {
			word += "!"
		}
		out = append(out, word)
	}
	return strings.Join(out, " ")
}

type nothing struct{}

func (nothing) Explains(Instance) string { return "" }

// Lines are a minute apart: what the registry says, what is told, who is held for silence.
func TestHealthFloor(t *testing.T) {
	for _, tt := range []struct{ name, lines string }{
		{"what an instance says itself is believed, of all of them", `
			a b c d     | a b c d
			a! b! c! d! | a! b! c! d! `},
		{"one node that falls silent is believed", `
			a b    | a b
			a? b   | a! b`},
		{"the only one, too", `
			a      | a
			a?     | a!`},
		{"all instances of one node", `
			a/n b/n   | a b
			a?/n b?/n | a! b!`},
		{"of several at once half stay", `
			a b c d     | a b c d
			a? b? c? d? | a b c! d!     | a b
			a b? c? d?  | a b c! d!     | b
			a b c d     | a b c d`},
		{"the last to fall silent stay", `
			a b c d     | a b c d
			a? b c d    | a! b c d
			a? b? c d   | a! b! c d
			a? b? c? d? | a! b! c d     | c d`},
		{"long ago is not at once", `
			a b c d     | a b c d
			a? b c d    | a! b c d
			+60
			a? b? c d   | a! b! c d
			+60
			a? b? c? d  | a! b! c! d`},
		{"who then says that it is ill is believed", `
			a b      | a b
			a? b?    | a b!  | a
			a! b?    | a! b  | b
			a! b!    | a! b!`},
		{"a check that has not run says nothing, for a minute", `
			a b    | a b
			a~ b~  | a b
			a b~   | a b
			a b~   | a b!
			a b~   | a b!
			a~ b   | a b`},
		{"nor when all come back so", `
			a b    | a b
			       | a b
			a~ b~  | a b
			a! b   | a! b`},
		{"nor of one that is silent as well, however long", `
			a b    | a b
			a~? b  | a! b
			a~? b? | a! b  | b
			a~? b~? | a! b  | b
			a~? b~? | a! b  | b
			a~ b~  | a! b
			a~ b~  | a! b!`},
		{"half of those stay that are silent, though no check of theirs has run", `
			a b c d     | a b c d
			a b c~ d~   | a b c d
			a~? b~? c~? d~? | a b c! d! | a b
			a~? b~? c~? d~? | a b c! d! | a b
			a! b~? c~? d~?  | a! b c d! | b c
			a b c d     | a b c d`},
		{"who was ill, or not there, gets nothing before", `
			a! b      | a! b
			a~ b c~   | a! b c!`},
		{"with more who are well fewer stay", `
			a b c d          | a b c d
			a? b? c d        | a! b! c d
			a? b? c? d? e f g | a! b! c d! e f g | c`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, now := newHeard(), noon
			g := Guard{Policy: GuardPolicy{Agents: true}}
			for line := range strings.Lines(strings.TrimSpace(tt.lines)) {
				now = now.Add(time.Minute)
				if line = strings.TrimSpace(line); strings.HasPrefix(line, "+") {
					now = now.Add(time.Hour)
					continue
				}
				parts := append(strings.Split(line, "|"), "")
				var snap *Snapshot
				g, snap = g.Step(now, h.says(parts[0]), nothing{})
				var silent []string
				for _, held := range g.Held() {
					for _, in := range held.Silent {
						silent = append(silent, in.Service.ID)
					}
				}
				if got, want := told(snap), strings.TrimSpace(parts[1]); got != want {
					t.Fatalf("%s: told %q, want %q", line, got, want)
				}
				if got, want := strings.Join(silent, " "), strings.TrimSpace(parts[2]); got != want {
					t.Fatalf("%s: held %q, want %q", line, got, want)
				}
			}
		})
	}
}

func TestUnrun(t *testing.T) {
	for _, tt := range []struct {
		c    Check
		want bool
	}{
		{Check{Type: "http"}, true},
		{Check{Type: "http", ModifyIndex: 7}, true},
		{Check{Type: "http", Output: "HTTP GET http://127.0.0.1/: 503 Service Unavailable Output: "}, false},
		{Check{Type: "http", Output: "HTTP GET http://127.0.0.1/: 503 Service Unavailable Output: HTTP GET http://x/: 200 OK"}, false},
		{Check{Type: "http", Output: "HTTP GET http://127.0.0.1/: 200 OK Output: fine"}, true},
		{Check{Type: "http", Output: "HTTP GET http://127.0.0.1/: 200 OK Output: fine", Status: Passing}, false},
		{Check{Type: "tcp", Output: "TCP connect 127.0.0.1:80: Success"}, true},
		{Check{Type: "tcp", Output: "TCP+TLS connect 127.0.0.1:80: Success"}, true},
		{Check{Type: "tcp", Output: "dial tcp 127.0.0.1:80: connect: connection refused"}, false},
		{Check{Type: "udp", Output: "UDP connect 127.0.0.1:80: Success"}, true},
		{Check{Type: "h2ping", Output: "HTTP2 ping was successful"}, true},
		{Check{Type: "h2ping", Output: "HTTP2 ping failed: EOF"}, false},
		{Check{Type: "grpc", Output: "gRPC check 127.0.0.1:80: success"}, true},
		{Check{Type: "script", Output: "TCP connect 127.0.0.1:80: Success", CreateIndex: 7, ModifyIndex: 7}, false},
		{Check{Type: "http", Status: Warning}, false},
		{Check{Type: "ttl", CreateIndex: 7, ModifyIndex: 7}, true},
		{Check{Type: "ttl", CreateIndex: 7, ModifyIndex: 8}, false},
		{Check{Type: "script", CreateIndex: 7, ModifyIndex: 8}, false},
		{Check{CreateIndex: 7, ModifyIndex: 7}, false},
	} {
		tt.c.Status, tt.c.ServiceID = cmp.Or(tt.c.Status, Critical), "web"
		if got := tt.c.Unrun(); got != tt.want {
			t.Errorf("%+v: %v, want %v", tt.c, got, tt.want)
		}
	}
}

// Where no agents run checks a critical one has been set so.
func TestUnrunWithoutAgents(t *testing.T) {
	h := newHeard()
	g, _ := Guard{}.Step(noon, h.says("a b"), nothing{})
	if _, snap := g.Step(noon, h.says("a~ b"), nothing{}); told(snap) != "a! b" {
		t.Errorf("told %q", told(snap))
	}
}

// A released service is told as the registry has it, and is not held again for the same silence.
func TestHealthFloorReleased(t *testing.T) {
	h := newHeard()
	g, _ := Guard{}.Step(noon, h.says("a b"), nothing{})
	g, _ = g.Step(noon, h.says("a? b?"), nothing{})
	g, snap, ok := decide(g, Release)
	if !ok || told(snap) != "a! b!" {
		t.Fatalf("released: %v, told %q", ok, told(snap))
	}
	if g, snap = g.Step(noon, h.snap, nothing{}); told(snap) != "a! b!" || g.Held() != nil {
		t.Errorf("told %q, held %v", told(snap), g.Held())
	}
}

// Whatever a registry says of four instances that are there and well, within the window two
// of them are told, and one that is well, at all times; with the truth all is right at once.
func TestGuardLies(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHeard()
		g, _ := Guard{}.Step(noon, h.says("a b c d"), nothing{})
		now := noon
		said := ""
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 10).Draw(t, "seconds")) * time.Second)
			lie := ""
			for _, id := range []string{"a", "b", "c", "d"} {
				lie += []string{"", id + " ", id + " ", id + "? "}[rapid.IntRange(0, 3).Draw(t, id)]
			}
			switch rapid.IntRange(0, 5).Draw(t, "all") {
			case 0:
				lie = ""
			case 1:
				lie = "a? b? c? d?"
			}
			said += lie + "| "
			var snap *Snapshot
			g, snap = g.Step(now, h.says(lie), nothing{})
			words := strings.Fields(told(snap))
			if well := len(words) - strings.Count(told(snap), "!"); len(words) < 2 || well < 1 {
				t.Fatalf("after %stold %q", said, told(snap))
			}
		}
		g, snap := g.Step(now, h.says("a b c d"), nothing{})
		if told(snap) != "a b c d" || g.Held() != nil {
			t.Fatal(fmt.Sprintf("told %q, held %v", told(snap), g.Held()))
		}
	})
}
