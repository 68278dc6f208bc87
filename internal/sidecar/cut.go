package sidecar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/envoyadmin"
	"github.com/crossfade-mesh/crossfade/internal/sidecar/relay"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

const (
	// cutLook is how often it is looked which connections are there while some are closed.
	cutLook = time.Second
	// cutSettle bounds the wait for Envoy to count what was closed.
	cutSettle = 3 * time.Second
	cutPoll   = 20 * time.Millisecond
	maxCutWhy = 250
)

// cutter closes, on order, what is open on ways that were left. Envoy has no means for it: its
// sockets are shut one after the other.
type cutter struct {
	orders  func() []relay.Cut
	changed func() <-chan struct{}
	onlyOn  func(destination, way string) bool // nothing new goes elsewhere
	places  func(destination, keep string) relay.Places
	envoy   func() int64 // the process that serves, or 0
	admin   *envoyadmin.Client
	log     *slog.Logger

	mu    sync.Mutex               // guards the following
	known map[string]telemetry.Cut // the last order of each destination
	fresh bool                     // some of it was not told
}

// run follows orders until ctx ends.
func (c *cutter) run(ctx context.Context) {
	var following sync.WaitGroup
	defer following.Wait()
	for {
		changed := c.changed()
		for _, o := range c.orders() {
			if !c.begin(o) {
				continue
			}
			following.Go(func() { c.follow(ctx, o) })
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// begin reports whether an order is to be followed now. Each is once.
func (c *cutter) begin(o relay.Cut) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.known[o.Destination]
	if was.Order == o.ID && was.State != telemetry.CutWaiting {
		return false
	}
	now := telemetry.Cut{Destination: o.Destination, Order: o.ID, State: telemetry.CutClosing}
	if !o.InForce {
		now.State, now.Why = telemetry.CutWaiting, "its Envoy has not acknowledged that nothing new goes there"
	}
	c.putLocked(now)
	return o.InForce
}

// note tells how far an order is, unless another has come.
func (c *cutter) note(now telemetry.Cut) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known[now.Destination].Order == now.Order {
		now.Why = strings.ToValidUTF8(now.Why[:min(maxCutWhy, len(now.Why))], "")
		c.putLocked(now)
	}
}

func (c *cutter) putLocked(now telemetry.Cut) {
	c.fresh = c.fresh || c.known[now.Destination] != now
	c.known[now.Destination] = now
}

// told is what is new, or all of it, by destination.
func (c *cutter) told(all bool) (out []telemetry.Cut) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !all && !c.fresh {
		return nil
	}
	c.fresh = false
	for _, destination := range slices.Sorted(maps.Keys(c.known)) {
		out = append(out, c.known[destination])
	}
	return out
}

// follow closes what is open, evenly over the order's time.
func (c *cutter) follow(ctx context.Context, o relay.Cut) {
	done := telemetry.Cut{Destination: o.Destination, Order: o.ID, State: telemetry.CutClosing}
	before, err := c.cutShort(ctx, o)
	if err == nil {
		err = c.close(ctx, o, &done)
	}
	if after, failed := c.settled(ctx, o, before); failed == nil && !c.places(o.Destination, o.Keep).TCP {
		done.Closed = after
	}
	done.State = telemetry.CutDone
	if err != nil {
		done.State, done.Why = telemetry.CutFailed, err.Error()
	}
	c.note(done)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		c.log.Error("not all that was open on ways that were left is closed", "destination", o.Destination, "connections", done.Connections, "closed", done.Closed, "reason", err)
		return
	}
	c.log.Info("what was open on ways that were left is closed", "destination", o.Destination, "connections", done.Connections, "closed", done.Closed, "over", o.Over)
}

