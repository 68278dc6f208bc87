package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// scenario is one of them. It runs after the sidecars have all they ask for; times go
// into the line, which has been measured when it is printed.
type scenario struct {
	name     string
	run      func(ctx context.Context, w *world, m *meter, l *line) error
	embedded bool // it is one of the embedded store alone: it asks the server to deregister
}

func run(ctx context.Context, s settings, out, log io.Writer) error {
	dir, err := os.MkdirTemp("", "fleet")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	w, err := start(ctx, s, dir, log)
	if err != nil {
		return err
	}
	defer w.stop()
	enc := json.NewEncoder(out)
	var failed uint64
	for _, sc := range scenarios {
		// Whoever measures something else needs the fleet to be there, too.
		if sc.name != startScenario && !slices.Contains(s.Scenarios, sc.name) {
			continue
		}
		l := line{Scenario: sc.name}
		if err := w.measured(ctx, sc, &l); err != nil {
			return fmt.Errorf("%s: %w", sc.name, err)
		}
		if l.Failed > 0 {
			failures := w.real.record.Failures()
			f := failures[len(failures)-1]
			w.say("%s: %d requests failed, the last: sent at %s, ended at %s: %s", sc.name, l.Failed, f.Sent.Format(time.TimeOnly), f.Ended.Format(time.TimeOnly), f.Reason)
		}
		failed += l.Failed
		if err := enc.Encode(l); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d requests between real Envoys failed", failed)
	}
	return nil
}

// measured runs a scenario, and then wants that sidecars agree with each other.
func (w *world) measured(ctx context.Context, sc scenario, l *line) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit+3*w.Duration)
	defer cancel()
	if err := w.quiet(ctx); err != nil {
		return err
	}
	if err := w.profile(ctx, "/cpu/start", sc.name+".cpu"); err != nil {
		return err
	}
	m, err := w.meter()
	if err != nil {
		return err
	}
	if err := sc.run(ctx, w, m, l); err != nil {
		return err
	}
	if err := m.end(l); err != nil {
		return err
	}
	err = errors.Join(w.profile(ctx, "/cpu/stop", ""), w.profile(ctx, "/heap", sc.name+".heap"))
	if err != nil {
		return err
	}
	broke := w.fleet.Why()
	for _, reason := range slices.Sorted(maps.Keys(broke)) {
		w.say("%s: %d connections broke: %s", l.Scenario, broke[reason], reason)
	}
	w.say("%s: first %.3f s, p50 %.3f s, p99 %.3f s, last %.3f s; server %.2f CPU-s in %.1f s, %.0f MiB (load %.1f)",
		l.Scenario, l.First, l.P50, l.P99, l.Last, l.CPU, l.Seconds, l.RSS, l.Load)
	return w.agree(ctx)
}

// quiet waits until nothing has come to sidecars for a while.
func (w *world) quiet(ctx context.Context) error {
	const still = 500 * time.Millisecond
	for time.Since(w.fleet.Latest()) < still {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(still / 5):
		}
	}
	return nil
}

// agree wants that all sidecars that hold endpoints come to hold the same version of them, but for those
// that have refused one. What was written last may still be on its way.
func (w *world) agree(ctx context.Context) error {
	const within = 10 * time.Second
	for end := time.Now().Add(within); ; {
		if err := w.quiet(ctx); err != nil {
			return err
		}
		err := agreed(w.fleet.Endpoints(), int(w.fleet.Totals().Nacks))
		if err == nil || time.Now().After(end) {
			return err
		}
		if err := pause(ctx, within/100); err != nil {
			return err
		}
	}
}

func agreed(held map[string]map[uint64]int, refused int) error {
	for _, name := range slices.Sorted(maps.Keys(held)) {
		total, most := 0, 0
		for _, n := range held[name] {
			total, most = total+n, max(most, n)
		}
		if total-most > refused {
			return fmt.Errorf("endpoints %q: %d sidecars hold %d versions, and only %d hold the commonest", name, total, len(held[name]), most)
		}
	}
	return nil
}

func (w *world) profileSocket() string { return filepath.Join(w.dir, "profile.sock") }

// profile asks the server's binary, which has to be bench/fleet/profiled, for a profile.
func (w *world) profile(ctx context.Context, path, file string) error {
	if w.Profile == "" {
		return nil
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", w.profileSocket())
	}, DisableKeepAlives: true}}
	abs, err := filepath.Abs(filepath.Join(w.Profile, file))
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://profile"+path+"?file="+url.QueryEscape(abs), nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("profile: %w: set CROSSFADE to a binary of ./bench/fleet/profiled", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(res.Body)
		return fmt.Errorf("profile: %s", text)
	}
	return nil
}

// await polls until ready.
func await(ctx context.Context, what string, ready func() bool) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("not %s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}
