package envoy

import (
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	overloadv3 "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	downstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	heapv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/fixed_heap/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	heapMonitor        = "envoy.resource_monitors.fixed_heap"
	connectionsMonitor = "envoy.resource_monitors.global_downstream_max_connections"
	overloadAction     = "envoy.overload_actions."
)

// What happens at which share of the heap limit: first what costs nothing, then
// what callers notice least (a new connection refused, one that ends between requests),
// the refusal of requests last. New connections come well before that: a crowd of
// idle ones, which arrives between two looks, must not cost others their requests.
const (
	shrinkAt  = 0.90
	rejectAt  = 0.90
	hurryFrom = 0.85 // idle connections live shorter and shorter from here …
	hurryTo   = 0.95 // … to here
	goodbyeAt = 0.95
	refuseAt  = 0.98
	hurried   = 10 * time.Second
)

// HeapLimitKey is the runtime key that changes [BootstrapOptions].MaxHeapBytes of a
// running Envoy.
const HeapLimitKey = "crossfade.heap_limit"

// HeapLimit is the heap of an Envoy that may use so much memory in all: what is left
// beside its code, its stacks and what the allocator wastes.
func HeapLimit(memory int64) int64 {
	const beside = 64 << 20
	return min(max(memory-beside, memory/2), memory/4*3)
}

// ConnectionLimit is how many connections such a heap has room for beside requests.
// An idle one, with its TLS and HTTP/2, takes 42 KB. The heap's own limit is looked at
// four times a second only; this one binds as each is accepted.
func ConnectionLimit(heap int64) int64 {
	const each = 44 << 10
	return heap / 4 * 3 / each
}

// overload puts the limits on memory and connections into boot.
func (o BootstrapOptions) overload(boot *bootstrapv3.Bootstrap, b *builder) {
	m := &overloadv3.OverloadManager{}
	if o.MaxDownstreamConnections > 0 {
		most := o.MaxDownstreamConnections
		if o.MaxHeapBytes > 0 {
			most = min(most, ConnectionLimit(o.MaxHeapBytes))
		}
		m.ResourceMonitors = append(m.ResourceMonitors, &overloadv3.ResourceMonitor{
			Name: connectionsMonitor,
			ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: b.pack(&downstreamv3.DownstreamConnectionsConfig{
				MaxActiveDownstreamConnections: most,
			})},
		})
	}
	if o.MaxHeapBytes > 0 {
		m.ResourceMonitors = append(m.ResourceMonitors, &overloadv3.ResourceMonitor{
			Name: heapMonitor,
			ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: b.pack(&heapv3.FixedHeapConfig{MaxHeapSizeBytesRuntime: &corev3.RuntimeUInt64{
				DefaultValue: uint64(o.MaxHeapBytes), RuntimeKey: HeapLimitKey,
			}})},
		})
		m.RefreshInterval = duration(250 * time.Millisecond)
		hurry := action("reduce_timeouts", scaled(hurryFrom, hurryTo))
		hurry.TypedConfig = b.pack(&overloadv3.ScaleTimersOverloadActionConfig{
			TimerScaleFactors: []*overloadv3.ScaleTimersOverloadActionConfig_ScaleTimer{{
				Timer: overloadv3.ScaleTimersOverloadActionConfig_HTTP_DOWNSTREAM_CONNECTION_IDLE,
				OverloadAdjust: &overloadv3.ScaleTimersOverloadActionConfig_ScaleTimer_MinTimeout{
					MinTimeout: duration(hurried),
				},
			}},
		})
		m.Actions = []*overloadv3.OverloadAction{
			hurry,
			action("shrink_heap", above(shrinkAt)),
			action("disable_http_keepalive", above(goodbyeAt)),
			action("stop_accepting_requests", above(refuseAt)),
			action("reject_incoming_connections", above(rejectAt)),
		}
		boot.MemoryAllocatorManager = &bootstrapv3.MemoryAllocatorManager{BytesToRelease: 16 << 20, MemoryReleaseInterval: seconds(1)}
		boot.LayeredRuntime.Layers = append(boot.LayeredRuntime.Layers, &bootstrapv3.RuntimeLayer{
			Name: "base", LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{StaticLayer: &structpb.Struct{Fields: map[string]*structpb.Value{
				"envoy.reloadable_features.fixed_heap_use_allocated": structpb.NewBoolValue(true),
			}}},
		})
	}
	if len(m.ResourceMonitors) > 0 {
		boot.OverloadManager = m
	}
}

func action(name string, trigger *overloadv3.Trigger) *overloadv3.OverloadAction {
	return &overloadv3.OverloadAction{Name: overloadAction + name, Triggers: []*overloadv3.Trigger{trigger}}
}

func above(share float64) *overloadv3.Trigger {
	return &overloadv3.Trigger{Name: heapMonitor, TriggerOneof: &overloadv3.Trigger_Threshold{Threshold: &overloadv3.ThresholdTrigger{Value: share}}}
}

func scaled(from, to float64) *overloadv3.Trigger {
	return &overloadv3.Trigger{Name: heapMonitor, TriggerOneof: &overloadv3.Trigger_Scaled{Scaled: &overloadv3.ScaledTrigger{
		ScalingThreshold: from, SaturationThreshold: to,
	}}}
}
