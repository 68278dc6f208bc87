package shop

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/demo/load"
)

// Payments is a client of payments. It is safe for concurrent use.
type Payments struct{ conns }

// NewPayments calls addr, a host:port. newEvery is as in [NewHTTP].
func NewPayments(addr string, newEvery uint64) *Payments { return NewPaymentsBy(At(addr), newEvery) }

// NewPaymentsBy calls where a road leads.
func NewPaymentsBy(road Road, newEvery uint64) *Payments {
	return &Payments{conns{road: road, newEvery: newEvery, maxAge: maxAge}}
}

// maxAge is for how long a connection is used for one payment after the other, as pools of
// connections to databases have it: what has a way of its own is renewed in time.
const maxAge = 3 * time.Second

// Prune closes kept connections that would not be used again.
func (p *Payments) Prune() { p.prune() }

// PayNumbered makes payment n. It is a [load.Call].
func (p *Payments) PayNumbered(n uint64, deadline time.Time) (load.Answer, error) {
	own := p.own(n)
	c, isNew, err := p.open(own, deadline)
	if err != nil {
		return load.Answer{}, err
	}
	from, err := c.pay(token("p", n), uint32(n%100_000))
	if err != nil || own {
		c.Close()
	} else {
		p.put(c)
	}
	return load.Answer{From: from, NewConnection: isNew}, err
}

// Pay pays an amount and returns the instance that took it.
func (p *Payments) Pay(token string, amount uint32, deadline time.Time) (from string, err error) {
	c, _, err := p.open(false, deadline)
	if err != nil {
		return "", err
	}
	if from, err = c.pay(token, amount); err != nil {
		c.Close()
		return "", err
	}
	p.put(c)
	return from, nil
}

// open is a connection on which the server has spoken.
func (p *Payments) open(own bool, deadline time.Time) (*conn, bool, error) {
	c, isNew, err := p.get(own, deadline)
	if err != nil || !isNew {
		return c, isNew, err
	}
	line, err := c.r.ReadString('\n')
	if f := strings.Fields(line); err == nil && (len(f) != 3 || f[0] != "payments" || f[2] != "ready") {
		err = fmt.Errorf("wrong greeting: got %.200q", line)
	}
	if err != nil {
		c.Close()
		return nil, isNew, err
	}
	return c, isNew, nil
}

func (c *conn) pay(token string, amount uint32) (from string, err error) {
	if _, err := fmt.Fprintf(c, "pay %s %d\n", token, amount); err != nil {
		return "", err
	}
	line, err := c.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	want := fmt.Sprintf("paid %s %d ", token, amount)
	from, right := strings.CutPrefix(strings.TrimSuffix(line, "\n"), want)
	if !right || from == "" {
		return "", fmt.Errorf("wrong answer: got %.200q, want %q and an instance", line, want)
	}
	return from, nil
}

// HoldConnection opens one connection and makes a payment on it every 100 ms
// until ctx ends.
func (p *Payments) HoldConnection(ctx context.Context, name string) (*LongLived, error) {
	c, _, err := p.open(true, time.Now().Add(callTimeout))
	if err != nil {
		return nil, err
	}
	l := newLongLived()
	go func() {
		defer c.Close()
		tick := time.NewTicker(watchInterval)
		defer tick.Stop()
		for n := uint64(1); ; n++ {
			err := c.SetDeadline(time.Now().Add(callTimeout))
			if err == nil {
				_, err = c.pay(fmt.Sprintf("%s-%d", name, n), uint32(n))
			}
			if err != nil {
				l.finish(fmt.Errorf("payment %d on the open connection: %w", n, err))
				return
			}
			l.message()
			select {
			case <-tick.C:
			case <-ctx.Done():
				l.finish(nil)
				return
			}
		}
	}()
	return l, nil
}
