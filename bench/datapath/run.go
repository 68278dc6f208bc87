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

	"github.com/crossfade-mesh/crossfade/internal/ca"
	"github.com/crossfade-mesh/crossfade/internal/envoybin"
)

// The paths, in the order they are printed in.
const (
	pathDirect    = "direct"
	pathTCP       = "tcp"
	pathPlain     = "plain"
	pathLean      = "lean"
	pathCrossfade = "crossfade"
)

// pathsOf lists the paths of a protocol and the one that ratios are against. For tcp
// the hand-written pair is the TCP-proxy pair; there is nothing to make lean in it.
func pathsOf(protocol string) (paths []string, plain string) {
	if protocol == protoTCP {
		return []string{pathDirect, pathTCP, pathCrossfade}, pathTCP
	}
	return []string{pathDirect, pathTCP, pathPlain, pathLean, pathCrossfade}, pathPlain
}

// lab is what the paths of one protocol share.
type lab struct {
	settings  settings
	protocol  string
	appPort   int
	dir       string // short, since Unix sockets are in it
	authority *ca.CA
}

func (l *lab) subdir(name string) (string, error) {
	dir := filepath.Join(l.dir, name)
	return dir, os.Mkdir(dir, 0o700)
}

// running is a path with all its processes up.
type running struct {
	addr   string // where the caller sends to
	envoys []int  // process ids, the caller's first
	stop   func()
	// witness reports, after load, that requests went the way the path claims. May be nil.
	witness func(context.Context) error
}

func (l *lab) start(ctx context.Context, path string) (*running, error) {
	switch path {
	case pathDirect:
		return &running{addr: fmt.Sprintf("127.0.0.1:%d", l.appPort), stop: func() {}}, nil
	case pathCrossfade:
		return startMesh(ctx, l)
	default:
		return startPair(ctx, l, path)
	}
}

// run measures each protocol in turn and prints its lines. It fails when a request did.
func run(ctx context.Context, s settings, stdout, stderr io.Writer) error {
	version, err := envoybin.CheckVersion(ctx, s.Envoy)
	if err != nil {
		return err
	}
	fmt.Fprintf(stderr, "Envoy %s, %s\n", version, s.Envoy)
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
		l := &lab{settings: s, protocol: protocol, dir: filepath.Join(dir, protocol), authority: authority}
		if err := os.Mkdir(l.dir, 0o700); err != nil {
			return err
		}
		lines, err := l.measure(ctx, stderr)
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
func (l *lab) measure(ctx context.Context, stderr io.Writer) ([]line, error) {
	a, err := startApp(l.protocol)
	if err != nil {
		return nil, err
	}
	defer a.stop()
	l.appPort = a.port
	paths, plain := pathsOf(l.protocol)
	if len(l.settings.Paths) > 0 {
		paths = slices.DeleteFunc(paths, func(p string) bool { return !slices.Contains(l.settings.Paths, p) })
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("PATHS %q: none of them exists for this protocol", l.settings.Paths)
	}
	var lanes []*lane
	for _, path := range paths {
		r, err := l.start(ctx, path)
		if err != nil {
			return nil, fmt.Errorf("path %q: %w", path, err)
		}
		defer r.stop()
		c := newCrew(l.protocol, r.addr, l.settings.Connections)
		defer c.close()
		lanes = append(lanes, &lane{path: path, running: r, crew: c})
	}
	for n := range l.settings.Rounds {
		if err := playRound(ctx, l.settings, lanes, stderr); err != nil {
			return nil, fmt.Errorf("round %d: %w", n+1, err)
		}
		progress(stderr, l.protocol, n+1, lanes)
	}
	for _, lane := range lanes {
		if lane.running.witness != nil {
			if err := lane.running.witness(ctx); err != nil {
				return nil, fmt.Errorf("path %q: %w", lane.path, err)
			}
		}
	}
	return l.lines(lanes, plain), nil
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

func (l *lab) lines(lanes []*lane, plain string) []line {
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
		line := summarize(lane.samples, samplesOf(plain), samplesOf(pathLean))
		line.Path, line.Protocol, line.Failed = lane.path, l.protocol, lane.failed
		line.Seconds, line.Connections = l.settings.SecondsPerRun.Seconds(), l.settings.Connections
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
