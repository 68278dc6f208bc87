package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Bounds of probing legacy addresses.
const (
	probeTimeout = time.Second
	// probesAtOnce is how many connections the server tries at the same time.
	probesAtOnce = 256
	// probeFresh is how long a result is shown in the ledger without asking again.
	probeFresh = 5 * time.Second
	// ledgerProbes and ledgerWait bound what one look at the ledger may cost.
	ledgerProbes = 256
	ledgerWait   = 400 * time.Millisecond
	maxProbed    = 10_000 // results that are remembered
)

// errNotProbed is of an address of which nothing is known in time.
var errNotProbed = errors.New("not probed: too many addresses at once, or no answer yet")

// prober finds out whether anything takes connections at an address.
type prober struct {
	dial  func(ctx context.Context, address string) error
	slots chan struct{}

	mu   sync.Mutex
	last map[string]probed // guarded by mu
}

// probed is the result of one probe.
type probed struct {
	at    time.Time
	err   error     // nil: something listens there
	since time.Time // when that became so
	last  time.Time // when something last listened there
}

func newProber(dial func(ctx context.Context, address string) error) *prober {
	return &prober{dial: dial, slots: make(chan struct{}, probesAtOnce), last: map[string]probed{}}
}

// dialTCP connects, and hangs up.
func dialTCP(ctx context.Context, by net.Dialer, address string) error {
	conn, err := by.DialContext(ctx, "tcp", address)
	if err != nil {
		if t, ok := errors.AsType[net.Error](err); ok && t.Timeout() {
			return fmt.Errorf("no answer within %s", by.Timeout)
		}
		if op, ok := errors.AsType[*net.OpError](err); ok {
			return op.Err
		}
		return err
	}
	return conn.Close()
}

// all probes the addresses, each once and many at the same time, and takes a result that
// is not older than fresh for an answer. most bounds how many are probed anew. What is not
// known when ctx ends has [errNotProbed]. It returns when all that it began has ended.
func (p *prober) all(ctx context.Context, addresses []string, fresh time.Duration, most int) map[string]error {
	out := make(map[string]error, len(addresses))
	var begin []string
	now := time.Now()
	p.mu.Lock()
	for _, a := range addresses {
		if _, again := out[a]; again {
			continue
		}
		out[a] = errNotProbed
		if was, ok := p.last[a]; ok && now.Sub(was.at) < fresh {
			out[a] = was.err
		} else if len(begin) < most {
			begin = append(begin, a)
		}
	}
	p.mu.Unlock()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, a := range begin {
		wg.Go(func() {
			select {
			case p.slots <- struct{}{}:
				defer func() { <-p.slots }()
			case <-ctx.Done():
				return
			}
			err := p.dial(ctx, a)
			if ctx.Err() != nil && err != nil {
				return // by no fault of the address
			}
			p.keep(a, err)
			mu.Lock()
			defer mu.Unlock()
			out[a] = err
		})
	}
	wg.Wait()
	return out
}

func (p *prober) keep(address string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.last) >= maxProbed {
		clear(p.last)
	}
	now, was := time.Now(), p.last[address]
	next := probed{at: now, err: err, since: was.since, last: was.last}
	if was.at.IsZero() || (err == nil) != (was.err == nil) {
		next.since = now
	}
	if err == nil {
		next.last = now
	}
	p.last[address] = next
}

// history is since when an address is as it is, and when something last listened there.
func (p *prober) history(address string) (since, last time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last[address].since, p.last[address].last
}
