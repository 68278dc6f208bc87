package routing

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

const router = `
Kind = "service-router"
Name = "catalog"
Routes = [
  {
    Match { HTTP { PathExact = "/exact", Methods = ["GET", "HEAD"] } }
    Destination { Service = "exact", PrefixRewrite = "/found" }
  },
  {
    Match { HTTP { PathPrefix = "/Items/", CaseInsensitive = true } }
    Destination {
      Service = "items", PrefixRewrite = "/v1/"
      RequestHeaders { Set { x-set = "from-the-router" }, Add { x-more = "2" }, Remove = ["x-secret"] }
      ResponseHeaders { Set { x-answered = "by-items" }, Remove = ["x-instance-kind"] }
    }
  },
  {
    Match { HTTP { PathRegex = "/user/[0-9]+/cart" } }
    Destination { Service = "items" }
  },
  {
    Match { HTTP {
      Header = [{ Name = "x-kind", Exact = "beta" }, { Name = "x-not", Present = true, Invert = true }]
    } }
    Destination { Service = "beta" }
  },
  {
    Match { HTTP { QueryParam = [{ Name = "debug", Present = true }] } }
    Destination { Service = "beta", RequestTimeout = "200ms" }
  },
  {
    Match { HTTP { PathPrefix = "/retry" } }
    Destination { Service = "items", NumRetries = 3, RetryOnStatusCodes = [503], PrefixRewrite = "/" }
  },
]
`

func TestRouter(t *testing.T) {
	w := newWorld(t)
	w.write(allHTTP)
	w.http("catalog", "catalog", nil)
	w.http("exact", "exact", nil)
	items := w.http("items", "items", nil)
	w.http("beta", "beta", nil)
	web := w.caller("web", "web-1", "catalog")
	web.eventually("catalog answers", "catalog", "/exact", by("catalog"))
	w.write(router)
	t.Logf("the router was in force after %v", web.eventually("the router is in force", "catalog", "/exact", by("exact")))

	for _, tt := range []struct {
		method, path string
		headers      []string // name, value
		by, uri      string
	}{
		{"GET", "/exact", nil, "exact", "/found"},
		{"GET", "/exact?a=b", nil, "exact", "/found?a=b"},
		{"HEAD", "/exact", nil, "exact", ""},
		{"POST", "/exact", nil, "catalog", "/exact"},
		{"GET", "/exact/", nil, "catalog", "/exact/"},
		{"GET", "/items/7?x=1", nil, "items", "/v1/7?x=1"},
		{"GET", "/ITEMS/7", nil, "items", "/v1/7"},
		{"GET", "/items", nil, "catalog", "/items"},
		{"GET", "/user/12/cart", nil, "items", "/user/12/cart"},
		{"GET", "/user/12/cart?q", nil, "items", "/user/12/cart?q"},
		{"GET", "/user/x/cart", nil, "catalog", "/user/x/cart"},
		{"GET", "/user/12/cart/more", nil, "catalog", "/user/12/cart/more"},
		{"GET", "/", []string{"X-Kind", "beta"}, "beta", "/"},
		{"GET", "/", []string{"X-Kind", "beta", "X-Not", "1"}, "catalog", "/"},
		{"GET", "/", []string{"X-Kind", "alpha"}, "catalog", "/"},
		{"GET", "/?debug", nil, "beta", "/?debug"},
		{"GET", "/?debug=", nil, "beta", "/?debug="},
		{"GET", "/?nodebug=1", nil, "catalog", "/?nodebug=1"},
	} {
		t.Run(tt.method+" "+tt.path+" "+strings.Join(tt.headers, ":"), func(t *testing.T) {
			a := web.do(tt.method, "catalog", tt.path, func(r *http.Request) {
				for i := 0; i < len(tt.headers); i += 2 {
					r.Header.Set(tt.headers[i], tt.headers[i+1])
				}
			})
			if err := a.ok(); err != nil {
				t.Fatal(err)
			}
			fields := strings.Fields(a.body)
			if a.instance != tt.by || tt.method != "HEAD" && fields[3] != tt.uri {
				t.Errorf("answered by %s: %s; want %s with %s", a.instance, a.body, tt.by, tt.uri)
			}
		})
	}
	t.Run("headers", func(t *testing.T) {
		a := web.get("catalog", "/items/1", header("x-more", "1"), header("x-secret", "s"), header("x-set", "mine"))
		if got := a.header["Got-X-More"]; strings.Join(got, ",") != "1,2" {
			t.Errorf("x-more %q, want 1 and 2", got)
		}
		if a.header.Get("Got-X-Set") != "from-the-router" || a.header.Get("Got-X-Secret") != "" || a.header.Get("x-answered") != "by-items" {
			t.Errorf("headers %v", a.header)
		}
	})
	t.Run("retries", func(t *testing.T) {
		items.status.Store(503)
		defer items.status.Store(200)
		before := items.served.Load()
		if a := web.get("catalog", "/retry/status"); a.err != nil || a.code != 503 {
			t.Errorf("%d, %v; want the app's 503", a.code, a.err)
		}
		if n := items.served.Load() - before; n != 4 {
			t.Errorf("sent %d times, want once and 3 retries", n)
		}
	})
	t.Run("hash", func(t *testing.T) {
		for i := range 4 {
			w.http("items", fmt.Sprintf("items-%d", i), nil)
		}
		w.write(`{"Kind": "service-resolver", "Name": "items", "LoadBalancer": {"Policy": "ring_hash", "HashPolicies": [{"Field": "header", "FieldValue": "x-user"}]}}`)
		web.eventually("users stay with their instance", "catalog", "/items/", func(answer) error {
			used := map[string]bool{}
			for user := range 20 {
				name := header("x-user", fmt.Sprint("user", user))
				first := web.get("catalog", "/items/", name)
				used[first.instance] = true
				for range 3 {
					if a := web.get("catalog", "/items/", name); a.ok() != nil || a.instance != first.instance {
						return fmt.Errorf("user %d went to %s, then to %s, %v", user, first.instance, a.instance, a.ok())
					}
				}
			}
			if len(used) < 3 {
				return fmt.Errorf("only %v are used", used)
			}
			return nil
		})
	})
}

