package consulapi

import (
	"slices"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
)

func healthService(c *call) (any, error) { return c.healthInstances((*store.Reader).Instances) }

func healthConnect(c *call) (any, error) { return c.healthInstances((*store.Reader).Connect) }

func (c *call) healthInstances(list func(*store.Reader, string) []catalog.Instance) (any, error) {
	passing, err := c.flag("passing")
	if err != nil {
		return nil, err
	}
	instances, err := c.instances(list)
	if err != nil {
		return nil, err
	}
	out := []instanceShape{}
	for _, in := range instances {
		if !passing || in.Status() == catalog.Passing {
			out = append(out, showInstance(in))
		}
	}
	return filter(c, out)
}

func healthNode(c *call) (any, error) {
	name, err := c.need("node name")
	if err != nil {
		return nil, err
	}
	return c.checks(func(r *store.Reader) []*catalog.Check { return r.NodeChecks(name) })
}

func healthChecks(c *call) (any, error) {
	name, err := c.need("service name")
	if err != nil {
		return nil, err
	}
	return c.checks(func(r *store.Reader) []*catalog.Check { return r.ServiceChecks(name) })
}

// healthState lists the checks in a state; "any" is all of them.
func healthState(c *call) (any, error) {
	state, err := c.need("check state")
	if err != nil {
		return nil, err
	}
	return c.checks(func(r *store.Reader) []*catalog.Check {
		return slices.DeleteFunc(r.Checks(), func(c *catalog.Check) bool { return state != "any" && string(c.Status) != state })
	})
}

// checks answers those that the call's node-meta and filter select.
func (c *call) checks(list func(*store.Reader) []*catalog.Check) (any, error) {
	wanted := c.nodeMeta()
	var out []checkShape
	err := c.read(func(r *store.Reader) {
		all := list(r)
		if len(c.all("node-meta")) > 0 {
			meta := map[string]map[string]string{}
			for _, n := range r.Nodes() {
				meta[n.Name] = n.Meta
			}
			all = slices.DeleteFunc(all, func(c *catalog.Check) bool { return !wanted(meta[c.Node]) })
		}
		out = showChecks(all)
	})
	if err != nil {
		return nil, err
	}
	return filter(c, out)
}
