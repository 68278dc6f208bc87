package consulapi

import (
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/go-bexpr"
)

// filter keeps the items that the call's filter expression selects.
func filter[T any](c *call, items []T) ([]T, error) {
	selects, err := c.filter()
	if err != nil || selects == nil {
		return items, err
	}
	out := []T{}
	for _, item := range items {
		ok, err := selects(item)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, item)
		}
	}
	return out, nil
}

// filterMap is [filter] for the values of a map.
func filterMap[T any](c *call, items map[string]T) (map[string]T, error) {
	selects, err := c.filter()
	if err != nil || selects == nil {
		return items, err
	}
	for _, k := range slices.Collect(maps.Keys(items)) {
		ok, err := selects(items[k])
		if err != nil {
			return nil, err
		}
		if !ok {
			delete(items, k)
		}
	}
	return items, nil
}

// filter is the call's filter expression, or nil.
func (c *call) filter() (func(item any) (bool, error), error) {
	expression := c.query.Get("filter")
	if expression == "" {
		return nil, nil
	}
	const failed = "Failed to create boolean expression evaluator: %v"
	e, err := bexpr.CreateEvaluator(expression)
	if err != nil {
		return nil, internal(failed, err)
	}
	return func(item any) (bool, error) {
		ok, err := e.Evaluate(item)
		if err != nil {
			return false, internal(failed, err)
		}
		return ok, nil
	}, nil
}

// wanted is what the node-meta parameters ask for: key:value pairs that must all hold.
func (c *call) nodeMeta() func(meta map[string]string) bool {
	pairs := c.all("node-meta")
	return func(meta map[string]string) bool {
		for _, p := range pairs {
			k, v, _ := strings.Cut(p, ":")
			if got, ok := meta[k]; !ok || got != v {
				return false
			}
		}
		return true
	}
}

// hasTags reports whether all wanted tags are there, whatever their case.
func hasTags(tags, wanted []string) bool {
	for _, want := range wanted {
		if !slices.ContainsFunc(tags, func(t string) bool { return strings.EqualFold(t, want) }) {
			return false
		}
	}
	return true
}
