package shift

import (
	"fmt"
	"time"
)

const (
	// blockFor and blockLeast are how long and how many attempts make a [Block].
	blockFor   = 3 * time.Second
	blockLeast = 60
	// strikes is how many blocks running must be worse than the past.
	strikes = 3
	// pastLeast is how many blocks of the old way are a past to compare with, pastFor how long
	// it lasts: it holds the worst of the last one to two times as long.
	pastLeast = 5
	pastFor   = 10 * time.Minute
	// aloneTimes is how much wider limits are than beside the old way.
	aloneTimes = 10
	// aloneFailures is where widening [Limits.Failures] ends.
	aloneFailures Share = 2000
)

// Block is a few seconds of one way, as they add up.
type Block struct {
	Telemetry Telemetry     `json:"telemetry,omitzero"`
	For       time.Duration `json:"for,omitempty"`
}

// add adds a stretch; done says that the block is full.
func (b Block) add(t Telemetry, elapsed time.Duration) (out Block, done bool) {
	out = Block{b.Telemetry.Merge(t), b.For + elapsed}
	return out, out.For >= blockFor && out.Telemetry.tried() >= blockLeast
}

// value is the metric in the block.
func (b Block) value(m Metric) float64 { return Recent{}.add(b.Telemetry, 0).value(m) }

// Past is the worst that the old way was, by metric, in blocks of the last ten to twenty
// minutes in which it carried requests.
type Past struct {
	Blocks  int                   `json:"blocks,omitempty"` // seen in all
	For     time.Duration         `json:"for,omitempty"`    // that Worst is of
	Worst   [len(metrics)]float64 `json:"worst"`
	Earlier [len(metrics)]float64 `json:"earlier"` // the ten minutes before
}

// add takes a block in.
func (p Past) add(b Block) Past {
	if p.For >= pastFor {
		p.Earlier, p.Worst, p.For = p.Worst, [len(metrics)]float64{}, 0
	}
	for i, m := range metrics {
		p.Worst[i] = max(p.Worst[i], b.value(m))
	}
	p.Blocks, p.For = p.Blocks+1, p.For+b.For
	return p
}

// worst is a metric's worst value.
func (p Past) worst(i int) float64 { return max(p.Worst[i], p.Earlier[i]) }

// remember adds what the old way did to the past.
func (g Guard) remember(old Telemetry, elapsed time.Duration) Guard {
	block, done := g.Block.add(old, elapsed)
	if done {
		g.Past, block = g.Past.add(block), Block{}
	}
	g.Block = block
	return g
}

// anew is a guard that has seen nothing but the old way's past.
func (g Guard) anew() Guard { return Guard{Past: g.Past} }

// alone adds what the new way did while it carried everything, and compares it with the old
// way's past once a block is full. What it returns is the breach, if there is one.
func (g Guard) alone(new Telemetry, elapsed time.Duration, l Limits) (Guard, *Breach) {
	block, done := g.Block.add(new, elapsed)
	g.Block = block
	if !done || g.Past.Blocks < pastLeast {
		return g, nil
	}
	g.Block = Block{}
	for i, m := range metrics {
		if g.Strikes[i]++; !l.alone().worse(m, g.Past.worst(i), block.value(m)) {
			g.Strikes[i] = 0
		}
	}
	for i, m := range metrics {
		if g.Strikes[i] >= strikes {
			return g, &Breach{
				Alone: true, Metric: m, Old: round(g.Past.worst(i)), New: round(block.value(m)),
				NewAttempts: float64(block.Telemetry.tried()), Limit: l.alone().text(m),
			}
		}
	}
	return g, nil
}

// alone are the limits for a comparison with the past, which may have been another time of
// the day.
func (l Limits) alone() Limits {
	l.Failures = max(l.Failures, min(l.Failures*aloneTimes, aloneFailures))
	l.Slower, l.SlowerBy = l.Slower*aloneTimes, l.SlowerBy*aloneTimes
	return l
}

// struck says which metric may be about to breach, and "" for none.
func (g Guard) struck() string {
	for i, m := range metrics {
		if g.Strikes[i] > 0 {
			return fmt.Sprintf("%s looks worse than the old way was, not surely yet", m)
		}
	}
	return ""
}
