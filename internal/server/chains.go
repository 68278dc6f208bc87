package server

import (
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
	for key, m := range c.made {
		if slices.ContainsFunc(changed, m.chain.Read) {
			delete(c.made, key)
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
		for i := range problems {
			problems[i].Reason += "; the last entries that worked stay in force"
		}
	}
	c.made[key] = compiled{chain, problems}
	return chain, problems
}
