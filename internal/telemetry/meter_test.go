package telemetry

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/shift"
)

// parsed reads what an Envoy 1.40 said, with requests to catalog and connections to payments
// divided among three ways, of which direct refuses connections in the end.
func parsed(t *testing.T) (Stats, Hosts) {
	t.Helper()
	text, err := os.ReadFile("testdata/stats.json")
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseStats(text)
	if err != nil {
		t.Fatal(err)
	}
	if text, err = os.ReadFile("testdata/clusters.json"); err != nil {
		t.Fatal(err)
	}
	h, err := ParseHosts(text)
	if err != nil {
		t.Fatal(err)
	}
	return s, h
}

// told is a report in few words.
func told(r Report) string {
	var out strings.Builder
	for _, o := range r.Outbound {
		for _, w := range o.Ways {
			fmt.Fprintf(&out, "%s %s: %d attempts, %d first, %d failed, %d unconnected, %d withheld, %g timed\n", o.Destination, w.Way, w.Attempts, w.First, w.Failed, w.ConnectFailed, w.Withheld, w.Latency.Total())
		}
		for _, f := range o.Failing {
			fmt.Fprintf(&out, "%s %s: %s %d times\n", o.Destination, f.Way, f.What, f.Count)
		}
	}
	for _, o := range r.Open {
		fmt.Fprintf(&out, "%s %s: %d open\n", o.Destination, o.Way, o.Count)
	}
	return out.String()
}

func TestRealEnvoy(t *testing.T) {
	s, h := parsed(t)
	var m Meter
	r, hosts := m.Read(noon, s)
	if !hosts {
		t.Fatal("connections are divided, and endpoints are not asked for")
	}
	r = r.Merge(m.ReadHosts(h))
	const want = `catalog legacy: 59 attempts, 49 first, 0 failed, 0 unconnected, 0 withheld, 59 timed
catalog direct: 50 attempts, 40 first, 20 failed, 20 unconnected, 0 withheld, 30 timed
catalog mtls: 41 attempts, 41 first, 0 failed, 0 unconnected, 0 withheld, 41 timed
catalog direct: no answer UF 20 times
payments legacy: 36 attempts, 36 first, 0 failed, 0 unconnected, 0 withheld, 36 timed
payments direct: 20 attempts, 20 first, 5 failed, 5 unconnected, 0 withheld, 15 timed
payments mtls: 29 attempts, 29 first, 0 failed, 0 unconnected, 0 withheld, 29 timed
payments direct: no connection UF 5 times
payments direct: 15 open
payments legacy: 36 open
payments mtls: 29 open
`
	if got := told(r); got != want {
		t.Errorf("got\n%s", got)
	}
	if r, hosts := m.Read(noon.Add(time.Second), s); hosts || !r.Empty() {
		t.Errorf("nothing has happened: %v %s", hosts, told(r))
	}
	m.Restarted()
	r, _ = m.Read(noon.Add(2*time.Second), s)
	if r = r.Merge(m.ReadHosts(h)); len(r.Open) != 0 {
		t.Errorf("what is open has not changed: %+v", r.Open)
	}
	if r.Open = nil; told(r) != want[:strings.Index(want, "payments direct: 15 open")] {
		t.Errorf("another Envoy with the same counts:\n%s", told(r))
	}
	if got := len(m.Opened()); got != 3 {
		t.Errorf("%d are open, want 3", got)
	}
}

const dead = "direct~a.default.dc1.internal.x.consul"

// counts are stats by name.
func counts(list map[string]uint64) Stats {
	return Stats{counters: list, histograms: map[string]map[shift.Bin]uint64{}}
}

func attempt(wanted, way, code, flags string) string {
	return "cf.attempt.destination.a.way." + way + ".wanted." + wanted + ".code." + code + ".flags." + flags + ".grpc."
}

