package envoy_test

import (
	"regexp"
	"slices"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// world is all that decides about callers of service api, as it is written.
type world struct {
	own, all     *config.ServiceIntentions // of api and of "*"; nil: none
	policy       *config.TrafficPolicy     // of api, else of "*"; nil: none
	providers    []string                  // that exist
	defaultAllow bool
	http         bool
}

// judge says from the entries alone what becomes of a request or, without http, of a
// connection: the reference for what is generated.
func (w world) judge(r asked) (allowed, counted bool) {
	s, from := w.decides(r.caller)
	verdict := w.defaultAllow
	audited := w.policy != nil && w.policy.Audit != nil && w.policy.Audit.Default
	if s != nil {
		verdict = w.says(s, r)
		audited = w.policy != nil && w.policy.Audit != nil && slices.Contains(w.policy.Audit.Sources, s.Name)
	}
	if w.own != nil {
		verdict = verdict && w.token(w.own.JWT, r)
	}
	if w.all != nil && (w.own == nil || from != w.own) {
		verdict = verdict && w.token(w.all.JWT, r)
	}
	return verdict || audited, audited && !verdict
}

func (w world) decides(caller string) (*config.SourceIntention, *config.ServiceIntentions) {
	for _, e := range []*config.ServiceIntentions{w.own, w.all} {
		for _, name := range []string{caller, config.Wildcard} {
			if e == nil {
				continue
			}
			if i := slices.IndexFunc(e.Sources, func(s *config.SourceIntention) bool { return s.Name == name }); i >= 0 {
				return e.Sources[i], e
			}
		}
	}
	return nil, nil
}

func (w world) says(s *config.SourceIntention, r asked) bool {
	if len(s.Permissions) == 0 {
		return s.Action == config.Allow
	}
	if !w.http {
		return false
	}
	for _, p := range s.Permissions {
		allow := p.Action == config.Allow
		// A token of nobody can meet nothing, and shuts out all the same.
		token := w.token(p.JWT, r) || !allow && !w.anyKnown(p.JWT)
		if token && meets(p.HTTP, r, !allow) {
			return allow
		}
	}
	return false
}

func (w world) anyKnown(j *config.JWTRequirement) bool {
	return slices.ContainsFunc(j.Providers, func(p *config.JWTProviderRequirement) bool { return slices.Contains(w.providers, p.Name) })
}

func (w world) token(j *config.JWTRequirement, r asked) bool {
	return j == nil || w.http && slices.ContainsFunc(j.Providers, func(p *config.JWTProviderRequirement) bool {
		payload, there := r.tokens[p.Name]
		return there && slices.Contains(w.providers, p.Name) && !slices.ContainsFunc(p.VerifyClaims, func(c *config.JWTClaim) bool { return !has(payload, c) })
	})
}

func has(payload any, c *config.JWTClaim) bool {
	for _, name := range c.Path {
		fields, _ := payload.(map[string]any)
		payload = fields[name]
	}
	if list, ok := payload.([]any); ok {
		return slices.Contains(list, any(c.Value))
	}
	return payload == any(c.Value)
}

func meets(h *config.HTTPPermission, r asked, shuts bool) bool {
	path, _, _ := strings.Cut(r.path, "?")
	switch {
	case h.PathExact != "" && path != h.PathExact,
		h.PathPrefix != "" && !strings.HasPrefix(path, h.PathPrefix),
		h.PathRegex != "" && !full(h.PathRegex, path):
		return false
	}
	for _, c := range h.Header {
		if meetsHeader(c, r, shuts) == c.Invert {
			return false
		}
	}
	return len(h.Methods) == 0 || slices.ContainsFunc(h.Methods, func(m string) bool { return m == r.method || shuts && strings.EqualFold(m, r.method) })
}

// meetsHeader leaves the inversion to its caller.
func meetsHeader(c config.HeaderPermission, r asked, shuts bool) bool {
	values := r.header[strings.ToLower(c.Name)]
	if len(values) == 0 {
		return false
	}
	list := strings.Split(strings.Join(values, ","), ",")
	if shuts == c.Invert {
		return passes(c, strings.Join(list, ","))
	}
	// What shuts out looks at each part of the list too.
	for i := range list {
		for j := i; j < len(list); j++ {
			part := strings.Join(list[i:j+1], ",")
			if passes(c, part) || passes(c, strings.Trim(part, " \t")) {
				return true
			}
		}
	}
	return false
}

func passes(c config.HeaderPermission, s string) bool {
	fold := func(s string) string { return s }
	if c.IgnoreCase {
		fold = strings.ToLower
	}
	s = fold(s)
	switch {
	case c.Exact != "":
		return s == fold(c.Exact)
	case c.Prefix != "":
		return strings.HasPrefix(s, fold(c.Prefix))
	case c.Suffix != "":
		return strings.HasSuffix(s, fold(c.Suffix))
	case c.Contains != "":
		return strings.Contains(s, fold(c.Contains))
	case c.Regex != "":
		return full(c.Regex, s)
	}
	return c.Present
}

var fullOnes = map[string]*regexp.Regexp{}

func full(expression, s string) bool {
	re := fullOnes[expression]
	if re == nil {
		re = regexp.MustCompile(expression)
		re.Longest()
		fullOnes[expression] = re
	}
	at := re.FindStringIndex(s)
	return at != nil && at[0] == 0 && at[1] == len(s)
}
