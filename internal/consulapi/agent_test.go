package consulapi_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/consulapi"
)

const sidecarOf = `{"Name":"%s","Port":80,"Connect":{"SidecarService":{}}}`

func put(path, body string) step { return step{"PUT " + path, body, http.StatusOK, ""} }

func TestOneServerIsTheAgentOfOtherNodes(t *testing.T) {
	s, _ := newServer(t, "")
	for _, st := range []step{
		{"PUT /v1/agent/service/register?node=n1", fmt.Sprintf(sidecarOf, "web"), http.StatusBadRequest, "…node=n1&address=IP…"},
		put("/v1/agent/service/register?node=n1&address=127.0.1.1", fmt.Sprintf(sidecarOf, "web")),
		put("/v1/agent/service/register?node=n2&address=127.0.1.2", fmt.Sprintf(sidecarOf, "web")),
		{"GET /v1/agent/services", "", http.StatusOK, "{}"},
		{"GET /v1/agent/services?node=n1", "", http.StatusOK, `…"web-sidecar-proxy"…`},
		{"GET /v1/agent/service/web?node=n2", "", http.StatusOK, `…"Port":80…`},
		{"GET /v1/agent/service/web", "", http.StatusNotFound, ""},
		put("/v1/agent/check/register?node=n2", `{"Name":"beat","ServiceID":"web","TTL":"1h"}`),
		put("/v1/agent/check/pass/beat?node=n2", ""),
		{"PUT /v1/agent/check/pass/beat?node=n1", "", http.StatusNotFound, ""},
		{"GET /v1/agent/health/service/id/web?node=n2&format=text", "", http.StatusOK, "passing"},
		put("/v1/agent/service/deregister/web?node=n1", ""),
		put("/v1/agent/service/register?node=n2&address=127.0.1.9", fmt.Sprintf(sidecarOf, "web")),
	} {
		st.run(t, s.URL)
	}
	list := entries(t, &s.Client, "web", false)
	if len(list) != 1 || list[0].Node.Node != "n2" || list[0].Node.Address != "127.0.1.9" {
		t.Errorf("web is %+v, want it on n2 at its new address", list)
	}
	s.store.Read(t.Context(), 0, func(r *store.Reader) {
		_, d := r.Check("n2", "service:web-sidecar-proxy:1")
		if d == nil || d.TCP != "127.0.1.9:21000" {
			t.Errorf("the sidecar's port check is %+v, want one of its node's address", d)
		}
	})
}

func TestSidecarPorts(t *testing.T) {
	s, _ := newServer(t, "")
	register := func(name string) int {
		put("/v1/agent/service/register", fmt.Sprintf(sidecarOf, name)).run(t, s.URL)
		side, _, err := s.Agent().Service(name+"-sidecar-proxy", nil)
		must(t, err)
		return side.Port
	}
	for i, name := range []string{"a", "b", "c"} {
		if got := register(name); got != 21000+i {
			t.Errorf("%s got port %d, want %d", name, got, 21000+i)
		}
	}
	put("/v1/agent/service/deregister/b", "").run(t, s.URL)
	for name, want := range map[string]int{"c": 21002, "a": 21000} {
		if got := register(name); got != want {
			t.Errorf("%s again got port %d, want its own %d", name, got, want)
		}
	}
	if got := register("d"); got != 21001 {
		t.Errorf("d got port %d, want the free 21001", got)
	}
	for i := range 253 {
		register("e" + strconv.Itoa(i))
	}
	step{"PUT /v1/agent/service/register", fmt.Sprintf(sidecarOf, "last"), http.StatusBadRequest, "…no port of 21000 to 21255 is left…"}.run(t, s.URL)
	step{"GET /v1/agent/service/last", "", http.StatusNotFound, ""}.run(t, s.URL)
}