// A request that another way took is withheld from the one it wanted, if no retry brought it
// there: also a retry whose answer comes later.
func TestWithheld(t *testing.T) {
	var m Meter
	total := map[string]uint64{}
	step := func(add map[string]uint64) string {
		for name, n := range add {
			total[name] += n
		}
		r, _ := m.Read(noon, counts(maps.Clone(total)))
		return told(r)
	}
	gauge := "cluster.legacy~a.default.dc1.internal.x.consul.upstream_rq_active"
	// Ten requests fail and are tried again; four answers are still to come.
	total[gauge] = 4
	got := step(map[string]uint64{attempt(dead, "direct", "0", "UF"): 10, "cluster." + dead + ".upstream_rq_retry": 10, attempt(dead, "legacy", "200", "-"): 6})
	if want := "a legacy: 6 attempts, 0 first, 0 failed, 0 unconnected, 0 withheld, 0 timed\n" +
		"a direct: 10 attempts, 6 first, 10 failed, 10 unconnected, 0 withheld, 0 timed\na direct: no answer UF 10 times\na legacy: 4 open\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	// They come, and with them 5 requests that nobody on direct could take.
	total[gauge] = 0
	got = step(map[string]uint64{attempt(dead, "legacy", "200", "-"): 9})
	if want := "a legacy: 9 attempts, 9 first, 0 failed, 0 unconnected, 0 withheld, 0 timed\na direct: 0 attempts, 0 first, 0 failed, 0 unconnected, 5 withheld, 0 timed\na legacy: 0 open\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	got = step(map[string]uint64{attempt(dead, "legacy", "200", "-"): 3})
	if want := "a legacy: 3 attempts, 3 first, 0 failed, 0 unconnected, 0 withheld, 0 timed\na direct: 0 attempts, 0 first, 0 failed, 0 unconnected, 3 withheld, 0 timed\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	// Nobody anywhere: Envoy makes no attempt, and each request is one that failed.
	got = step(map[string]uint64{"cluster." + dead + ".upstream_cx_none_healthy": 2})
	if want := "a direct: 2 attempts, 2 first, 2 failed, 2 unconnected, 0 withheld, 0 timed\na direct: no instance 2 times\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestOutcomes(t *testing.T) {
	for _, x := range []struct {
		code, flags, grpc string
		failed            bool
	}{
		{"200", "-", "", false}, {"200", "-", "0", false}, {"404", "-", "", false}, {"429", "-", "", false}, {"101", "-", "", false},
		{"500", "-", "", true}, {"503", "UC", "", true}, {"0", "UF", "", true}, {"0", "-", "", true}, {"", "UR", "", true},
		{"200", "UR", "", true}, {"200", "UC", "", true}, {"200", "UT", "", true}, // cut short
		{"200", "-", "5", false}, {"200", "-", "16", false}, {"200", "-", "8", false}, {"200", "-", "1", false},
		{"200", "-", "2", true}, {"200", "-", "4", true}, {"200", "-", "13", true}, {"200", "-", "14", true}, {"200", "-", "15", true},
	} {
		if failed, _ := (outcome{code: x.code, flags: x.flags, grpc: x.grpc}).judge(); failed != x.failed {
			t.Errorf("%+v: failed %v", x, failed)
		}
	}
}

