package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/process"
)

// appPoll is the pause between two tries whether the app accepts connections.
const appPoll = 50 * time.Millisecond

// startApp starts the app with the addresses of its upstreams in its environment.
func startApp(o Options, upstreams []localUpstream) (*process.Process, error) {
	p, err := process.Start(process.Command{Argv: o.App, Env: append(appEnv(os.Environ()), upstreamEnv(upstreams)...), Stdout: o.Stdout, Stderr: o.Stderr})
	if err != nil {
		return nil, fmt.Errorf("app %q: cannot be started: %w", o.App[0], err)
	}
	return p, nil
}

// awaitApp waits until the app accepts a connection at network and address, or
// ctx or the app ends.
func awaitApp(ctx context.Context, p *process.Process, network, address string, log *slog.Logger) bool {
	began, said := time.Now(), time.Now()
	d := net.Dialer{Timeout: time.Second}
	for {
		conn, err := d.DialContext(ctx, network, address)
		if err == nil {
			_ = conn.Close()
			return true
		}
		if time.Since(said) >= patience {
			said = time.Now()
			log.Warn("the app does not accept connections yet, callers do not see it", "address", address,
				"for", time.Since(began).Round(time.Second), "error", syscallError(err))
		}
		select {
		case <-p.Done():
			return false
		default:
		}
		if !sleep(ctx, appPoll) {
			return false
		}
	}
}

// ExitError is the end of an app that was not asked to end. Its code is the
// sidecar's own exit code.
type ExitError struct {
	App  string
	Code int // never 0
	How  string
}

// Error implements error.
func (e *ExitError) Error() string { return fmt.Sprintf("app %q: ended by itself: %s", e.App, e.How) }

// appEnded is nil when the app ended with success.
func appEnded(app string, s process.State) error {
	if s.Success() {
		return errFinished
	}
	return &ExitError{App: app, Code: max(s.Code, 1), How: s.String()}
}

// errFinished and errSignal are reasons to stop that are no failure.
var (
	errFinished = errors.New("the app finished")
	errSignal   = errors.New("asked to stop")
)
