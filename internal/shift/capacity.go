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

// Room says whether the callee bears a step: the new way takes share to instead
// of share now of a pair with the given requests a second. An error says why not.
//
// Where it is known what an instance bears, that decides. Else an instance that
// takes the new way must not get more than headroom times the mean: from each
// way it gets that way's part of all requests times total/ready, so with a
// quarter of all requests over 3 of 12 instances, 0.25·4 + 0.75 of the mean. Where no
// request is known of, the pair's shares stand for all.
func (c Callee) Room(p Plan, rate float64, now, to Share) error {
	r, ok := c.reach(p.To)
	if !ok {
		return fmt.Errorf("service %q: it is not known how many instances take way %s", c.Service, p.To)
	}
	if r.Ready <= 0 {
		return fmt.Errorf("service %q: none of %d instances takes way %s", c.Service, r.Total, p.To)
	}
	more := rate * float64(to-now) / float64(Whole)
	if r.Limit > 0 {
		if after, bears := r.Rate+more, float64(r.Ready)*r.Limit; after > bears {
			return fmt.Errorf("service %q: way %s would carry %.4g requests a second: its %d instances bear %.4g", c.Service, p.To, after, r.Ready, bears)
		}
		return nil
	}
	if c.quiet() {
		rate, more = 1, float64(to)/float64(Whole)
	}
	load, all := 0.0, 0.0
	for _, w := range c.Ways {
		at := w.Rate
		switch {
		case w.Way == p.To:
			at += more
		case w.Way == p.From && c.quiet():
			at = rate - more
		case w.Way == p.From:
			at = max(0, at-more)
		}
		all += at
		load += at * float64(max(w.Total, 1)) / float64(min(max(w.Ready, 1), max(w.Total, 1)))
	}
	if all <= 0 {
		return nil
	}
	load /= all
	if most := float64(p.Headroom) / float64(Whole); load > most {
		return fmt.Errorf("service %q: %d of %d instances take way %s: each would get %.4g times the mean load, at most %.4g", c.Service, r.Ready, r.Total, p.To, load, most)
	}
	return nil
}

// named gives a callee of which nothing was observed its name, for the reason.
func (c Callee) named(p Pair) Callee {
	c.Service = p.Destination
	return c
}
