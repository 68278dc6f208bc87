package server_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
)

// Whose plaintext is let in follows the addresses of sources, and nothing else of them.
func TestPlaintextFollowsAddresses(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	s.Register("web.yaml", web)
	s.Write(&config.Mesh{Kind: config.KindMesh, AllowEnablingPermissiveMutualTLS: true})
	s.Write(&config.ServiceIntentions{Kind: config.KindServiceIntentions, Name: "catalog", Sources: []*config.SourceIntention{{Name: "web", Action: config.Allow}, {Name: "*", Action: config.Deny}}})
	s.Register("catalog.yaml", catalog)
	s.Write(&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "catalog", Protocol: "http", MutualTLSMode: config.MutualTLSPermissive})
	plaintext := route("public_listener_plaintext")
	callee := follow(t, s, "catalog-sidecar-proxy", true, route("public_listener"), plaintext)
	callee.until("the callee is in sync", func() bool { return callee.held[plaintext] != nil && len(callee.held) == 4 })
	before := callee.responses

	register := func(id, address string) {
		t.Helper()
		s.Call(http.MethodPut, "/v1/agent/service/register", fmt.Appendf(nil, `{"ID":%q,"Name":"web","Address":%q,"Port":1}`, id, address))
	}
	register("web-2", "10.0.0.7")
	callee.until("a source has another address", func() bool { return strings.Contains(callee.body(plaintext), `"10.0.0.7"`) })
	s.SetChecks("web-2", "fail")
	register("web-3", "10.0.0.7")
	register("web-2", "10.0.0.8")
	callee.until("and one more", func() bool { return strings.Contains(callee.body(plaintext), `"10.0.0.8"`) })
	if n := callee.responses - before; n > 3 {
		t.Errorf("%d responses for two changes of addresses", n)
	}
	s.Call(http.MethodPut, "/v1/agent/service/deregister/web-3", nil)
	callee.until("an address is given up", func() bool { return !strings.Contains(callee.body(plaintext), `"10.0.0.7"`) })
}

func TestPermissiveNeedsLeave(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	write := func(body string) string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+s.HTTPAddr()+"/v1/config", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	const permissive = `{"Kind":"service-defaults","Name":"catalog","Protocol":"http","MutualTLSMode":"permissive"}`
	for _, body := range []string{permissive, `{"Kind":"proxy-defaults","Name":"global","MutualTLSMode":"permissive"}`} {
		if text := write(body); !strings.Contains(text, "AllowEnablingPermissiveMutualTLS") || !strings.Contains(text, "crossfade config write") {
			t.Errorf("without leave: %q", text)
		}
	}
	for _, body := range []string{`{"Kind":"mesh","AllowEnablingPermissiveMutualTLS":true}`, permissive, `{"Kind":"mesh"}`, permissive} {
		if text := write(body); text != "true" {
			t.Errorf("%s: %q", body, text)
		}
	}
	if text := write(strings.ReplaceAll(permissive, "catalog", "other")); !strings.Contains(text, "AllowEnablingPermissiveMutualTLS") {
		t.Errorf("after leave was taken back: %q", text)
	}
}
