package config

import (
	"slices"
	"strings"
)

// connectionHeaders belong to one connection: Envoy makes them anew on each hop, and
// whoever could set them could say where a message ends.
func connectionHeaders() []string {
	return []string{"connection", "content-length", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"}
}

// xfcc is the header by which a sidecar tells its app who calls.
const xfcc = "x-forwarded-client-cert"

// check is for the modifiers at path.
func (m *HeaderModifiers) check(r *report, path string) {
	if m == nil || r.most(path, "headers", len(m.Add)+len(m.Set)+len(m.Remove), maxModifiers) {
		return
	}
	removed := map[string]bool{}
	for i, name := range m.Remove {
		at := index(path+".Remove", i)
		r.modifiable(at, name)
		lowered := strings.ToLower(name)
		if removed[lowered] {
			r.addf(at, "%q is given more than once", cut(name))
		}
		removed[lowered] = true
	}
	for _, part := range []struct {
		name   string
		values map[string]string
	}{{"Set", m.Set}, {"Add", m.Add}} {
		seen := map[string]bool{}
		for _, name := range sortedKeys(part.values) {
			at := path + "." + part.name + "[" + shown(name) + "]"
			r.modifiable(at, name)
			r.headerValue(at, part.values[name])
			lowered := strings.ToLower(name)
			if seen[lowered] {
				r.addf(at, "the same header is given in another case")
			}
			if part.name == "Set" && removed[lowered] {
				r.addf(at, "the header is also in Remove")
			}
			seen[lowered] = true
		}
	}
}

// modifiable checks the name of a header to add, set or remove.
func (r *report) modifiable(path, name string) {
	lowered := strings.ToLower(name)
	switch {
	case strings.HasPrefix(name, ":") || lowered == "host":
		r.addf(path, "%q: Envoy lets nobody change host, method, path and scheme by their headers", cut(name))
	case slices.Contains(connectionHeaders(), lowered):
		r.addf(path, "%q: belongs to the connection and is made anew on each", name)
	case lowered == xfcc:
		r.addf(path, "%q: says who calls, and is set by the callee's sidecar alone", name)
	default:
		r.token(path, name)
	}
}

// headerValue checks the value of a header to add or set.
func (r *report) headerValue(path, value string) {
	switch {
	case len(value) > maxValue:
		r.addf(path, "longer than %d bytes", maxValue)
	case strings.ContainsFunc(value, func(c rune) bool { return c < ' ' || c > '~' }):
		r.addf(path, "%q: want printable ASCII", cut(value))
	}
}

// normalize is m, or nil when it changes nothing.
func (m *HeaderModifiers) normalize() *HeaderModifiers {
	if m == nil || len(m.Add)+len(m.Set)+len(m.Remove) == 0 {
		return nil
	}
	return m
}
