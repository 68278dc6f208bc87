package xds

import (
	"bytes"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// A resource of which a part was encoded before is to everybody what it is when encoded whole.
func TestRest(t *testing.T) {
	whole := &listenerv3.Listener{
		Name:         "web:127.0.0.1:9000",
		Address:      &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: "/run/web"}}},
		FilterChains: []*listenerv3.FilterChain{{Name: "web"}}, TrafficDirection: corev3.TrafficDirection_OUTBOUND, PerConnectionBufferLimitBytes: wrapperspb.UInt32(1),
	}
	want, err := NewResource(ListenerType, whole.Name, whole)
	if err != nil {
		t.Fatal(err)
	}
	common := proto.CloneOf(whole)
	common.Name, common.Address = "", nil
	rest, err := NewRest(common)
	if err != nil {
		t.Fatal(err)
	}
	got, err := NewResourceOf(ListenerType, whole.Name, &listenerv3.Listener{Name: whole.Name, Address: whole.Address}, rest)
	if err != nil {
		t.Fatal(err)
	}
	encoded := func(r *Resource) []byte {
		out, err := Codec().Marshal(&response{typ: ListenerType, nonce: "1", resources: []*Resource{r}})
		if err != nil {
			t.Fatal(err)
		}
		return out.Materialize()
	}
	if got.Version != want.Version || got.Size() != want.Size() || !bytes.Equal(encoded(got), encoded(want)) {
		t.Errorf("version %s of %d bytes, want %s of %d, and the same bytes", got.Version, got.Size(), want.Version, want.Size())
	}
	var written bytes.Buffer
	if err := WriteRecord(&written, ListenerType, []*Resource{got}); err != nil {
		t.Fatal(err)
	}
	if record := AppendRecord(nil, ListenerType, []*Resource{want}); !bytes.Equal(AppendRecord(nil, ListenerType, []*Resource{got}), record) || !bytes.Equal(written.Bytes(), record) {
		t.Error("it is not recorded whole")
	}
	for name, r := range map[string]*Resource{"whole": want, "in parts": got} {
		renamed, err := r.Renamed("other")
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range []*Resource{r, renamed} {
			body, err := r.Body()
			read := &listenerv3.Listener{}
			if err != nil || proto.Unmarshal(body, read) != nil || !proto.Equal(read, whole) {
				t.Errorf("%s: body of %q: %v, %v", name, r.Name, read, err)
			}
			back, err := parseResponse(encoded(r))
			if err != nil || len(back.resources) != 1 || back.resources[0].Name != r.Name || back.resources[0].Version != want.Version || !bytes.Equal(back.resources[0].wire, r.whole()) {
				t.Errorf("%s: %q read back: %v, %v", name, r.Name, back, err)
			}
		}
	}
}
