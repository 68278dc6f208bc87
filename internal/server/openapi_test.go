package server_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/docs"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
)

// documented calls operations, and holds what is sent and answered to the document.
type documented struct {
	t      *testing.T
	s      *servertest.Server
	d      *server.OpenAPI
	called map[string]bool
}

// call makes one request. path is that of the operation with its parameters filled in.
func (c *documented) call(op, path, body string) []byte {
	c.t.Helper()
	c.called[op] = true
	if body != "" {
		var in any
		if err := json.Unmarshal([]byte(body), &in); err != nil {
			c.t.Fatalf("%s: %v", op, err)
		}
		if err := c.d.Check(c.d.Request(op), in); err != nil {
			c.t.Errorf("%s: the request is not as documented: %v", op, err)
		}
	}
	method, template, _ := strings.Cut(op, " ")
	if path == "" {
		path = template
	}
	_, b := c.s.Call(method, path, []byte(body))
	schema := c.d.Answer(op)
	if schema == nil {
		return b
	}
	var out any
	if err := json.Unmarshal(b, &out); err != nil {
		c.t.Fatalf("%s: %v", op, err)
	}
	if err := c.d.Check(schema, out); err != nil {
		c.t.Errorf("%s: the answer is not as documented: %v\n%.2000s", op, err, b)
	}
	return b
}

