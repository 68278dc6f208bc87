package routing

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// While shares move from old to new and back nobody is refused, and nothing that lasts
// is cut, whatever way it is on.
func TestWaysChangeHot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.speak()
	shops := ways{legacy: w.plainHTTP("legacy", shop("legacy")), direct: w.plainHTTP("direct", shop("direct")), plain: w.plainHTTP("plain", shop("plain"))}
	w.enlist("catalog", shops.direct)
	port, stop := w.shopApp("catalog", "mtls", true)
	w.native("catalog", "mtls-catalog", "v1", port, stop)
	w.before("catalog", shops)
	apps := map[string]ways{"catalog": shops, "chat": w.four("chat"), "payments": w.four("payments")}
	web := w.caller("web", "web-1", "catalog", "chat", "payments")
	step := func(shares [4]float64) {
		for service, a := range apps {
			w.apply(a.shift(service, shares, ""))
		}
	}
	step([4]float64{100, 0, 0, 0})
	ready(t, web)
	load := w.traffic(t, web.ports)
	pause := func() {
		from := load.sent()
		meshtest.Eventually(t, "traffic goes on", func() error {
			if n := load.sent(); n < from+600 {
				return fmt.Errorf("%d requests since", n-from)
			}
			return nil
		})
	}
	pause()
	for _, shares := range [][4]float64{
		{99, 1, 0, 0}, {50, 50, 0, 0}, {0, 100, 0, 0}, {0, 90, 10, 0}, {0, 0, 100, 0}, {0, 0, 50, 50}, {0, 0, 0, 100}, // as pairs move
		{0, 0, 10, 90}, {0, 0, 100, 0}, {0, 100, 0, 0}, {100, 0, 0, 0}, // and back
		{99, 0, 0, 1}, {60, 20, 10, 10}, {0, 50, 0, 50}, {0, 0, 0, 100}, {50, 0, 0, 50}, {0, 0, 100, 0}, {0, 1, 0, 99}, {10, 20, 30, 40}, {100, 0, 0, 0},
	} {
		step(shares)
		pause()
	}
	for service := range apps { // as if nothing had ever been
		w.delete("traffic-shift", "web~"+service)
	}
	pause()
	step([4]float64{100, 0, 0, 0})
	pause()
	load.stop()
	t.Logf("%d requests%s", load.sent(), load.report())
	for i, f := range load.failures() {
		if i == 10 {
			t.Errorf("and %d more", len(load.failures())-i)
			break
		}
		t.Error(f.Reason)
	}
	if n := load.closed.Load(); n > 0 {
		t.Errorf("%d kept-alive connections were closed", n)
	}
}

// The old mesh gets its own Host, and nobody else does, also when a request crosses.
func TestLegacyHost(t *testing.T) {
	w := newWorld(t)
	w.speak()
	catalog, chat := w.three("catalog"), w.three("chat")
	web := w.caller("web", "web-1", "catalog", "chat")
	conn := web.grpc()
	hosts := func(want map[string]string) {
		t.Helper()
		seen := map[string]bool{}
		for range 60 {
			a := web.do(http.MethodPost, "catalog", "/", func(r *http.Request) { r.Host = "catalog.app" })
			way, _, _ := strings.Cut(a.instance, "-")
			if a.ok() != nil || strings.Fields(a.body)[2] != want[way] {
				t.Fatalf("%v: %q, want %v", a.ok(), a.body, want)
			}
			id, authority, err := web.stream(conn)
			if err != nil || id != "legacy" && authority == "old.example" || id == "legacy" && authority != "old.example" {
				t.Fatalf("%s got :authority %q, %v", id, authority, err)
			}
			seen[way] = true
		}
		if len(seen) != len(want) {
			t.Errorf("answered by %v, want %v", seen, want)
		}
	}
	write := func(legacy [2]int, shares [4]float64) {
		w.apply(shiftText("catalog", fmt.Sprintf("127.0.0.1:%d", legacy[0]), "old.example", shares, ""))
		w.apply(shiftText("chat", fmt.Sprintf("127.0.0.1:%d", legacy[1]), "old.example", shares, ""))
	}
	alive := [2]int{catalog.legacy.port, chat.legacy.port}
	write(alive, [4]float64{40, 20, 0, 40})
	hosts(map[string]string{"legacy": "old.example", "direct": "catalog.app", "mtls": "catalog.app"})
	free := meshtest.FreePorts(t, 2)
	write([2]int{free[0], free[1]}, [4]float64{90, 0, 0, 10}) // nobody listens
	hosts(map[string]string{"mtls": "catalog.app"})
	catalog.mtls.stop()
	chat.mtls.stop()
	write(alive, [4]float64{10, 0, 0, 90})
	hosts(map[string]string{"legacy": "old.example"})
	w.apply(shiftText("catalog", fmt.Sprintf("localhost:%d", alive[0]), "old.example", [4]float64{100, 0, 0, 0}, ""))
	hosts(map[string]string{"legacy": "old.example"})
	w.apply(shiftText("catalog", fmt.Sprintf("localhost:%d", alive[0]), "", [4]float64{100, 0, 0, 0}, ""))
	hosts(map[string]string{"legacy": "catalog.app"})
}

