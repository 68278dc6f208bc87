package envoy_test

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	rbacfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	httpfilterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	networkrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	setfilterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	inputsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	sslv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/ssl/v3"
	metadatamatcherv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/input_matchers/metadata/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/crossfade-mesh/crossfade/internal/envoy"
)

// asked is a request as a callee's sidecar sees it: its path is normal, and of its
// tokens those are left that were verified.
type asked struct {
	caller string // a service
	method string
	path   string // with its query
	header map[string][]string
	tokens map[string]any // the payload, by provider
}

// evaluator runs generated rules over requests, by Envoy's documentation. What it
// does not know ends in a panic.
type evaluator struct {
	compiled map[string]*regexp.Regexp
}

// request is what becomes of a request: whether it is let through, and whether it
// is counted as denied by rules that do not bind.
func (e *evaluator) request(routes *routev3.RouteConfiguration, r asked) (allowed, counted bool) {
	filters := routes.GetVirtualHosts()[0].GetTypedPerFilterConfig()
	state := map[string]string{}
	if raw := filters["envoy.filters.http.set_filter_state"]; raw != nil {
		config := unpack(raw, &httpfilterstatev3.Config{})
		for _, v := range config.GetOnRequestHeaders() {
			if format := v.GetFormatString().GetTextFormatSource().GetInlineString(); format != "%PATH(NQ:PATH)%" || v.GetFactoryKey() != "envoy.string" {
				panic(format)
			}
			state[v.GetObjectKey()], _, _ = strings.Cut(r.path, "?")
		}
	}
	if filters[envoy.TokensExtension] == nil {
		r.tokens = nil // nobody verifies them
	}
	rules := unpack(filters["envoy.filters.http.rbac"], &rbacfilterv3.RBACPerRoute{}).GetRbac()
	allowed = e.match(rules.GetMatcher(), r, state)
	if shadow := rules.GetShadowMatcher(); shadow != nil {
		counted = !e.match(shadow, r, state)
	}
	return allowed, counted
}

// connection is what becomes of a connection, before the app is connected to and
// on its first byte; the two may differ where that is too long to say.
func (e *evaluator) connection(r envoy.Resources, caller asked) (admitted, allowed, counted bool) {
	for _, x := range r.Extensions {
		switch x.Name {
		case envoy.AdmissionExtension:
			for _, v := range unpack(x.TypedConfig, &setfilterstatev3.Config{}).GetOnDownstreamTlsHandshake() {
				admitted = e.cel(v.GetFormatString().GetTextFormatSource().GetInlineString(), caller)
			}
		case envoy.IntentionsExtension:
			rules := unpack(x.TypedConfig, &networkrbacv3.RBAC{})
			allowed = e.match(rules.GetMatcher(), caller, nil)
			if shadow := rules.GetShadowMatcher(); shadow != nil {
				counted = !e.match(shadow, caller, nil)
			}
		}
	}
	return admitted, allowed, counted
}

var celForm = regexp.MustCompile(`^%CEL\(connection\.uri_san_peer_certificate in \[(.*)\] \? "(.*)" : "(.*)"\)%$`)

func (e *evaluator) cel(format string, caller asked) bool {
	m := celForm.FindStringSubmatch(format)
	if m == nil {
		return format != "" && !strings.Contains(format, "%")
	}
	if slices.Contains(strings.Split(m[1], ","), strconv.Quote(spiffe(caller.caller).URI())) {
		return m[2] != ""
	}
	return m[3] != ""
}

func unpack[M proto.Message](raw *anypb.Any, into M) M {
	if err := raw.UnmarshalTo(into); err != nil {
		panic(err)
	}
	return into
}

// match ends with an action: true is ALLOW.
func (e *evaluator) match(m *xdsmatcherv3.Matcher, r asked, state map[string]string) bool {
	on := m.GetOnNoMatch()
	switch t := m.GetMatcherType().(type) {
	case nil:
	case *xdsmatcherv3.Matcher_MatcherTree_:
		if !t.MatcherTree.GetInput().GetTypedConfig().MessageIs(&sslv3.UriSanInput{}) {
			panic(t)
		}
		if found := t.MatcherTree.GetExactMatchMap().GetMap()[spiffe(r.caller).URI()]; found != nil {
			on = found
		}
	case *xdsmatcherv3.Matcher_MatcherList_:
		for _, f := range t.MatcherList.GetMatchers() {
			if e.holds(f.GetPredicate(), r, state) {
				on = f.GetOnMatch()
				break
			}
		}
	default:
		panic(t)
	}
	if nested := on.GetMatcher(); nested != nil {
		return e.match(nested, r, state)
	}
	if on.GetAction() == nil {
		return false // no match is a denial
	}
	return unpack(on.GetAction().GetTypedConfig(), &rbacv3.Action{}).GetAction() == rbacv3.RBAC_ALLOW
}

func (e *evaluator) holds(p *xdsmatcherv3.Matcher_MatcherList_Predicate, r asked, state map[string]string) bool {
	holds := func(p *xdsmatcherv3.Matcher_MatcherList_Predicate) bool { return e.holds(p, r, state) }
	switch t := p.GetMatchType().(type) {
	case *xdsmatcherv3.Matcher_MatcherList_Predicate_NotMatcher:
		return !holds(t.NotMatcher)
	case *xdsmatcherv3.Matcher_MatcherList_Predicate_AndMatcher:
		return several(t.AndMatcher) && !slices.ContainsFunc(t.AndMatcher.GetPredicate(), func(p *xdsmatcherv3.Matcher_MatcherList_Predicate) bool { return !holds(p) })
	case *xdsmatcherv3.Matcher_MatcherList_Predicate_OrMatcher:
		return several(t.OrMatcher) && slices.ContainsFunc(t.OrMatcher.GetPredicate(), holds)
	case *xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate_:
		return e.single(t.SinglePredicate, r, state)
	default:
		panic(t)
	}
}

