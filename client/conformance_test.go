package client_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/crossfade-mesh/crossfade/client"
)

// TestConformance runs what every language's library has to pass.
func TestConformance(t *testing.T) {
	a, err := txtar.ParseFile("testdata/conformance.txtar")
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Files) < 25 {
		t.Fatalf("%d cases", len(a.Files))
	}
	for _, c := range a.Files {
		t.Run(c.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &reader{t: t, env: map[string]string{}, kv: newFakeKV(), draw: -1}
				for line := range strings.Lines(string(c.Data)) {
					if words := split(t, strings.TrimSuffix(line, "\n")); len(words) > 0 {
						r.line, r.words = line, words[1:]
						r.run(words[0])
					}
				}
				if r.lines == 0 {
					t.Error("expects nothing")
				}
			})
		})
	}
}

// split returns a line's words: bare ones, and JSON strings.
func split(t *testing.T, line string) (words []string) {
	t.Helper()
	for line = strings.TrimLeft(line, " "); line != ""; line = strings.TrimLeft(line, " ") {
		word, rest, _ := strings.Cut(line, " ")
		if strings.HasPrefix(line, `"`) {
			d := json.NewDecoder(strings.NewReader(line))
			if err := d.Decode(&word); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			rest = line[d.InputOffset():]
		}
		words, line = append(words, word), rest
	}
	return words
}

// reader runs one case.
type reader struct {
	t     *testing.T
	line  string
	words []string // of the line, after its first
	lines int      // that expected something

	source, destination string
	env                 map[string]string
	kv                  *fakeKV
	pair                *client.Pair // once it is open
	draw                int          // -1: nobody may draw
}

func (r *reader) run(verb string) {
	switch verb {
	case "pair":
		r.source, r.destination = r.words[0], r.words[1]
	case "env":
		r.env[r.words[0]] = r.words[1]
	case "kv":
		r.change()
	case "open":
		r.open()
	default:
		r.lines++
		r.expect(verb)
	}
}

func (r *reader) change() {
	switch r.words[0] {
	case "set":
		r.kv.set(r.words[1])
	case "gone":
		r.kv.change(func() { r.kv.value, r.kv.down, r.kv.index = nil, false, r.kv.index+1 })
	case "down":
		r.kv.change(func() { r.kv.down = true })
	case "rewind":
		r.kv.change(func() { r.kv.value, r.kv.down, r.kv.index = &r.words[1], false, 1 })
	default:
		r.t.Fatalf("%s: what?", r.line)
	}
	if r.pair != nil {
		settle()
	}
}

func (r *reader) open() {
	p, err := client.Open(client.Options{
		Source: r.source, Destination: r.destination,
		Getenv:     getenv(r.env),
		HTTPClient: &http.Client{Transport: r.kv},
		Draw: func(n int) int {
			if n != 10_000 || r.draw < 0 {
				r.t.Errorf("%s: drew of %d", r.line, n)
			}
			return r.draw
		},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.pair = p
	r.t.Cleanup(p.Close)
	settle()
}

func (r *reader) expect(verb string) {
	var got []string
	want := r.words
	switch verb {
	case "percent":
		got = []string{strconv.FormatFloat(r.pair.Percent(), 'f', -1, 64)}
	case "draw":
		n, err := strconv.Atoi(r.words[0])
		if err != nil {
			r.t.Fatal(err)
		}
		r.draw = n
		got, want = r.choice(""), r.words[1:]
		r.draw = -1
	case "key":
		got, want = r.choice(r.words[0]), r.words[1:]
	case "bucket":
		got, want = []string{strconv.Itoa(client.Bucket(r.words[0]))}, r.words[1:]
	case "problems":
		for _, p := range r.pair.Problems() {
			got = append(got, string(p.Kind))
		}
	default:
		r.t.Fatalf("%s: what?", r.line)
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		r.t.Errorf("%s: got %q", r.line, got)
	}
}

func (r *reader) choice(key string) []string {
	c, err := r.pair.Choose(key)
	if errors.Is(err, client.ErrNoAddress) {
		return []string{"error"}
	}
	if err != nil {
		r.t.Fatal(err)
	}
	if c.Scheme != "" {
		c.Addr = c.Scheme + "://" + c.Addr
	}
	return []string{c.Way.String(), c.Addr}
}
