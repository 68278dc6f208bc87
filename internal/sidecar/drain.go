package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/envoyadmin"
	"github.com/crossfade-mesh/crossfade/internal/process"
)

const (
	// acceptTold is for how long, at most, new connections are still taken when callers
	// were told to go elsewhere, or cannot be told at all: one refused goes elsewhere.
	acceptTold = 500 * time.Millisecond
	// acceptUntold is the same, to the full, when the registry does not say whether
	// callers know: the time a change takes to reach them.
	acceptUntold = 5 * time.Second
	// quietTime is for how long connections without any request must stay so to be
	// taken for idle ones that nobody will use again.
	quietTime = 2 * time.Second
	drainPoll = 50 * time.Millisecond
	// closing is for how long Envoy may still count one more connection after it was told to close its
	// ports: its workers do so by themselves, and take first who was there already. A caller whose
	// connection has just ended is back at once.
	closing = 100 * time.Millisecond
)

// drain takes an instance out of use without losing a request.
type drain struct {
	admin *envoyadmin.Client
	// goodbye takes the instance out of the registry and waits for the callers, at
	// most for wait. waited is "<confirmed>/<asked>", empty when unknown. The error is an
	// errUnknown when it is out already.
	goodbye    func(ctx context.Context, wait time.Duration) (waited string, err error)
	callerWait time.Duration
	// taken reports whether another process listens at the public port too: then it takes
	// over, and nobody needs to be told. May be nil.
	taken   func() bool
	service string
	// ports are those of the listeners whose connections are waited for, outbound those
	// of the upstreams' listeners.
	ports, outbound []int
	// both has the app's calls out waited for too.
	both  bool
	bound time.Duration // for what is under way to end
	log   *slog.Logger
}

// run returns when nothing inbound is left, or the bound is reached, or hurry ends.
// What cannot be seen, because Envoy's admin socket fails, is taken to be still there.
func (d *drain) run(hurry context.Context) {
	if d.taken != nil && d.taken() {
		d.handOver(hurry)
		return
	}
	accept := d.sayGoodbye(hurry)
	if hurry.Err() != nil {
		return
	}
	began := time.Now()
	deadline := began.Add(d.bound)
	if err := d.admin.DrainInbound(hurry); err != nil {
		d.log.Warn("Envoy could not be told to drain, connections are not told to end", "error", err)
	}
	if accept == acceptUntold {
		sleep(hurry, min(accept, d.bound))
	} else {
		d.wait(hurry, earlier(began.Add(accept), deadline))
	}
	// Whoever still comes is refused before anything was sent, and goes elsewhere.
	if err := d.admin.CloseInbound(hurry); err != nil {
		d.log.Warn("Envoy could not be told to close the public port, it stays open until Envoy ends", "error", err)
	}
	sleep(hurry, min(closing, time.Until(deadline)))
	left, ended := d.wait(hurry, deadline)
	if ended {
		d.log.Info("drained", "service", d.service, "after", time.Since(began).Round(time.Millisecond))
		return
	}
	d.log.Warn("not all that was under way ended in time", "service", d.service, "left", left.String(), "after", time.Since(began).Round(time.Millisecond))
}

// handOver leaves all that is new to whoever else listens at the instance's ports, and
// returns when what is under way has ended, in and out. Listening ends first: at that
// moment few connections are opened, later each response that ends one leads to another.
func (d *drain) handOver(hurry context.Context) {
	began := time.Now()
	deadline := began.Add(d.bound)
	if err := d.admin.CloseListeners(hurry); err != nil {
		d.log.Warn("Envoy could not be told to stop listening", "error", err)
	}
	if err := d.admin.Drain(hurry); err != nil {
		d.log.Warn("Envoy could not be told to drain, connections are not told to end", "error", err)
	}
	sleep(hurry, min(closing, time.Until(deadline)))
	all := *d
	all.ports, all.both = slices.Concat(d.ports, d.outbound), true
	left, ended := all.wait(hurry, deadline)
	if ended {
		d.log.Info("handed over to who else listens at the same ports", "service", d.service, "after", time.Since(began).Round(time.Millisecond))
		return
	}
	d.log.Warn("handed over, but not all that was under way ended in time", "service", d.service, "left", left.String(), "after", time.Since(began).Round(time.Millisecond))
}