func TestChecksResumeAfterRestart(t *testing.T) {
	var well atomic.Bool
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !well.Load() {
			http.Error(w, "not yet", http.StatusNotFound)
		}
	}))
	t.Cleanup(app.Close)
	dir := t.TempDir()
	s, stop := newServer(t, dir)
	for _, st := range []step{
		put("/v1/agent/service/register", `{"Name":"web","Check":{"CheckID":"http","HTTP":"`+app.URL+`","Interval":"50ms","Status":"passing"}}`),
		put("/v1/agent/service/register", `{"Name":"api","Check":{"TTL":"1h"}}`),
		put("/v1/agent/check/pass/service:api?note=fine", ``),
	} {
		st.run(t, s.URL)
	}
	eventually(t, "the app's 404 is seen", func() bool { return len(entries(t, &s.Client, "web", true)) == 0 })
	stop()

	s, _ = newServer(t, dir)
	if got := entries(t, &s.Client, "api", true); len(got) != 1 || got[0].Checks[1].Output != "fine" {
		t.Errorf("api after a restart: %+v, want it passing as before", got)
	}
	well.Store(true)
	eventually(t, "the app is seen well by the resumed check", func() bool { return len(entries(t, &s.Client, "web", true)) == 1 })
}

func TestRegisteringAgainChangesNothing(t *testing.T) {
	st, err := store.Open(store.Options{NodeName: "self", NodeAddress: "127.0.0.1"})
	must(t, err)
	t.Cleanup(func() { st.Close() })
	// Nobody runs checks, so nobody reports a lost status again.
	hs := httptest.NewServer(consulapi.New(consulapi.Options{Store: st}))
	t.Cleanup(hs.Close)
	index := func() (n uint64) {
		st.Read(t.Context(), 0, func(r *store.Reader) { n = r.Index() })
		return n
	}
	register := put("/v1/agent/service/register", `{"Name":"web","Port":80,"Check":{"TTL":"1h"},"Connect":{"SidecarService":{}}}`)
	register.run(t, hs.URL)
	put("/v1/agent/check/pass/service:web?note=fine", "").run(t, hs.URL)
	before := index()
	register.run(t, hs.URL)
	if after := index(); after != before {
		t.Errorf("index went from %d to %d", before, after)
	}
}

func TestAliasFollowsAtOnce(t *testing.T) {
	s, _ := newServer(t, "")
	put("/v1/agent/service/register", `{"Name":"web","Port":80,"Check":{"TTL":"1h"},"Connect":{"SidecarService":{"Checks":[{"AliasService":"web"}]}}}`).run(t, s.URL)
	for _, status := range []string{api.HealthPassing, api.HealthWarning, api.HealthCritical, api.HealthPassing} {
		start := time.Now()
		must(t, s.Agent().UpdateTTL("service:web", "", status))
		eventually(t, "the alias is "+status, func() bool {
			list := entries(t, &s.Client, "web-sidecar-proxy", false)
			return len(list) == 1 && list[0].Checks.AggregatedStatus() == status
		})
		// Left alone, an alias looks every few seconds.
		if took := time.Since(start); took > time.Second {
			t.Errorf("the alias took %v", took)
		}
	}
}

func TestServiceWaitsByHash(t *testing.T) {
	s, _ := newServer(t, "")
	put("/v1/agent/service/register", `{"Name":"web","Port":1}`).run(t, s.URL)
	_, meta, err := s.Agent().Service("web", nil)
	must(t, err)
	answer := make(chan int, 1)
	go func() {
		svc, _, err := s.Agent().Service("web", &api.QueryOptions{WaitHash: meta.LastContentHash, WaitTime: time.Minute})
		if err != nil {
			answer <- -1
			return
		}
		answer <- svc.Port
	}()
	put("/v1/agent/service/register", `{"Name":"other","Port":1}`).run(t, s.URL)
	put("/v1/agent/service/register", `{"Name":"web","Port":2}`).run(t, s.URL)
	if got := <-answer; got != 2 {
		t.Errorf("woken with port %d, want 2", got)
	}
}