// A report that is too much for one is several, and nothing is lost.
func TestBounded(t *testing.T) {
	var all Report
	bins := make([]shift.BinCount, 500)
	for i := range bins {
		bins[i] = shift.BinCount{Bin: shift.Bin(i), Count: 1}
	}
	for i := range 100 {
		all.Outbound = append(all.Outbound, Outbound{Destination: fmt.Sprint("s", i), Ways: []shift.WayTelemetry{{Way: shift.MTLS, Telemetry: shift.Telemetry{Attempts: 1, Latency: shift.FromBins(bins...)}}}})
	}
	for i := range 3 * maxSources {
		all.Plaintext = append(all.Plaintext, Plaintext{Address: fmt.Sprint(i), Count: 1, Last: noon})
	}
	b, parts := NewBook(), 0
	for rest := all; !rest.Empty(); parts++ {
		var fits Report
		fits, rest = rest.Bounded()
		fits.Session, fits.Seq = 1, uint64(parts+1)
		text, err := fits.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if fits, err = Decode(text); err != nil {
			t.Fatal(err)
		}
		b.Put(Key{"n", "a", "a"}, fits, noon)
	}
	if n := len(b.Drain()); n != 100 || len(b.Plaintext("a")) != 3*maxSources || parts < 3 {
		t.Errorf("%d pairs and %d senders in %d parts", n, len(b.Plaintext("a")), parts)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for text, why := range map[string]string{
		`{"over":-1}`: "negative",
		`{"out":[{"dst":"a","ways":[{"way":"mtls","attempts":1,"failed":2}]}]}`:                                       "cannot be",
		`{"out":[{"dst":"a","ways":[{"way":"mtls","attempts":1,"first":2}]}]}`:                                        "cannot be",
		`{"out":[{"dst":"a","ways":[{"way":"mtls","attempts":18446744073709551615}]}]}`:                               "cannot be",
		`{"out":[{"dst":"a","ways":[{"way":"mtls","attempts":1,"latency":{"bins":[{"b":2,"n":1},{"b":1,"n":1}]}}]}]}`: "out of order",
		`{"out":[{"dst":"a","ways":[{"way":"mtls","attempts":1,"latency":{"bins":[{"b":2,"n":-1}]}}]}]}`:              "no count",
		`{"out":[{"dst":"a","ways":[{"way":"mtls","attempts":1,"latency":{"bins":[{"b":999999,"n":1}]}}]}]}`:          "no such bin",
		`{"out":[{"dst":"a","ways":[{"way":"bridge"}]}]}`:                                                             "no such way",
		`{"watch":{"for":1,"quiet":2}}`:                                                             "no such stretch",
		`{"open":[{"dst":"","way":"mtls","n":1}]}`:                                                  "no name",
		`{"plaintext":[{"from":"` + strings.Repeat("x", 300) + `"}]}`:                               "that long",
		`{"out":[` + strings.TrimSuffix(strings.Repeat(`{"dst":"a","ways":[]},`, 2001), ",") + `]}`: "at most 2000",
		`"` + strings.Repeat("x", MaxReport) + `"`:                                                  "bytes",
		`{"seq":-1}`: "report",
		`[]`:         "report",
	} {
		if _, err := Decode([]byte(text)); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%.80s: %v, want %q", text, err, why)
		}
	}
}

// Silence is time in which somebody looked, over restarts too.
func TestMemory(t *testing.T) {
	var m Memory
	m.Add(noon, 0, nil)
	m.Add(noon.Add(time.Second), time.Second, nil)
	if m.Since != noon || m.For != time.Second || m.Quiet != time.Second {
		t.Errorf("%+v", m)
	}
	m.Add(noon.Add(2*time.Second), time.Second, []Plaintext{{Address: "10.0.0.7", Count: 3, Last: noon.Add(2 * time.Second)}})
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var back Memory
	if err := json.Unmarshal(text, &back); err != nil || !back.Sound() {
		t.Fatalf("%s: %v", text, err)
	}
	back.Add(noon.Add(time.Hour), 0, nil) // nobody looked meanwhile
	back.Add(noon.Add(time.Hour+time.Second), time.Second, nil)
	if back.For != 3*time.Second || back.Quiet != time.Second || !back.Since.Equal(noon) {
		t.Errorf("%+v", back)
	}
	if s := back.Told(); len(s) != 1 || s[0].Count != 0 || !s[0].Last.Equal(noon.Add(2*time.Second)) || back.Senders[0].Count != 3 {
		t.Errorf("%+v", s)
	}
	for i := range 3 * maxSources {
		back.Add(noon.Add(2*time.Hour+time.Duration(i)*time.Second), time.Second, []Plaintext{{Address: fmt.Sprint("h", i), Count: 1, Last: noon.Add(2*time.Hour + time.Duration(i)*time.Second)}})
	}
	if len(back.Senders) != maxSources || slices.ContainsFunc(back.Senders, func(p Plaintext) bool { return p.Address == "10.0.0.7" }) || !back.Sound() {
		t.Errorf("%d senders", len(back.Senders))
	}
	if back.Quiet = back.For + 1; back.Sound() {
		t.Error("quiet for longer than it was watched")
	}
}
