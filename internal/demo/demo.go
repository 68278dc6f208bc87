// Package demo runs a small shop on one machine, on an old mesh and under load, moves it into
// this mesh pair by pair, and proves aloud that the mesh keeps its promises.
//
// In: this program's own binary and Envoy. It starts a server, an app and a
// sidecar for each instance as child processes, all on loopback, and looks at them
// from outside only: answers that clients get, certificates that are served, what
// Envoy's admin interface and the kernel say. Out: progress while it works, a
// [Report], and an error unless every proof held. Nothing it started or wrote is
// left when it returns, and no process when it is killed.
//
// The shop and its clients are in package shop, the load in package load. It
// leaves the mesh itself to the commands it starts.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/envoybin"
)

// Sabotages lists what [Options.Sabotage] may name, in the order of the proofs: each does one
// thing the naive way, and the proof of the same name must then fail.
func Sabotages() []string {
	return []string{"share", "guard", "revert", "strict", "spread", "drain", "rotate", "lastgood"}
}

// Options say how to run the demo.
type Options struct {
	// Executable is the crossfade binary that the children run. Default: this process's own.
	Executable string
	// Envoy is the path of Envoy. Default: as [envoybin.Find] finds it.
	Envoy string
	// Sabotage is any of [Sabotages].
	Sabotage []string
	// JSON writes the report to Stdout as one JSON object, and progress to Stderr.
	JSON bool
	// Dir keeps logs and state. Default: a temporary directory that is removed.
	Dir string
	// Live rewrites the last line of progress while time goes by, Color paints it;
	// both are for terminals.
	Live, Color bool

	Stdout, Stderr io.Writer
}

// demo is one run.
type demo struct {
	o       Options
	out     *console
	mesh    *mesh
	traffic *traffic
	report  *Report
	// plainSent says that catalog's sidecars took plaintext at some time.
	plainSent bool
}

// Run runs the demo. The error is nil only if every proof held. When ctx ends
// early, everything is killed and removed first.
func Run(ctx context.Context, o Options) (err error) {
	begun := time.Now()
	if o, err = o.withDefaults(ctx); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	out := newConsole(o)
	defer out.finish()
	m, err := newMesh(o)
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	d := &demo{o: o, out: out, mesh: m, report: &Report{Sabotage: o.Sabotage}}
	defer func() { err = errors.Join(err, m.abandon()) }()

	d.report.Envoy, err = envoybin.CheckVersion(ctx, o.Envoy)
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	out.title(d.report.Envoy, o)
	err = d.prove(ctx)
	if d.traffic != nil {
		d.traffic.close()
		d.report.count(d.traffic)
	}
	d.report.Seconds = time.Since(begun).Seconds()
	if ctx.Err() != nil {
		return errors.New("demo: interrupted; every process it started is stopped")
	}
	if err != nil {
		err = fmt.Errorf("demo: %w", err)
	}
	d.report.Held = err == nil
	out.finish()
	return errors.Join(err, d.report.write(o))
}

// prove runs one proof after the other. A proof that fails does not keep the next
// from being tried, unless there is nothing to try it on or that was the point.
func (d *demo) prove(ctx context.Context) error {
	var failed []string
	for _, s := range []struct {
		name, claim string
		run         func(context.Context, *Proof) error
		needed      bool // the next have nothing to go on when it cannot be carried out
	}{
		{"old", "the shop as it was: apps without sidecars, on an old mesh of one shared proxy per host", d.old, true},
		{"join", "instances join one by one, and their apps' calls go to the sidecars; the apps are not restarted", d.join, true},
		{"share", "pairs move from the old mesh to plaintext between sidecars to mTLS in steps, and each share is what was asked", d.share, false},
		{"guard", "the new way is made slow, then failing: each time the pair goes back by itself", d.guard, false},
		{"revert", "one command takes a pair back, for every request from then on", d.revert, false},
		{"strict", "the move is completed: all by mTLS, nothing else is taken, the old mesh is off", d.strict, true},
		{"identity", "both ends of every pair prove who they are", d.identity, false},
		{"spread", "load is spread evenly over 4 instances", d.spread, false},
		{"add", "an instance added takes its share", d.add, true},
		{"drain", "an instance stopped loses nothing", d.drain, false},
		{"rotate", "every certificate is replaced under open connections", d.rotate, false},
		{"lastgood", "the server is dead, and a sidecar restarts all the same", d.lastGood, true},
		{"back", "the server is back, and everyone agrees again", d.back, false},
		{"kill", "kill -9 of one Envoy of four: only what was in flight on it fails", d.kill, false},
		{"end", "everything stops in order", d.end, false},
	} {
		if d.o.leavesOut(s.name) {
			continue
		}
		p := &Proof{Name: s.name, Claim: s.claim, Held: true, out: d.out}
		d.report.Proofs = append(d.report.Proofs, p)
		d.out.begin(p)
		begun := time.Now()
		err := s.run(ctx, p)
		p.Seconds = time.Since(begun).Seconds()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			p.check(false, "%v", err)
			d.out.logs(d.mesh.lastWords())
		}
		if p.Held {
			continue
		}
		failed = append(failed, p.Name)
		if err != nil && s.needed || s.name == d.o.last() {
			break
		}
	}
	switch len(failed) {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("proof %q did not hold", failed[0])
	}
	return fmt.Errorf("%d proofs did not hold: %s", len(failed), strings.Join(failed, ", "))
}

// sabotaged reports whether a proof has to fail.
func (o Options) sabotaged(proof string) bool { return slices.Contains(o.Sabotage, proof) }

// last is the sabotaged proof that comes last.
func (o Options) last() (proof string) {
	for _, s := range Sabotages() {
		if o.sabotaged(s) {
			proof = s
		}
	}
	return proof
}

// leavesOut reports whether a proof has no part in showing what the sabotage breaks. What is
// of the move itself needs a shop that has joined, the rest one that has moved.
func (o Options) leavesOut(proof string) bool {
	switch proof {
	case "share", "guard", "revert":
		return len(o.Sabotage) > 0 && !o.sabotaged(proof)
	}
	return false
}

func (o Options) withDefaults(ctx context.Context) (Options, error) {
	if o.Stdout == nil {
		o.Stdout = io.Discard
	}
	if o.Stderr == nil {
		o.Stderr = io.Discard
	}
	for _, s := range o.Sabotage {
		if !slices.Contains(Sabotages(), s) {
			return o, fmt.Errorf("sabotage %q: unknown; want one of %s", s, strings.Join(Sabotages(), ", "))
		}
	}
	var err error
	if o.Executable == "" {
		if o.Executable, err = os.Executable(); err != nil {
			return o, fmt.Errorf("finding this program's own file: %w", err)
		}
	}
	if o.Envoy == "" {
		o.Envoy, err = envoybin.Find()
	}
	return o, errors.Join(err, ctx.Err())
}
