package config

import (
	"regexp/syntax"
	"strings"
)

// Bounds of a regular expression. Envoy compiles each with RE2 and refuses the
// whole route configuration for a program that it finds too large.
const maxRegex = 1024

// regex checks a regular expression in RE2's syntax; "" is none.
func (r *report) regex(path, text string) {
	if text == "" {
		return
	}
	if len(text) > maxRegex {
		r.addf(path, "longer than %d bytes", maxRegex)
		return
	}
	if strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c > '~' }) {
		r.addf(path, "%q: want printable ASCII", cut(text))
		return
	}
	if _, err := syntax.Parse(text, syntax.Perl); err != nil {
		r.addf(path, "%q: %s", cut(text), oneLine(err.Error()))
	}
}
