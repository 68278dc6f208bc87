package envoy

import (
	"slices"
	"testing"
	"time"

	runtimev3 "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// Orders come out of the runtime layer as they went in, and what is none is left out.
func TestCutsInTheRuntimeLayer(t *testing.T) {
	want := []proxy.Cut{
		{Destination: "catalog", ID: "1z", Keep: "legacy", Over: 30 * time.Second, Part: 2, Parts: 3},
		{Destination: "pay.ments", ID: "x", Keep: "direct", Parts: 1},
	}
	b := builder{proxy: &proxy.Proxy{Cuts: want}}
	layer := b.runtime()
	if got := Cuts(layer); !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	if len(Shifts(layer)) != 0 || Cuts(&runtimev3.Runtime{}) != nil || Cuts(nil) != nil {
		t.Error("something is made of nothing")
	}
	for _, bad := range []string{"", "x", "x keep=legacy over=1ms part=1/1", "x keep=legacy over=-1ms part=0/1", "x keep=legacy over=99999999999ms part=0/1"} {
		layer.Layer.Fields = map[string]*structpb.Value{cutKey + "a": structpb.NewStringValue(bad)}
		if got := Cuts(layer); got != nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}