// Callers stay on their way while shares move, but for those who must go.
func TestStickyWays(t *testing.T) {
	w := newWorld(t)
	w.speak()
	catalog, payments := w.four("catalog"), w.four("payments")
	web := w.caller("web", "web-1", "catalog", "payments")
	name := func(i int) string { return fmt.Sprintf("user-%d", i) }
	const n = 1000
	place := func(shares [4]float64) map[string]string {
		t.Helper()
		w.apply(catalog.shift("catalog", shares, "Sticky { Header = \"x-user\" }"))
		out := users(web, n, name)
		if all, _ := moved(out, users(web, n, name), ""); all > 0 {
			t.Errorf("%v: %d users changed their way", shares, all)
		}
		on := map[string]int{}
		for _, way := range out {
			on[way]++
		}
		for i, way := range wayNames {
			within(t, fmt.Sprintf("%v: users on %s", shares, way), on[way], n, shares[i]/100)
		}
		return out
	}
	before := place([4]float64{90, 0, 0, 10})
	for _, step := range []struct {
		shares [4]float64
		to     string
		part   float64
	}{
		{[4]float64{70, 0, 0, 30}, "mtls", .2}, {[4]float64{70, 10, 0, 20}, "direct", .1}, {[4]float64{40, 10, 0, 50}, "mtls", .3},
		{[4]float64{40, 10, 20, 30}, "plain", .2}, {[4]float64{0, 10, 20, 70}, "mtls", .4},
	} {
		after := place(step.shares)
		all, wrong := moved(before, after, step.to)
		t.Logf("to %v: %d moved, %d of them elsewhere", step.shares, all, wrong)
		if wrong > 0 {
			t.Errorf("to %v: %d of %d users moved, %d of them elsewhere", step.shares, all, n, wrong)
		}
		within(t, fmt.Sprintf("to %v: users that moved", step.shares), all, n, step.part)
		before = after
	}

	two := place([4]float64{0, 0, 10, 90})
	if all, wrong := moved(two, place([4]float64{0, 0, 30, 70}), "plain"); wrong > 0 || all < n*14/100 || all > n*26/100 {
		t.Errorf("of %d users %d moved, %d of them to mtls: want 20 %% to plain", n, all, wrong)
	}

	w.apply(catalog.shift("catalog", [4]float64{10, 20, 30, 40}, "Sticky { Cookie { Name = \"way\" } }"))
	on := map[string]int{}
	for range 200 {
		first := web.get("catalog", "/")
		cookie, _, _ := strings.Cut(first.header.Get("Set-Cookie"), ";")
		way, _, _ := strings.Cut(first.instance, "-")
		on[way]++
		for range 3 {
			if again := web.get("catalog", "/", header("Cookie", cookie)); again.ok() != nil || again.instance != first.instance || again.header.Get("Set-Cookie") != "" {
				t.Fatalf("cookie %q is of %s, then of %s, %v", cookie, first.instance, again.instance, again.ok())
			}
		}
	}
	for i, way := range wayNames {
		within(t, "cookies of "+way, on[way], 200, float64(i+1)/10)
	}

	w.apply(catalog.shift("catalog", [4]float64{50, 0, 50, 0}, "Sticky { Source = true }"))
	w.apply(payments.shift("payments", [4]float64{50, 0, 50, 0}, "Sticky { Source = true }"))
	calls := web.calls()
	var one string
	for _, service := range []string{"catalog", "payments"} {
		got, failed := count(100, calls[service])
		if len(failed) > 0 || len(got) != 1 {
			t.Errorf("%s: the instance is answered by %v, %v", service, got, errors.Join(failed...))
		}
		for way := range got {
			if one == "" {
				one = way
			}
			if way != one {
				t.Errorf("the instance's connections go by %s, its requests by %s", way, one)
			}
		}
	}
}

