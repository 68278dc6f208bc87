package envoy

import (
	"slices"
	"strconv"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	filterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	httpfilterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	inputsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	metadatamatcherv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/input_matchers/metadata/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"

	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// httpFilterState is the filter that puts a request's path, without its query, where
// rules can look at it: they could see the whole only, in which a regular expression
// cannot tell the two apart. Routes say so when there is such a rule.
const (
	httpFilterState = "envoy.filters.http.set_filter_state"
	pathState       = "crossfade.path"
)

func (b *builder) pathForRules() *httpfilterstatev3.Config {
	return &httpfilterstatev3.Config{OnRequestHeaders: []*filterstatev3.FilterStateValue{{
		Key:        &filterstatev3.FilterStateValue_ObjectKey{ObjectKey: pathState},
		FactoryKey: "envoy.string",
		Value:      &filterstatev3.FilterStateValue_FormatString{FormatString: textFormat("%PATH(NQ:PATH)%")},
	}}}
}

// judge is the list of what may decide about a caller's request: a token that is
// missing, then each permission.
func (b *builder) judge(v proxy.Verdict) *xdsmatcherv3.Matcher_OnMatch {
	otherwise := b.action(v.Allow && len(v.Permissions) == 0, v.Because)
	var list []*xdsmatcherv3.Matcher_MatcherList_FieldMatcher
	add := func(when *predicate, then *xdsmatcherv3.Matcher_OnMatch) {
		list = append(list, &xdsmatcherv3.Matcher_MatcherList_FieldMatcher{Predicate: when, OnMatch: then})
	}
	for _, r := range v.Requires {
		add(not(b.requirement(r)), b.action(false, v.Because+", no token"))
	}
	for _, p := range v.Permissions {
		then := b.action(p.Allow, v.Because+", permission "+strconv.Itoa(p.Number))
		when := b.permission(p)
		if when == nil { // of every request, so that no later one counts
			otherwise = then
			break
		}
		add(when, then)
	}
	if len(list) == 0 {
		return otherwise
	}
	return &xdsmatcherv3.Matcher_OnMatch{OnMatch: &xdsmatcherv3.Matcher_OnMatch_Matcher{Matcher: &xdsmatcherv3.Matcher{
		MatcherType: &xdsmatcherv3.Matcher_MatcherList_{MatcherList: &xdsmatcherv3.Matcher_MatcherList{Matchers: list}},
		OnNoMatch:   otherwise,
	}}}
}

type predicate = xdsmatcherv3.Matcher_MatcherList_Predicate

// permission is nil when it has no condition.
func (b *builder) permission(p proxy.Permission) *predicate {
	var out []*predicate
	for _, c := range p.All {
		out = append(out, b.condition(c))
	}
	if len(p.Requires) > 0 {
		out = append(out, b.requirement(p.Requires))
	}
	if len(out) == 0 {
		return nil
	}
	return allOf(out)
}

func (b *builder) condition(c proxy.Condition) *predicate {
	var input proto.Message = &inputsv3.FilterStateInput{Key: pathState}
	switch c.Of {
	case proxy.Header:
		input = &matcherv3.HttpRequestHeaderMatchInput{HeaderName: c.Header}
	case proxy.Method:
		input = &matcherv3.HttpRequestHeaderMatchInput{HeaderName: ":method"}
	}
	packed := &xdscorev3.TypedExtensionConfig{Name: string(c.Of), TypedConfig: b.pack(input)}
	var tests []*predicate
	for _, t := range c.Any {
		tests = append(tests, single(&xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate{
			Input:   packed,
			Matcher: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate_ValueMatch{ValueMatch: text(t)},
		}))
	}
	out := anyOf(tests)
	if c.Not {
		return not(out)
	}
	return out
}

func text(t proxy.Test) *xdsmatcherv3.StringMatcher {
	out := &xdsmatcherv3.StringMatcher{IgnoreCase: t.IgnoreCase}
	regex := func(r string) {
		out.MatchPattern = &xdsmatcherv3.StringMatcher_SafeRegex{SafeRegex: &xdsmatcherv3.RegexMatcher{
			EngineType: &xdsmatcherv3.RegexMatcher_GoogleRe2{GoogleRe2: &xdsmatcherv3.RegexMatcher_GoogleRE2{}}, Regex: r,
		}}
	}
	switch t.Is {
	case proxy.Exact:
		out.MatchPattern = &xdsmatcherv3.StringMatcher_Exact{Exact: t.Value}
	case proxy.Prefix:
		out.MatchPattern = &xdsmatcherv3.StringMatcher_Prefix{Prefix: t.Value}
	case proxy.Suffix:
		out.MatchPattern = &xdsmatcherv3.StringMatcher_Suffix{Suffix: t.Value}
	case proxy.Contains:
		out.MatchPattern = &xdsmatcherv3.StringMatcher_Contains{Contains: t.Value}
	case proxy.Regex:
		regex(t.Value)
	case proxy.Present:
		regex("(?s).*")
	}
	return out
}

// requirement holds for a request with any of the tokens. A payload is where the
// filter that verifies tokens put it, and nobody else can.
func (b *builder) requirement(r proxy.Requirement) *predicate {
	present := &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_PresentMatch{PresentMatch: true}}
	var tokens []*predicate
	for _, t := range r {
		all := []*predicate{b.payload(t.Provider, nil, present)}
		for _, c := range t.Claims {
			value := &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
				MatchPattern: &matcherv3.StringMatcher_Exact{Exact: c.Value},
			}}}
			listed := &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_ListMatch{ListMatch: &matcherv3.ListMatcher{
				MatchPattern: &matcherv3.ListMatcher_OneOf{OneOf: value},
			}}}
			all = append(all, b.payload(t.Provider, c.Path, &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_OrMatch{
				OrMatch: &matcherv3.OrMatcher{ValueMatchers: []*matcherv3.ValueMatcher{value, listed}},
			}}))
		}
		tokens = append(tokens, allOf(all))
	}
	return anyOf(tokens)
}

