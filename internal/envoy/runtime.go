package envoy

import (
	runtimev3 "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// RuntimeName is the runtime layer that the bootstrap asks for. Envoy waits for it
// at start, so it is there even when it says nothing.
const RuntimeName = "crossfade"

// runtime holds what may change at any time without touching a connection.
func (b *builder) runtime() *runtimev3.Runtime {
	fields := map[string]*structpb.Value{
		// A chunk that is longer than it says is refused, not cut.
		"envoy.reloadable_features.strict_chunk_parsing": structpb.NewBoolValue(true),
		// Above it a route or listener would be refused; entries are held to it when written.
		"re2.max_program_size.error_level": structpb.NewNumberValue(config.MaxRegexProgram),
	}
	if in := b.proxy.Inbound; in != nil && in.MaxConnections > 0 {
		limit := structpb.NewNumberValue(float64(in.MaxConnections))
		fields["envoy.resource_limits.listener."+in.ListenerName+".connection_limit"] = limit
		if p := in.Plaintext; p != nil && p.Port != 0 {
			fields["envoy.resource_limits.listener."+p.ListenerName+".connection_limit"] = limit
		}
	}
	return &runtimev3.Runtime{Name: RuntimeName, Layer: &structpb.Struct{Fields: fields}}
}
