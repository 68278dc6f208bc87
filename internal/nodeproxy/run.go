package nodeproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/atomicfile"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/envoybin"
)

// Options say how to run a node proxy.
type Options struct {
	Layout Layout
	Source catalog.Source
	// Dir holds Envoy's files and its admin socket. Default: a temporary folder that is
	// removed. Its path is short, since that of a socket is. What is in it from before is
	// what Envoy starts with while the registry cannot be read.
	Dir         string
	Envoy       string // default: as [envoybin.Find] finds it
	Concurrency int    // worker threads; default 2
	// DrainTime is how long requests and connections may take to end when ctx has ended.
	DrainTime time.Duration
	Log       *slog.Logger
	Output    io.Writer // Envoy's own
}

const (
	// memoryWait is how long the registry is waited for when there is something to begin with.
	memoryWait = 3 * time.Second
	adminName  = "admin.sock"
	bootName   = "bootstrap.json"
	// lastName marks a folder whose files have been written to the end once.
	lastName = "complete"
)

// Run runs a node proxy until ctx ends, and drains it. An Envoy that dies is started again.
func Run(ctx context.Context, o Options) (err error) {
	if err := o.Layout.Validate(); err != nil {
		return fmt.Errorf("node-proxy: %w", err)
	}
	if o.Envoy == "" {
		if o.Envoy, err = envoybin.Find(); err != nil {
			return fmt.Errorf("node-proxy: %w", err)
		}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	version, err := envoybin.CheckVersion(ctx, o.Envoy)
	if err != nil {
		return fmt.Errorf("node-proxy: %w", err)
	}
	if o.Dir == "" {
		if o.Dir, err = os.MkdirTemp("/tmp", "crossfade-np-"); err != nil {
			return fmt.Errorf("node-proxy: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(o.Dir)) }()
	}
	if o.Dir, err = filepath.Abs(o.Dir); err == nil {
		err = os.MkdirAll(o.Dir, 0o700)
	}
	if err != nil {
		return fmt.Errorf("node-proxy: %w", err)
	}
	r := &run{o: o, written: Files{}, first: make(chan struct{})}
	return r.until(ctx, version)
}

// run is one node proxy that runs.
type run struct {
	o       Options
	written Files         // by publish alone
	said    []string      // problems, by publish alone
	first   chan struct{} // closed when all files have been written
	begun   bool
}

func (r *run) until(ctx context.Context, version string) error {
	l, log := r.o.Layout, r.o.Log
	reading, stopReading := context.WithCancel(ctx)
	failed := make(chan error, 2)
	go func() {
		err := r.o.Source.Run(reading, func(s *catalog.Snapshot) {
			if err := r.publish(s); err != nil {
				failed <- err
				stopReading()
			}
		})
		failed <- err
	}()
	defer stopReading()

	var known <-chan time.Time
	if _, err := os.Stat(filepath.Join(r.o.Dir, lastName)); err == nil {
		known = time.After(memoryWait)
	}
	select {
	case <-r.first:
	case <-known:
		log.Warn("the registry cannot be read: starting with what was known last", "folder", r.o.Dir)
	case err := <-failed:
		return errors.Join(err, ctx.Err())
	case <-ctx.Done():
		if err := <-failed; err != nil {
			log.Debug("asked to stop before the registry could be read", "reason", err)
		}
		return nil
	}
	if err := atomicfile.Write(filepath.Join(r.o.Dir, bootName), Bootstrap(l, r.o.Dir, filepath.Join(r.o.Dir, adminName))); err != nil {
		return fmt.Errorf("node-proxy: %w", err)
	}
	log.Info("starting Envoy", "version", version, "node", l.Node, "front", l.Front, "peer", l.Peer, "tcp", len(l.TCP))
	e := &envoy{o: r.o}
	ended := make(chan error, 1)
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	go func() { ended <- e.keep(running) }()
	select {
	case <-ctx.Done():
		e.drain(r.o.DrainTime)
		stop()
		return <-ended
	case err := <-failed:
		stop()
		return errors.Join(err, <-ended)
	case err := <-ended:
		return err
	}
}

// publish writes what has changed: what is named before what names it.
func (r *run) publish(s *catalog.Snapshot) error {
	files, problems := Build(r.o.Layout, r.o.Dir, s)
	if !slices.Equal(problems, r.said) {
		for _, p := range problems {
			r.o.Log.Warn("left out", "problem", p)
		}
		r.said = problems
	}
	changed := 0
	// A file is put in place whole, which is what Envoy watches for.
	for _, name := range inOrder(files) {
		if bytes.Equal(r.written[name], files[name]) {
			continue
		}
		if err := atomicfile.Write(filepath.Join(r.o.Dir, name), files[name]); err != nil {
			return fmt.Errorf("node-proxy: %w", err)
		}
		changed++
	}
	for name := range r.written {
		if files[name] == nil {
			if err := os.Remove(filepath.Join(r.o.Dir, name)); err != nil && !os.IsNotExist(err) {
				return fmt.Errorf("node-proxy: %w", err)
			}
		}
	}
	r.written = files
	r.o.Log.Debug("told Envoy", "files", changed, "index", s.Index)
	if r.begun {
		return nil
	}
	r.begun = true
	defer close(r.first)
	if err := atomicfile.Write(filepath.Join(r.o.Dir, lastName), nil); err != nil {
		return fmt.Errorf("node-proxy: %w", err)
	}
	return nil
}

// inOrder are the names of files: endpoints, then clusters, then routes.
func inOrder(files Files) []string {
	rank := map[string]int{clustersFile: 1, frontFile: 2, peerFile: 2}
	names := slices.Sorted(maps.Keys(files))
	slices.SortStableFunc(names, func(a, b string) int { return rank[a] - rank[b] })
	return names
}
