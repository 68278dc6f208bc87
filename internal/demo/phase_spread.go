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
	spreadTime     = 45 * time.Second
)

// spread adds a burst to catalog's load until it has answered enough requests,
// and counts who answered them.
func (d *demo) spread(ctx context.Context, p *Proof) error {
	pr := d.traffic.pairs[0]
	m := d.traffic.mark()
	before := pr.rec.Totals()
	burstCtx, stop := context.WithTimeout(ctx, spreadTime)
	defer stop()
	d.traffic.startBurst(burstCtx, pr)
	begun := time.Now()
	from := map[string]uint64{}
	err := await(ctx, spreadTime, fmt.Sprintf("%s requests to catalog", count(spreadRequests)), func() error {
		from = map[string]uint64{}
		var n uint64
		for _, t := range []load.Totals{pr.rec.Totals().Since(before), pr.burst.Totals()} {
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
	if err := pr.burst.Settle(ctx); err != nil {
		return err
	}
	n, worst, text := shares(from)
	p.figure("answers", from)
	p.figure("worst_percent_off_even", worst)
	p.check(len(from) == 4 && worst <= spreadLimit, "%s answers in %s from %d instances on one host: %s; the farthest is %.1f %% off even (allowed %.0f %%)",
		count(n), seconds(took), len(from), text, worst, spreadLimit)
	burst := pr.burst.Totals()
	if p.check(burst.Failed == 0, "%s of %s requests that were added for this failed", count(burst.Failed), count(burst.Requests)); burst.Failed > 0 {
		for _, line := range reasons(map[*pair][]load.Failure{pr: pr.burst.Failures()}) {
			p.check(false, "%s", line)
		}
	}
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