// payload tests what a verified token of a provider has at a path.
func (b *builder) payload(provider string, path []string, value *matcherv3.ValueMatcher) *predicate {
	input := &inputsv3.DynamicMetadataInput{Filter: httpTokens}
	for _, key := range slices.Concat([]string{payloadOf(provider)}, path) {
		input.Path = append(input.Path, &inputsv3.DynamicMetadataInput_PathSegment{Segment: &inputsv3.DynamicMetadataInput_PathSegment_Key{Key: key}})
	}
	return single(&xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate{
		Input: &xdscorev3.TypedExtensionConfig{Name: "token", TypedConfig: b.pack(input)},
		Matcher: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate_CustomMatch{CustomMatch: &xdscorev3.TypedExtensionConfig{
			Name: "claim", TypedConfig: b.pack(&metadatamatcherv3.Metadata{Value: value}),
		}},
	})
}

func single(p *xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate) *predicate {
	return &predicate{MatchType: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate_{SinglePredicate: p}}
}

func not(p *predicate) *predicate {
	return &predicate{MatchType: &xdsmatcherv3.Matcher_MatcherList_Predicate_NotMatcher{NotMatcher: p}}
}

// allOf and anyOf take at least one.
func allOf(list []*predicate) *predicate {
	if len(list) == 1 {
		return list[0]
	}
	return &predicate{MatchType: &xdsmatcherv3.Matcher_MatcherList_Predicate_AndMatcher{AndMatcher: &xdsmatcherv3.Matcher_MatcherList_Predicate_PredicateList{Predicate: list}}}
}

func anyOf(list []*predicate) *predicate {
	if len(list) == 1 {
		return list[0]
	}
	return &predicate{MatchType: &xdsmatcherv3.Matcher_MatcherList_Predicate_OrMatcher{OrMatcher: &xdsmatcherv3.Matcher_MatcherList_Predicate_PredicateList{Predicate: list}}}
}
