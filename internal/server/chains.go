package server

import (
	"maps"
	"slices"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// chains compiles each service once for all its callers, as long as no entry that it
// was made from changes. Where entries make no chain any more, the last one that
// worked stays in force, until the server restarts. Not safe for concurrent use.
type chains struct {
	made map[chainKey]compiled
	good map[chainKey]routing.Chain
	old  map[chainKey]routing.Chain // of made, those in force though entries make none; replaced, not changed
}

// chainKey is a [routing.Request] without its entries.
type chainKey struct{ service, datacenter, protocol string }

type compiled struct {
	chain    routing.Chain
	problems []proxy.Problem
}

func newChains() *chains {
	return &chains{made: map[chainKey]compiled{}, good: map[chainKey]routing.Chain{}}
}

// forget drops what was made from any of the entries.
func (c *chains) forget(changed []config.Key) {
	if len(changed) == 0 {
		return
	}
	for key, m := range c.made {
		if slices.ContainsFunc(changed, m.chain.Read) {
			delete(c.made, key)
			c.remember(key, nil)
		}
	}
}

// compile is [routing.Compile] with a memory.
func (c *chains) compile(req routing.Request) (routing.Chain, []proxy.Problem) {
	key := chainKey{req.Service, req.Datacenter, req.Protocol}
	if m, ok := c.made[key]; ok {
		return m.chain, m.problems
	}
	chain, problems := routing.Compile(req)
	if chain.Broken == "" {
		c.good[key] = chain
	} else if good, ok := c.good[key]; ok {
		reads := append(slices.Clone(chain.Reads), good.Reads...)
		slices.SortFunc(reads, config.Key.Compare)
		good.Reads = slices.Compact(reads)
		chain = good
		c.remember(key, &good)
		for i := range problems {
			problems[i].Reason += "; the last entries that worked stay in force"
		}
	}
	c.made[key] = compiled{chain, problems}
	return chain, problems
}

// remember notes that a chain is in force though entries make none, or, with nil, is not.
func (c *chains) remember(key chainKey, chain *routing.Chain) {
	if _, is := c.old[key]; !is && chain == nil {
		return
	}
	c.old = maps.Clone(c.old)
	if c.old == nil {
		c.old = map[chainKey]routing.Chain{}
	}
	if chain == nil {
		delete(c.old, key)
	} else {
		c.old[key] = *chain
	}
}
