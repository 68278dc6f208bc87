package proxy

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Permission decides about the requests that meet all its conditions.
type Permission struct {
	Number int // from 1, in the intention as it is written
	Allow  bool
	All    []Condition
	// Requires, when not empty, is one more condition.
	Requires Requirement
}

// Condition holds when any of its tests does, or with Not when none does. Of what
// a request does not have, no test holds.
type Condition struct {
	Of     Subject
	Header string // its name in lower case, when Of says so
	Any    []Test
	Not    bool
}

// Subject is what of a request is looked at.
type Subject string

// The subjects. A path is without its query, as the app gets it; of a header that
// is there several times, the values are joined by commas.
const (
	Path   Subject = "path"
	Method Subject = "method"
	Header Subject = "header"
)

// Test compares a whole value.
type Test struct {
	Is         Comparison
	Value      string
	IgnoreCase bool // of ASCII letters
}

// Comparison is the way in which a value is compared.
type Comparison string

// The comparisons. A regular expression is RE2's, and matches the whole value.
const (
	Exact    Comparison = "exact"
	Prefix   Comparison = "prefix"
	Suffix   Comparison = "suffix"
	Contains Comparison = "contains"
	Regex    Comparison = "regex"
	Present  Comparison = "present" // has no Value
)

// permission decides what a written permission means. One that cannot be read is a
// problem, and shuts more out, never less: an allowing one is left out (!ok), of a
// denying one the part that cannot be read counts as met.
func (b *builder) permission(subject string, p *config.Permission) (out Permission, ok bool) {
	out.Allow = p.Action == config.Allow
	ok = true
	broken := func(format string, args ...any) {
		what := "the rest of it denies"
		if out.Allow {
			what = "it allows nothing"
		}
		b.problem(subject, "%s: %s", fmt.Sprintf(format, args...), what)
		ok = ok && !out.Allow
	}
	if h := p.HTTP; h != nil {
		out.All = conditions(h, out.Allow, broken)
	}
	if p.JWT != nil {
		if out.Requires = b.requirement(subject, p.JWT); len(out.Requires) == 0 {
			broken("no provider of its tokens can be used")
		}
	}
	return out, ok
}

func conditions(h *config.HTTPPermission, allow bool, broken func(string, ...any)) []Condition {
	var out []Condition
	var paths []Test
	for _, t := range []Test{{Is: Exact, Value: h.PathExact}, {Is: Prefix, Value: h.PathPrefix}, {Is: Regex, Value: h.PathRegex}} {
		if t.Value != "" {
			paths = append(paths, t)
		}
	}
	switch {
	case len(paths) > 1:
		broken("more than one of PathExact, PathPrefix and PathRegex")
	case len(paths) == 1 && paths[0].Is == Regex && !usable(paths[0].Value):
		broken("PathRegex %q is no regular expression that Envoy takes", paths[0].Value)
	case len(paths) == 1 && paths[0].Is != Regex && strings.ContainsAny(paths[0].Value, "?#"):
		broken("path %q has a query, which is no part of a path here", paths[0].Value)
	case len(paths) == 1:
		out = append(out, Condition{Of: Path, Any: paths})
	}
	for _, header := range h.Header {
		c, why := headerCondition(header, allow)
		if why != "" {
			broken("header %q: %s", header.Name, why)
			continue
		}
		out = append(out, c)
	}
	var methods []Test
	for _, m := range h.Methods {
		// Some apps take "delete" for DELETE.
		methods = append(methods, Test{Is: Exact, Value: m, IgnoreCase: !allow})
	}
	if len(methods) > 0 {
		out = append(out, Condition{Of: Method, Any: methods})
	}
	return out
}

// headerName is what Envoy takes for one.
var headerName = regexp.MustCompile("^:?[0-9a-zA-Z!#$%&'*+.^_|~`-]+$")

// headerCondition is that on one header, or why there is none.
//
// A header may be there several times, and an app may look at any of them. Where a
// test that holds shuts a request out, it therefore also holds when it does for a
// single element of the list that the values are.
func headerCondition(h config.HeaderPermission, allow bool) (c Condition, why string) {
	c = Condition{Of: Header, Header: strings.ToLower(h.Name), Not: h.Invert}
	if c.Header == "host" {
		c.Header = ":authority"
	}
	if !headerName.MatchString(c.Header) {
		return c, "no header is called so"
	}
	if h.Present {
		c.Any = append(c.Any, Test{Is: Present})
	}
	for _, t := range []Test{{Is: Exact, Value: h.Exact}, {Is: Prefix, Value: h.Prefix}, {Is: Suffix, Value: h.Suffix}, {Is: Contains, Value: h.Contains}} {
		if t.Value != "" {
			t.IgnoreCase = h.IgnoreCase
			c.Any = append(c.Any, t)
		}
	}
	if h.Regex != "" {
		if !usable(h.Regex) {
			return c, "its Regex is no regular expression that Envoy takes"
		}
		c.Any = append(c.Any, Test{Is: Regex, Value: flag(h.IgnoreCase, "(?i)") + h.Regex})
	}
	if len(c.Any) != 1 {
		return c, "want exactly one of Present, Exact, Prefix, Suffix, Contains and Regex"
	}
	if shuts := h.Invert == allow; shuts {
		if element := c.Any[0].ofElement(); element != "" {
			c.Any = append(c.Any, Test{Is: Regex, Value: element})
		}
	}
	return c, ""
}

// ofElement is a regular expression for a list of which some element passes the
// test, or "" when that is no more than the test itself.
func (t Test) ofElement() string {
	quoted := regexp.QuoteMeta(t.Value)
	fold := flag(t.IgnoreCase, "i")
	switch t.Is {
	case Exact:
		return "(?s" + fold + ")(?:.*,)?[ \t]*" + quoted + "[ \t]*(?:,.*)?"
	case Prefix:
		return "(?s" + fold + ")(?:.*,)?[ \t]*" + quoted + ".*"
	case Suffix:
		return "(?s" + fold + ").*" + quoted + "[ \t]*(?:,.*)?"
	case Regex:
		return "(?s:(?:.*,)?)[ \t]*(?:" + unanchored(t.Value) + ")[ \t]*(?s:(?:,.*)?)"
	default:
		return ""
	}
}

// usable reports whether Envoy takes a regular expression. It matches bytes, so a
// character above \xff cannot be written by its number.
func usable(expression string) bool {
	_, err := regexp.Compile(expression)
	return err == nil && !strings.Contains(expression, `\x{`)
}

// unanchored is a usable expression without its demands on where a text begins and
// ends. It matches all that it did, and more.
func unanchored(expression string) string {
	tree, err := syntax.Parse(expression, syntax.Perl)
	if err != nil {
		return expression
	}
	var free func(*syntax.Regexp)
	free = func(re *syntax.Regexp) {
		switch re.Op {
		case syntax.OpBeginText, syntax.OpEndText, syntax.OpBeginLine, syntax.OpEndLine:
			re.Op = syntax.OpEmptyMatch
		}
		for _, sub := range re.Sub {
			free(sub)
		}
	}
	free(tree)
	if out := tree.String(); usable(out) {
		return out
	}
	return expression
}
