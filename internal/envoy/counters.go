package envoy

import (
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accessdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	statsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stats/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// CounterPrefix begins the names of what is counted for the control plane, and not for
// people: by pair and way, and plaintext by its source.
const CounterPrefix = "cf."

// maxCounters bounds what one of these counters takes: pairs, ways and outcomes are few,
// and sources of plaintext are whoever reaches the port.
const maxCounters = 2000

// PlaintextCounter counts what came without TLS: requests, or connections of tcp.
// SourceTag is the address that it came from.
const (
	PlaintextCounter = "plaintext"
	SourceTag        = "source_address"
)

// What callers' sidecars count of every attempt, by destination and way: of protocols with
// requests each try of each request, of tcp each connection to an instance, and each that
// came to nothing. Times are histograms in microseconds: of what was answered, from sending
// a request to the first byte of its answer, or of connecting.
const (
	AttemptCounter    = "attempt"
	AttemptTime       = "attempt_us"
	ConnectionCounter = "connection"
	ConnectionTime    = "connection_us"

	DestinationTag = "destination"
	WantedTag      = "wanted" // the cluster that the request, or connection, was meant for
	WayTag         = "way"    // empty: mtls
	CodeTag        = "code"
	FlagsTag       = "flags"
	GRPCTag        = "grpc"
)

// wayKey is the namespace and key of an endpoint's metadata that names its way; endpoints of
// mtls have none. addressKey is what those have that a legacy address of another name stands for.
const (
	wayNamespace = "crossfade"
	wayKey       = "way"
	addressKey   = "address"
)

func tag(name, format string) *statsv3.Config_Tag {
	return &statsv3.Config_Tag{Name: name, ValueFormat: format}
}

// pairTags tell by which way of which pair an attempt went.
func pairTags() []*statsv3.Config_Tag {
	return []*statsv3.Config_Tag{tag(DestinationTag, "%FILTER_CHAIN_NAME%"), tag(WayTag, "%UPSTREAM_METADATA("+wayNamespace+":"+wayKey+")%")}
}

// wantedTag is the cluster that a route chose: another stands in for one that has nobody.
func wantedTag() *statsv3.Config_Tag { return tag(WantedTag, "%UPSTREAM_CLUSTER%") }

func counter(name string, tags ...*statsv3.Config_Tag) *statsv3.Config {
	return &statsv3.Config{Counters: []*statsv3.Config_Counter{{Stat: &statsv3.Config_Stat{Name: name, Tags: append(pairTags(), tags...)}, ValueFixed: wrapperspb.UInt64(1)}}}
}

func histogram(name, value string) *statsv3.Config {
	return &statsv3.Config{Histograms: []*statsv3.Config_Histogram{{
		Stat: &statsv3.Config_Stat{Name: name, Tags: pairTags()}, Unit: statsv3.Config_Histogram_Microseconds, ValueFormat: value,
	}}}
}

// grpcStatus is what the callee said, in its headers or trailers. Envoy's own word for it also
// takes a stream that the caller gave up for one that failed.
const grpcStatus = "%RESP(grpc-status):2%%TRAILER(grpc-status):2%"

// attempts counts what a router tries. Only what was answered has a time.
func (b *builder) attempts() []*accesslogv3.AccessLog {
	answered := &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_StatusCodeFilter{StatusCodeFilter: &accesslogv3.StatusCodeFilter{
		Comparison: &accesslogv3.ComparisonFilter{Op: accesslogv3.ComparisonFilter_GE, Value: &corev3.RuntimeUInt32{DefaultValue: 100, RuntimeKey: "crossfade.answered"}},
	}}}
	return []*accesslogv3.AccessLog{
		b.statsLogger(nil, counter(AttemptCounter, wantedTag(), tag(CodeTag, "%RESPONSE_CODE%"), tag(FlagsTag, "%RESPONSE_FLAGS%"), tag(GRPCTag, grpcStatus))),
		b.statsLogger(answered, histogram(AttemptTime, "%COMMON_DURATION(US_TX_BEG:US_RX_BEG:us)%")),
	}
}

// connectionFlags are those of connections that reached no instance in the end. One that was
// saved by a second attempt has "UF" as well, and went by another way than that which failed.
var connectionFlags = []string{"UH", "UO", "NC", "URX"}

// connections counts what a TCP proxy connects to.
func (b *builder) connections() []*accesslogv3.AccessLog {
	failed := unconnected()
	made := at(accessdatav3.AccessLogType_TcpUpstreamConnected)
	return []*accesslogv3.AccessLog{
		b.statsLogger(made, counter(ConnectionCounter, wantedTag(), tag(FlagsTag, "-"))),
		b.statsLogger(made, histogram(ConnectionTime, "%COMMON_DURATION(US_CX_BEG:US_CX_END:us)%")),
		b.statsLogger(failed, counter(ConnectionCounter, wantedTag(), tag(FlagsTag, "%RESPONSE_FLAGS%"))),
	}
}

// unconnected selects connections that reached no instance.
func unconnected() *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_AndFilter{AndFilter: &accesslogv3.AndFilter{Filters: []*accesslogv3.AccessLogFilter{
		at(accessdatav3.AccessLogType_TcpConnectionEnd),
		{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: connectionFlags}}},
	}}}}
}

// at selects the events of some kinds.
func at(when ...accessdatav3.AccessLogType) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_LogTypeFilter{
		LogTypeFilter: &accesslogv3.LogTypeFilter{Types: when},
	}}
}

// plaintextCounter counts the events that a filter lets through by source.
func (b *builder) plaintextCounter(filter *accesslogv3.AccessLogFilter) *accesslogv3.AccessLog {
	return b.statsLogger(filter, &statsv3.Config{Counters: []*statsv3.Config_Counter{{
		Stat: &statsv3.Config_Stat{Name: PlaintextCounter, Tags: []*statsv3.Config_Tag{
			{Name: SourceTag, ValueFormat: "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"},
		}},
		ValueFixed: wrapperspb.UInt64(1),
	}}})
}

// statsLogger counts what its configuration says of the events that a filter lets through.
func (b *builder) statsLogger(filter *accesslogv3.AccessLogFilter, c *statsv3.Config) *accesslogv3.AccessLog {
	c.StatsScope = &typev3.Scope{Prefix: CounterPrefix[:len(CounterPrefix)-1], MaxCounters: number(maxCounters)}
	return &accesslogv3.AccessLog{
		Name: "envoy.access_loggers.stats", Filter: filter,
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: b.pack(c)},
	}
}
