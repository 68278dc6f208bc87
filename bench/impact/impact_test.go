package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
	"github.com/crossfade-mesh/crossfade/internal/shift"
)

// 5,000 requests there and back, and none fails. They come slowly, so that a machine that is busy
// with other tests keeps up: one that does not lets requests run into their time limits.
func TestSmoke(t *testing.T) {
	env := map[string]string{"REQUESTS": "5000", "RATE": "250", "CROSSFADE": os.Getenv("CROSSFADE")}
	s, err := lab.Settings(func(name string) string { return env[name] }, settingsFrom)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var out, log bytes.Buffer
	if err := run(ctx, s, &out, &log); err != nil {
		t.Fatalf("%v\n%s\n%s", err, log.String(), out.String())
	}
	var l line
	if err := json.Unmarshal(out.Bytes(), &l); err != nil {
		t.Fatal(err)
	}
	if l.Requests < s.Requests || l.Failed != 0 || len(l.Kinds) != len(pairs) || len(l.Steps) != len(plan()) {
		t.Errorf("%s", out.String())
	}
	for _, k := range l.Kinds {
		if k.Requests < s.Requests/8 || k.NewConnections == 0 || k.P50 <= 0 || k.P99 < k.P50 || k.Max < k.P99 {
			t.Errorf("%+v", k)
		}
	}
}

func TestVerdict(t *testing.T) {
	all := map[string]map[shift.Way]uint64{}
	for _, p := range pairs {
		all[p.service] = map[shift.Way]uint64{}
		for _, way := range ways {
			all[p.service][shift.Way(way)] = 1
		}
	}
	if err := (line{Ways: all}).verdict(); err != nil {
		t.Error(err)
	}
	if err := (line{Requests: 9, Failed: 1, Ways: all}).verdict(); err == nil || !strings.Contains(err.Error(), "1 of 9 requests failed") {
		t.Error(err)
	}
	delete(all["chat"], "plain")
	if err := (line{Ways: all}).verdict(); err == nil || !strings.Contains(err.Error(), "nothing went to chat by way plain") {
		t.Error(err)
	}
}
