package config

import (
	"fmt"
	"regexp"
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
	default:
		if problem := checkOperators(value); problem != "" {
			r.addf(path, "%s", problem)
		}
	}
}

var operatorShape = regexp.MustCompile(`^%([A-Z][A-Z_0-9]*)(\(([^()]*)\))?(:[0-9]{1,5})?%`)

// checkOperators says what is wrong with Envoy's %…% operators in a value. Envoy
// refuses the whole configuration for one that it does not know. Those that read the
// host's environment, or what other parts of Envoy keep, are not served.
func checkOperators(value string) string {
	for {
		i := strings.IndexByte(value, '%')
		if i < 0 {
			return ""
		}
		value = value[i:]
		if strings.HasPrefix(value, "%%") {
			value = value[2:]
			continue
		}
		m := operatorShape.FindStringSubmatch(value)
		if m == nil {
			return fmt.Sprintf("%q: begins no operator such as %%PROTOCOL%%; write %%%% for a %%", cut(value))
		}
		whole, name, argument, length := m[0], m[1], m[3], m[4]
		switch {
		case name == "REQ" || name == "RESP":
			if !headerOperand.MatchString(argument) {
				return fmt.Sprintf("%q: want a header's name, and perhaps ? and another's, in the parentheses", cut(whole))
			}
		case name == "START_TIME" && length == "":
		case !slices.Contains(operators(), name):
			return fmt.Sprintf("%q: no such operator is served; docs/entries.md lists those that are", cut(whole))
		case m[2]+length != "":
			return fmt.Sprintf("%q: the operator takes no argument", cut(whole))
		}
		value = value[len(whole):]
	}
}

var headerOperand = regexp.MustCompile("^:?[A-Za-z0-9!#$&'*+.^_`|~-]{1,128}([?]:?[A-Za-z0-9!#$&'*+.^_`|~-]{1,128})?$")

// operators are Envoy's that take no argument.
func operators() []string {
	return []string{
		"CONNECTION_ID", "DOWNSTREAM_LOCAL_ADDRESS", "DOWNSTREAM_LOCAL_PORT", "DOWNSTREAM_LOCAL_URI_SAN", "DOWNSTREAM_PEER_URI_SAN",
		"DOWNSTREAM_REMOTE_ADDRESS", "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "DOWNSTREAM_REMOTE_PORT", "DOWNSTREAM_TLS_VERSION",
		"HOSTNAME", "PROTOCOL", "RESPONSE_CODE", "RESPONSE_CODE_DETAILS", "RESPONSE_FLAGS", "ROUTE_NAME", "START_TIME", "STREAM_ID",
		"TRACE_ID", "UPSTREAM_CLUSTER", "UPSTREAM_HOST", "UPSTREAM_LOCAL_ADDRESS", "UPSTREAM_PROTOCOL", "UPSTREAM_REMOTE_ADDRESS",
		"UPSTREAM_REQUEST_ATTEMPT_COUNT",
	}
}

// normalize is m, or nil when it changes nothing.
func (m *HeaderModifiers) normalize() *HeaderModifiers {
	if m == nil || len(m.Add)+len(m.Set)+len(m.Remove) == 0 {
		return nil
	}
	return m
}
