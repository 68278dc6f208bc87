package server

import (
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

const (
	// welcomeFor is how long newcomers are built for in one step, so that what others are to
	// be told does not wait for all of them.
	welcomeFor = 20 * time.Millisecond
	// welcomeAtLeast is how many are, however long it takes.
	welcomeAtLeast = 8
)

// crowd is the nodes with an open stream, or with one lately, and which of them a change may concern: finding
// them costs what they are, not what the crowd is. Only run touches it.
type crowd struct {
	nodes    map[string]node                // by key
	byID     map[string]map[string]struct{} // keys by service ID
	bySource map[string]map[string]struct{} // keys by service whose addresses the sidecar lets in
	leaving  map[string]struct{}            // keys of sidecars that are to give endpoints up
	// newcomers are keys of nodes for which nothing was made yet, in the order in which they came.
	newcomers []string
	queued    map[string]struct{} // those of newcomers
}

func newCrowd() crowd {
	return crowd{
		nodes: map[string]node{}, byID: map[string]map[string]struct{}{}, bySource: map[string]map[string]struct{}{}, leaving: map[string]struct{}{},
		queued: map[string]struct{}{},
	}
}

// queue makes a node wait for [mesh.welcome].
func (c *crowd) queue(key string) {
	if _, is := c.queued[key]; !is {
		c.queued[key] = struct{}{}
		c.newcomers = append(c.newcomers, key)
	}
}

// come takes in a node as it is now.
func (c *crowd) come(key string, n node) {
	c.nodes[key] = n
	enter(c.byID, n.id, key)
}

// rest notes that a node has no stream for now.
func (c *crowd) rest(key string) {
	n := c.nodes[key]
	n.streams, n.conn = 0, nil
	c.nodes[key] = n
}

func (c *crowd) leave(key string) {
	remove(c.byID, c.nodes[key].id, key)
	delete(c.nodes, key)
}

// lets notes whose addresses a sidecar lets in.
func (c *crowd) lets(key string, before, now []string) {
	for _, service := range before {
		remove(c.bySource, service, key)
	}
	for _, service := range now {
		enter(c.bySource, service, key)
	}
}

// registered are the keys of nodes that a set speaks of, added to out.
func (c *crowd) registered(set *catalog.Set, out map[string]struct{}) {
	if set == nil {
		return
	}
	for _, in := range set.Instances {
		if in.Service.Kind != catalog.ConnectProxy {
			continue
		}
		for key := range c.byID[in.Service.ID] {
			out[key] = struct{}{}
		}
	}
}

func enter(m map[string]map[string]struct{}, at, key string) {
	if m[at] == nil {
		m[at] = map[string]struct{}{}
	}
	m[at][key] = struct{}{}
}

func remove(m map[string]map[string]struct{}, at, key string) {
	delete(m[at], key)
	if len(m[at]) == 0 {
		delete(m, at)
	}
}
