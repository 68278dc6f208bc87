package consulapi

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
)

func TestHistoryAndRollback(t *testing.T) {
	s, err := store.Open(store.Options{NodeName: "node", NodeAddress: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	h := New(Options{Store: s, Who: func(r *http.Request) string { return r.Header.Get("Who") }, Now: func() time.Time { return noon }})
	past := func() (out []store.Version) {
		t.Helper()
		code, text := ask(h, "ann", "GET", "/v1/crossfade/config/history/service-defaults/web", "")
		if err := json.Unmarshal([]byte(text), &out); err != nil || code != 200 {
			t.Fatalf("status %d: %s", code, text)
		}
		return out
	}
	want := func(request, body string, code int, text string) {
		t.Helper()
		method, path, _ := strings.Cut(request, " ")
		if c, got := ask(h, "ann", method, path, body); c != code || !strings.Contains(got, text) {
			t.Errorf("%s: status %d: %s; want %d with %q", request, c, got, code, text)
		}
	}
	const back = "PUT /v1/crossfade/config/rollback/service-defaults/web"
	want("GET /v1/crossfade/config/history/service-defaults/web", "", 404, `service-defaults "web": no history`)
	want("GET /v1/crossfade/config/history/nonsense/web", "", 400, `unknown kind "nonsense"`)
	want("GET /v1/crossfade/config/history/service-defaults", "", 400, `both a kind and name`)
	want(back, "", 404, `no history`)

	want("PUT /v1/config", `{"Kind":"service-defaults","Name":"web","Protocol":"http"}`, 200, "true")
	want("PUT /v1/config", `{"Kind":"service-defaults","Name":"web","Protocol":"grpc"}`, 200, "true")
	versions := past()
	if len(versions) != 2 || versions[0].What != store.Changed || versions[0].Who != "ann" || !versions[0].Time.Equal(noon) || !strings.Contains(string(versions[1].Entry), `"http"`) {
		t.Fatalf("history %+v", versions)
	}
	want(back+"?cas=1", "", 409, "its newest version is ")
	want(back+"?to=1", "", 404, "no version 1 is kept")
	want(back+"?to=x", "", 400, "to: want the index of a version")
	want(back, "", 200, `"deleted":false`)
	want("GET /v1/config/service-defaults/web", "", 200, `"Protocol":"http"`)
	if now := past(); len(now) != 3 || now[0].What != store.RolledBack || now[0].To != versions[1].Index {
		t.Errorf("after a rollback: %+v", now[0])
	}

	// To before it was there, and back.
	want("PUT /v1/config", `{"Kind":"service-defaults","Name":"new"}`, 200, "true")
	newBack := strings.Replace(back, "/web", "/new", 1)
	want(newBack, "", 200, `"deleted":true`)
	want("GET /v1/config/service-defaults/new", "", 404, "not found")
	want(newBack, "", 200, `"deleted":false`)
	want("GET /v1/config/service-defaults/new", "", 200, `"Name":"new"`)
}