// close shuts connections one after the other, those that have been idle for longest first.
func (c *cutter) close(ctx context.Context, o relay.Cut, done *telemetry.Cut) error {
	pid := c.envoy()
	if pid == 0 {
		return nil // nothing is open
	}
	of, err := openSockets(int(pid))
	if err != nil {
		return err
	}
	defer of.close()
	began := time.Now()
	end := began.Add(o.Over)
	var open []socket
	var due, looked, lost time.Time // due is when the next is closed
	for first := true; ; {
		now := time.Now()
		if len(open) == 0 || now.Sub(looked) >= cutLook {
			found, n, err := c.open(ctx, o, of)
			switch {
			case err != nil || n == 0:
				return err
			case len(found) > 0:
				lost = time.Time{}
			case lost.IsZero():
				lost = now // Envoy has not noticed yet, or what is under way has just begun
			case now.Sub(lost) > cutSettle:
				return fmt.Errorf("%d are open, and no connection of theirs is found", n)
			}
			if open, looked = found, now; len(open) == 0 {
				if !sleep(ctx, cutPoll) {
					return ctx.Err()
				}
				continue
			}
		}
		if first {
			sooner := early(o.Over, len(open), o.Part, o.Parts)
			end, due, first = end.Add(-sooner), began.Add(pause(o.Over, len(open))-sooner), false
		}
		if left := due.Sub(now); left > 0 { // what ends by itself meanwhile is not waited for
			if !sleep(ctx, min(left, cutLook)) {
				return ctx.Err()
			}
			continue
		}
		switch {
		case c.envoy() != pid:
			return nil // what was open has gone with it
		case !c.onlyOn(o.Destination, o.Keep):
			return errors.New("stopped: the pair's shares have changed meanwhile")
		case !c.last(o):
			return errors.New("stopped: another order has come")
		}
		shut, err := of.shut(open[0])
		if err != nil {
			return err
		}
		if open = open[1:]; shut {
			done.Connections++
			done.Closed = done.Connections // of requests it is known in the end
			c.note(*done)
			due = now.Add(pause(end.Sub(now), max(1, len(open))))
		}
	}
}

// early is how much sooner than one that is alone a sidecar closes each of n connections, so that
// several do not close theirs together.
func early(over time.Duration, n, part, parts int) time.Duration {
	return over * time.Duration(part) / time.Duration(max(1, n*parts))
}

// pause is how long to wait for the next of n connections, if the last is closed at the end of
// the time that is left.
func pause(left time.Duration, n int) time.Duration { return max(0, left) / time.Duration(n) }

// last reports whether no other order has come for the destination.
func (c *cutter) last(o relay.Cut) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known[o.Destination].Order == o.ID
}

// open lists the connections to be closed, the idlest first, and says how many requests or
// connections are open. Connections to an endpoint at which no request is under way are not
// listed: Envoy closes them by itself.
func (c *cutter) open(ctx context.Context, o relay.Cut, of *sockets) (out []socket, n uint64, err error) {
	at := c.places(o.Destination, o.Keep)
	if !at.TCP {
		if n, err = c.underWay(ctx, at); err != nil || n == 0 {
			return nil, n, err
		}
		body, err := c.admin.Get(ctx, telemetry.HostsPath)
		if err != nil {
			return nil, n, err
		}
		hosts, err := telemetry.ParseHosts(body)
		if err != nil {
			return nil, n, err
		}
		for place := range hosts.Idle(at.Clusters) {
			delete(at.Addresses, place)
		}
	}
	if out, err = of.to(at.Addresses); err != nil {
		return nil, n, err
	}
	slices.SortFunc(out, func(a, b socket) int { return cmp.Or(-cmp.Compare(a.idle, b.idle), cmp.Compare(a.fd, b.fd)) })
	if len(out) == 0 && len(at.Shared) > 0 {
		others, err := of.to(at.Shared)
		if err == nil && len(others) > 0 {
			err = fmt.Errorf("%s leads elsewhere as well: what is open there stays, since it cannot be told apart", others[0].peer)
		}
		return nil, n, err
	}
	return out, max(n, uint64(len(out))), nil
}

func (c *cutter) underWay(ctx context.Context, at relay.Places) (uint64, error) {
	gauges, err := c.admin.Gauges(ctx, telemetry.UnderWayFilter)
	return telemetry.UnderWay(gauges, at.Clusters), err
}

// cutShort is how many attempts have ended with their connection.
func (c *cutter) cutShort(ctx context.Context, o relay.Cut) (uint64, error) {
	counters, err := c.admin.Stats(ctx, telemetry.CutShortFilter(o.Destination))
	return telemetry.CutShort(counters, o.Destination, o.Keep), err
}

// settled waits until Envoy has nothing under way any more, or for a while, and says how many
// attempts were cut short since.
func (c *cutter) settled(ctx context.Context, o relay.Cut, before uint64) (uint64, error) {
	at := c.places(o.Destination, o.Keep)
	for began := time.Now(); !at.TCP && time.Since(began) < cutSettle; {
		if n, err := c.underWay(ctx, at); err != nil || n == 0 || !sleep(ctx, cutPoll) {
			break
		}
	}
	now, err := c.cutShort(ctx, o)
	return now - min(now, before), err
}