// The direct way goes past a callee's sidecar, to the instances that are there.
func TestDirectWay(t *testing.T) {
	w := newWorld(t)
	w.speak()
	first := w.plainHTTP("one", w.teller("one"))
	w.beside("catalog", "one", "v1", first.port)
	web := w.caller("web", "web-1", "catalog")
	web.eventually("catalog answers", "catalog", "/", by("one"))
	const xfcc = "Got-X-Forwarded-Client-Cert" // made by the callee's sidecar
	direct := func(a answer) error {
		if err := a.ok(); err != nil || a.header.Get(xfcc) == "" {
			return err
		}
		return errors.New("by the sidecar")
	}
	if a := web.get("catalog", "/"); a.header.Get(xfcc) == "" {
		t.Errorf("past the sidecar before it was asked for: %v", a.header)
	}
	w.apply("Kind = \"traffic-shift\"\nSource = \"web\"\nDestination = \"*\"\nShares { direct = 100 }\n")
	if err := direct(web.get("catalog", "/", header("x-forwarded-client-cert", "URI=spiffe://forged"))); err != nil {
		t.Error(err)
	}
	second := w.plainHTTP("two", w.teller("two"))
	w.enlist("catalog", second)
	web.eventually("an instance that appears is asked", "catalog", "/", by("two"))
	w.server.Call(http.MethodPut, "/v1/agent/service/deregister/two", nil)
	got := map[string]int{}
	meshtest.Eventually(t, "one that goes is not", func() error {
		clear(got)
		for range 20 {
			got[web.get("catalog", "/").instance]++
		}
		if got["one"] != 20 {
			return fmt.Errorf("answered by %v", got)
		}
		return nil
	})
	w.delete("traffic-shift", "web~*")
	web.eventually("the sidecar is back in its place", "catalog", "/", func(a answer) error {
		if direct(a) == nil {
			return errors.New("still past it")
		}
		return a.ok()
	})
}

// Where three of twelve instances have a sidecar, plain and mtls reach those three, and
// direct all.
func TestSidecarsOnSomeInstances(t *testing.T) {
	w := newWorld(t)
	w.speak()
	for i := range 12 {
		a := w.plainHTTP(fmt.Sprintf("app-%d", i), w.teller(fmt.Sprintf("app-%d", i)))
		if i < 3 {
			w.beside("catalog", a.id, "v1", a.port)
		} else {
			w.enlist("catalog", a)
		}
	}
	web := w.caller("web", "web-1", "catalog", "chat")
	w.reachable("catalog", map[string]int{"direct": 12, "plain": 3, "mtls": 3})
	for i, instances := range []int{0, 12, 3, 3} {
		if instances == 0 {
			continue
		}
		var shares [4]float64
		shares[i] = 100
		w.apply(shiftText("catalog", "127.0.0.1:1", "", shares, ""))
		got := web.shares(60*instances, "catalog", "/")
		first := 0
		for n := range 3 {
			if got[fmt.Sprintf("app-%d", n)] > 0 {
				first++
			}
		}
		if len(got) != instances || first != 3 {
			t.Errorf("%s is answered by %v, want %d with the first three", wayNames[i], got, instances)
		}
	}
	w.apply(shiftText("catalog", "127.0.0.1:1", "", [4]float64{0, 50, 0, 50}, ""))
	got := web.shares(600, "catalog", "/")
	of := 0
	for n := range 3 {
		of += got[fmt.Sprintf("app-%d", n)]
	}
	within(t, "requests to instances with a sidecar", of, 600, .5+.5*3/12)

	// A way that leads to nobody gets nothing.
	chat := w.three("chat")
	w.apply(chat.shift("chat", [4]float64{0, 0, 50, 50}, ""))
	byWay, failed := count(100, web.calls()["chat"])
	if len(failed) > 0 || byWay["mtls"] != 100 {
		t.Errorf("where nobody takes plaintext answer %v, %v", byWay, errors.Join(failed...))
	}
}

