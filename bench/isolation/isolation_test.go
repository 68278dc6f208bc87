package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
)

// The sides are this program, so the tests' one is able to be one.
func TestMain(m *testing.M) {
	if services := os.Getenv(sideEnv); services != "" {
		if err := serveSide(os.Stdin, os.Stdout, services); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// One short round of both kinds, through real sidecars and real Envoys.
func TestSmoke(t *testing.T) {
	env := map[string]string{"SECONDS_PER_RUN": "0.3", "ROUNDS": "1", "CONNECTIONS": "8", "CROSSFADE": os.Getenv("CROSSFADE")}
	s, err := lab.Settings(func(name string) string { return env[name] }, settingsFrom)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out, log bytes.Buffer
	if err := run(ctx, s, &out, &log); err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	byKind := map[string]line{}
	for dec := json.NewDecoder(&out); dec.More(); {
		var l line
		if err := dec.Decode(&l); err != nil {
			t.Fatal(err)
		}
		byKind[l.Kind] = l
		for what, ok := range map[string]bool{
			"requests":    l.Requests > 0 && l.Failed == 0 && l.BurstFailed == 0 && l.Answered > 0,
			"a burst":     l.Base > 0 && l.Burst == burstFactor*l.Base,
			"latencies":   l.QuietP50 > 0 && l.QuietP99 >= l.QuietP50 && l.BurstP50 > 0 && l.BurstP99 >= l.BurstP50,
			"their ratio": l.RatioP99 > 0 && l.RatioSpread[0] == l.RatioP99 && l.RatioSpread[1] == l.RatioP99,
		} {
			if !ok {
				t.Errorf("%s does not hold: %+v", what, l)
			}
		}
	}
	if len(byKind) != 2 || byKind[kindCrossfade].Kind == "" || byKind[kindShared].Kind == "" {
		t.Errorf("kinds: %+v, want both", byKind)
	}
}

// A round's ratio is its own; the line's is the median of them.
func TestSummarize(t *testing.T) {
	at := func(quiet, burst time.Duration) round {
		return round{
			quiet: phase{latencies: []time.Duration{quiet}},
			burst: phase{latencies: []time.Duration{burst}, answered: []float64{7}, failed: 1, burstFailed: 2},
		}
	}
	const ms = time.Millisecond
	l := lane{rounds: []round{at(1*ms, 3*ms), at(10*ms, 10*ms), at(4*ms, 8*ms)}}.summarize()
	if l.QuietP99 != 4 || l.BurstP99 != 8 || l.RatioP99 != 2 || l.RatioSpread != [2]float64{1, 3} {
		t.Errorf("figures: %+v", l)
	}
	if l.Requests != 6 || l.Failed != 3 || l.BurstFailed != 6 || l.Answered != 7 || l.Rounds != 3 {
		t.Errorf("counts: %+v", l)
	}
}

func TestSettings(t *testing.T) {
	of := func(realTime string) (settings, error) {
		return lab.Settings(func(name string) string { return map[string]string{"REALTIME": realTime, "RATE": "50"}[name] }, settingsFrom)
	}
	s, err := of("0")
	if err != nil || s.RealTime || s.Rate != 50 || s.Rounds != 11 || s.Connections != 64 || s.SecondsPerRun != 2*time.Second {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := of(""); err != nil || !s.RealTime {
		t.Errorf("REALTIME is not set: %+v, %v", s, err)
	}
	if _, err := of("yes"); err == nil || !strings.Contains(err.Error(), `REALTIME "yes"`) {
		t.Errorf("REALTIME=yes: %v", err)
	}
}
