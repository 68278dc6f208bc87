package envoy

import (
	"regexp"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// ruleMatch is what a request must be like for a rule to be its own.
func ruleMatch(r proxy.Rule) *routev3.RouteMatch {
	out := everything()
	if m := r.Match; m != nil {
		switch {
		case m.PathExact != "":
			out.PathSpecifier = &routev3.RouteMatch_Path{Path: m.PathExact}
		case m.PathPrefix != "":
			out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: m.PathPrefix}
		case m.PathRegex != "":
			out.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: m.PathRegex}}
		}
		if m.CaseInsensitive {
			out.CaseSensitive = truth(false)
		}
		for _, h := range m.Header {
			out.Headers = append(out.Headers, headerMatch(h))
		}
		if len(m.Methods) > 0 {
			out.Headers = append(out.Headers, methodMatch(m.Methods))
		}
		for _, q := range m.QueryParam {
			out.QueryParameters = append(out.QueryParameters, queryMatch(q))
		}
	}
	if r.Idempotent {
		out.Headers = append(out.Headers, methodMatch(proxy.IdempotentMethods()))
	}
	if r.Cookie != nil {
		out.Cookies = []*routev3.CookieMatcher{{Name: r.Cookie.Name, StringMatch: &matcherv3.StringMatcher{MatchPattern: regex(".+")}}}
	}
	return out
}

func regex(text string) *matcherv3.StringMatcher_SafeRegex {
	return &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: text}}
}

func headerMatch(h config.HeaderMatch) *routev3.HeaderMatcher {
	out := &routev3.HeaderMatcher{Name: h.Name, InvertMatch: h.Invert}
	text := &matcherv3.StringMatcher{}
	switch {
	case h.Exact != "":
		text.MatchPattern = &matcherv3.StringMatcher_Exact{Exact: h.Exact}
	case h.Prefix != "":
		text.MatchPattern = &matcherv3.StringMatcher_Prefix{Prefix: h.Prefix}
	case h.Suffix != "":
		text.MatchPattern = &matcherv3.StringMatcher_Suffix{Suffix: h.Suffix}
	case h.Regex != "":
		text.MatchPattern = regex(h.Regex)
	default:
		out.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}
		return out
	}
	out.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: text}
	return out
}

func methodMatch(methods []string) *routev3.HeaderMatcher {
	text := &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: methods[0]}}
	if len(methods) > 1 {
		quoted := make([]string, len(methods))
		for i, m := range methods {
			quoted[i] = regexp.QuoteMeta(m)
		}
		text.MatchPattern = regex(strings.Join(quoted, "|"))
	}
	return &routev3.HeaderMatcher{Name: ":method", HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: text}}
}

func queryMatch(q config.QueryMatch) *routev3.QueryParameterMatcher {
	out := &routev3.QueryParameterMatcher{Name: q.Name}
	switch {
	case q.Exact != "":
		out.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_StringMatch{
			StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: q.Exact}},
		}
	case q.Regex != "":
		out.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{MatchPattern: regex(q.Regex)}}
	default:
		out.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_PresentMatch{PresentMatch: true}
	}
	return out
}

// headersToAdd are those that are set, then those that are added, by name.
func headersToAdd(m *config.HeaderModifiers) []*corev3.HeaderValueOption {
	if m == nil {
		return nil
	}
	var out []*corev3.HeaderValueOption
	for _, l := range []struct {
		all    map[string]string
		action corev3.HeaderValueOption_HeaderAppendAction
	}{
		{m.Set, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD},
		{m.Add, corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD},
	} {
		for _, name := range sortedKeys(l.all) {
			out = append(out, &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: name, Value: l.all[name]}, AppendAction: l.action, KeepEmptyValue: true})
		}
	}
	return out
}

func headersToRemove(m *config.HeaderModifiers) []string {
	if m == nil {
		return nil
	}
	return m.Remove
}
