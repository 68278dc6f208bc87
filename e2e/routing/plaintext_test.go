package routing

import (
	"fmt"
	"testing"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// Services become permissive, are called in plaintext, and become strict again, while
// everybody calls them: no request fails, and nothing that lasts by mTLS is cut.
func TestModesChangeHot(t *testing.T) {
	w := newWorld(t)
	w.write(allowPlaintext)
	speaks := map[string]string{"catalog": "http", "chat": "grpc", "payments": "tcp"}
	mode := func(mode string) {
		for service, protocol := range speaks {
			if mode == "strict" {
				w.restaged(api.ShiftRequest{Service: service, Stage: mode, Force: true}) // the old ways were in use just now
				continue
			}
			w.apply(fmt.Sprintf("Kind = \"service-defaults\"\nName = %q\nProtocol = %q\nMutualTLSMode = %q\n", service, protocol, mode))
		}
	}
	mode("")
	shopPort, stop := w.shopApp("catalog", "catalog-1", false)
	t.Cleanup(stop)
	linePort, stop := w.lineApp("payments-1")
	t.Cleanup(stop)
	w.beside("catalog", "catalog-1", "v1", shopPort)
	w.beside("payments", "payments-1", "v1", linePort)
	w.beside("chat", "chat-1", "v1", w.chat("chat-1", false).port)
	web := w.caller("web", "web-1", "catalog", "chat", "payments")
	ready(t, web)
	load := w.traffic(t, web.ports)
	pause := func() {
		from := load.sent()
		meshtest.Eventually(t, "traffic goes on", func() error {
			if n := load.sent(); n < from+300 {
				return fmt.Errorf("%d requests since", n-from)
			}
			return nil
		})
	}
	each := func(what func(service string)) {
		for service := range speaks {
			what(service)
		}
		pause()
	}
	pause()
	for _, last := range []string{"strict", ""} {
		mode("permissive")
		each(func(service string) { w.reachable(service, map[string]int{"plain": 1, "mtls": 1}) })
		for _, shares := range [][4]float64{{0, 0, 50, 50}, {0, 0, 0, 100}} {
			each(func(service string) { w.apply(shiftText(service, "127.0.0.1:1", "", shares, "")) })
		}
		mode("strict") // who sent plaintext just now keeps "" from closing
		if last == "" {
			mode("")
		}
		each(func(service string) { w.reachable(service, map[string]int{"plain": 0, "mtls": 1}) })
	}
	load.stop()
	t.Logf("%d requests%s", load.sent(), load.report())
	for i, f := range load.failures() {
		if i == 10 {
			t.Errorf("and %d more", len(load.failures())-i)
			break
		}
		t.Error(f.Reason)
	}
}
