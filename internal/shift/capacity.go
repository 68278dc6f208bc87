package shift

import "fmt"

// Callee is what is known of a destination's capacity.
type Callee struct {
	Service string  `json:"service"`
	Ways    []Reach `json:"ways,omitempty"`
}

// Reach is how much of a callee a way reaches.
type Reach struct {
	Way   Way     `json:"way"`
	Ready int     `json:"ready"`           // healthy instances that take this way
	Total int     `json:"total"`           // healthy instances
	Limit float64 `json:"limit,omitempty"` // requests a second that one instance bears; 0 is not known
	Rate  float64 `json:"rate,omitempty"`  // requests a second on this way now, of all callers
}

// quiet says whether no request to the callee is known of.
func (c Callee) quiet() bool {
	for _, r := range c.Ways {
		if r.Rate > 0 {
			return false
		}
	}
	return true
}

// reach is what is known of a way.
func (c Callee) reach(w Way) (Reach, bool) {
	for _, r := range c.Ways {
		if r.Way == w {
			return r, true
		}
	}
	return Reach{}, false
}

// Move is a change of a pair's shares. Rate is the pair's requests a second.
type Move struct {
	Rate          float64
	Before, After Shares
}

// Room says whether the callee bears changes of shares. An error says why not: only a way that
// gets more is a reason.
//
// Where it is known what an instance bears, that decides. Else an instance that takes all ways
// must not get more than headroom times the mean, unless it gets that already: from each
// way it gets that way's part of all requests times total/ready, so with a
// quarter of all requests over 3 of 12 instances, 0.25·4 + 0.75 of the mean. Where no
// request is known of, the shares stand for requests.
func (c Callee) Room(headroom Share, moves ...Move) error {
	now, after := map[Way]float64{}, map[Way]float64{}
	quiet := c.quiet()
	for _, w := range c.Ways {
		now[w.Way], after[w.Way] = w.Rate, w.Rate
	}
	var rise []Way
	for _, w := range Ways() {
		more := false
		for _, m := range moves {
			before, then := float64(m.Before.Of(w))/float64(Whole), float64(m.After.Of(w))/float64(Whole)
			if quiet {
				now[w], after[w] = now[w]+before, after[w]+then
			} else {
				after[w] += m.Rate * (then - before)
			}
			more = more || then > before
		}
		after[w] = max(0, after[w])
		if more {
			rise = append(rise, w)
		}
	}
	var least Reach // of those that get more, what reaches the smallest part
	for _, w := range rise {
		r, ok := c.reach(w)
		switch {
		case !ok:
			return fmt.Errorf("service %q: it is not known how many instances take way %s", c.Service, w)
		case r.Ready <= 0:
			return fmt.Errorf("service %q: none of %d instances takes way %s", c.Service, r.Total, w)
		case r.Limit > 0 && !quiet && after[w] > float64(r.Ready)*r.Limit:
			return fmt.Errorf("service %q: way %s would carry %.4g requests a second: its %d instances bear %.4g", c.Service, w, after[w], r.Ready, float64(r.Ready)*r.Limit)
		case r.Limit <= 0 && (least.Way == "" || r.scarce() > least.scarce()):
			least = r
		}
	}
	if least.Way == "" {
		return nil
	}
	load, most := c.load(after), float64(headroom)/float64(Whole)
	if load > most && load > c.load(now)*(1+1e-9) {
		return fmt.Errorf("service %q: %d of %d instances take way %s: each would get %.4g times the mean load, at most %.4g", c.Service, least.Ready, least.Total, least.Way, load, most)
	}
	return nil
}

// Stops says at which step of a plan, and why, the callee would have no room, as it is now.
func (c Callee) Stops(p Plan, rate float64, now Shares) error {
	p = p.withDefaults()
	for step, more := p.next(now.Of(p.To)); more; step, more = p.next(step) {
		if err := c.Room(p.Headroom, Move{rate, now, p.shares(step)}); err != nil {
			return fmt.Errorf("step %v: %w", step, err)
		}
	}
	return nil
}

// scarce is how many times the mean an instance gets that takes a way, if all go by that.
func (r Reach) scarce() float64 {
	return float64(max(r.Total, 1)) / float64(min(max(r.Ready, 1), max(r.Total, 1)))
}

// load is how many times the mean an instance gets that takes all ways, of so many requests by
// each.
func (c Callee) load(by map[Way]float64) float64 {
	load, all := 0.0, 0.0
	for _, r := range c.Ways {
		all += by[r.Way]
		load += by[r.Way] * r.scarce()
	}
	if all <= 0 {
		return 0
	}
	return load / all
}

// named gives a callee of which nothing was observed its name, for the reason.
func (c Callee) named(p Pair) Callee {
	c.Service = p.Destination
	return c
}