const backup = `
Kind = "service-resolver"
Name = "catalog"
ConnectTimeout = "300ms"
Failover = { "*" = { Targets = [{ Service = "far", Datacenter = "dc2" }, { Service = "backup" }] } }
`

// A failover answers when nobody else can, whether that is known or not.
func TestFailover(t *testing.T) {
	w := newWorld(t)
	w.write(allHTTP)
	first := w.http("catalog", "catalog-1", nil)
	w.http("backup", "backup-1", nil)
	web := w.caller("web", "web-1", "catalog")
	web.eventually("catalog answers", "catalog", "/", by("catalog"))

	w.apply(backup)
	if got := web.shares(200, "catalog", "/"); got["catalog-1"] != 200 {
		t.Errorf("answered by %v", got)
	}
	first.stop() // still registered: connections are refused
	for range 100 {
		if a := web.do(http.MethodPost, "catalog", "/"); a.ok() != nil || a.instance != "backup-1" {
			t.Fatalf("%v, by %q", a.ok(), a.instance)
		}
	}
	first.deregister()
	if got := web.shares(200, "catalog", "/"); got["backup-1"] != 200 {
		t.Errorf("answered by %v", got)
	}
	w.http("catalog", "catalog-2", nil)
	web.eventually("catalog is back", "catalog", "/", by("catalog-2"))
	// Where nobody can be reached, an answer says why.
	w.write(`{"Kind": "service-resolver", "Name": "catalog", "Redirect": {"Service": "far", "Datacenter": "dc2"}}`)
	web.eventually("there is no way to dc2", "catalog", "/", func(a answer) error {
		if a.code != 503 || !strings.Contains(a.body, "no mesh gateway for dc2") {
			return fmt.Errorf("%d %s", a.code, a.body)
		}
		return nil
	})
	w.write(`{"Kind": "service-resolver", "Name": "catalog", "Redirect": {"Service": "outside"}}`)
	w.write(`{"Kind": "service-defaults", "Name": "outside", "Protocol": "http", "Destination": {"Addresses": ["192.0.2.1"], "Port": 443}}`)
	web.eventually("there is no way out of the mesh", "catalog", "/", func(a answer) error {
		if a.code != 503 || !strings.Contains(a.body, "no terminating gateway for outside") {
			return fmt.Errorf("%d %s", a.code, a.body)
		}
		return nil
	})
}