// several is Envoy's rule for lists of predicates.
func several(l *xdsmatcherv3.Matcher_MatcherList_Predicate_PredicateList) bool {
	if len(l.GetPredicate()) < 2 {
		panic("Envoy refuses a list of less than two predicates")
	}
	return true
}

func (e *evaluator) single(p *xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate, r asked, state map[string]string) bool {
	if custom := p.GetCustomMatch(); custom != nil {
		return e.payload(p.GetInput(), unpack(custom.GetTypedConfig(), &metadatamatcherv3.Metadata{}), r)
	}
	text, there := "", false
	switch raw := p.GetInput().GetTypedConfig(); {
	case raw.MessageIs(&inputsv3.FilterStateInput{}):
		text, there = state[unpack(raw, &inputsv3.FilterStateInput{}).GetKey()]
	case raw.MessageIs(&matcherv3.HttpRequestHeaderMatchInput{}):
		switch name := unpack(raw, &matcherv3.HttpRequestHeaderMatchInput{}).GetHeaderName(); name {
		case ":method":
			text, there = r.method, true
		default:
			values := r.header[name]
			text, there = strings.Join(values, ","), len(values) > 0
		}
	default:
		panic(raw)
	}
	return there && e.text(p.GetValueMatch(), text)
}

func (e *evaluator) text(m *xdsmatcherv3.StringMatcher, s string) bool {
	fold := func(s string) string { return s }
	if m.GetIgnoreCase() {
		fold = strings.ToLower
	}
	s = fold(s)
	switch t := m.GetMatchPattern().(type) {
	case *xdsmatcherv3.StringMatcher_Exact:
		return s == fold(t.Exact)
	case *xdsmatcherv3.StringMatcher_Prefix:
		return strings.HasPrefix(s, fold(t.Prefix))
	case *xdsmatcherv3.StringMatcher_Suffix:
		return strings.HasSuffix(s, fold(t.Suffix))
	case *xdsmatcherv3.StringMatcher_Contains:
		return strings.Contains(s, fold(t.Contains))
	case *xdsmatcherv3.StringMatcher_SafeRegex:
		return e.whole(t.SafeRegex.GetRegex(), s)
	default:
		panic(t)
	}
}

// whole reports whether an expression matches all of s.
func (e *evaluator) whole(expression, s string) bool {
	re := e.compiled[expression]
	if re == nil {
		re = regexp.MustCompile(`\A(?:` + expression + `)\z`)
		if e.compiled == nil {
			e.compiled = map[string]*regexp.Regexp{}
		}
		e.compiled[expression] = re
	}
	return re.MatchString(s)
}

func (e *evaluator) payload(input *xdscorev3.TypedExtensionConfig, m *metadatamatcherv3.Metadata, r asked) bool {
	in := unpack(input.GetTypedConfig(), &inputsv3.DynamicMetadataInput{})
	if in.GetFilter() != "envoy.filters.http.jwt_authn" || m.GetInvert() {
		panic(in)
	}
	at := map[string]any{}
	for name, payload := range r.tokens {
		at["jwt_payload_"+name] = payload
	}
	var value any = at
	for _, segment := range in.GetPath() {
		fields, _ := value.(map[string]any)
		value = fields[segment.GetKey()]
	}
	return value != nil && e.value(m.GetValue(), value)
}

func (e *evaluator) value(m *matcherv3.ValueMatcher, v any) bool {
	switch t := m.GetMatchPattern().(type) {
	case *matcherv3.ValueMatcher_PresentMatch:
		return t.PresentMatch
	case *matcherv3.ValueMatcher_StringMatch:
		s, ok := v.(string)
		return ok && s == t.StringMatch.GetExact()
	case *matcherv3.ValueMatcher_ListMatch:
		list, _ := v.([]any)
		return slices.ContainsFunc(list, func(v any) bool { return e.value(t.ListMatch.GetOneOf(), v) })
	case *matcherv3.ValueMatcher_OrMatch:
		return slices.ContainsFunc(t.OrMatch.GetValueMatchers(), func(m *matcherv3.ValueMatcher) bool { return e.value(m, v) })
	default:
		panic(fmt.Sprint(t))
	}
}

// packed are the messages that a message holds packed, and those in them.
func packed(m proto.Message) []proto.Message {
	var out []proto.Message
	var walk func(protoreflect.Message)
	walk = func(m protoreflect.Message) {
		if raw, ok := m.Interface().(*anypb.Any); ok {
			if raw.GetTypeUrl() == "" {
				return
			}
			inner, err := raw.UnmarshalNew()
			if err != nil {
				panic(err)
			}
			out = append(out, inner)
			walk(inner.ProtoReflect())
			return
		}
		m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			switch {
			case f.IsMap():
				if f.MapValue().Message() != nil {
					v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { walk(v.Message()); return true })
				}
			case f.Message() == nil:
			case f.IsList():
				for i := range v.List().Len() {
					walk(v.List().Get(i).Message())
				}
			default:
				walk(v.Message())
			}
			return true
		})
	}
	walk(m.ProtoReflect())
	return out
}