// All that a server answers is as docs/openapi.yaml says, and that is what it hands out.
func TestAnswersAreAsDocumented(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true, AllowEscapeHatches: true})
	c := &documented{t, s, server.ReadOpenAPI(t), map[string]bool{}}
	if b := c.call("GET /v1/crossfade/openapi.yaml", "", ""); !bytes.Equal(b, docs.OpenAPI) {
		t.Error("it hands out another document")
	}
	s.Register("web.yaml", web)
	s.Register("catalog.yaml", catalog)
	for _, e := range []string{
		`{"Kind":"proxy-defaults","Name":"global","Config":{"protocol":"http"}}`,
		`{"Kind":"service-resolver","Name":"catalog","Subsets":{"v1":{"Filter":"Service.Port != 1"},"v2":{"Filter":"Service.Port == 1"}},"Failover":{"v2":{"ServiceSubset":"v1"}}}`,
		`{"Kind":"service-splitter","Name":"catalog","Splits":[{"Weight":90,"ServiceSubset":"v1"},{"Weight":10,"ServiceSubset":"v2"}]}`,
		`{"Kind":"service-router","Name":"catalog","Routes":[{"Match":{"HTTP":{"PathPrefix":"/x"}}}]}`,
	} {
		write(t, s, e)
	}
	s.Write(shiftEntry(config.Shares{Direct: 100}))
	sidecar := pick(t, s.Stream("web-sidecar-proxy", true), "/refused", endpoints(s, "catalog"), route("public_listener"), route("catalog"))
	sidecar.until("the sidecar is in sync", func() bool {
		return sidecar.held[route("catalog")] != nil && sidecar.held[route("public_listener")] != nil
	})
	if err := reported(t, s.Conn(), "web-sidecar-proxy", counted("catalog", 7)); err != nil {
		t.Fatal(err)
	}

	const pair = `"pairs":[{"source":"web","destination":"catalog"}]`
	c.call("POST /v1/crossfade/shift", "", `{`+pair+`,"via":{"direct":100},"legacy":{"address":"127.0.0.1:1","host":"old"},"force":true,"dry_run":true}`)
	c.call("POST /v1/crossfade/shift", "", `{`+pair+`,"to":"mtls","plan":{"steps":[5,100],"dwell":"1m","windows":["Mon-Sun 00:00-24:00"],"on_breach":"pause"}}`)
	c.call("POST /v1/crossfade/shift", "", `{`+pair+`,"do":"pause"}`)
	meshtest.Eventually(t, "the log has a step", func() error {
		if b := c.call("GET /v1/crossfade/shift/log", "", ""); len(b) < 10 {
			return fmt.Errorf("%s", b)
		}
		return nil
	})
	c.call("GET /v1/crossfade/pairs", "", "")
	c.call("GET /v1/crossfade/pairs/{source}/{destination}", "/v1/crossfade/pairs/web/catalog", "")
	c.call("GET /v1/crossfade/telemetry/{source}/{destination}", "/v1/crossfade/telemetry/web/catalog", "")
	var back api.Changed
	if err := json.Unmarshal(c.call("POST /v1/crossfade/revert", "", `{`+pair+`,"force":true,"cut":true,"over":"1s"}`), &back); err != nil {
		t.Fatal(err)
	}
	c.call("GET /v1/crossfade/cuts/{id}", api.CutPath(back.Cut), "")

	index := write(t, s, `{"Kind":"service-router","Name":"catalog","Routes":[{"Match":{"HTTP":{"PathPrefix":"/refused"}}}]}`)
	<-sidecar.refused
	c.call("GET /v1/crossfade/applied", "/v1/crossfade/applied?wait=10s&index="+index, "")
	c.call("GET /v1/crossfade/sidecars", "", "")
	c.call("GET /v1/crossfade/proxies", "", "")
	c.call("PUT /v1/crossfade/sidecars/{id}/connections", "/v1/crossfade/sidecars/web-sidecar-proxy/connections", `{"listeners":{"catalog:127.0.0.1:7100":3},"drift":{"since":"2026-01-02T03:04:05Z","faults":["Cluster \"a\": Envoy runs another"],"stuck":true,"done":"sent again","drifts_total":1,"resends_total":1,"restarts_total":0}}`)
	if b := c.call("GET /v1/crossfade/health", "", ""); !strings.Contains(string(b), "Envoy runs another") {
		t.Errorf("health says nothing of drift: %s", b)
	}
	c.call("GET /v1/crossfade/sidecars", "", "")
	c.call("GET /v1/crossfade/chain/{service}", "/v1/crossfade/chain/catalog?source=web", "")
	c.call("GET /v1/crossfade/config/check", "", "")
	c.call("POST /v1/crossfade/config/plan", "", `{"entries":[{"Kind":"proxy-defaults","Name":"global","Config":{"protocol":"grpc"}}],"delete":[{"kind":"service-router","name":"catalog"}]}`)
	c.call("PUT /v1/crossfade/config/rollback/{kind}/{name}", "/v1/crossfade/config/rollback/service-router/catalog", "")
	c.call("GET /v1/crossfade/config/history/{kind}/{name}", "/v1/crossfade/config/history/service-router/catalog", "")

	var made struct{ Accessor string }
	if err := json.Unmarshal(c.call("PUT /v1/crossfade/tokens", "", `{"role":"join","services":["web"],"description":"a test","ttl":"1h"}`), &made); err != nil {
		t.Fatal(err)
	}
	c.call("GET /v1/crossfade/tokens", "", "")
	c.call("DELETE /v1/crossfade/tokens/{accessor}", "/v1/crossfade/tokens/"+made.Accessor, "")
	c.call("GET /v1/crossfade/audit", "", "")
	c.call("GET /v1/crossfade/metrics", "", "")
	dev := c.s
	c.s = holding(t, "old", "older")
	c.call("GET /v1/crossfade/catalog/held", "", "")
	c.call("PUT /v1/crossfade/catalog/keep/{service}", "/v1/crossfade/catalog/keep/old", "")
	c.call("GET /v1/crossfade/catalog/held", "", "")
	c.call("PUT /v1/crossfade/catalog/release/{service}", "/v1/crossfade/catalog/release/old", "")
	c.s = dev
	for op := range c.d.Operations {
		if !c.called[op] {
			t.Errorf("%s: not called", op)
		}
	}
	resp, err := http.Get(s.URL() + "/v1/crossfade/pairs/nobody/nobody")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := resp.Header.Get("Content-Type"); !strings.HasPrefix(got, "text/plain") {
		t.Errorf("what is wrong is said in %s", got)
	}
}
