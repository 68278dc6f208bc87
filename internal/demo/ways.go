package demo

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	wire "github.com/crossfade-mesh/crossfade/api"
)

// byWay writes counts as "legacy 80.0 %, mtls 20.0 % of 220", in the order of the move.
func byWay(counts map[string]uint64) string {
	var parts []string
	total := sum(counts)
	for _, way := range append(wire.Ways(), "plaintext") {
		if n := counts[way]; n > 0 {
			parts = append(parts, fmt.Sprintf("%s %.1f %%", way, 100*float64(n)/float64(total)))
		}
	}
	return strings.Join(parts, ", ") + " of " + count(total)
}

func sum(counts map[string]uint64) (n uint64) {
	for _, k := range counts {
		n += k
	}
	return n
}

// off is by how much a share of counts differs from what it should be, and by how much it
// may: four standard deviations of chance.
func off(counts map[string]uint64, way string, percent float64) (off, may float64) {
	n, p := float64(sum(counts)), percent/100
	return 100 * math.Abs(float64(counts[way])/n-p), 100 * (4*math.Sqrt(p*(1-p)/n) + 0.001)
}

// order runs a verb aloud, as an operator would.
func (d *demo) order(ctx context.Context, args ...string) error {
	return d.orderAs(ctx, args, args)
}

// orderAs shows one command and runs another.
func (d *demo) orderAs(ctx context.Context, shown, args []string) error {
	d.out.line("  %s", d.out.bold("$ crossfade "+strings.Join(shown, " ")))
	text, err := d.mesh.crossfade(ctx, args...)
	if err != nil {
		return err
	}
	for line := range strings.SplitSeq(text, "\n") {
		d.out.line("    %s", d.out.faint(line))
	}
	return nil
}

// roll shows what storefront → catalog does, each second for a while: who answered by which
// way as the clients count it, and how fast as the ledger has it.
func (d *demo) roll(ctx context.Context, how time.Duration) error {
	pr := d.traffic.pairs[0]
	for end := time.Now().Add(how); time.Now().Before(end); {
		before, begun := pr.rec.Totals(), time.Now()
		if err := pause(ctx, min(time.Second, time.Until(end))); err != nil {
			return err
		}
		now := pr.rec.Totals().Since(before)
		row, err := d.mesh.api.ledger(ctx, pr.from.service, pr.to.service)
		if err != nil {
			return err
		}
		var p99 []string
		for _, w := range row.Ways {
			p99 = append(p99, fmt.Sprintf("%s %.1f ms", w.Way, w.P99))
		}
		d.out.step("%s  %3.0f/s  %-40s failed %d  p99 of the last minute: %s", pr.key(),
			float64(now.Requests)/time.Since(begun).Seconds(), byWay(now.Ways), now.Failed, strings.Join(p99, ", "))
	}
	return nil
}
