package telemetry

import (
	"encoding/json"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/shift"
)

// answer is what an Envoy 1.40 says, shortened.
const answer = `{"stats":[
{"name":"cf.attempt.destination.catalog.way..wanted.x.code.200.flags.-.grpc.","value":82},
{"name":"cf.attempt.destination.catalog.way.legacy.wanted.x.code.0.flags.UF.grpc.","value":15},
{"name":"cf.attempt.destination.catalog.way.plain.wanted.x.code.503.flags.UC,UO.grpc.","value":3},
{"name":"cf.attempt.destination.a.way.b.way.direct.wanted.x.code.200.flags.-.grpc.14","value":2},
{"name":"cf.attempt.destination.a.way.b.way.direct.wanted.x.code.200.flags.-.grpc.5","value":4},
{"name":"cf.connection.destination.db.way.plain.wanted.x.flags.-","value":28},
{"name":"cf.connection.destination.db.way..wanted.x.flags.URX","value":1},
{"name":"cf.plaintext.source_address.10.0.0.7","value":119},
{"name":"cf.unheard.of","value":1},
{"histograms":{"supported_percentiles":[0,25],"details":[
{"name":"cf.attempt_us.destination.catalog.way.","totals":[{"lower_bound":180,"width":10,"count":2},{"lower_bound":1100,"width":100,"count":1}],"intervals":[],"percentiles":[]},
{"name":"cf.connection_us.destination.db.way.plain","totals":[{"lower_bound":20,"width":1,"count":28}],"intervals":[],"percentiles":[]}]}}]}`

