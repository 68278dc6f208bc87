package consul

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

const settle = time.Second

func wantService(t *testing.T, s *catalog.Snapshot, name, want string) {
	t.Helper()
	if s == nil {
		t.Fatal("nothing published")
	}
	if got := describe(s, name); got != want {
		t.Errorf("snapshot %d: %s is %q, want %q", s.Index, name, got, want)
	}
}

func web(status catalog.Status) map[string]any { return instance("web", "web-1", 8080, status, nil) }
func db(status catalog.Status) map[string]any  { return instance("db", "db-1", 5432, status, nil) }

func TestFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.put("web", web(catalog.Critical))
		f.put("db", db(catalog.Passing))
		r := read(t, f, Options{Token: "secret"})
		_, first := r.after(settle)
		wantService(t, first, "web", "web-1@127.0.0.1:8080 critical")
		if first.Datacenter != "dc1" || first.Set("web").Instances[0].Service.Proxy != nil {
			t.Errorf("datacenter %q, Proxy %+v", first.Datacenter, first.Set("web").Instances[0].Service.Proxy)
		}

		f.put("web", web(catalog.Passing), instance("web", "web-0", 8081, catalog.Warning, nil))
		_, second := r.after(settle)
		wantService(t, second, "web", "web-0@127.0.0.1:8081 warning, web-1@127.0.0.1:8080 passing")
		if got := catalog.Changed(first, second); !slices.Equal(got, []string{"web"}) || second.Index <= first.Index {
			t.Errorf("changed %q, index %d after %d; want web alone and a higher index", got, second.Index, first.Index)
		}

		// The index grows and nothing else: no new snapshot.
		n, _ := r.after(0)
		f.put("db", db(catalog.Passing))
		if m, s := r.after(settle); m != n || s != second {
			t.Errorf("%d snapshots for a change of index alone", m-n)
		}

		f.put("db")
		f.put("web-sidecar-proxy", instance("web-sidecar-proxy", "web-1-sidecar-proxy", 21000, catalog.Passing, map[string]any{
			"Kind": "connect-proxy", "Proxy": map[string]any{"DestinationServiceName": "web", "DestinationServiceID": "web-1",
				"Upstreams": []any{map[string]any{"DestinationName": "db", "LocalBindPort": 7100}}}}))
		_, s := r.after(settle)
		wantService(t, s, "db", "none")
		if p, ok := s.ProxyFor("web-1", "n1"); !ok || p.Service.Proxy.Upstreams[0].LocalBindPort != 7100 {
			t.Errorf("proxy for web-1: %+v, %v", p, ok)
		}
		if f.token != "secret" {
			t.Errorf("token %q was sent", f.token)
		}
	})
}

func TestFirstSnapshotIsWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.put("web", web(catalog.Passing))
		f.put("db", db(catalog.Passing))
		f.say(pathHealth("db"), body(500, "", "rpc error"))
		r := read(t, f, Options{Datacenter: "dc9"})
		if n, _ := r.after(10 * time.Second); n != 0 {
			t.Errorf("published before db was read")
		}
		f.say(pathHealth("db"), nil)
		n, s := r.after(20 * time.Second)
		wantService(t, s, "db", "db-1@127.0.0.1:5432 passing")
		wantService(t, s, "web", "web-1@127.0.0.1:8080 passing")
		if n != 1 || s.Datacenter != "dc9" {
			t.Errorf("%d snapshots of %q, want one of dc9", n, s.Datacenter)
		}
		for _, query := range f.since(pathHealth("db")) {
			if !strings.Contains(query, "dc=dc9") {
				t.Errorf("asked with %q, want dc=dc9", query)
			}
		}
	})
	synctest.Test(t, func(t *testing.T) {
		_, s := read(t, newFake(), Options{}).after(settle)
		if s == nil || len(s.Services()) != 0 {
			t.Errorf("an empty catalog gave %+v, want an empty snapshot", s)
		}
	})
}

