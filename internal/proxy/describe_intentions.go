package proxy

import (
	"fmt"
	"strings"
)

// String is "allow", "deny" or "judge", which is by request.
func (v Verdict) String() string {
	switch {
	case len(v.Permissions) > 0:
		return "judge"
	case v.Allow:
		return "allow"
	default:
		return "deny"
	}
}

func (v Verdict) describe(b *strings.Builder, who string) {
	fmt.Fprintf(b, "  %s %s (%s)%s\n", v, who, v.Because, flag(v.Audit, " not enforced"))
	for _, r := range v.Requires {
		fmt.Fprintf(b, "    with %s\n", r)
	}
	for _, p := range v.Permissions {
		fmt.Fprintf(b, "    %s\n", p)
	}
	if len(v.Permissions) > 0 {
		b.WriteString("    else deny\n")
	}
}

// String is one line.
func (p Permission) String() string {
	out := "deny"
	if p.Allow {
		out = "allow"
	}
	sep := " "
	for _, c := range p.All {
		out += sep + c.String()
		sep = " and "
	}
	if len(p.Requires) > 0 {
		out += sep + p.Requires.String()
	}
	if sep == " " && len(p.Requires) == 0 {
		out += " all"
	}
	return out
}

// String is "path exact \"/a\"", or several tests with "or" between them.
func (c Condition) String() string {
	tests := make([]string, len(c.Any))
	for i, t := range c.Any {
		tests[i] = t.String()
	}
	return string(c.Of) + flag(c.Header != "", " "+c.Header) + flag(c.Not, " not") + " " + strings.Join(tests, " or ")
}

// String is "exact \"/a\"".
func (t Test) String() string {
	if t.Is == Present {
		return string(t.Is)
	}
	return fmt.Sprintf("%s %q%s", t.Is, t.Value, flag(t.IgnoreCase, " any case"))
}

// String is "token of okta with roles=admin".
func (r Requirement) String() string {
	tokens := make([]string, len(r))
	for i, t := range r {
		tokens[i] = "token of " + t.Provider
		for _, c := range t.Claims {
			tokens[i] += fmt.Sprintf(" with %s=%q", strings.Join(c.Path, "."), c.Value)
		}
	}
	return strings.Join(tokens, " or ")
}

func (p Provider) describe(b *strings.Builder) {
	fmt.Fprintf(b, "  tokens of %s: issuer %q, audiences %q, skew %ds", p.Name, p.Issuer, p.Audiences, p.ClockSkew)
	for _, h := range p.Headers {
		fmt.Fprintf(b, ", header %s %q", h.Name, h.Prefix)
	}
	if len(p.Params)+len(p.Cookies) > 0 {
		fmt.Fprintf(b, ", parameters %q, cookies %q", p.Params, p.Cookies)
	}
	b.WriteString(flag(p.Forward, ", passed on") + flag(p.PayloadHeader != "", ", payload in "+p.PayloadHeader) + "\n")
}
