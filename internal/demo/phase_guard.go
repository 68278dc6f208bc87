package demo

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"

	wire "github.com/crossfade-mesh/crossfade/api"
)

const (
	guardLimit = 10 * time.Second // from the fault until all is back
	guardWait  = 20 * time.Second // until that has failed
	guardBase  = 4 * time.Second  // for which both ways are watched before
	// A slowed Envoy stands still for so long, and then runs for so long.
	stillTime, runTime = 100 * time.Millisecond, 50 * time.Millisecond
	goneInstances      = 12
)

// guard makes the new way of storefront → catalog slow, and then fail, and waits for the
// shift guard to take it back.
func (d *demo) guard(ctx context.Context, p *Proof) error {
	m := d.traffic.mark()
	if err := d.order(ctx, "shift", "--service", "catalog", "--stage", "permissive"); err != nil {
		return err
	}
	if d.o.sabotaged("guard") {
		d.out.step("sabotage: the pair's guard is off")
	}
	slow := func() (func() error, error) { return d.slowDown(), nil }
	if err := d.breach(ctx, p, "slow", "the sidecars of 3 of catalog's 4 instances stand still two thirds of the time", slow); err != nil || !p.Held {
		return err
	}
	fail := func() (func() error, error) { return d.goneSidecars(ctx) }
	err := d.breach(ctx, p, "failing", fmt.Sprintf("%d more sidecars of catalog are registered, as of hosts that died a moment ago; retries hide that from callers", goneInstances), fail)
	if err != nil {
		return err
	}
	return d.nothingFailed(ctx, p, m)
}

// breach puts half of the pair on mtls, breaks that way, and sees the shares go back.
func (d *demo) breach(ctx context.Context, p *Proof, what, how string, fault func() (func() error, error)) (err error) {
	if err := d.order(ctx, "shift", "storefront", "catalog", "--via", "legacy=50,mtls=50"); err != nil {
		return err
	}
	if err := d.roll(ctx, guardBase); err != nil {
		return err
	}
	row, err := d.mesh.api.ledger(ctx, "storefront", "catalog")
	if err != nil {
		return err
	}
	if !p.check(row.Shares == wire.Shares{Legacy: 50, MTLS: 50}, "while both ways are well nothing is taken back: %s", row.Shares) {
		return nil
	}
	d.out.step("now the new way is made %s: %s", what, how)
	begun := time.Now()
	mend, err := fault()
	if err != nil {
		return err
	}
	defer func() {
		if mended := mend(); err == nil {
			err = mended
		}
	}()
	back := false
	for time.Since(begun) < guardWait && !back {
		if err := d.roll(ctx, time.Second); err != nil {
			return err
		}
		if row, err = d.mesh.api.ledger(ctx, "storefront", "catalog"); err != nil {
			return err
		}
		back = row.Shares.Legacy == 100
	}
	if !back {
		p.check(false, "%s: %s after the fault the pair is still at %s", what, seconds(time.Since(begun)), row.Shares)
		return nil
	}
	err = await(ctx, guardWait, "the revert is done", func() error {
		if row, err = d.mesh.api.ledger(ctx, "storefront", "catalog"); err != nil {
			return err
		}
		if row.Shift == nil || row.Shift.Status != "reverted" || row.Changed == nil {
			return fmt.Errorf("the shift is %+v", row.Shift)
		}
		return nil
	})
	if err != nil {
		return err
	}
	changed := row.Changed
	took := changed.Time.Sub(begun)
	p.figure(what+"_reverted_seconds", took.Seconds())
	p.check(took <= guardLimit && changed.Who == "shift guard", "%s: all is back on legacy %s after the fault, by the %s", what, seconds(took), changed.Who)
	if row.Shift != nil && row.Shift.Breach != "" {
		for line := range strings.SplitSeq(strings.TrimSpace(row.Shift.Breach), "\n") {
			d.out.line("    %s", d.out.faint(line))
		}
	}
	return nil
}

// slowDown lets Envoys of callees stand still again and again. The first instance's is left
// out, since it is also a caller's.
func (d *demo) slowDown() (mend func() error) {
	var pids []int
	for _, id := range []string{"catalog-2", "catalog-3", "catalog-4"} {
		if s, err := d.mesh.instance(id).status(); err == nil {
			pids = append(pids, s.Envoy.PID)
		}
	}
	all := func(sig syscall.Signal) {
		for _, pid := range pids {
			_ = syscall.Kill(pid, sig)
		}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer all(syscall.SIGCONT)
		for {
			all(syscall.SIGSTOP)
			<-time.After(stillTime)
			all(syscall.SIGCONT)
			select {
			case <-quit:
				return
			case <-time.After(runTime):
			}
		}
	}()
	return func() error {
		close(quit)
		<-done
		return nil
	}
}

// goneSidecars registers sidecars that are not there, as of hosts that died a moment ago.
func (d *demo) goneSidecars(ctx context.Context) (mend func() error, err error) {
	var ids []string
	mend = func() error {
		for _, id := range ids {
			if err := d.mesh.api.deregister(ctx, id); err != nil {
				return err
			}
		}
		return nil
	}
	ports, err := freePorts(goneInstances)
	if err != nil {
		return nil, err
	}
	for n, port := range ports {
		id := fmt.Sprintf("catalog-gone-%d", n+1)
		err := d.mesh.api.register(ctx, map[string]any{
			"Kind": "connect-proxy", "Name": "catalog-sidecar-proxy", "ID": id + "-sidecar-proxy", "Address": "127.0.0.1", "Port": port,
			"Proxy": map[string]any{"DestinationServiceName": "catalog", "DestinationServiceID": id},
		})
		if err != nil {
			return nil, err
		}
		ids = append(ids, id+"-sidecar-proxy")
	}
	return mend, nil
}