// inProcess is the API without sockets, for tests in a bubble.
func inProcess(t *testing.T, o consulapi.Options) (*store.Store, func(path string) *httptest.ResponseRecorder) {
	st, err := store.Open(store.Options{NodeName: "self", NodeAddress: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	o.Store = st
	h := consulapi.New(o)
	return st, func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		return w
	}
}

func TestHowLongAQueryWaits(t *testing.T) {
	for _, tt := range []struct {
		query    string
		min, max time.Duration
	}{
		{"", 0, 0},
		{"index=%d", 5 * time.Minute, 5*time.Minute + 5*time.Minute/16},
		{"index=%d&wait=10s", 10 * time.Second, 10*time.Second + 10*time.Second/16},
		{"index=%d&wait=30", 30 * time.Second, 30*time.Second + 30*time.Second/16},
		{"index=%d&wait=2h", 10 * time.Minute, 10*time.Minute + 10*time.Minute/16},
		{"index=999999&wait=10s", 0, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			_, get := inProcess(t, consulapi.Options{})
			index := get("/v1/health/service/web").Header().Get("X-Consul-Index")
			start := time.Now()
			w := get("/v1/health/service/web?" + strings.ReplaceAll(tt.query, "%d", index))
			if took := time.Since(start); took < tt.min || took > tt.max {
				t.Errorf("%q: waited %v, want %v to %v", tt.query, took, tt.min, tt.max)
			}
			if got := w.Header().Get("X-Consul-Index"); got != index || w.Code != http.StatusOK {
				t.Errorf("%q: status %d, index %s, want 200 and %s", tt.query, w.Code, got, index)
			}
		})
	}
}

func TestNoChangeIsMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, get := inProcess(t, consulapi.Options{})
		const changes = 200
		go func() {
			for i := range changes {
				st.Update(func(w *store.Writer) error { return w.PutService("self", catalog.Service{Name: "web", Port: i + 1}) })
				st.Update(func(w *store.Writer) error { return w.PutService("self", catalog.Service{Name: "noise", Port: i + 1}) })
			}
		}()
		index, queries := "0", 0
		for port := 0; port < changes; queries++ {
			start := time.Now()
			w := get("/v1/health/service/web?wait=1m&index=" + index)
			if time.Since(start) > 0 {
				t.Fatalf("after port %d: waited although there was a change to come", port)
			}
			index = w.Header().Get("X-Consul-Index")
			fmt.Sscanf(w.Body.String()[max(0, strings.Index(w.Body.String(), `"Port":`)):], `"Port":%d`, &port)
		}
		if queries > changes+2 {
			t.Errorf("%d queries for %d changes", queries, changes)
		}
	})
}

func TestRoots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type version struct {
			roots    string
			outdated chan struct{}
		}
		var now atomic.Pointer[version]
		now.Store(&version{"first", make(chan struct{})})
		_, get := inProcess(t, consulapi.Options{Roots: func() (any, <-chan struct{}) { v := now.Load(); return v.roots, v.outdated }})
		w := get("/v1/connect/ca/roots")
		index := w.Header().Get("X-Consul-Index")
		if w.Body.String() != `"first"` || index == "" {
			t.Fatalf("answer %s at index %q", w.Body, index)
		}
		time.AfterFunc(time.Minute, func() {
			old := now.Swap(&version{"second", make(chan struct{})})
			close(old.outdated)
		})
		start := time.Now()
		w = get("/v1/agent/connect/ca/roots?index=" + index)
		if time.Since(start) != time.Minute || w.Body.String() != `"second"` || w.Header().Get("X-Consul-Index") <= index {
			t.Errorf("after %v: %s at index %s, want the second roots at a higher index after 1m", time.Since(start), w.Body, w.Header().Get("X-Consul-Index"))
		}
	})
}

func TestNotServed(t *testing.T) {
	s, _ := newServer(t, "")
	for _, path := range []string{
		"GET /v1/event/list", "GET /v1/query", "GET /v1/snapshot",
		"GET /v1/agent/metrics", "GET /v1/operator/raft/configuration", "GET /v1/coordinate/nodes",
		"GET /v1/health/service/web?peer=far",
	} {
		step{path, "", http.StatusNotImplemented, "…not served by crossfade's registry…"}.run(t, s.URL)
	}
}
