package routing

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// What could not be sent on one way goes by another, unless that is forbidden.
func TestDeadWays(t *testing.T) {
	w := newWorld(t)
	w.speak()
	web := w.caller("web", "web-1", "catalog", "chat")
	dead := map[string]func(ways) *app{"legacy": func(s ways) *app { return s.legacy }, "direct": func(s ways) *app { return s.direct }, "plain": nil, "mtls": func(s ways) *app { return s.mtls }}
	for way, of := range dead {
		t.Run(way, func(t *testing.T) {
			catalog, chat := w.three("catalog"), w.three("chat")
			third := [4]float64{33, 33, 0, 34}
			if of == nil {
				third = [4]float64{33, 0, 33, 34}
				w.deaf("catalog")
				w.deaf("chat")
			} else {
				of(catalog).stop()
				of(chat).stop()
			}
			w.apply(catalog.shift("catalog", third, ""))
			w.apply(chat.shift("chat", third, ""))
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				got, failed := count(200, func() (string, error) { a := web.do(method, "catalog", "/"); return a.instance, a.ok() })
				if len(failed) > 0 || got[way] > 0 || len(got) != 2 {
					t.Errorf("%s: answered by %v, %d failed: %v", method, got, len(failed), errors.Join(failed...))
				}
			}
			got, failed := count(200, web.calls()["chat"])
			if len(failed) > 0 || got[way] > 0 || len(got) != 2 {
				t.Errorf("gRPC: answered by %v, %d failed: %v", got, len(failed), errors.Join(failed...))
			}

			w.apply("Kind = \"traffic-policy\"\nName = \"catalog\"\nCrossing = false\n")
			_, failed = count(200, web.calls()["catalog"])
			within(t, "failures where nothing may cross", len(failed), 200, .333)
			w.delete("traffic-policy", "catalog")
		})
	}
}

// deaf registers a sidecar that says that it takes plaintext where nobody listens. Subsets
// keep it out of mtls.
func (w *world) deaf(service string) {
	w.t.Helper()
	w.write(fmt.Sprintf("Kind = \"service-resolver\"\nName = %q\nDefaultSubset = \"v1\"\nSubsets = { v1 = { Filter = \"Service.Meta.version == v1\" } }\n", service))
	ports := meshtest.FreePorts(w.t, 2)
	body, err := json.Marshal(map[string]any{
		"ID": "deaf-" + service, "Name": service + "-sidecar-proxy", "Kind": "connect-proxy", "Address": "127.0.0.1", "Port": ports[0],
		"Meta": map[string]string{"crossfade_plaintext": fmt.Sprint(ports[1])}, "Proxy": map[string]any{"DestinationServiceName": service, "DestinationServiceID": "deaf"},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.server.Call(http.MethodPut, "/v1/agent/service/register", body)
}

// With nobody left all is refused: the tests above count what fails.
func TestAllWaysDead(t *testing.T) {
	w := newWorld(t)
	w.speak()
	all := map[string]ways{}
	web := w.caller("web", "web-1", "catalog", "chat", "payments")
	for _, service := range []string{"catalog", "chat", "payments"} {
		s := w.three(service)
		s.legacy.stop()
		s.mtls.stop()
		w.apply(s.shift(service, [4]float64{50, 0, 0, 50}, ""))
		all[service] = s
	}
	for service, call := range web.calls() {
		if got, failed := count(100, call); len(failed) != 100 {
			t.Errorf("%s: answered by %v, %d failed", service, got, len(failed))
		}
	}
}

// A connection that cannot be made on one way is tried twice more, each time on a way
// by shares, until the dead one is known as such.
func TestDeadWayOfConnections(t *testing.T) {
	w := newWorld(t)
	w.speak()
	web := w.caller("web", "web-1", "payments")
	payments := w.three("payments")
	payments.legacy.stop()
	w.apply(payments.shift("payments", [4]float64{10, 0, 0, 90}, ""))
	got, failed := count(500, web.calls()["payments"])
	t.Logf("answered by %v, %d failed", got, len(failed))
	if len(failed) > 5 || got["mtls"] < 495 {
		t.Errorf("answered by %v, %d failed: %v", got, len(failed), errors.Join(failed...))
	}
}

// A request that the callee may have seen is not sent again on another way.
func TestSeenRequestsStay(t *testing.T) {
	w := newWorld(t)
	w.speak()
	all := w.three("catalog")
	rude := w.plainHTTP("rude", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if c, _, err := http.NewResponseController(rw).Hijack(); err == nil {
			c.Close()
		}
	}))
	all.legacy = rude
	web := w.caller("web", "web-1", "catalog")
	w.apply(all.shift("catalog", [4]float64{50, 0, 0, 50}, ""))
	const n = 100
	for _, method := range []string{http.MethodPost, http.MethodGet} {
		before := rude.served.Load()
		got, failed := count(n, func() (string, error) { a := web.do(method, "catalog", "/"); return a.instance, a.ok() })
		if seen := int(rude.served.Load() - before); seen == 0 || seen != len(failed) || got["mtls"]+seen != n {
			t.Errorf("%s: %d were seen by who hangs up, %d failed, answered were %v", method, seen, len(failed), got)
		}
	}
}
