package sidecar

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/sidecar/relay"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

// mute takes connections and says nothing, or one thing.
func mute(t *testing.T, says string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if says != "" {
				_, _ = bufio.NewReader(c).ReadString('\n')
				fmt.Fprint(c, says)
				c.Close()
			}
			t.Cleanup(func() { c.Close() })
		}
	}()
	return l.Addr().String()
}

func TestOldWaysAreTriedAsRequestsGo(t *testing.T) {
	var head atomic.Pointer[http.Request]
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			head.Store(r)
		}
		w.WriteHeader(http.StatusServiceUnavailable) // an answer is an answer
	}))
	defer web.Close()
	h2 := httptest.NewUnstartedServer(http.NotFoundHandler())
	h2.Config.Protocols = new(http.Protocols)
	h2.Config.Protocols.SetUnencryptedHTTP2(true)
	h2.Start()
	defer h2.Close()
	dead := freeAddress(t)
	at := func(addr string) []string { return []string{addr} }
	for _, c := range []struct {
		name string
		to   relay.WayTo
		why  string // empty: it works
	}{
		{"HTTP/1.1", relay.WayTo{Way: "legacy", Protocol: config.HTTP, Host: "catalog.old", Addresses: at(web.Listener.Addr().String())}, ""},
		{"HTTP/2", relay.WayTo{Way: "legacy", Protocol: config.HTTP2, Addresses: at(h2.Listener.Addr().String())}, ""},
		{"HTTP/2 to what speaks HTTP/1.1", relay.WayTo{Way: "legacy", Protocol: config.HTTP2, Addresses: at(web.Listener.Addr().String())}, "does not speak HTTP/2"},
		{"tcp", relay.WayTo{Way: "legacy", Protocol: config.TCP, Addresses: at(mute(t, ""))}, ""},
		{"nobody", relay.WayTo{Way: "legacy", Protocol: config.HTTP, Addresses: at(dead)}, "connection refused"},
		{"no HTTP", relay.WayTo{Way: "legacy", Protocol: config.HTTP, Addresses: at(mute(t, "220 mail\r\n"))}, "gives no answer of HTTP/1.1"},
		{"silence", relay.WayTo{Way: "legacy", Protocol: config.HTTP, Addresses: at(mute(t, ""))}, "gives no answer of HTTP/1.1"},
		{"direct", relay.WayTo{Way: "direct", Protocol: config.HTTP, Addresses: []string{dead, mute(t, "")}}, ""},
		{"a name", relay.WayTo{Way: "legacy", Protocol: config.TCP, Of: "old:80", Addresses: []string{dead, mute(t, "")}}, ""},
		{"a name of nobody", relay.WayTo{Way: "legacy", Protocol: config.TCP, Of: "old:80", Addresses: []string{dead, dead}}, "connection refused"},
		{"direct to nobody", relay.WayTo{Way: "direct", Protocol: config.TCP, Addresses: at(dead)}, "connection refused"},
		{"nowhere", relay.WayTo{Way: "direct", Protocol: config.TCP}, "no instance is healthy"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		switch err := tryWay(ctx, c.to); {
		case c.why == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.why != "" && (err == nil || !strings.Contains(err.Error(), c.why)):
			t.Errorf("%s: %v, not %q", c.name, err, c.why)
		}
		cancel()
	}
	if asked := head.Load(); asked == nil || asked.Host != "catalog.old" || asked.UserAgent() != probeAgent {
		t.Errorf("%+v", asked)
	}
}

func freeAddress(t *testing.T) string { return fmt.Sprintf("127.0.0.1:%d", freePort(t)) }

func TestOldWaysAreToldWhenTheyChange(t *testing.T) {
	var fails error
	to := []relay.WayTo{{Destination: "catalog", Way: "legacy", Addresses: []string{"192.0.2.1:80"}}}
	o := newOldWays(func() []relay.WayTo { return to })
	o.try = func(context.Context, relay.WayTo) error { return fails }
	told := func() []telemetry.Probe {
		var r telemetry.Report
		o.add(&r)
		return r.Probes
	}
	again := func() {
		for _, w := range o.known {
			w.next = time.Time{}
		}
		o.look(t.Context())
	}
	o.look(t.Context())
	first := told()
	if len(first) != 1 || !first[0].Works || first[0].Since.IsZero() {
		t.Fatalf("%+v", first)
	}
	if again(); told() != nil {
		t.Error("what is as it was is told again")
	}
	fails = fmt.Errorf("no")
	again()
	if now := told(); len(now) != 1 || now[0].Works || now[0].Why != "no" || !now[0].Since.After(first[0].Since) {
		t.Errorf("%+v", now)
	}
	if due := o.due(to, time.Now()); due != nil {
		t.Errorf("tried again at once: %v", due)
	}
	if due := o.due(to, time.Now().Add(2*probeSooner)); len(due) != 1 {
		t.Error("one that fails is not tried again soon")
	}
	// Another address is another way, and one without a traffic-shift is forgotten.
	to = []relay.WayTo{{Destination: "catalog", Way: "legacy", Addresses: []string{"192.0.2.2:80"}}}
	if due := o.due(to, time.Now()); len(due) != 1 {
		t.Error("a new address waits")
	}
	// A name is told by itself, and stays the same way whatever it stands for.
	to = []relay.WayTo{{Destination: "catalog", Way: "legacy", Of: "old:80", Addresses: []string{"192.0.2.2:80", "192.0.2.3:80"}}}
	again()
	if now := told(); len(now) != 1 || now[0].Address != "old:80" {
		t.Errorf("%+v", now)
	}
	to = []relay.WayTo{{Destination: "catalog", Way: "legacy", Of: "old:80", Addresses: []string{"192.0.2.4:80"}}}
	if due := o.due(to, time.Now()); due != nil {
		t.Error("another address of one name is another way")
	}
	to = nil
	if again(); len(o.known) != 0 {
		t.Error("it is not forgotten")
	}
}