// TestNothingBadIsPublished: whatever goes wrong with a query leaves the last good
// answer in force, is logged once, and ends when Consul answers properly.
func TestNothingBadIsPublished(t *testing.T) {
	broken := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Consul-Index", "999")
		w.Header().Set("X-Break", "1")
		fmt.Fprint(w, "[")
	}
	for _, tt := range []struct {
		name string
		path string // default: health of web
		say  http.HandlerFunc
		err  error // of the transport
		log  string
	}{
		{name: "no leader", say: body(500, "", "No cluster leader"), log: "No cluster leader"},
		{name: "denied", say: body(403, "", "Permission denied"), log: "node:read"},
		{name: "too many requests", say: body(429, "", "slow down"), log: "429"},
		{name: "redirect", say: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://elsewhere.test/", http.StatusFound)
		}, log: "302"},
		{name: "html", say: body(200, "999", "<html>sign in</html>"), log: "not Consul's JSON"},
		{name: "empty", say: body(200, "999", ""), log: "not Consul's JSON"},
		{name: "truncated", say: body(200, "999", `[{"Node":{"Node":"n1"`), log: "not Consul's JSON"},
		{name: "broken off", say: broken, log: "breaks off"},
		{name: "null", say: body(200, "999", "null"), log: "got null"},
		{name: "object for list", say: body(200, "999", "{}"), log: "not Consul's JSON"},
		{name: "wrong type inside", say: body(200, "999", `[{"Node":{"Node":"n1"},"Service":{"ID":"web-1","Service":"web","Port":"many"}}]`), log: "not Consul's JSON"},
		{name: "list of nothing", say: body(200, "999", "[null]"), log: "no node or no service"},
		{name: "of another service", say: body(200, "999", `[{"Node":{"Node":"n1"},"Service":{"ID":"db-1","Service":"db","Port":1}}]`), log: `belongs to service \"db\"`},
		{name: "more after it", say: body(200, "999", "[] []"), log: "something follows"},
		{name: "no index", say: body(200, "", "[]"), log: "no X-Consul-Index"},
		{name: "index is no number", say: body(200, "-1", "[]"), log: "is not a number"},
		{name: "never answers", say: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, log: "deadline exceeded"},
		{name: "out of reach", err: errors.New("connection refused"), log: "connection refused"},
		{name: "names: html", path: pathServices, say: body(200, "999", "<html>"), log: "not Consul's JSON"},
		{name: "names: null", path: pathServices, say: body(200, "999", "null"), log: "got null"},
		{name: "names: list", path: pathServices, say: body(200, "999", "[]"), log: "not Consul's JSON"},
		{name: "names: wrong type", path: pathServices, say: body(200, "999", `{"web":1}`), log: "not Consul's JSON"},
		{name: "names: error", path: pathServices, say: body(503, "", "{}"), log: "503"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				f.put("web", web(catalog.Passing))
				f.put("db", db(catalog.Passing))
				r := read(t, f, Options{})
				n, before := r.after(settle)
				path := tt.path
				if path == "" {
					path = pathHealth("web")
				}
				f.fail(tt.err)
				if tt.say != nil {
					f.say(path, tt.say)
				}
				f.put("web", web(catalog.Critical))
				f.put("cache", instance("cache", "cache-1", 6379, catalog.Passing, nil))
				_, s := r.after(5 * time.Minute)
				for _, name := range []string{"web", "db"} {
					if tt.path == "" && s.Set(name) != before.Set(name) {
						t.Errorf("%s changed while Consul failed", name)
					}
				}
				if tt.path != "" && s.Set("cache") != nil {
					t.Errorf("cache came from a list of names that was not good")
				}
				if got := r.logged("level=WARN", tt.log); got != 1 {
					t.Errorf("%d warnings with %q, want 1; the log:\n%s", got, tt.log, r.log.String())
				}
				if asked := len(f.since(path)); asked > 120 {
					t.Errorf("asked %d times in 5 minutes of failure", asked)
				}

				f.fail(nil)
				f.say(path, nil)
				m, s := r.after(2 * time.Minute)
				wantService(t, s, "web", "web-1@127.0.0.1:8080 critical")
				wantService(t, s, "cache", "cache-1@127.0.0.1:6379 passing")
				if s.Set("db") != before.Set("db") || m == n {
					t.Errorf("db did not keep its set, or nothing was published after the failure")
				}
				if got := r.logged("level=INFO", "can be read again", "failures="); got != 1 {
					t.Errorf("%d messages at the end of the failure, want 1", got)
				}
			})
		})
	}
}

func TestStaleQueriesAreListed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.put("web", web(catalog.Passing))
		r := read(t, f, Options{})
		r.after(settle)
		if stale := r.source.Stale(); len(stale) > 0 {
			t.Errorf("stale while all is well: %+v", stale)
		}
		began := time.Now()
		f.say(pathHealth("web"), body(http.StatusInternalServerError, "", "no leader"))
		r.after(5 * time.Minute)
		stale := r.source.Stale()
		if len(stale) != 1 || stale[0].Path != pathHealth("web") || !strings.Contains(stale[0].Reason, "no leader") || stale[0].Since.Sub(began) > time.Minute {
			t.Errorf("a query that fails: %+v", stale)
		}
		f.say(pathHealth("web"), nil)
		r.after(maxBackOff + settle)
		if stale = r.source.Stale(); len(stale) > 0 {
			t.Errorf("stale when all is well again, and nothing has changed: %+v", stale)
		}
		f.fail(errors.New("connection refused"))
		r.after(5 * time.Minute)
		if stale = r.source.Stale(); len(stale) == 0 || !slices.ContainsFunc(stale, func(s Stale) bool { return s.Path == "" }) {
			t.Errorf("out of reach: %+v", stale)
		}
		f.fail(nil)
		f.say(pathHealth("web"), nil)
		r.after(5 * time.Minute)
		if stale = r.source.Stale(); len(stale) > 0 {
			t.Errorf("stale when all is well again: %+v", stale)
		}
	})
}

func TestIndexRunsBackwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.put("web", web(catalog.Passing))
		r := read(t, f, Options{})
		n, before := r.after(settle)
		f.since(pathHealth("web"))

		// The first answer with a lower index is dropped, though it says something new.
		answers := 0
		f.say(pathHealth("web"), func(w http.ResponseWriter, req *http.Request) {
			if req.FormValue("index") != "" {
				answers++
				body(200, "3", "[]")(w, req)
				return
			}
			f.say(pathHealth("web"), nil)
			f.ServeHTTP(w, req)
		})
		f.put("web", web(catalog.Passing))
		if m, s := r.after(settle); m != n || s.Set("web") != before.Set("web") || answers != 1 {
			t.Errorf("%d snapshots after %d answers with a lower index, want none after 1", m-n, answers)
		}
		if got := f.since(pathHealth("web")); len(got) < 2 || strings.Contains(got[1], "index=") {
			t.Errorf("asked %q, want a read without an index after the answer that ran backwards", got)
		}
		f.put("web", web(catalog.Critical))
		_, s := r.after(settle)
		wantService(t, s, "web", "web-1@127.0.0.1:8080 critical")
	})
}

func TestIndexZeroStillBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.put("web", web(catalog.Passing))
		f.say(pathHealth("web"), func(w http.ResponseWriter, r *http.Request) {
			if r.FormValue("index") != "" {
				<-r.Context().Done()
				return
			}
			body(200, "0", "[]")(w, r)
		})
		r := read(t, f, Options{})
		r.after(settle)
		if got := f.since(pathHealth("web")); len(got) != 2 || got[0] != "" || got[1] != "index=1&wait=60000ms" {
			t.Errorf("asked %q, want one read and one that blocks at index 1", got)
		}
	})
}

func TestDoesNotSpin(t *testing.T) {
	for _, tt := range []struct {
		name  string
		index func(n int) int
		most  int // queries in a minute
	}{
		{"index grows at once", func(n int) int { return n }, 60*5 + 10},
		{"index stays, no wait", func(int) int { return 7 }, 60*2 + 10},
		{"index jumps to and fro", func(n int) int { return 100 - n%2 }, 60*5 + 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				f.put("web", web(catalog.Passing))
				n := 0
				f.say(pathHealth("web"), func(w http.ResponseWriter, r *http.Request) {
					n++
					body(200, fmt.Sprint(tt.index(n)), "[]")(w, r)
				})
				read(t, f, Options{}).after(time.Minute)
				if n < 10 || n > tt.most {
					t.Errorf("asked %d times in a minute, want at most %d", n, tt.most)
				}
			})
		})
	}
}

func TestBadInstancesAreLeftOutAlone(t *testing.T) {
	good := web(catalog.Passing)
	for _, tt := range []struct {
		name   string
		bad    map[string]any
		reason string
	}{
		{"port 0", instance("web", "bad", 0, catalog.Passing, nil), "port 0"},
		{"port too high", instance("web", "bad", 65536, catalog.Passing, nil), "port 65536"},
		{"port negative", instance("web", "bad", -1, catalog.Passing, nil), "port -1"},
		{"no address", func() map[string]any {
			in := instance("web", "bad", 80, catalog.Passing, nil)
			in["Node"].(map[string]any)["Address"] = ""
			return in
		}(), "address"},
		{"duplicate ID", instance("web", "web-1", 80, catalog.Passing, nil), "twice"},
		{"proxy for nothing", instance("web", "bad", 80, catalog.Passing, map[string]any{"Kind": "connect-proxy"}), "DestinationServiceName"},
		{"status unknown", instance("web", "bad", 80, "fine", nil), "status"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				f.put("web", good, tt.bad)
				r := read(t, f, Options{})
				_, s := r.after(settle)
				wantService(t, s, "web", "web-1@127.0.0.1:8080 passing")
				f.put("web", good, tt.bad)
				r.after(settle)
				if got := r.logged("level=WARN", "left out", tt.reason); got != 1 {
					t.Errorf("%d warnings with %q, want 1; the log:\n%s", got, tt.reason, r.log.String())
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.put("web", instance("web", "sock", 0, catalog.Passing, map[string]any{"SocketPath": "/run/web.sock"}), instance("WEB", "other", 1, catalog.Passing, nil))
		r := read(t, f, Options{})
		_, s := r.after(settle)
		wantService(t, s, "web", "sock@127.0.0.1:0 passing")
		if n := r.logged("left out"); n != 0 {
			t.Errorf("%d instances reported as left out, want none", n)
		}
	})
}

func TestBurstsAreCoalesced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		for i := range 40 {
			f.put(fmt.Sprintf("s%d", i), instance(fmt.Sprintf("s%d", i), "i", 80, catalog.Passing, nil))
		}
		r := read(t, f, Options{})
		n, _ := r.after(settle)
		for i := range 40 {
			f.put(fmt.Sprintf("s%d", i), instance(fmt.Sprintf("s%d", i), "i", 80, catalog.Critical, nil))
		}
		m, s := r.after(settle)
		if m-n > 3 {
			t.Errorf("%d snapshots for a burst, want few", m-n)
		}
		for i := range 40 {
			wantService(t, s, fmt.Sprintf("s%d", i), "i@127.0.0.1:80 critical")
		}
	})
}

