//go:build peers

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
)

// With a real Consul as the engine scenarios run to their end, and its part is told.
func TestPeersConsulEngine(t *testing.T) {
	small := map[string]string{
		"ENGINE": engineConsul, "STREAMS": "100", "INSTANCES": "1000", "SERVICES": "50", "DURATION": "1", "REAL": "2", "SCENARIOS": "endpoint-all,endpoint-few,rate-10,config-all,restart",
	}
	s, err := lab.Settings(func(name string) string {
		if text, ok := small[name]; ok {
			return text
		}
		return os.Getenv(name)
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
	lines := 0
	for dec := json.NewDecoder(&out); dec.More(); lines++ {
		var l line
		if err := dec.Decode(&l); err != nil {
			t.Fatal(err)
		}
		if l.Consul == nil || l.Consul.RSS < 10 || l.Failed != 0 {
			t.Errorf("%s: %+v, Consul %+v", l.Scenario, l, l.Consul)
		}
		if alone := l.Scenario == "endpoint-all" || l.Scenario == "endpoint-few"; alone && (l.Consul.P50 <= 0 || l.Consul.P99 < l.Consul.P50) {
			t.Errorf("%s: Consul answers after %+v", l.Scenario, l.Consul)
		}
	}
	if lines != len(s.Scenarios)+1 {
		t.Errorf("%d scenarios, want start and %v", lines, s.Scenarios)
	}
}
