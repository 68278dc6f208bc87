package server_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
)

// TestEntriesThatDoNotFitAreRefused goes through every way by which entries change.
func TestEntriesThatDoNotFitAreRefused(t *testing.T) {
	s := servertest.Start(t, server.Options{Dev: true})
	const (
		ok, bad = http.StatusOK, http.StatusBadRequest
		router  = `{"Kind":"service-router","Name":"web","Routes":[{"Destination":{"Service":"api","ServiceSubset":"v1"}}]}`
		missing = `service "web": service-router/web: Routes[0]: service "api" has no subset "v1"`
		asks    = `{"Kind":"service-intentions","Name":"api","JWT":{"Providers":[{"Name":"shop"}]},"Sources":[{"Name":"web","Action":"allow"}]}`
	)
	for _, step := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"PUT", "/v1/config", router, bad, `service "web": service-router/web: protocol tcp has no requests to route: set the protocol to http, http2 or grpc`},
		{"PUT", "/v1/config", `{"Kind":"proxy-defaults","Name":"global","Config":{"protocol":"http"}}`, ok, "true"},
		{"PUT", "/v1/config", router, bad, missing + ": there is no service-resolver/api"},
		{"PUT", "/v1/config", `{"Kind":"service-resolver","Name":"api","Subsets":{"v2":{}}}`, ok, "true"},
		{"PUT", "/v1/config", router, bad, missing + ": service-resolver/api has v2"},
		{"PUT", "/v1/config", `{"Kind":"service-resolver","Name":"api","Subsets":{"v1":{},"v2":{}}}`, ok, "true"},
		{"PUT", "/v1/config", router, ok, "true"},
		{"DELETE", "/v1/config/service-resolver/api", "", bad, missing + ": there is no service-resolver/api"},
		{"DELETE", "/v1/config/proxy-defaults/global", "", bad, `service "web": service-router/web: protocol tcp`},
		{"PUT", "/v1/config", `{"Kind":"service-defaults","Name":"api","Protocol":"tcp"}`, bad, `service "web" speaks http, and "api", to which its requests may go, speaks tcp`},
		{"PUT", "/v1/crossfade/config/rollback/service-resolver/api", "", bad, missing + ": service-resolver/api has v2"},
		{"POST", "/v1/crossfade/config/plan", `{"delete":[{"kind":"service-resolver","name":"api"}]}`, ok, `the write would be refused: service \"web\"`},
		{"DELETE", "/v1/config/service-router/web", "", ok, "{}"},
		{"DELETE", "/v1/config/service-resolver/api", "", ok, "{}"},
		{"PUT", "/v1/config", asks, bad, `service-intentions/api: jwt-provider "shop" does not exist: write it first`},
	} {
		r, err := http.NewRequestWithContext(t.Context(), step.method, "http://"+s.HTTPAddr()+step.path, strings.NewReader(step.body))
		if err != nil {
			t.Fatal(err)
		}
		status, text := answerOf(t, r)
		if status != step.status || !strings.Contains(text, step.want) {
			t.Errorf("%s %s %s: %d %s; want %d %q", step.method, step.path, step.body, status, text, step.status, step.want)
		}
	}
}

// answerOf sends a request and reads the answer.
func answerOf(t *testing.T, r *http.Request) (status int, text string) {
	t.Helper()
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}
