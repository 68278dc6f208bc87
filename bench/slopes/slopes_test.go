package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// A real Envoy with the hand-written bootstrap has what is counted before it is measured.
func TestPair(t *testing.T) {
	s, err := lab.Settings(func(name string) string { return map[string]string{"SETTLE": "0"}[name] }, settingsFrom)
	if err != nil {
		t.Fatal(err)
	}
	p, err := openPair(s, meshtest.RunDir(t))
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := measure(ctx, s, p, 3)
	if err != nil {
		t.Fatal(err)
	}
	if l.Upstreams != 3 || l.Ready <= 0 || l.RSS < 10 || l.Allocated < 1 || l.Allocated > l.RSS || l.Scrape < l.ScrapeUsed || l.ScrapeUsed < 1000 || l.Series < 100 || l.Sidecar != 0 {
		t.Errorf("%+v", l)
	}
}

func TestSettings(t *testing.T) {
	for name, tc := range map[string]struct{ upstreams, settle, want string }{
		"defaults":    {"", "", ""},
		"one":         {"7", "0.5", ""},
		"no number":   {"1 many", "", `UPSTREAMS "1 many"`},
		"none":        {"0", "", `UPSTREAMS "0"`},
		"no duration": {"", "soon", `SETTLE "soon"`},
	} {
		_, err := lab.Settings(func(name string) string {
			return map[string]string{"UPSTREAMS": tc.upstreams, "SETTLE": tc.settle}[name]
		}, settingsFrom)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want %q in it", name, err, tc.want)
		}
	}
}

func TestSeries(t *testing.T) {
	if n := series("# TYPE a counter\na{} 1\n\na{b=\"c\"} 2\n"); n != 2 {
		t.Errorf("%d series, want 2", n)
	}
}
