package relay

import (
	"fmt"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// Where plaintext is taken is told when it is so, and not when it was asked for.
func TestPlaintextIsToldOnceInForce(t *testing.T) {
	const routes = "public_listener_plaintext"
	listener := func(content string) *xds.Resource {
		return res(t, xds.ListenerType, "public_listener:127.0.0.1:21000", content)
	}
	rules := res(t, xds.RouteType, routes, "rules")
	w := newWorld(t)
	w.serve()
	w.tell(listener("permissive"), rules)
	w.start()
	port := func(what string, want int) {
		t.Helper()
		if got := w.relay.Status().PlaintextPort; got != want {
			t.Fatalf("%s: port %d, want %d", what, got, want)
		}
	}
	becomes := func(what string, want int) {
		t.Helper()
		w.eventually(fmt.Sprintf("%s: port %d", what, want), func() bool { return w.relay.Status().PlaintextPort == want })
	}
	holds := func(what string, r *xds.Resource) {
		t.Helper()
		w.eventually(what, func() bool {
			w.relay.mu.Lock()
			defer w.relay.mu.Unlock()
			have := w.relay.held[r.Type][r.Name]
			return have != nil && have.Version == r.Version
		})
	}

	e := w.envoy()
	e.send(xds.Request{Type: xds.ListenerType})
	e.ack(e.take(xds.ListenerType, listener("permissive")))
	e.send(xds.Request{Type: xds.RouteType, Subscribe: []string{routes}})
	given := e.take(xds.RouteType, rules)
	port("without rules in force", 0)
	e.ack(given)
	becomes("with rules in force", 21000)

	w.tell(listener("permissive, otherwise"), rules)
	holds("another change of the listener", listener("permissive, otherwise"))
	port("while the listener changes in other ways", 21000)
	e.ack(e.take(xds.ListenerType, listener("permissive, otherwise")))

	w.tell(listener("strict"))
	becomes("strict, before Envoy says so", 0)
	for _, r := range e.takeBoth() {
		e.ack(r)
	}

	// Envoy goes on asking for the rules as long as it drains what they were for.
	w.tell(listener("permissive again"), rules)
	both := e.takeBoth()
	e.ack(both[xds.RouteType])
	w.eventually("the rules are acknowledged", func() bool { return w.serverSays(xds.RouteType).Acked == 1 })
	port("with rules in force before the listener is", 0)
	e.ack(both[xds.ListenerType])
	becomes("with both in force", 21000)

	// One that only opens its stream anew has all that already.
	again := w.envoy()
	again.send(xds.Request{Type: xds.ListenerType, Initial: map[string]string{listener("").Name: listener("permissive again").Version}})
	w.eventually("the stream is open anew", func() bool {
		w.relay.mu.Lock()
		defer w.relay.mu.Unlock()
		return len(w.relay.wanted[xds.RouteType]) == 0
	})
	port("before it has said what it holds", 0)
	again.send(xds.Request{Type: xds.RouteType, Subscribe: []string{routes}, Initial: map[string]string{routes: rules.Version}})
	becomes("when it has", 21000)
}

// takeBoth receives the next two responses, which come in any order.
func (e *envoy) takeBoth() map[xds.Type]xds.Response {
	e.t.Helper()
	out := map[xds.Type]xds.Response{}
	for range 2 {
		r, err := e.c.Recv()
		if err != nil {
			e.t.Fatal(err)
		}
		out[r.Type] = r
	}
	return out
}

// A listener for plaintext alone is where plaintext is taken, once it is there.
func TestPlaintextPortOfItsOwn(t *testing.T) {
	public, own := res(t, xds.ListenerType, "public_listener:127.0.0.1:21000", ""), res(t, xds.ListenerType, "public_listener_plaintext:127.0.0.1:21500", "")
	rules := res(t, xds.ExtensionType, "plaintext_intentions", "")
	w := newWorld(t)
	w.serve()
	w.tell(public, own, rules)
	w.start()
	e := w.envoy()
	e.send(xds.Request{Type: xds.ExtensionType, Subscribe: []string{rules.Name}})
	e.ack(e.take(xds.ExtensionType, rules))
	e.send(xds.Request{Type: xds.ListenerType})
	both := e.take(xds.ListenerType, public, own)
	if got := w.relay.Status().PlaintextPort; got != 0 {
		t.Errorf("port %d before the listeners are acknowledged", got)
	}
	e.ack(both)
	w.eventually("the port of its own", func() bool { return w.relay.Status().PlaintextPort == 21500 })
}
