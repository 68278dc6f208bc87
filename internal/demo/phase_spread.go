package demo

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/demo/load"
)

const (
	spreadRequests = 20_500
	spreadLimit    = 5.0 // percent off even
	spreadTime     = 30 * time.Second
)

// spread adds a burst to catalog's load until it has answered enough requests,
// and counts who answered them.
func (d *demo) spread(ctx context.Context, p *Proof) error {
	pr := d.traffic.pairs[0]
	m := d.traffic.mark()
	before := pr.rec.Totals()
	burst := load.NewRecorder()
	burstBefore := burst.Totals()
	burstCtx, stop := context.WithTimeout(ctx, spreadTime)
	defer stop()
	d.traffic.run(burstCtx, pr, burst, burstRate)
	begun := time.Now()
	from := map[string]uint64{}
	err := await(ctx, spreadTime, fmt.Sprintf("%s requests to catalog", count(spreadRequests)), func() error {
		from = map[string]uint64{}
		var n uint64
		for _, t := range []load.Totals{pr.rec.Totals().Since(before), burst.Totals().Since(burstBefore)} {
			for who, k := range t.From {
				from[who] += k
				n += k
			}
		}
		if n < spreadRequests {
			return fmt.Errorf("%s so far", count(n))
		}
		return nil
	})
	stop()
	took := time.Since(begun)
	if err != nil {
		return err
	}
	if err := burst.Settle(ctx); err != nil {
		return err
	}
	pr.burst = burst
	n, worst, text := shares(from)
	p.figure("answers", from)
	p.figure("worst_percent_off_even", worst)
	p.check(len(from) == 4 && worst <= spreadLimit, "%s answers in %s from %d instances on one host: %s; the farthest is %.1f %% off even (allowed %.0f %%)",
		count(n), seconds(took), len(from), text, worst, spreadLimit)
	failed := burst.Totals().Failed
	lat := burst.Latency()
	p.check(failed == 0, "%s of %s requests of the burst failed (p50 %s, p99 %s)", count(failed), count(burst.Totals().Requests), ms(lat.Quantile(0.5)), ms(lat.Quantile(0.99)))
	return d.nothingFailed(ctx, p, m)
}

// shares is how many answers there are, how far the farthest instance is from an
// even share, in percent of that share, and each one's share as text.
func shares(from map[string]uint64) (total uint64, worst float64, text string) {
	for _, n := range from {
		total += n
	}
	even := float64(total) / float64(max(1, len(from)))
	var parts []string
	for _, who := range slices.Sorted(maps.Keys(from)) {
		worst = max(worst, math.Abs(float64(from[who])-even)/even*100)
		parts = append(parts, fmt.Sprintf("%s %.2f %%", who, 100*float64(from[who])/float64(total)))
	}
	return total, worst, strings.Join(parts, ", ")
}
