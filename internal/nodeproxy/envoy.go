package nodeproxy

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/envoyadmin"
	"github.com/crossfade-mesh/crossfade/internal/process"
)

const (
	// A started Envoy that has lived so long may crash again and be started at once.
	calmTime  = 30 * time.Second
	firstWait = 100 * time.Millisecond // between a crash and the next start; doubled each time
	mostWait  = 5 * time.Second
	stopTime  = 5 * time.Second // from SIGTERM to SIGKILL
	adminTime = 2 * time.Second
	pollTime  = 50 * time.Millisecond
)

// envoy keeps one Envoy running.
type envoy struct{ o Options }

// keep starts Envoy, and again when it ends, until ctx ends.
func (e *envoy) keep(ctx context.Context) error {
	for wait := firstWait; ; wait = min(2*wait, mostWait) {
		begun := time.Now()
		err := e.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(begun) > calmTime {
			wait = firstWait
		}
		e.o.Log.Error("Envoy has ended by itself, and is started again", "how", err, "after", wait)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// once runs Envoy until it ends. When ctx ends it is told to end.
func (e *envoy) once(ctx context.Context) error {
	// A socket of one that was killed is in the way of the next.
	if err := os.Remove(e.socket()); err != nil && !os.IsNotExist(err) {
		return err
	}
	p, err := process.Start(process.Command{
		Argv: []string{
			e.o.Envoy, "-c", filepath.Join(e.o.Dir, bootName), "--disable-hot-restart",
			"--concurrency", strconv.Itoa(max(1, e.o.Concurrency)), "--log-level", "warning", "--drain-strategy", "immediate",
		},
		Env:    slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.Contains(kv, "_HTTP_TOKEN") }),
		Stdout: e.o.Output, Stderr: e.o.Output,
	})
	if err != nil {
		return err
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	go e.sayReady(watching, p.PID)
	select {
	case <-p.Done():
		return fmt.Errorf("it was not told to: %s", p.State())
	case <-ctx.Done():
	}
	p.Stop(context.WithoutCancel(ctx), stopTime)
	return nil
}

func (e *envoy) socket() string { return filepath.Join(e.o.Dir, adminName) }

// admin is a client of Envoy, to be closed.
func (e *envoy) admin() *envoyadmin.Client { return envoyadmin.New(e.socket(), adminTime) }

// sayReady logs once that everything Envoy was started with is in force.
func (e *envoy) sayReady(ctx context.Context, pid int) {
	begun, admin := time.Now(), e.admin()
	defer admin.Close()
	for {
		if ready, _, err := admin.Ready(ctx); err == nil && ready {
			e.o.Log.Info("ready", "envoy", pid, "after", time.Since(begun).Round(time.Millisecond))
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pollTime):
		}
	}
}

// drain tells clients to go, and waits until they have.
func (e *envoy) drain(limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if limit <= 0 {
		return
	}
	admin := e.admin()
	defer admin.Close()
	// Going on to accept meanwhile: nobody is told to call elsewhere.
	if err := admin.Drain(ctx); err != nil {
		e.o.Log.Warn("draining", "error", err)
		return
	}
	for {
		n, err := open(ctx, admin)
		if err != nil || n == 0 {
			return
		}
		select {
		case <-ctx.Done():
			e.o.Log.Warn("the time to drain is over", "open", n)
			return
		case <-time.After(pollTime):
		}
	}
}

// open is how many clients of this host are connected, and how many requests of others
// are being answered.
func open(ctx context.Context, admin *envoyadmin.Client) (n int64, err error) {
	stats, err := admin.Stats(ctx, `^(http\.front\.downstream_cx_active|http\.peer\.downstream_rq_active|tcp\..*\.downstream_cx_active)$`)
	for _, active := range stats {
		n += active
	}
	return n, err
}
