package sidecar

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/shift"
	"github.com/crossfade-mesh/crossfade/internal/sidecar/relay"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

const (
	// probeOldEvery is how often old ways are tried, for as long as a pair may go back.
	probeOldEvery = 3 * time.Second
	// probeOldWithin is how long an address may take to accept a connection.
	probeOldWithin = time.Second
	// probedAddresses of one way are tried, other ones each time.
	probedAddresses = 3
)

// oldWays tries whether the old ways of this instance's pairs take connections, from here.
type oldWays struct {
	list func() []relay.OldWay

	mu   sync.Mutex
	last map[string]telemetry.Probe // by destination; guarded by mu
	told map[string]telemetry.Probe
	at   time.Time // when all were told
}

func newOldWays(list func() []relay.OldWay) *oldWays {
	return &oldWays{list: list, last: map[string]telemetry.Probe{}, told: map[string]telemetry.Probe{}}
}

func (o *oldWays) run(ctx context.Context) {
	for pause := time.Second; sleep(ctx, jitter(pause, rand.Float64())); pause = probeOldEvery {
		for _, w := range o.list() {
			p := telemetry.Probe{Destination: w.Destination, Way: shift.Way(w.Way)}
			p.Works, p.Why = try(ctx, w.Addresses)
			o.mu.Lock()
			if was, ok := o.last[w.Destination]; ok && was.Works == p.Works && was.Way == p.Way {
				p.Since = was.Since
			} else {
				p.Since = time.Now().UTC().Truncate(time.Second)
			}
			o.last[w.Destination] = p
			o.mu.Unlock()
		}
	}
}

// try connects to some of the addresses. One that accepts is enough.
func try(ctx context.Context, addresses []string) (works bool, why string) {
	if len(addresses) == 0 {
		return false, "nobody is there"
	}
	var failed []string
	for _, i := range rand.Perm(len(addresses))[:min(len(addresses), probedAddresses)] {
		d := net.Dialer{Timeout: probeOldWithin}
		c, err := d.DialContext(ctx, "tcp", addresses[i])
		if err == nil {
			_ = c.Close()
			return true, ""
		}
		failed = append(failed, fmt.Sprintf("%s: %v", addresses[i], syscallError(err)))
	}
	why = strings.Join(failed, ", ")
	return false, why[:min(len(why), 200)]
}

// add puts what has changed into a report, and everything once in a while.
func (o *oldWays) add(r *telemetry.Report, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := now.Sub(o.at) > probeOldEvery
	if all {
		o.at = now
	}
	for destination, p := range o.last {
		if all || o.told[destination] != p {
			o.told[destination] = p
			r.Probes = append(r.Probes, p)
		}
	}
}
