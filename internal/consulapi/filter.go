package consulapi

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/go-bexpr"
)

// filter keeps the items that the call's filter expression selects.
func filter[T any](c *call, items []T) ([]T, error) {
	selects, err := selector[T](c)
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
	selects, err := selector[T](c)
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

// entryFields are what entries can be filtered by, whatever their kind.
type entryFields struct {
	Kind        string
	Name        string
	Meta        map[string]string
	CreateIndex uint64
	ModifyIndex uint64
}

// filterEntries is [filter] for entries.
func filterEntries(c *call, entries []*entryShape) ([]*entryShape, error) {
	selects, err := selector[entryFields](c)
	if err != nil || selects == nil {
		return entries, err
	}
	out := []*entryShape{}
	for _, e := range entries {
		body, err := json.Marshal(e)
		if err != nil {
			return nil, err
		}
		var fields entryFields
		if err := json.Unmarshal(body, &fields); err != nil {
			return nil, err
		}
		ok, err := selects(fields)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, e)
		}
	}
	return out, nil
}

// selector is the call's filter expression, or nil.
func selector[T any](c *call) (func(item T) (bool, error), error) {
	expression := c.query.Get("filter")
	if expression == "" {
		return nil, nil
	}
	var like T
	e, err := bexpr.CreateEvaluatorForType(expression, nil, like)
	if err != nil {
		return nil, filterError(err)
	}
	return func(item T) (bool, error) {
		ok, err := e.Evaluate(item)
		if err != nil {
			return false, filterError(err)
		}
		return ok, nil
	}, nil
}

func filterError(err error) error {
	return internal("Failed to create boolean expression evaluator: %v", err)
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