func TestMoreServicesThanQueries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		for i := range 20 {
			f.put(fmt.Sprintf("s%d", i), instance(fmt.Sprintf("s%d", i), "i", 80, catalog.Passing, nil))
		}
		r := read(t, f, Options{MaxQueries: 4})
		r.after(settle)
		f.put("s7", instance("s7", "i", 80, catalog.Critical, nil))
		_, s := r.after(10 * time.Second)
		wantService(t, s, "s7", "i@127.0.0.1:80 critical")
		if f.most != 4 || r.logged("level=WARN", "take turns", "services=20", "queries=4") != 1 {
			t.Errorf("%d queries at once, want 4, and one warning; the log:\n%s", f.most, r.log.String())
		}
	})
}

func TestFilteredAnswerIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.say(pathServices, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Consul-Results-Filtered-By-ACLs", "true")
			body(200, "5", "{}")(w, r)
		})
		r := read(t, f, Options{})
		r.after(time.Minute)
		if n := r.logged("level=WARN", "service:read"); n != 1 {
			t.Errorf("%d warnings that the token sees less, want 1", n)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	for address, want := range map[string]string{
		"": "is empty", "ftp://x": "scheme", "http://": "want host:port", "unix://run": "starts with /", "http://u:p@x": "want host:port", "a b": "invalid",
	} {
		if _, err := New(Options{Address: address}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New(%q) = %v, want %q", address, err, want)
		}
	}
	if _, err := New(Options{Address: "unix:///x", HTTPClient: http.DefaultClient}); err == nil {
		t.Error("a Unix socket with a client of one's own is accepted")
	}
}

// TestOverSockets reads through its own client, over TCP with a path and over a Unix socket.
func TestOverSockets(t *testing.T) {
	f := newFake()
	f.put("web", web(catalog.Passing))
	mux := http.NewServeMux()
	mux.Handle("/", f)
	mux.Handle("/prefix/", http.StripPrefix("/prefix", f))
	tcp := httptest.NewServer(mux)
	socket := filepath.Join(t.TempDir(), "c.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	local := &httptest.Server{Listener: l, Config: &http.Server{Handler: mux}}
	local.Start()
	for _, address := range []string{tcp.Listener.Addr().String(), tcp.URL + "/prefix/", "unix://" + socket} {
		t.Run(address, func(t *testing.T) {
			s, err := New(Options{Address: address})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			var got *catalog.Snapshot
			if err := s.Run(ctx, func(s *catalog.Snapshot) { got = s; cancel() }); err != nil {
				t.Errorf("Run returned %v", err)
			}
			wantService(t, got, "web", "web-1@127.0.0.1:8080 passing")
		})
	}
	tcp.CloseClientConnections()
	local.CloseClientConnections()
	tcp.Close()
	local.Close()
}

func TestQueriesOf(t *testing.T) {
	limit := func(n int) *int { return &n }
	for _, tc := range []struct {
		limit *int
		http2 bool
		want  int
	}{
		{nil, false, usualQueries},
		{limit(200), false, 133},
		{limit(1), false, 1},
		{limit(0), false, manyQueries},
		{limit(1e6), false, manyQueries},
		{limit(200), true, manyQueries},
	} {
		if got := queriesOf(tc.limit, tc.http2); got != tc.want {
			t.Errorf("%v, HTTP/2 %v: %d queries, want %d", tc.limit, tc.http2, got, tc.want)
		}
	}
}
