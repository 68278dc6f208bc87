package routing

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// maxTold bounds how many services an error of [Check] names.
const maxTold = 5

// Check refuses a change after which the entries of some service no longer make a
// chain though they did before. Entries that were broken already are no reason.
func Check(before, after *config.Set, datacenter string) error {
	changed := config.Changed(before, after)
	if len(changed) == 0 {
		return nil
	}
	var errs []error
	for _, service := range Services(after) {
		chain, _ := Compile(Request{Config: after, Service: service, Datacenter: datacenter})
		if chain.Broken == "" || !slices.ContainsFunc(changed, chain.Read) {
			continue
		}
		if was, _ := Compile(Request{Config: before, Service: service, Datacenter: datacenter}); was.Broken != "" {
			continue
		}
		if len(errs) == maxTold {
			errs = append(errs, errors.New("and more"))
			break
		}
		errs = append(errs, fmt.Errorf("service %q: %s", service, chain.Broken))
	}
	return errors.Join(errs...)
}

// Read reports whether the chain depends on an entry.
func (c Chain) Read(k config.Key) bool {
	_, found := slices.BinarySearchFunc(c.Reads, k, config.Key.Compare)
	return found
}

// Broken lists the services whose entries make no chain, with the reason, sorted.
func Broken(set *config.Set, datacenter string) []Problem {
	var out []Problem
	for _, service := range Services(set) {
		if chain, problems := Compile(Request{Config: set, Service: service, Datacenter: datacenter}); chain.Broken != "" {
			out = append(out, problems...)
		}
	}
	slices.SortFunc(out, Problem.Compare)
	return slices.Compact(out)
}

// Services lists the services that have a router, splitter or resolver, sorted.
func Services(set *config.Set) []string {
	out := map[string]bool{}
	for _, k := range set.Keys() {
		switch k.Kind {
		case config.KindServiceRouter, config.KindServiceSplitter, config.KindServiceResolver:
			out[k.Name] = true
		}
	}
	return slices.Sorted(maps.Keys(out))
}