// sayGoodbye returns for how long to accept new connections after it.
func (d *drain) sayGoodbye(ctx context.Context) time.Duration {
	began := time.Now()
	waited, err := d.goodbye(ctx, d.callerWait)
	told, asked, known := strings.Cut(waited, "/")
	switch {
	case ctx.Err() != nil:
		// There is no time to wait, but enough to be polite.
		quick, cancel := context.WithTimeout(context.WithoutCancel(ctx), process.HurriedStop)
		defer cancel()
		if _, err := d.goodbye(quick, 0); err != nil && !errors.Is(err, errUnknown) {
			d.log.Warn("deregistration failed, the registry finds out by itself", "service", d.service, "error", err, "after", checkTTL)
		}
		return 0
	case errors.Is(err, errUnknown):
		d.log.Info("whoever registered the sidecar has taken it out already", "service", d.service)
		return acceptTold
	case err != nil:
		d.log.Warn("deregistration failed, callers could not be told and will be refused instead", "service", d.service, "error", err)
		return acceptTold
	case !known:
		d.log.Info("out of the registry, or of service there; it does not say when callers know", "service", d.service)
		return acceptUntold
	case told != asked:
		d.log.Warn("deregistered, but not every caller confirmed it in time", "service", d.service, "confirmed", waited)
		return acceptTold
	default:
		d.log.Info("deregistered, all callers confirmed it", "service", d.service, "confirmed", waited, "after", time.Since(began).Round(time.Millisecond))
		return acceptTold
	}
}

// inbound is what is under way towards the app.
type inbound struct {
	requests    int64
	httpConns   int64
	connections int64 // of any protocol
	err         error // the rest is unknown
}

// String names what is left.
func (i inbound) String() string {
	if i.err != nil {
		return "unknown: " + i.err.Error()
	}
	return fmt.Sprintf("%d requests, %d connections", i.requests, i.connections)
}

// ended decides whether all is over, when there was no request for quiet.
// Connections of raw TCP end when they end.
func (i inbound) ended(quiet time.Duration) bool {
	switch {
	case i.err != nil || i.requests > 0:
		return false
	case i.connections <= 0 && i.httpConns <= 0:
		return true
	default:
		return i.connections <= i.httpConns && quiet >= quietTime
	}
}

// wait polls until everything inbound has ended, or until the deadline.
func (d *drain) wait(hurry context.Context, deadline time.Time) (left inbound, ended bool) {
	ctx, cancel := context.WithDeadline(hurry, deadline)
	defer cancel()
	quiet := time.Now()
	for {
		seen := d.look(ctx)
		if ctx.Err() == nil || left == (inbound{}) {
			left = seen
		}
		if left.err != nil || left.requests > 0 {
			quiet = time.Now()
		}
		if left.ended(time.Since(quiet)) {
			return left, true
		}
		if !sleep(ctx, drainPoll) {
			return left, false
		}
	}
}

// look reads Envoy's gauges of what callers meet, with and without TLS, and of what the
// app meets when it calls, if that is asked for.
func (d *drain) look(ctx context.Context) inbound {
	filters := `public_listener(_plaintext)?`
	if d.both {
		filters += `|upstream\..+`
	}
	stats, err := d.admin.Gauges(ctx, `^(http\.(`+filters+`)\.downstream_(rq|cx)_active|listener\..*\.downstream_cx_active)$`)
	if err != nil {
		return inbound{err: err}
	}
	var in inbound
	// Envoy names a listener's gauges after its address: listener.127.0.0.1_21000.
	for name, n := range stats {
		switch {
		case strings.HasPrefix(name, "http.") && strings.HasSuffix(name, ".downstream_rq_active"):
			in.requests += n
		case strings.HasPrefix(name, "http.") && strings.HasSuffix(name, ".downstream_cx_active"):
			in.httpConns += n
		}
		if !strings.HasPrefix(name, "listener.") {
			continue
		}
		for _, port := range d.ports {
			if strings.HasSuffix(name, fmt.Sprintf("_%d.downstream_cx_active", port)) {
				in.connections += n
			}
		}
	}
	return in
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
