package main

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
)

// smoke is small enough for less than a minute.
var smoke = map[string]string{"STREAMS": "500", "INSTANCES": "8600", "SERVICES": "250", "DURATION": "1", "REAL": "2"}

// Every scenario runs to its end with few sidecars, and no request between real Envoys fails.
func TestSmoke(t *testing.T) {
	s, err := lab.Settings(func(name string) string {
		if name == "CROSSFADE" || name == "ENVOY" {
			return os.Getenv(name)
		}
		return smoke[name]
	}, settingsFrom)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	var out, log bytes.Buffer
	if err := run(ctx, s, &out, &log); err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	lines := map[string]line{}
	for dec := json.NewDecoder(&out); dec.More(); {
		var l line
		if err := dec.Decode(&l); err != nil {
			t.Fatal(err)
		}
		lines[l.Scenario] = l
	}
	for _, sc := range scenarios {
		l, ok := lines[sc.name]
		if !ok || l.Bench != "fleet" || l.Streams != 500 || l.RSS < 10 || l.Peak < l.RSS || l.Seconds <= 0 || l.Failed != 0 {
			t.Errorf("%s: %+v", sc.name, l)
		}
		if l.CDF != nil && (l.First <= 0 || l.P50 < l.First || l.P99 < l.P50 || l.Last < l.P99 || len(l.CDF) != 101) {
			t.Errorf("%s: times are out of order: %+v", sc.name, l)
		}
	}
	if l := lines["endpoint-all"]; l.Changes == 0 || l.Responses < int64(l.Changes)*500 || l.Bytes == 0 || l.CPU <= 0 {
		t.Errorf("endpoint-all: want a response for each change and sidecar: %+v", l)
	}
	if l := lines["endpoint-few"]; l.Responses < int64(l.Changes)*9 || l.Responses > int64(l.Changes)*11 {
		t.Errorf("endpoint-few: want responses to ten sidecars for each change: %+v", l)
	}
	if l := lines["start"]; l.Requests == 0 {
		t.Errorf("start: no requests between real Envoys: %+v", l)
	}
	if l := lines["restart"]; l.Broken < 500 {
		t.Errorf("restart: want every connection broken: %+v", l)
	}
	if l := lines["issue"]; l.PerSecond < 50 {
		t.Errorf("issue: %+v", l)
	}
}

// Sidecars that do not agree are an error.
func TestAgree(t *testing.T) {
	for name, tc := range map[string]struct {
		held    map[string]map[uint64]int
		refused int
		want    string
	}{
		"all alike":              {map[string]map[uint64]int{"a": {1: 10}, "b": {2: 3}}, 0, ""},
		"one is behind":          {map[string]map[uint64]int{"a": {1: 9, 2: 1}}, 0, `endpoints "a": 10 sidecars hold 2 versions`},
		"one has refused":        {map[string]map[uint64]int{"a": {1: 9, 2: 1}}, 1, ""},
		"more than have refused": {map[string]map[uint64]int{"a": {1: 8, 2: 1, 3: 1}}, 1, `endpoints "a"`},
	} {
		err := agreed(tc.held, tc.refused)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

func TestSettings(t *testing.T) {
	for name, tc := range map[string]struct {
		env  map[string]string
		want string
	}{
		"smoke":                     {smoke, ""},
		"too few services":          {map[string]string{"SERVICES": "10"}, `SERVICES "10"`},
		"fewer streams than that":   {map[string]string{"STREAMS": "100"}, `STREAMS "100"`},
		"fewer instances than that": {map[string]string{"INSTANCES": "20000"}, `INSTANCES "20000"`},
		"no number":                 {map[string]string{"DURATION": "long"}, `DURATION "long"`},
		"unknown":                   {map[string]string{"SCENARIOS": "idle,sleep"}, `idle,sleep`},
		"no engine":                 {map[string]string{"ENGINE": "etcd"}, `ENGINE "etcd": want embedded or consul`},
		"no such binary":            {map[string]string{"ENGINE": "consul", "CONSUL": "/nowhere/consul"}, `CONSUL "/nowhere/consul"`},
		"real":                      {map[string]string{"REAL": "-1"}, `REAL "-1"`},
	} {
		env := map[string]string{"REAL": "0"}
		maps.Copy(env, tc.env)
		if name == "smoke" {
			env["REAL"] = "0"
		}
		_, err := lab.Settings(func(name string) string { return env[name] }, settingsFrom)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

func TestLongestPause(t *testing.T) {
	file := t.TempDir() + "/log"
	text := "gc 1 @0.1s 1%: 9.5+1.3+0.07 ms clock, 0.03+0.2/1.3/0+0.1 ms cpu, 4->4->1 MB\nsomething else\n" +
		"gc 2 @0.2s 1%: 0.02+70+0.5 ms clock, 0.03+0.2/1.3/0+0.1 ms cpu\ngc 3 @0.3s 1%: 0.3+80+0.1 ms clock, 1 ms cpu\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for from, want := range map[int]float64{0: 9.5, strings.Index(text, "something"): 0.5, len(text): 0} {
		if got, err := longestPause(file, int64(from)); err != nil || got != want {
			t.Errorf("from %d: %v, %v, want %v", from, got, err, want)
		}
	}
}

func TestSpread(t *testing.T) {
	var l line
	var times []time.Duration
	for i := 100; i >= 0; i-- {
		times = append(times, time.Duration(i+1)*time.Millisecond)
	}
	l.spread(times)
	if l.First != 0.001 || l.P50 != 0.051 || l.P99 != 0.1 || l.Last != 0.101 || l.CDF[0] != 0.001 || l.CDF[100] != 0.101 {
		t.Errorf("%+v", l)
	}
}
