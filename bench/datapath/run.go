package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
	"github.com/crossfade-mesh/crossfade/bench/lab/load"
	"github.com/crossfade-mesh/crossfade/internal/ca"
)

// The paths, in the order they are printed in.
const (
	pathDirect    = "direct"
	pathTCP       = "tcp"
	pathPlain     = "plain"
	pathLean      = "lean"
	pathCrossfade = "crossfade"
	pathConsul    = "consul"
	// pathIntentions is crossfade with manySources more callers allowed; only when asked for.
	pathIntentions = "intentions"
)

// pathsOf lists the paths of a protocol and the one that ratios are against. For tcp
// the hand-written pair is the TCP-proxy pair; there is nothing to make lean in it.
func pathsOf(protocol string) (paths []string, plain string) {
	paths, plain = []string{pathDirect, pathTCP}, pathTCP
	if protocol != load.TCP {
		paths, plain = append(paths, pathPlain, pathLean), pathPlain
	}
	return append(paths, pathCrossfade, pathConsul, pathIntentions), plain
}

// chosen are the paths to measure: those asked for, else all but the one that has to be asked for.
func (t *trial) chosen(stderr io.Writer) ([]string, error) {
	paths, _ := pathsOf(t.protocol)
	asked := t.settings.Paths
	paths = slices.DeleteFunc(paths, func(p string) bool {
		switch {
		case len(asked) > 0 && !slices.Contains(asked, p), len(asked) == 0 && p == pathIntentions:
			return true
		case p == pathConsul && t.settings.Binaries.Consul == "":
			fmt.Fprintln(stderr, "path consul is left out: no bin/consul: make bin/consul builds it")
			return true
		}
		return false
	})
	if len(paths) == 0 {
		return nil, fmt.Errorf("PATHS %q: none of them can be run for this protocol", asked)
	}
	return paths, nil
}

// trial is what the paths of one protocol share.
type trial struct {
	settings  settings
	protocol  string
	appPort   int
	dir       string // short, since Unix sockets are in it
	authority *ca.CA
}

func (t *trial) subdir(name string) (string, error) {
	dir := filepath.Join(t.dir, name)
	return dir, os.Mkdir(dir, 0o700)
}

// running is a path with all its processes up.
type running struct {
	addr   string // where the caller sends to
	envoys []int  // process ids, the caller's first
	stop   func()
	// witness reports, after load, that requests went the way the path claims. May be nit.
	witness func(context.Context) error
}

func (t *trial) start(ctx context.Context, path string) (*running, error) {
	switch path {
	case pathDirect:
		return &running{addr: fmt.Sprintf("127.0.0.1:%d", t.appPort), stop: func() {}}, nil
	case pathCrossfade, pathIntentions:
		return startMesh(ctx, t, path)
	case pathConsul:
		return startConsul(ctx, t)
	default:
		return startPair(ctx, t, path)
	}
}

// run measures each protocol in turn and prints its lines. It fails when a request did.
func run(ctx context.Context, s settings, stdout, stderr io.Writer) error {
	if err := s.Binaries.SayEnvoy(ctx, stderr); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "cfb")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	authority, err := ca.Open(ca.Options{Datacenter: "dc1"})
	if err != nil {
		return err
	}
	failed := 0
	for _, protocol := range s.Protocols {
		t := &trial{settings: s, protocol: protocol, dir: filepath.Join(dir, protocol), authority: authority.CA}
		if err := os.Mkdir(t.dir, 0o700); err != nil {
			return err
		}
		lines, err := t.measure(ctx, stderr)
		if err != nil {
			return fmt.Errorf("%s: %w", protocol, err)
		}
		for _, line := range lines {
			if err := json.NewEncoder(stdout).Encode(line); err != nil {
				return err
			}
			failed += line.Failed
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d requests failed", failed)
	}
	return nil
}

// measure starts every path, loads them in turn for all rounds, and sums up.
func (t *trial) measure(ctx context.Context, stderr io.Writer) ([]line, error) {
	a, err := load.StartApp(t.protocol, load.Small)
	if err != nil {
		return nil, err
	}
	defer a.Stop()
	t.appPort = a.Port
	paths, err := t.chosen(stderr)
	if err != nil {
		return nil, err
	}
	var lanes []*lane
	for _, path := range paths {
		r, err := t.start(ctx, path)
		if err != nil {
			return nil, fmt.Errorf("path %q: %w", path, err)
		}
		defer r.stop()
		c := load.NewCrew(t.protocol, r.addr, t.settings.Connections, load.Small)
		c.Rate = t.settings.Rate
		defer c.Close()
		lanes = append(lanes, &lane{path: path, running: r, crew: c})
	}
	for n := range t.settings.Rounds {
		if err := playRound(ctx, t.settings, lanes, stderr); err != nil {
			return nil, fmt.Errorf("round %d: %w", n+1, err)
		}
		progress(stderr, t.protocol, n+1, lanes)
	}
	for _, lane := range lanes {
		if lane.running.witness != nil {
			if err := lane.running.witness(ctx); err != nil {
				return nil, fmt.Errorf("path %q: %w", lane.path, err)
			}
		}
	}
	return t.lines(lanes), nil
}

// playRound gives each lane SecondsPerRun in turns, and one more sample.
func playRound(ctx context.Context, s settings, lanes []*lane, stderr io.Writer) error {
	for _, lane := range lanes {
		lane.samples = append(lane.samples, sample{cpu: make([]time.Duration, len(lane.running.envoys))})
	}
	turns := max(1, int((s.SecondsPerRun+s.turn/2)/s.turn))
	for n := range turns {
		for i := range lanes {
			// Each lap begins with another path, so that none always follows the same one.
			lane := lanes[(n+i)%len(lanes)]
			if err := lane.play(ctx, s.warmUp, s.SecondsPerRun/time.Duration(turns), stderr); err != nil {
				return fmt.Errorf("path %q: %w", lane.path, err)
			}
		}
	}
	return nil
}

func (t *trial) lines(lanes []*lane) []line {
	_, plain := pathsOf(t.protocol)
	samplesOf := func(path string) []sample {
		for _, lane := range lanes {
			if lane.path == path {
				return lane.samples
			}
		}
		return nil
	}
	var out []line
	for _, lane := range lanes {
		base := bases{plain: samplesOf(plain), lean: samplesOf(pathLean)}
		if t.settings.Rate > 0 {
			base.direct = samplesOf(pathDirect)
		}
		if lane.path == pathIntentions {
			base.crossfade = samplesOf(pathCrossfade)
		}
		line := summarize(lane.samples, base)
		line.Path, line.Protocol, line.Failed, line.Rate = lane.path, t.protocol, lane.failed, t.settings.Rate
		line.Seconds, line.Connections, line.Load = t.settings.SecondsPerRun.Seconds(), t.settings.Connections, lab.Load()
		out = append(out, line)
	}
	return out
}

func progress(w io.Writer, protocol string, n int, lanes []*lane) {
	fmt.Fprintf(w, "%s round %d:", protocol, n)
	for _, lane := range lanes {
		last := lane.samples[len(lane.samples)-1]
		fmt.Fprintf(w, "  %s %.0f rps %.1f us", lane.path, float64(last.requests)/last.elapsed.Seconds(), last.cpuPerRequest())
	}
	fmt.Fprintln(w)
}