// A request whose answer is not wanted is sent to another leg only where it may be
// repeated.
func TestCrossingAfterAnAnswer(t *testing.T) {
	w := newWorld(t)
	w.write(allHTTP)
	w.write(versions)
	w.write(splitter(50, 50))
	w.write(`{"Kind": "service-router", "Name": "catalog", "Routes": [{"Destination": {"NumRetries": 2, "RetryOn": ["5xx"]}}]}`)
	w.http("catalog", "v1-a", version(1))
	v2 := w.http("catalog", "v2-a", version(2))
	web := w.caller("web", "web-1", "catalog")
	web.eventually("v2 answers", "catalog", "/", by("v2"))
	v2.status.Store(500)
	posts := 0
	for range 100 {
		if a := web.get("catalog", "/status"); a.ok() != nil {
			t.Fatalf("GET: %v", a.ok())
		}
		a := web.do(http.MethodPost, "catalog", "/status")
		if a.err != nil || a.code == 200 && !strings.HasPrefix(a.instance, "v1") {
			t.Fatalf("POST: %d by %s, %v", a.code, a.instance, a.err)
		}
		if a.code == 500 {
			posts++
		}
	}
	within(t, "POST requests that failed on v2", posts, 100, 0.5)
}

// Connections are divided too, and none is closed by what is written.
func TestConnections(t *testing.T) {
	w := newWorld(t)
	w.write(strings.ReplaceAll(versions, `"catalog"`, `"db"`))
	w.tcp("db", "v1-a", version(1))
	v2 := w.tcp("db", "v2-a", version(2))
	w.tcp("backup", "backup-1", nil)
	web := w.caller("web", "web-1", "db")
	open := func() string {
		t.Helper()
		conn, id, err := web.dial("db")
		if err != nil {
			return err.Error()
		}
		conn.Close()
		return id
	}
	until := func(what string, want func(string) bool) {
		t.Helper()
		begin := time.Now()
		meshtest.Eventually(t, what, func() error {
			if id := open(); !want(id) {
				return fmt.Errorf("answered by %s", id)
			}
			return nil
		})
		t.Logf("%s after %v", what, time.Since(begin))
	}
	is := func(prefix string) func(string) bool {
		return func(id string) bool { return strings.HasPrefix(id, prefix) }
	}
	until("db answers", is("v1"))
	long, _, err := web.dial("db")
	if err != nil {
		t.Fatal(err)
	}
	defer long.Close()
	long.SetDeadline(time.Now().Add(time.Minute))
	alive := func(when string) {
		t.Helper()
		fmt.Fprintln(long, when)
		if got, err := readLine(long); err != nil || got != when {
			t.Fatalf("%s: the connection that was open is %q, %v", when, got, err)
		}
	}
	alive("at first")
	split := func(weights ...int) {
		w.apply(strings.ReplaceAll(splitter(weights...), `"catalog"`, `"db"`))
	}
	split(70, 30)
	until("some go to v2", is("v2"))
	alive("after a split")
	const n = 600
	counts := map[string]int{}
	for range n {
		counts[open()]++
	}
	within(t, "connections to v2", counts["v2-a"], n, 0.3)
	if counts["v1-a"]+counts["v2-a"] != n {
		t.Errorf("answered by %v", counts)
	}
	split(0, 100)
	until("all go to v2", is("v2"))
	alive("after another split")
	v2.deregister()
	split(50, 50)
	until("an empty leg gets nothing", is("v1"))
	for range 50 {
		if id := open(); id != "v1-a" {
			t.Fatalf("answered by %s", id)
		}
	}
	alive("after a leg is gone")
	w.delete("service-splitter", "db")
	w.write(`{"Kind": "service-resolver", "Name": "db", "Redirect": {"Service": "backup"}}`)
	until("a redirect is in force", is("backup"))
	alive("after a redirect")
	w.write(`{"Kind": "service-resolver", "Name": "db", "DefaultSubset": "v2", "Subsets": {"v2": {"Filter": "Service.Meta.version == v2"}}, "Failover": {"*": {"Service": "backup"}}}`)
	w.tcp("db", "v2-b", version(2)).deregister()
	until("a failover answers", is("backup"))
	w.tcp("db", "v2-c", version(2))
	until("the service itself answers", is("v2-c"))
	alive("at last")
}
