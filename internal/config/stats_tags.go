package config

import (
	"slices"
	"strings"
)

const statsTagsKey = "envoy_stats_tags"

// statsTags checks labels and gives those that can be had: a wrong one is not to keep Envoy from starting.
func (r *report) statsTags(path string, tags []string) []string {
	return slices.DeleteFunc(tags, func(tag string) bool {
		before := len(r.list) + r.more
		if name, _, ok := strings.Cut(tag, "="); !ok || name == "" {
			r.addf(path, "%q: want name=value", cut(tag))
		} else {
			r.text(path, tag)
		}
		return len(r.list)+r.more > before
	})
}

// StatsTags is what the definition says of the labels of its sidecar's stats, or of its own when
// it is one.
func (d Definition) StatsTags() []string { return d.proxyConfig().StatsTags }
