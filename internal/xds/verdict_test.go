package xds_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// said is the verdicts as text, sorted by node.
func said(verdicts map[string]xds.Verdict) string {
	var out []string
	for node, v := range verdicts {
		text := fmt.Sprintf("%s: connected %v, waiting %v", node, v.Connected, v.Waiting)
		for _, r := range v.Refused {
			text += fmt.Sprintf(", refused %s: %s", r.Key, r.Message)
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func TestAwaitSaysWhatBecameOfAChange(t *testing.T) {
	srv, conn := start(t)
	first, second := resource(t, xds.ListenerType, "l", "1"), resource(t, xds.ListenerType, "l", "2")
	gone := resource(t, xds.ListenerType, "gone", "1")
	both := func(r ...*xds.Resource) map[string]*xds.View {
		return map[string]*xds.View{"a": {Own: xds.Own(r...)}, "b": {Own: xds.Own(r...)}}
	}
	srv.Update(xds.Update{Views: both(gone, first)})
	clients := map[string]*xds.Client{}
	for _, node := range []string{"a", "b"} {
		c := connect(t, conn, node)
		send(t, c, xds.Request{Type: xds.ListenerType})
		receive(t, c, xds.ListenerType, gone, first)
		clients[node] = c
	}
	l, g, unasked := xds.Key{Type: xds.ListenerType, Name: "l"}, xds.Key{Type: xds.ListenerType, Name: "gone"}, xds.Key{Type: xds.RouteType, Name: "never asked for"}
	wanted := map[string][]xds.Key{"a": {l, g, unasked}, "b": {l}, "c": {l}}
	await := func(done func(string) bool) (last string) {
		t.Helper()
		if err := srv.Await(t.Context(), wanted, func(now map[string]xds.Verdict) bool { last = said(now); return done(last) }); err != nil {
			t.Fatalf("%v; last:\n%s", err, last)
		}
		return last
	}
	settled := `a: connected true, waiting []`
	await(func(now string) bool { return strings.Contains(now, settled) })

	srv.Update(xds.Update{Views: both(second)})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	var now string
	if err := srv.Await(ended, wanted, func(v map[string]xds.Verdict) bool { now = said(v); return false }); !errors.Is(err, context.Canceled) {
		t.Errorf("Await past its context: %v", err)
	}
	want := `a: connected true, waiting [Listener "gone" Listener "l"]
b: connected true, waiting [Listener "l"]
c: connected false, waiting [Listener "l"]`
	if now != want {
		t.Errorf("before any answer:\n%s\nwant:\n%s", now, want)
	}

	receive(t, clients["a"], xds.ListenerType, second)
	r, err := clients["b"].Recv()
	if err != nil {
		t.Fatal(err)
	}
	send(t, clients["b"], xds.Request{Type: r.Type, Nonce: r.Nonce, Error: "no"})
	if len(r.Removed) > 0 { // not by itself: the good part of it comes again
		if r, err = clients["b"].Recv(); err != nil {
			t.Fatal(err)
		}
		send(t, clients["b"], xds.Request{Type: r.Type, Nonce: r.Nonce, Error: `Listener "l": no`})
	}
	await(func(now string) bool {
		return strings.Contains(now, settled) && strings.Contains(now, `b: connected true, waiting [], refused Listener "l": no`)
	})
}
