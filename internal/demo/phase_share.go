package demo

import (
	"context"
	"fmt"
	"time"
)

const (
	// A share is judged by so many answers at least.
	shareAnswers = 640
	shareLimit   = 20 * time.Second
)

// share moves pairs from way to way in steps, by hand and by the clock, and counts where
// requests really went.
func (d *demo) share(ctx context.Context, p *Proof) error {
	m := d.traffic.mark()
	d.plainSent = true
	for _, args := range [][]string{
		{"shift", "--service", "assignments", "--stage", "permissive"},
		{"shift", "catalog", "assignments", "--to", "mtls", "--steps", "50,100", "--dwell", "30s"},
		{"shift", "--service", "payments", "--stage", "permissive"},
		{"shift", "storefront", "payments", "--via", "mtls=50"},
		{"shift", "--service", "catalog", "--stage", "plain"},
	} {
		if err := d.order(ctx, args...); err != nil {
			return err
		}
	}
	for _, step := range []struct {
		way, seen string
		percent   float64
		wanted    map[string]float64 // by way as the app sees it
	}{
		{"plain", "plaintext", 20, map[string]float64{"legacy": 80, "plaintext": 20}},
		{"plain", "plaintext", 60, map[string]float64{"legacy": 40, "plaintext": 60}},
		{"plain", "plaintext", 100, map[string]float64{"plaintext": 100}},
		{"mtls", "mtls", 33, map[string]float64{"plaintext": 67, "mtls": 33}},
		{"mtls", "mtls", 100, map[string]float64{"mtls": 100}},
	} {
		if step.way == "mtls" && step.percent < 100 {
			if err := d.order(ctx, "shift", "--service", "catalog", "--stage", "permissive"); err != nil {
				return err
			}
		}
		shown := []string{"shift", "storefront", "catalog", "--via", fmt.Sprintf("%s=%v", step.way, step.percent)}
		run := shown
		if d.o.sabotaged("share") && step.percent == 60 {
			d.out.step("sabotage: what is written is %s=30", step.way)
			run = []string{"shift", "storefront", "catalog", "--via", step.way + "=30"}
		}
		if err := d.orderAs(ctx, shown, run); err != nil {
			return err
		}
		if err := d.judge(ctx, p, step.seen, step.percent, step.wanted); err != nil {
			return err
		}
	}
	if err := d.order(ctx, "shift", "storefront", "payments", "--via", "mtls=100"); err != nil {
		return err
	}
	return d.nothingFailed(ctx, p, m)
}

// judge counts for a while where storefront's requests to catalog go.
func (d *demo) judge(ctx context.Context, p *Proof, seen string, percent float64, wanted map[string]float64) error {
	pr := d.traffic.pairs[0]
	if err := pr.rec.Settle(ctx); err != nil {
		return err
	}
	before, begun := pr.rec.Totals(), time.Now()
	for {
		if err := d.roll(ctx, time.Second); err != nil {
			return err
		}
		if n := sum(pr.rec.Totals().Since(before).Ways); n >= shareAnswers || time.Since(begun) > shareLimit {
			break
		}
	}
	ways := pr.rec.Totals().Since(before).Ways
	right := true
	worst, may := 0.0, 0.0
	for way, share := range wanted {
		by, most := off(ways, way, share)
		right = right && by <= most
		if by >= worst {
			worst, may = by, most
		}
	}
	for way := range ways {
		right = right && wanted[way] > 0
	}
	p.figure(fmt.Sprintf("%s_%v", seen, percent), ways)
	p.check(right, "wanted %v %% %s, the apps saw %s: %.1f points off, chance makes up to %.1f", percent, seen, byWay(ways), worst, may)
	return nil
}
