package config

import (
	"errors"
	"fmt"
)

// CheckProviders refuses a change after which some service's intentions ask for
// tokens of a jwt-provider that does not exist, though before they asked for none or
// it existed. What was amiss already is no reason.
func CheckProviders(before, after *Set) error {
	var errs []error
	for _, k := range Changed(before, after) {
		switch k.Kind {
		case KindServiceIntentions:
			had := asked(before.Intentions(k.Name))
			for _, name := range after.Intentions(k.Name).providers() {
				if after.JWTProvider(name) == nil && !(had[name] && before.JWTProvider(name) == nil) {
					errs = append(errs, fmt.Errorf("%s: jwt-provider %q does not exist: write it first", k, name))
				}
			}
		case KindJWTProvider:
			if after.JWTProvider(k.Name) != nil {
				continue
			}
			for _, other := range after.Keys() {
				if other.Kind == KindServiceIntentions && before.Get(other) == after.Get(other) && asked(after.Intentions(other.Name))[k.Name] {
					errs = append(errs, fmt.Errorf("%s: %s asks for its tokens: change that first", k, other))
				}
			}
		}
		if len(errs) > maxProviders {
			break
		}
	}
	return errors.Join(errs...)
}

// providers lists the jwt-providers that the intentions name, once each, in order.
func (e *ServiceIntentions) providers() (out []string) {
	if e == nil {
		return nil
	}
	seen := map[string]bool{}
	add := func(j *JWTRequirement) {
		if j == nil {
			return
		}
		for _, p := range j.Providers {
			if p != nil && !seen[p.Name] {
				seen[p.Name] = true
				out = append(out, p.Name)
			}
		}
	}
	add(e.JWT)
	for _, s := range e.Sources {
		for _, p := range s.Permissions {
			add(p.JWT)
		}
	}
	return out
}

func asked(e *ServiceIntentions) map[string]bool {
	out := map[string]bool{}
	for _, name := range e.providers() {
		out[name] = true
	}
	return out
}
