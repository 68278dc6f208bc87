package sidecar

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"
)

// appPoll is the pause between two tries whether the app accepts connections.
const appPoll = 50 * time.Millisecond

// startApp starts the app with the addresses of its upstreams in its environment.
func startApp(o Options, upstreams []localUpstream) (*process, error) {
	p, err := startProcess(o.App, append(appEnv(os.Environ()), upstreamEnv(upstreams)...), o.Stdout, o.Stderr)
	if err != nil {
		return nil, fmt.Errorf("app %q: cannot be started: %w", o.App[0], err)
	}
	return p, nil
}

// awaitApp waits until the app accepts a connection at network and address, or
// ctx or the app ends.
func awaitApp(ctx context.Context, p *process, network, address string, log *slog.Logger) bool {
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
		case <-p.done:
			return false
		default:
		}
		if !sleep(ctx, appPoll) {
			return false
		}
	}
}
