package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
)

func settingsOf(t *testing.T, env map[string]string) settings {
	t.Helper()
	s, err := settingsFrom(func(name string) string { return env[name] })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// One short round through real Envoys.
func TestSmoke(t *testing.T) {
	for _, protocol := range []string{protoHTTP, protoGRPC, protoTCP} {
		t.Run(protocol, func(t *testing.T) {
			_, base := pathsOf(protocol)
			s := settingsOf(t, map[string]string{
				"PROTOCOLS": protocol, "PATHS": pathDirect + "," + base, "SECONDS_PER_RUN": "0.5", "ROUNDS": "1", "CONNECTIONS": "8",
			})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var out, log bytes.Buffer
			if err := run(ctx, s, &out, &log); err != nil {
				t.Fatalf("%v\n%s", err, log.String())
			}
			byPath := map[string]line{}
			for dec := json.NewDecoder(&out); dec.More(); {
				var l line
				if err := dec.Decode(&l); err != nil {
					t.Fatal(err)
				}
				byPath[l.Path] = l
			}
			direct, pair := byPath[pathDirect], byPath[base]
			for what, ok := range map[string]bool{
				"both paths":           len(byPath) == 2,
				"requests":             direct.Requests > 0 && pair.Requests > 0 && direct.Failed+pair.Failed == 0,
				"direct has no Envoy":  direct.CPU == 0 && direct.RSS == 0 && direct.Ratio == 0,
				"pair costs CPU":       pair.CPUCaller > 0 && pair.CPUCallee > 0 && pair.RSS > 1,
				"pair is its own base": pair.Ratio == 1,
				"latencies":            pair.P50 > 0 && pair.P99 >= pair.P50,
			} {
				if !ok {
					t.Errorf("%s does not hold: %+v", what, byPath)
				}
			}
		})
	}
}

// When the app goes away each connection counts a failure, and a turn without a success is an error.
func TestFailuresCount(t *testing.T) {
	a, err := startApp(protoHTTP)
	if err != nil {
		t.Fatal(err)
	}
	c := newCrew(protoHTTP, fmt.Sprintf("127.0.0.1:%d", a.port), 4, 0)
	defer c.close()
	lane := &lane{path: pathDirect, running: &running{}, crew: c, samples: make([]sample, 1)}
	var log bytes.Buffer
	if err := lane.play(t.Context(), time.Millisecond, 50*time.Millisecond, &log); err != nil || lane.failed != 0 {
		t.Fatalf("healthy: %v, %d failed", err, lane.failed)
	}
	a.stop()
	if err := lane.play(t.Context(), time.Millisecond, 50*time.Millisecond, &log); err == nil || lane.failed != 4 {
		t.Errorf("app gone: error %v, %d failed, want 4", err, lane.failed)
	}
}

// pipe is two ends of a loopback connection, closed with the test.
func pipe(t *testing.T) (near, far net.Conn) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	if near, err = net.Dial("tcp", lis.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = lis.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

func TestExchangeChecksAnswers(t *testing.T) {
	body := string(payload())
	for name, tc := range map[string]struct{ answer, want string }{
		"good":       {"HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n\r\n" + body, ""},
		"status":     {"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", "503"},
		"length":     {"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", "content-length 3"},
		"no length":  {"HTTP/1.1 200 OK\r\nx: y\r\n\r\n" + body, "no such header"},
		"wrong body": {"HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n\r\n" + strings.ToUpper(body), "wrong body"},
		"too long":   {"HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n\r\n" + body + "x", "too long"},
	} {
		t.Run(name, func(t *testing.T) {
			near, far := pipe(t)
			go func() {
				buf := make([]byte, 4096)
				far.Read(buf)
				far.Write([]byte(tc.answer))
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			h := &httpConn{deadlined: deadlined{Conn: near}, request: []byte("GET / HTTP/1.1\r\n\r\n"), want: payload(), buf: make([]byte, 16<<10)}
			err := h.Exchange(ctx)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q in it", err, tc.want)
			}
		})
	}
}

func TestSummarize(t *testing.T) {
	at := func(us int, n uint64) sample {
		return sample{requests: n, elapsed: time.Second, rss: 1 << 20,
			latencies: []time.Duration{2 * time.Millisecond, time.Millisecond},
			cpu:       []time.Duration{time.Duration(us) * time.Microsecond * time.Duration(n), 0}}
	}
	plain := []sample{at(10, 100), at(20, 100), at(40, 100)}
	own := []sample{at(11, 90), at(24, 100), at(36, 110)}
	l := summarize(own, bases{plain: plain})
	if l.CPU != 24 || l.RPS != 100 || l.P99 != 2 || l.RSS != 1 || l.Requests != 300 {
		t.Errorf("medians: %+v", l)
	}
	if l.AddedP50 != 0 {
		t.Errorf("added to nothing: %+v", l)
	}
	direct := []sample{{latencies: []time.Duration{500 * time.Microsecond}}}
	if l := summarize(own, bases{direct: direct, crossfade: plain}); l.AddedP50 != 0.5 || l.AddedP99 != 1.5 || l.RatioCrossfade != 1.1 {
		t.Errorf("against direct and crossfade: %+v", l)
	}
	// By round: 1.1, 1.2, 0.9; the ratio of the medians would be 1.2.
	if l.Ratio != 1.1 || l.RatioSpread != [2]float64{0.9, 1.2} || l.RatioLean != 0 {
		t.Errorf("ratios: %+v", l)
	}
}

// A request's latency begins when it was due, however late a worker was free for it.
func TestFixedRate(t *testing.T) {
	schedule := make(chan due, 10)
	var recording, stop atomic.Bool
	recording.Store(true)
	pace(1000, schedule, &recording, &stop) // until it is full
	var at []time.Time
	for d := range schedule {
		if at = append(at, d.at); !d.record || d.at.After(time.Now()) {
			t.Errorf("request %d: %+v, want it recorded and not early", len(at), d)
		}
	}
	if len(at) != 10 || at[9].Sub(at[0]) != 9*time.Millisecond {
		t.Errorf("due at %v, want 10 a millisecond apart", at)
	}

	a, err := startApp(protoHTTP)
	if err != nil {
		t.Fatal(err)
	}
	defer a.stop()
	conn, err := dial(protoHTTP, fmt.Sprintf("127.0.0.1:%d", a.port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	late := make(chan due, 2)
	late <- due{at: time.Now().Add(-time.Minute), record: true}
	late <- due{at: time.Now()}
	close(late)
	w := &worker{conn: conn}
	w.follow(t.Context(), late)
	if w.err != nil || w.done.Load() != 2 || len(w.latencies) != 1 || w.latencies[0] < time.Minute {
		t.Errorf("%d done, latencies %v, %v; want 2, one of a minute", w.done.Load(), w.latencies, w.err)
	}
}

func TestChosenPaths(t *testing.T) {
	for name, tc := range map[string]struct {
		protocol, consul string
		asked            []string
		want             string
	}{
		"all":             {protoHTTP, "c", nil, "direct tcp plain lean crossfade consul"},
		"no Consul":       {protoTCP, "", nil, "direct tcp crossfade"},
		"asked for":       {protoHTTP, "c", []string{"intentions", "crossfade"}, "crossfade intentions"},
		"nothing is left": {protoTCP, "", []string{"consul", "lean"}, ""},
	} {
		tr := &trial{protocol: tc.protocol, settings: settings{Paths: tc.asked, Binaries: lab.Binaries{Consul: tc.consul}}}
		got, err := tr.chosen(io.Discard)
		if strings.Join(got, " ") != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%s: %v, %v; want %q", name, got, err, tc.want)
		}
	}
}

func TestQuantile(t *testing.T) {
	v := []int{5, 1, 4, 2, 3}
	for q, want := range map[float64]int{0: 1, 0.5: 3, 0.99: 5, 1: 5} {
		if got := quantile(v, q); got != want {
			t.Errorf("quantile %v = %d, want %d", q, got, want)
		}
	}
	if got := quantile([]int(nil), 0.5); got != 0 {
		t.Errorf("quantile of nothing = %d", got)
	}
}

func TestSettings(t *testing.T) {
	s := settingsOf(t, nil)
	if s.SecondsPerRun != 4*time.Second || s.Rounds != 5 || s.Connections != 32 || len(s.Protocols) != 1 || filepath.Base(s.Binaries.Crossfade) != "crossfade" {
		t.Errorf("defaults: %+v", s)
	}
	for name, value := range map[string]string{"PROTOCOLS": "http,ftp", "ROUNDS": "0", "SECONDS_PER_RUN": "x", "RATE": "0", "CONNECTIONS": "-1"} {
		if _, err := settingsFrom(func(n string) string {
			if n == name {
				return value
			}
			return ""
		}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s=%s: %v, want an error that names it", name, value, err)
		}
	}
}