func read(t *testing.T, m *Meter, text string) ([]Outbound, []Plaintext) {
	t.Helper()
	s, err := ParseStats([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	r, _ := m.Read(noon, s)
	return r.Outbound, r.Plaintext
}

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func TestAttempts(t *testing.T) {
	s, err := ParseStats([]byte(answer))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]map[shift.Way]uint64{
		"catalog": {shift.MTLS: 82, shift.Legacy: 15, shift.Plain: 3}, "a.way.b": {shift.Direct: 6}, "db": {shift.Plain: 28, shift.MTLS: 1},
	}
	if got := s.Attempts(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestMeter(t *testing.T) {
	var m Meter
	out, plaintext := read(t, &m, answer)
	got, _ := json.Marshal(out)
	want := `[{"dst":"a.way.b","ways":[{"way":"direct","attempts":6,"first":6,"failed":2}],"failing":[{"way":"direct","what":"200 grpc 14","n":2}]},` +
		`{"dst":"catalog","ways":[{"way":"legacy","attempts":15,"first":15,"failed":15,"connect_failed":15},{"way":"plain","attempts":3,"first":3,"failed":3},` +
		`{"way":"mtls","attempts":82,"first":82,"latency":{"bins":[{"b":-82,"n":2},{"b":1,"n":1}]}}],"failing":[{"way":"legacy","what":"no answer UF","n":15},{"way":"plain","what":"503 UC,UO","n":3}]},` +
		`{"dst":"db","ways":[{"way":"plain","attempts":28,"first":28,"latency":{"bins":[{"b":-170,"n":28}]}}],"failing":[{"what":"no connection URX","n":1}]}]`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if len(plaintext) != 1 || plaintext[0] != (Plaintext{Address: "10.0.0.7", Count: 119, Last: noon}) {
		t.Errorf("plaintext %+v", plaintext)
	}
	if out, plaintext := read(t, &m, answer); out != nil || plaintext != nil {
		t.Errorf("nothing new: %+v %+v", out, plaintext)
	}
	// An Envoy that started again.
	out, _ = read(t, &m, `{"stats":[{"name":"cf.attempt.destination.catalog.way..wanted.x.code.200.flags.-.grpc.","value":5},{"histograms":{"details":[{"name":"cf.attempt_us.destination.catalog.way.","totals":[{"lower_bound":180,"width":10,"count":1}]}]}}]}`)
	if len(out) != 1 || out[0].Ways[0].Attempts != 5 || out[0].Ways[0].Latency.Total() != 1 {
		t.Errorf("after a restart: %+v", out)
	}
}

// What is merged counts as if it had been one stretch.
func TestMerge(t *testing.T) {
	var m Meter
	out, plaintext := read(t, &m, answer)
	r := Report{Over: time.Second, Outbound: out, Plaintext: plaintext}
	twice := r.Merge(r)
	for _, o := range twice.Outbound {
		for _, w := range o.Ways {
			for _, was := range out {
				for _, x := range was.Ways {
					if was.Destination == o.Destination && x.Way == w.Way && (w.Attempts != 2*x.Attempts || w.Failed != 2*x.Failed || w.Latency.Total() != 2*x.Latency.Total()) {
						t.Errorf("%s %s: %+v, once %+v", o.Destination, w.Way, w, x)
					}
				}
			}
		}
	}
	if twice.Over != 2*time.Second || twice.Plaintext[0].Count != 238 {
		t.Errorf("%+v", twice)
	}
	if once := (Report{}).Merge(r); !reflect.DeepEqual(once, r) {
		t.Errorf("got  %+v\nwant %+v", once, r)
	}
}

func outbound(n, failed uint64) []Outbound {
	return []Outbound{{Destination: "catalog", Ways: []shift.WayTelemetry{{Way: shift.MTLS, Telemetry: shift.Telemetry{Attempts: n, Failed: failed}}}}}
}

// Rates are the same, whether a sidecar tells of each second or of two minutes at once, and
// whatever others do meanwhile.
func TestRates(t *testing.T) {
	b := NewBook()
	pair := shift.Pair{Source: "web", Destination: "catalog"}
	seq := map[string]uint64{}
	put := func(sidecar string, over, n int, now time.Time) {
		seq[sidecar]++
		b.Put(Key{"n", sidecar, "web"}, Report{Session: 1, Seq: seq[sidecar], Over: time.Duration(over) * time.Second, Outbound: outbound(uint64(n), 0)}, now)
	}
	rate := func(now time.Time) float64 {
		list := b.Rates(now)
		if len(list) != 1 || list[0].Pair != pair {
			t.Fatalf("%+v", list)
		}
		return list[0].Ways[shift.MTLS]
	}
	now := noon
	for range 60 {
		now = now.Add(time.Second)
		put("a", 1, 100, now)
		put("b", 1, 20, now)
	}
	if got := rate(now); got < 115 || got > 125 {
		t.Errorf("second by second: %v, want 120", got)
	}
	now = now.Add(2 * time.Minute)
	if got := b.Rates(now); got != nil {
		t.Errorf("after two minutes of silence: %+v", got)
	}
	put("a", 120, 12_000, now)
	now = now.Add(time.Second)
	put("a", 1, 100, now)
	put("b", 121, 2_420, now)
	if got := rate(now); got < 115 || got > 125 {
		t.Errorf("after two minutes told at once: %v, want 120", got)
	}
}

// What is left of a report that was too large is of the same stretch of time.
func TestRestKeepsItsTime(t *testing.T) {
	all := Report{Over: time.Minute}
	for i := range maxOutbound + 1 {
		o := outbound(1, 0)
		o[0].Destination = fmt.Sprint(i)
		all.Outbound = append(all.Outbound, o...)
	}
	fits, rest := all.Bounded()
	if len(rest.Outbound) == 0 || fits.Over != time.Minute || rest.Over != time.Minute {
		t.Errorf("%v and %v with %d left", fits.Over, rest.Over, len(rest.Outbound))
	}
	if _, rest := rest.Bounded(); rest.Over != 0 {
		t.Errorf("nothing over %v", rest.Over)
	}
}

// A report that comes again counts once, a sidecar that started anew counts anew.
func TestBook(t *testing.T) {
	b := NewBook()
	key := Key{"n1", "web-1-sidecar-proxy", "web"}
	pair := shift.Pair{Source: "web", Destination: "catalog"}
	attempts := func(w Window) uint64 { return w.Ways[0].Attempts }
	b.Put(key, Report{Session: 1, Seq: 1, Outbound: outbound(10, 1)}, noon)
	b.Put(key, Report{Session: 1, Seq: 1, Outbound: outbound(10, 1)}, noon)
	b.Put(key, Report{Session: 1, Seq: 2, Outbound: outbound(5, 0)}, noon.Add(time.Second))
	b.Put(key, Report{Session: 2, Seq: 1, Outbound: outbound(1, 0)}, noon.Add(2*time.Second))
	if w := b.Drain(); len(w) != 1 || w[0].Pair != pair || attempts(w[0]) != 16 {
		t.Errorf("%+v", w)
	}
	if w := b.Drain(); w != nil {
		t.Errorf("drained twice: %+v", w)
	}
	if p := b.Pair(pair, noon.Add(30*time.Second)); len(p.Ways) != 1 || p.Ways[0].Attempts != 16 || !p.Seen.Equal(noon.Add(2*time.Second)) {
		t.Errorf("%+v", p)
	}
	if p := b.Pair(pair, noon.Add(2*time.Minute)); p.Ways != nil || p.Seen.IsZero() {
		t.Errorf("after two minutes: %+v", p)
	}
	if r := b.Reporting(key, noon.Add(time.Minute)); r.Fresh || r.At.IsZero() {
		t.Errorf("%+v", r)
	}
	b.Keep(noon, func(Key) bool { return false }, func(shift.Pair) bool { return false })
	if p := b.Pairs(noon); len(p) != 0 {
		t.Errorf("kept %+v", p)
	}
}

// Who sent plaintext is remembered, the newest of them.
func TestPlaintextIsBounded(t *testing.T) {
	b := NewBook()
	for i := range maxAddresses + 10 {
		b.Put(Key{"n", "c", "catalog"}, Report{Session: 1, Seq: uint64(i + 1), Plaintext: []Plaintext{{Address: time.Duration(i).String(), Count: 1, Last: noon.Add(time.Duration(i) * time.Second)}}}, noon.Add(time.Duration(i)*time.Second))
	}
	list := b.Plaintext("catalog")
	if len(list) != maxAddresses || list[0].Address != time.Duration(maxAddresses+9).String() {
		t.Errorf("%d, first %+v", len(list), list[0])
	}
}

// Nothing that decodes is beyond the bounds, and it encodes to the same again.
func FuzzDecode(f *testing.F) {
	for _, text := range []string{
		`{}`, `{"session":1,"seq":2,"over":5,"out":[{"dst":"a","ways":[{"way":"mtls","attempts":3,"latency":{"bins":[{"b":1,"n":2}]}}],"failing":[{"way":"mtls","what":"503","n":1}]}]}`,
		`{"plaintext":[{"from":"10.0.0.1","n":4}],"probes":[{"dst":"a","way":"legacy","works":true}],"app":{"port":80,"loopback":true}}`,
		`{"out":[{"dst":"","ways":[]}]}`, `{"out":[{"dst":"a","ways":[{"way":"x"}]}]}`, `{"over":-1}`, `[`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Decode(b)
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(again); err != nil && len(again) <= MaxReport {
			t.Fatalf("%s: %v", again, err)
		}
		NewBook().Put(Key{}, r, noon)
	})
}

// Times are of the server's clock, whatever the sidecar's says, and none is ahead.
func TestClocks(t *testing.T) {
	b := NewBook()
	skewed := noon.Add(-37 * time.Hour)
	b.Put(Key{"n", "c", "catalog"}, Report{
		Session: 1, Seq: 1, At: skewed, Watch: Watch{Since: skewed.Add(-time.Hour), For: time.Hour, Quiet: time.Minute},
		Plaintext: []Plaintext{{Address: "10.0.0.7", Count: 1, Last: skewed.Add(-time.Minute)}, {Address: "10.0.0.8", Count: 1, Last: skewed.Add(time.Hour)}},
		Probes:    []Probe{{Destination: "a", Way: shift.Legacy, Since: skewed.Add(-time.Second)}},
	}, noon)
	list := b.Plaintext("catalog")
	if len(list) != 2 || !list[0].Last.Equal(noon) || !list[1].Last.Equal(noon.Add(-time.Minute)) {
		t.Errorf("%+v", list)
	}
	if r := b.Reporting(Key{"n", "c", "catalog"}, noon); !r.Watch.Since.Equal(noon.Add(-time.Hour)) || !r.Watching {
		t.Errorf("%+v", r)
	}
	// It goes on reporting, and can't read its Envoy any more.
	b.Put(Key{"n", "c", "catalog"}, Report{Session: 1, Seq: 2, Watch: Watch{For: time.Hour}}, noon.Add(time.Minute))
	if r := b.Reporting(Key{"n", "c", "catalog"}, noon.Add(time.Minute)); !r.Fresh || r.Watching {
		t.Errorf("%+v", r)
	}
}

// A sidecar that connects again tells of its plaintext once more. However long that report is
// under way, it ends no silence.
func TestPlaintextToldOnceMore(t *testing.T) {
	first, again := NewBook(), NewBook() // the other is of a server that has restarted
	key, sent := Key{"n", "c", "catalog"}, noon.Add(-time.Second)
	m := Memory{}
	m.Add(sent, time.Second, []Plaintext{{Address: "10.0.0.7", Count: 3, Last: sent}})
	first.Put(key, Report{Session: 1, Seq: 1, At: noon, Plaintext: m.Senders}, noon.Add(time.Millisecond))
	last := func(b *Book) time.Time { return b.Plaintext("catalog")[0].Last }
	silence := shift.Watch{}.Step(noon, true, last(first), "10.0.0.7").Step(noon.Add(3*time.Second), true, last(first), "10.0.0.7")
	for seq, b := range []*Book{first, again} {
		now := noon.Add(3 * time.Second)
		b.Put(key, Report{Session: 1, Seq: uint64(seq + 2), At: now, Plaintext: m.Told()}, now.Add(2*time.Second))
		if w := silence.Step(now.Add(2*time.Second), true, last(b), "10.0.0.7"); w.Quiet != 5*time.Second {
			t.Errorf("silence of %v, want 5s; last %v", w.Quiet, last(b))
		}
	}
	// What is new does.
	now := noon.Add(10 * time.Second)
	again.Put(key, Report{Session: 1, Seq: 9, At: now, Plaintext: []Plaintext{{Address: "10.0.0.7", Count: 1, Last: now}}}, now)
	if w := silence.Step(now, true, last(again), "10.0.0.7"); w.Quiet != 0 {
		t.Errorf("silence of %v in spite of plaintext", w.Quiet)
	}
}

// What is open is the latest of each sidecar, and ends with it.
func TestOpen(t *testing.T) {
	b, pair := NewBook(), shift.Pair{Source: "web", Destination: "catalog"}
	one, two := Key{"n", "web-1", "web"}, Key{"n", "web-2", "web"}
	put := func(k Key, session, seq, n uint64) {
		b.Put(k, Report{Session: session, Seq: seq, Open: []Open{{"catalog", shift.MTLS, n}}}, noon)
	}
	want := func(n uint64) {
		t.Helper()
		if got := b.Pair(pair, noon).Open[shift.MTLS]; got != n {
			t.Errorf("%d are open, want %d", got, n)
		}
	}
	put(one, 1, 1, 5)
	put(two, 1, 1, 7)
	want(12)
	put(one, 1, 2, 2)
	want(9)
	put(two, 1, 2, 0)
	want(2)
	b.Put(one, Report{Session: 9, Seq: 1}, noon) // it has started again
	want(0)
	put(two, 1, 3, 4)
	if got := b.Pairs(noon); len(got) != 1 || got[0].Open[shift.MTLS] != 4 {
		t.Errorf("%+v", got)
	}
	b.Keep(noon, func(k Key) bool { return k != two }, func(shift.Pair) bool { return true })
	want(0)
	put(two, 1, 4, 4)
	if got := b.Pair(pair, noon.Add(time.Minute)).Open; len(got) != 0 {
		t.Errorf("a sidecar that is silent has %v open", got)
	}
}