// A service-router holds on all ways, and what it sends to another service is not divided.
func TestRoutersOnAllWays(t *testing.T) {
	w := newWorld(t)
	w.speak()
	w.write("Kind = \"service-defaults\"\nName = \"cart\"\nProtocol = \"http\"\n")
	w.http("cart", "cart", nil)
	moody := &instance{w: w, id: "legacy"} // answers /status with 503
	moody.status.Store(503)
	catalog := w.four("catalog")
	catalog.legacy = w.plainHTTP("legacy", http.HandlerFunc(moody.answer))
	w.write(`
Kind = "service-router"
Name = "catalog"
Routes = [
  { Match { HTTP { PathPrefix = "/cart/" } }, Destination { Service = "cart", PrefixRewrite = "/" } },
  { Match { HTTP { Header = [{ Name = "x-tell", Present = true }] } }, Destination { RequestHeaders { Set { "x-told" = "1" } } } },
  { Match { HTTP { PathPrefix = "/status" } }, Destination { NumRetries = 2, RetryOnStatusCodes = [503] } },
]
`)
	web := w.caller("web", "web-1", "catalog")
	const n = 400
	for _, host := range []string{"", "catalog.old"} {
		w.apply(shiftText("catalog", fmt.Sprintf("127.0.0.1:%d", catalog.legacy.port), host, [4]float64{25, 25, 25, 25}, ""))
		told := func() (string, error) {
			a := web.get("catalog", "/a", header("x-tell", "yes"))
			if got := a.header.Get("Got-X-Told"); a.ok() == nil && got != "1" {
				return a.instance, fmt.Errorf("%s was told %q", a.instance, got)
			}
			return a.instance, a.ok()
		}
		got, failed := count(n, told)
		if len(failed) > 0 || len(got) != 4 {
			t.Errorf("a header: answered by %v, %v", got, errors.Join(failed...))
		}
		got, failed = count(100, func() (string, error) {
			a := web.get("catalog", "/cart/x")
			if a.ok() == nil && !strings.Contains(a.body, " /x ") {
				return a.instance, errors.New(a.body)
			}
			return a.instance, a.ok()
		})
		if len(failed) > 0 || got["cart"] != 100 {
			t.Errorf("another service: answered by %v, %v", got, errors.Join(failed...))
		}
		// What was answered is sent elsewhere only if it may be repeated, and has no Host that
		// is none of theirs.
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			before := catalog.legacy.served.Load()
			got, failed := count(n, func() (string, error) { a := web.do(method, "catalog", "/status"); return a.instance, a.ok() })
			seen := int(catalog.legacy.served.Load() - before)
			switch crosses := method == http.MethodGet && host == ""; {
			case crosses && (len(failed) > 0 || got["legacy"] > 0 || seen == 0):
				t.Errorf("%s %q: answered by %v, %d failed", method, host, got, len(failed))
			case !crosses && (len(failed) == 0 || seen != 3*len(failed)):
				t.Errorf("%s %q: %d failed, and the old mesh saw %d", method, host, len(failed), seen)
			}
		}
	}
}
