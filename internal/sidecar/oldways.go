package sidecar

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/sidecar/relay"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

const (
	// probeEvery is how often an old way is tried that works, probeSooner one that does not.
	probeEvery  = 5 * time.Second
	probeSooner = 2 * time.Second
	// probeLook is how often it is looked which old ways there are.
	probeLook = time.Second
	// probeWithin bounds one try.
	probeWithin = 2 * time.Second
	// probesAtOnce bounds tries at the same time, probedPlaces those of one way.
	probesAtOnce = 16
	probedPlaces = 3
	maxWhy       = 200
)

// probeAgent is what a probe says that it is.
const probeAgent = "crossfade-probe"

// oldWays tries, for as long as a pair has a traffic-shift, whether its old way takes
// connections from here.
type oldWays struct {
	ways func() []relay.WayTo
	try  func(ctx context.Context, w relay.WayTo) error

	mu      sync.Mutex // guards the following
	known   map[string]*oldWay
	changed bool // since the last report
}

// oldWay is what is known of one.
type oldWay struct {
	to    relay.WayTo
	next  time.Time // of its next try
	tried bool
	probe telemetry.Probe
}

func newOldWays(ways func() []relay.WayTo) *oldWays {
	return &oldWays{ways: ways, try: tryWay, known: map[string]*oldWay{}}
}

// run goes on until ctx ends.
func (o *oldWays) run(ctx context.Context) {
	for sleep(ctx, jitter(probeLook, rand.Float64())) {
		o.look(ctx)
	}
}

// look tries those whose time it is, and returns when all are done.
func (o *oldWays) look(ctx context.Context) {
	due := o.due(o.ways(), time.Now())
	slots := make(chan struct{}, probesAtOnce)
	var wg sync.WaitGroup
	for _, w := range due {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, probeWithin)
			defer cancel()
			o.note(w, o.try(ctx, w), time.Now())
		})
	}
	wg.Wait()
}

// due are those to be tried now. A way that is another than before is new.
func (o *oldWays) due(now []relay.WayTo, at time.Time) (out []relay.WayTo) {
	o.mu.Lock()
	defer o.mu.Unlock()
	there := map[string]bool{}
	for _, w := range now {
		there[w.Destination] = true
		was := o.known[w.Destination]
		if was == nil || !sameWay(was.to, w) {
			was = &oldWay{}
			o.known[w.Destination] = was
		}
		if was.to = w; !at.Before(was.next) {
			out = append(out, w)
		}
	}
	for destination := range o.known {
		if !there[destination] {
			delete(o.known, destination)
		}
	}
	return out
}

// sameWay reports whether what is known of one way holds for the other: instances may come and
// go, and addresses of a name, if some are left.
func sameWay(a, b relay.WayTo) bool {
	some := len(a.Addresses) > 0 && len(b.Addresses) > 0
	return a.Way == b.Way && a.Of == b.Of && (slices.Equal(a.Addresses, b.Addresses) || some && (a.Way != config.WayLegacy || a.Of != ""))
}

// note takes in how a try went.
func (o *oldWays) note(w relay.WayTo, err error, at time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	of := o.known[w.Destination]
	if of == nil || of.to.Way != w.Way {
		return // it is another way by now
	}
	p := telemetry.Probe{Destination: w.Destination, Way: w.Way, Works: err == nil, Since: of.probe.Since}
	if w.Way == config.WayLegacy && len(w.Addresses) > 0 {
		p.Address = cmp.Or(w.Of, w.Addresses[0])
	}
	pause := probeEvery
	if err != nil {
		pause, p.Why = probeSooner, strings.ToValidUTF8(err.Error()[:min(maxWhy, len(err.Error()))], "")
	}
	if !of.tried || p.Works != of.probe.Works {
		p.Since = at
	}
	o.changed = o.changed || !of.tried || p != of.probe
	of.tried, of.probe, of.next = true, p, at.Add(jitter(pause, rand.Float64()))
}

// add puts what is known into a report, if any of it is new.
func (o *oldWays) add(r *telemetry.Report) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.changed {
		return
	}
	o.changed = false
	for _, of := range o.known {
		if of.tried {
			r.Probes = append(r.Probes, of.probe)
		}
	}
	slices.SortFunc(r.Probes, func(a, b telemetry.Probe) int { return strings.Compare(a.Destination, b.Destination) })
}

// tryWay says why a way takes no connections: none of a few of its ends does.
func tryWay(ctx context.Context, w relay.WayTo) error {
	if len(w.Addresses) == 0 {
		return errors.New("no instance is healthy")
	}
	few := rand.Perm(len(w.Addresses))[:min(probedPlaces, len(w.Addresses))]
	var first error
	for _, i := range few {
		within, cancel := context.WithTimeout(ctx, probeWithin/time.Duration(len(few)))
		err := tryEnd(within, w, w.Addresses[i])
		cancel()
		if err == nil {
			return nil
		}
		first = cmp.Or(first, err)
	}
	return first
}

// tryEnd connects and, where an old mesh takes requests, wants to hear the protocol spoken. Any
// answer will do: whether it is a good one is not asked here.
func tryEnd(ctx context.Context, w relay.WayTo, address string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("%s: %w", address, syscallError(err))
	}
	defer conn.Close()
	if w.Way != config.WayLegacy {
		return nil
	}
	if until, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(until); err != nil {
			return err
		}
	}
	switch w.Protocol {
	case config.HTTP:
		host := w.Host
		if host == "" {
			host = w.Destination
		}
		if _, err := fmt.Fprintf(conn, "HEAD / HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\nConnection: close\r\n\r\n", host, probeAgent); err != nil {
			return fmt.Errorf("%s: %w", address, syscallError(err))
		}
		resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, 64<<10)), &http.Request{Method: http.MethodHead})
		if err != nil {
			return fmt.Errorf("%s: takes connections and gives no answer of HTTP/1.1: %w", address, syscallError(err))
		}
		return resp.Body.Close()
	case config.HTTP2:
		if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
			return fmt.Errorf("%s: %w", address, syscallError(err))
		}
		framer := http2.NewFramer(conn, conn)
		err := framer.WriteSettings()
		var f http2.Frame
		if err == nil {
			f, err = framer.ReadFrame()
		}
		if err != nil {
			return fmt.Errorf("%s: takes connections and does not speak HTTP/2: %w", address, syscallError(err))
		}
		if _, ok := f.(*http2.SettingsFrame); !ok {
			return fmt.Errorf("%s: takes connections and does not speak HTTP/2", address)
		}
	}
	return nil
}
