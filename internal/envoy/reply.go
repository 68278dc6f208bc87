package envoy

import (
	"fmt"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// reply is what Envoy says when it answers in place of the callee.
type reply struct {
	flag string // Envoy's response flag, see its access log documentation
	text string // a substitution format string where it has a "%"
}

// The first that matches counts. A retry that also failed has its own flag and
// that of the last attempt, so the causes come before "UR".
var (
	outbound = []reply{
		{"UH", "no healthy instance"},
		{"UF", "cannot connect to an instance: %UPSTREAM_TRANSPORT_FAILURE_REASON%"},
		{"UO", "too many connections or requests at once"},
		{"UC", "the instance closed the connection before it answered"},
		{"UT", "no answer in time"},
		{"UPE", "the answer is no valid HTTP"},
		{"UR", "the instance reset the request"},
		{"SI", "nothing moved for too long"},
		{"NC", "the sidecar does not know it yet"},
		{"NR", "no route"},
	}
	inbound = []reply{
		{"UF", "the app refused the connection: %UPSTREAM_TRANSPORT_FAILURE_REASON%"},
		{"UH", "the app has no address"},
		{"UO", "too many requests at once"},
		{"UC", "the app closed the connection before it answered"},
		{"UT", "the app did not answer in time"},
		{"UPE", "the app's answer is no valid HTTP"},
		{"UR", "the app reset the request"},
		{"SI", "nothing moved for too long"},
		{"NR", "no route"},
	}
)

// outboundReplies are the same for all upstreams: a filter chain has the upstream's name.
func (b *builder) outboundReplies(protocol string) *hcmv3.LocalReplyConfig {
	return b.replies(`upstream "%FILTER_CHAIN_NAME%"`, protocol, outbound)
}

func (b *builder) inboundReplies(service, protocol string) *hcmv3.LocalReplyConfig {
	return b.replies(strings.ReplaceAll(fmt.Sprintf("service %q", service), "%", "%%"), protocol, inbound)
}

// replies are about subject, which is a substitution format string. What they have in common is said
// by one format for all: in Envoy each part of a format takes memory, for every upstream.
func (b *builder) replies(subject, protocol string, table []reply) *hcmv3.LocalReplyConfig {
	out := &hcmv3.LocalReplyConfig{BodyFormat: textFormat(explain(subject, replyBody, protocol))}
	add := func(filter *accesslogv3.AccessLogFilter, text string) {
		m := &hcmv3.ResponseMapper{Filter: filter}
		if strings.Contains(text, "%") {
			m.BodyFormatOverride = textFormat(explain(subject, text, protocol))
		} else {
			m.Body = inlineString(text)
		}
		out.Mappers = append(out.Mappers, m)
	}
	for _, r := range table {
		add(once(b, filterKey(r.flag), func() *accesslogv3.AccessLogFilter { return flagFilter(r.flag) }), r.text+" ("+r.flag+")")
	}
	// What the codec or path normalization refuses has no flag.
	add(once(b, filterKey("400"), func() *accesslogv3.AccessLogFilter { return statusFilter(400) }), "the request is refused: %RESPONSE_CODE_DETAILS%")
	// All else, such as what a route answers itself, stays as it is.
	out.Mappers = append(out.Mappers, &hcmv3.ResponseMapper{Filter: once(b, filterKey(""), anyReply), BodyFormatOverride: textFormat(replyBody)})
	return out
}

// replyBody is what an answer says so far.
const replyBody = "%LOCAL_REPLY_BODY%"

// textFormat is a substitution format string as Envoy wants it.
func textFormat(text string) *corev3.SubstitutionFormatString {
	return &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: inlineString(text)}}
}

// anyReply selects all local replies: none is an event of a kind.
func anyReply() *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_LogTypeFilter{LogTypeFilter: &accesslogv3.LogTypeFilter{Exclude: true}}}
}

// filterKey is that of a filter among the parts made once.
type filterKey string

// flagFilter selects local replies by Envoy's response flag.
func flagFilter(flag string) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
		ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: []string{flag}},
	}}
}

func statusFilter(status uint32) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_StatusCodeFilter{
		StatusCodeFilter: &accesslogv3.StatusCodeFilter{Comparison: &accesslogv3.ComparisonFilter{
			Op: accesslogv3.ComparisonFilter_EQ,
			// Envoy wants a runtime key; nobody sets this one.
			Value: &corev3.RuntimeUInt32{DefaultValue: status, RuntimeKey: "crossfade.local_reply_status"},
		}},
	}}
}

// explain is the body of an answer that the sidecar gives itself. For gRPC it is
// the status message, which has no line to end.
func explain(subject, text, protocol string) string {
	s := "crossfade: " + subject + ": " + text
	if protocol != config.GRPC {
		s += "\n"
	}
	return s
}
