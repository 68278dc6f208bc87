package demo

import (
	"context"
	"time"
)

// revertLimit is from the command to the last new request on the new way.
const revertLimit = 2 * time.Second

// revert puts a pair on the new way altogether, and takes it back with one command.
func (d *demo) revert(ctx context.Context, p *Proof) error {
	m, pr := d.traffic.mark(), d.traffic.pairs[0]
	for _, args := range [][]string{
		{"shift", "--service", "catalog", "--stage", "permissive"},
		{"shift", "storefront", "catalog", "--via", "mtls=100"},
	} {
		if err := d.order(ctx, args...); err != nil {
			return err
		}
	}
	if err := d.roll(ctx, 2*time.Second); err != nil {
		return err
	}
	pressed := time.Now()
	if d.o.sabotaged("revert") {
		d.out.step("sabotage: revert is not pressed")
	} else if err := d.order(ctx, "revert", "storefront", "catalog"); err != nil {
		return err
	}
	if err := d.roll(ctx, revertLimit+time.Second-time.Since(pressed)); err != nil {
		return err
	}
	after := pr.rec.Totals()
	if err := d.roll(ctx, time.Second); err != nil {
		return err
	}
	if err := pr.rec.Settle(ctx); err != nil {
		return err
	}
	ways := pr.rec.Totals().Since(after).Ways
	last := max(0, pr.rec.LastSent("mtls").Sub(pressed))
	p.figure("last_on_new_way_seconds", last.Seconds())
	p.check(last <= revertLimit, "the last request that a client sent on the new way left %s after revert was pressed (allowed %s)", ms(last), seconds(revertLimit))
	p.check(ways["legacy"] > 0 && len(ways) == 1, "a second later: %s", byWay(ways))
	return d.nothingFailed(ctx, p, m)
}
