package envoy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	runtimev3 "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// RuntimeName is the runtime layer that the bootstrap asks for. Envoy waits for it
// at start, so it is there even when it says nothing.
const RuntimeName = "crossfade"

// shiftKey begins keys that Envoy passes over: the shares of each pair and their generation,
// for the relay, which has them acknowledged and on disk like everything else of the layer.
const shiftKey = "crossfade.shift."

// Shifts are the shares that a runtime layer of ours holds, by destination, as they are
// written there.
func Shifts(r *runtimev3.Runtime) map[string]string {
	out := map[string]string{}
	for key, value := range r.GetLayer().GetFields() {
		if destination, ok := strings.CutPrefix(key, shiftKey); ok {
			out[destination] = value.GetStringValue()
		}
	}
	return out
}

// ParseShift reads what [Shifts] gives of one destination; shares are in hundredths of a percent.
func ParseShift(text string) (generation uint64, shares config.Shares, err error) {
	var legacy, direct, plain, mtls uint16
	if _, err := fmt.Sscanf(text, "%d legacy=%d direct=%d plain=%d mtls=%d", &generation, &legacy, &direct, &plain, &mtls); err != nil {
		return 0, config.Shares{}, fmt.Errorf("shares %.80q: %w", text, err)
	}
	percent := func(n uint16) float64 { return float64(n) / 100 }
	return generation, config.Shares{Legacy: percent(legacy), Direct: percent(direct), Plain: percent(plain), MTLS: percent(mtls)}, nil
}

// cutKey begins keys that Envoy passes over as well: orders to close what is open, for the
// sidecar beside it.
const cutKey = "crossfade.cut."

// maxCutOver bounds the time of an order that is read.
const maxCutOver = 24 * time.Hour

// Cuts are the orders in a runtime layer of ours. What cannot be read is none.
func Cuts(r *runtimev3.Runtime) (out []proxy.Cut) {
	fields := r.GetLayer().GetFields()
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		destination, ok := strings.CutPrefix(key, cutKey)
		if !ok {
			continue
		}
		if c, err := parseCut(destination, fields[key].GetStringValue()); err == nil {
			out = append(out, c)
		}
	}
	return out
}

func cutText(c proxy.Cut) string {
	return fmt.Sprintf("%s keep=%s over=%dms part=%d/%d", c.ID, c.Keep, c.Over.Milliseconds(), c.Part, c.Parts)
}

func parseCut(destination, text string) (proxy.Cut, error) {
	c := proxy.Cut{Destination: destination}
	var over int64
	if _, err := fmt.Sscanf(text, "%s keep=%s over=%dms part=%d/%d", &c.ID, &c.Keep, &over, &c.Part, &c.Parts); err != nil {
		return c, fmt.Errorf("cut %.80q: %w", text, err)
	}
	if c.Over = time.Duration(over) * time.Millisecond; over < 0 || c.Over > maxCutOver || c.Part < 0 || c.Part >= c.Parts {
		return c, fmt.Errorf("cut %.80q: no such time, or part", text)
	}
	return c, nil
}

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
	for _, s := range b.proxy.Shifts {
		fields[shiftKey+s.Destination] = structpb.NewStringValue(fmt.Sprintf("%d legacy=%d direct=%d plain=%d mtls=%d", s.Generation,
			s.Shares.Hundredths(config.WayLegacy), s.Shares.Hundredths(config.WayDirect), s.Shares.Hundredths(config.WayPlain), s.Shares.Hundredths(config.WayMTLS)))
	}
	for _, c := range b.proxy.Cuts {
		fields[cutKey+c.Destination] = structpb.NewStringValue(cutText(c))
	}
	return &runtimev3.Runtime{Name: RuntimeName, Layer: &structpb.Struct{Fields: fields}}
}
