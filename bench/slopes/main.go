// Command slopes measures what upstreams cost one sidecar's Envoy: memory, time until
// it is ready, and the size of a Prometheus scrape, at several numbers of upstreams,
// for a hand-written bootstrap, for crossfade and for a real Consul where there is one.
//
// In: environment variables (see [settings]), an Envoy, and bin/crossfade. Out: one
// JSON line per kind and number of upstreams on stdout, progress on stderr.
// bench/README.md has the method.
//
// The upstreams are registered and nobody is behind them: no request is sent.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
)

// endpointsEach is how many instances an upstream has.
const endpointsEach = 3

// settings say what to measure.
type settings struct {
	Upstreams []int         // UPSTREAMS (1 50 200 1000)
	Settle    time.Duration // SETTLE (3), seconds between ready and measured
	Binaries  lab.Binaries  // ENVOY, CROSSFADE, CONSUL
}

func main() { os.Exit(lab.Main("slopes", settingsFrom, run)) }

func settingsFrom(env *lab.Env) settings {
	s := settings{Binaries: env.Binaries()}
	for word := range strings.FieldsSeq(cmp.Or(env.Get("UPSTREAMS"), "1 50 200 1000")) {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 || n > 5000 {
			env.Wrong("UPSTREAMS", "numbers from 1 to 5000")
		}
		s.Upstreams = append(s.Upstreams, n)
	}
	seconds, err := strconv.ParseFloat(cmp.Or(env.Get("SETTLE"), "3"), 64)
	if err != nil || !(seconds >= 0 && seconds < 3600) {
		env.Wrong("SETTLE", "seconds")
	}
	s.Settle = time.Duration(seconds * float64(time.Second))
	return s
}

// line is what is printed for a kind and a number of upstreams.
type line struct {
	Bench     string `json:"bench"`
	Kind      string `json:"kind"`
	Upstreams int    `json:"upstreams"`
	// Ready is how long it took from the start of the process, in seconds, until Envoy had all listeners and a warm cluster for each.
	Ready     float64 `json:"ready_s"`
	RSS       float64 `json:"rss_mib"`       // of Envoy
	Allocated float64 `json:"allocated_mib"` // by Envoy's own account
	Scrape    int     `json:"scrape_bytes"`  // of /stats/prometheus
	Series    int     `json:"scrape_series"` // lines in it that are no comment
	// ScrapeUsed is of /stats/prometheus?usedonly: without what never counted anything. No request was sent.
	ScrapeUsed int     `json:"scrape_used_bytes"`
	Sidecar    float64 `json:"sidecar_rss_mib,omitzero"` // of the process beside Envoy
	Load       float64 `json:"load"`
}

// kind starts the same sidecar in one way.
type kind interface {
	// start runs a sidecar with n upstreams until it is ready. stop ends it.
	start(ctx context.Context, n int) (started, error)
	stop()
	close()
}

// started is a running sidecar.
type started struct {
	envoy   int    // process id
	admin   string // of Envoy
	process int    // beside Envoy; 0: none
	began   time.Time
}

func run(ctx context.Context, s settings, stdout, stderr io.Writer) error {
	if err := s.Binaries.SayEnvoy(ctx, stderr); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "cfs")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{"pair", "crossfade", "consul"} {
		if name == "consul" && s.Binaries.Consul == "" {
			fmt.Fprintln(stderr, "consul is left out: no bin/consul: make bin/consul builds it")
			continue
		}
		k, err := open(ctx, s, name, filepath.Join(dir, name))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		defer k.close()
		for _, n := range s.Upstreams {
			l, err := measure(ctx, s, k, n)
			if err != nil {
				return fmt.Errorf("%s with %d upstreams: %w", name, n, err)
			}
			l.Bench, l.Kind = "slopes", name
			if err := json.NewEncoder(stdout).Encode(l); err != nil {
				return err
			}
		}
	}
	return nil
}

func open(ctx context.Context, s settings, name, dir string) (kind, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	switch name {
	case "pair":
		return openPair(s, dir)
	case "crossfade":
		return openMesh(ctx, s, dir)
	}
	return openConsul(ctx, s, dir)
}

func measure(ctx context.Context, s settings, k kind, n int) (line, error) {
	defer k.stop()
	r, err := k.start(ctx, n)
	if err != nil {
		return line{}, err
	}
	if err := complete(ctx, r.admin, n); err != nil {
		return line{}, err
	}
	out := line{Upstreams: n, Ready: thousandths(time.Since(r.began).Seconds())}
	select {
	case <-time.After(s.Settle):
	case <-ctx.Done():
		return line{}, ctx.Err()
	}
	rss, err := lab.ResidentSize(r.envoy)
	if err != nil {
		return line{}, err
	}
	out.RSS = mib(rss)
	if r.process != 0 {
		if rss, err = lab.ResidentSize(r.process); err != nil {
			return line{}, err
		}
		out.Sidecar = mib(rss)
	}
	var memory struct {
		Allocated int64 `json:",string"`
	}
	text, err := lab.AdminGet(ctx, r.admin, "/memory")
	if err != nil {
		return line{}, err
	}
	if err := json.Unmarshal([]byte(text), &memory); err != nil {
		return line{}, fmt.Errorf("/memory: %w", err)
	}
	out.Allocated = mib(memory.Allocated)
	// Last, since making it takes memory.
	if text, err = lab.AdminGet(ctx, r.admin, "/stats/prometheus"); err != nil {
		return line{}, err
	}
	out.Scrape, out.Series, out.Load = len(text), series(text), lab.Load()
	if text, err = lab.AdminGet(ctx, r.admin, "/stats/prometheus?usedonly"); err != nil {
		return line{}, err
	}
	out.ScrapeUsed = len(text)
	return out, nil
}

// complete waits for n clusters with all their endpoints and a listener for each.
func complete(ctx context.Context, admin string, n int) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		have, err := present(ctx, admin)
		if err == nil && have.listeners >= n && have.full >= n {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it never had all listeners and endpoints: %+v, %v", have, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// census is what an Envoy has of the upstreams.
type census struct{ listeners, full int }

func present(ctx context.Context, admin string) (census, error) {
	var c census
	text, err := lab.AdminGet(ctx, admin, "/listeners")
	if err != nil {
		return c, err
	}
	c.listeners = strings.Count(text, "\n")
	if text, err = lab.AdminGet(ctx, admin, "/clusters"); err != nil {
		return c, err
	}
	hosts := map[string]int{}
	for l := range strings.Lines(text) {
		// <cluster>::<address>::cx_active::0
		if part := strings.Split(l, "::"); len(part) == 4 && part[2] == "cx_active" {
			hosts[part[0]]++
		}
	}
	for _, count := range hosts {
		if count == endpointsEach {
			c.full++
		}
	}
	return c, nil
}

func series(text string) (n int) {
	for l := range strings.Lines(text) {
		if !strings.HasPrefix(l, "#") && strings.TrimSpace(l) != "" {
			n++
		}
	}
	return n
}

func mib(bytes int64) float64 { return thousandths(float64(bytes) / (1 << 20)) }

func thousandths(v float64) float64 { return float64(int64(v*1000+0.5)) / 1000 }
