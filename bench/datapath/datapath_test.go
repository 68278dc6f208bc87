package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
	"github.com/crossfade-mesh/crossfade/bench/lab/load"
)

func settingsOf(t *testing.T, env map[string]string) settings {
	t.Helper()
	s, err := lab.Settings(func(name string) string { return env[name] }, settingsFrom)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// One short round through real Envoys.
func TestSmoke(t *testing.T) {
	for _, protocol := range []string{load.HTTP, load.GRPC, load.TCP} {
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
	a, err := load.StartApp(load.HTTP, load.Small)
	if err != nil {
		t.Fatal(err)
	}
	c := load.NewCrew(load.HTTP, fmt.Sprintf("127.0.0.1:%d", a.Port), 4, load.Small)
	defer c.Close()
	lane := &lane{path: pathDirect, running: &running{}, crew: c, samples: make([]sample, 1)}
	var log bytes.Buffer
	if err := lane.play(t.Context(), time.Millisecond, 50*time.Millisecond, &log); err != nil || lane.failed != 0 {
		t.Fatalf("healthy: %v, %d failed", err, lane.failed)
	}
	a.Stop()
	if err := lane.play(t.Context(), time.Millisecond, 50*time.Millisecond, &log); err == nil || lane.failed != 4 {
		t.Errorf("app gone: error %v, %d failed, want 4", err, lane.failed)
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

func TestChosenPaths(t *testing.T) {
	for name, tc := range map[string]struct {
		protocol, consul string
		asked            []string
		want             string
	}{
		"all":             {load.HTTP, "c", nil, "direct tcp plain lean crossfade consul"},
		"no Consul":       {load.TCP, "", nil, "direct tcp crossfade"},
		"asked for":       {load.HTTP, "c", []string{"intentions", "crossfade"}, "crossfade intentions"},
		"nothing is left": {load.TCP, "", []string{"consul", "lean"}, ""},
	} {
		tr := &trial{protocol: tc.protocol, settings: settings{Paths: tc.asked, Binaries: lab.Binaries{Consul: tc.consul}}}
		got, err := tr.chosen(io.Discard)
		if strings.Join(got, " ") != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%s: %v, %v; want %q", name, got, err, tc.want)
		}
	}
}

func TestSettings(t *testing.T) {
	s := settingsOf(t, nil)
	if s.SecondsPerRun != 4*time.Second || s.Rounds != 5 || s.Connections != 32 || len(s.Protocols) != 1 || filepath.Base(s.Binaries.Crossfade) != "crossfade" {
		t.Errorf("defaults: %+v", s)
	}
	_, err := lab.Settings(func(name string) string { return map[string]string{"PROTOCOLS": "http,ftp"}[name] }, settingsFrom)
	if err == nil || !strings.Contains(err.Error(), `PROTOCOLS "http,ftp"`) {
		t.Errorf("a protocol that there is not: %v", err)
	}
}
