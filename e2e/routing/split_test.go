package routing

import (
	"fmt"
	"math"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// within fails unless count of n is the share p, by four standard deviations.
func within(t *testing.T, what string, count, n int, p float64) {
	t.Helper()
	if got := float64(count) / float64(n); math.Abs(got-p) > 4*math.Sqrt(p*(1-p)/float64(n)) {
		t.Errorf("%s: %d of %d are %.1f %%, want %.1f %%", what, count, n, got*100, p*100)
	}
}

func byVersion(counts map[string]int) map[string]int {
	out := map[string]int{}
	for id, n := range counts {
		v, _, _ := strings.Cut(id, "-")
		out[v] += n
	}
	return out
}

func splitter(weights ...int) string {
	var legs []string
	for i, w := range weights {
		legs = append(legs, fmt.Sprintf("{ Weight = %d, ServiceSubset = \"v%d\", RequestHeaders { Set { x-leg = \"v%[2]d\" } } }", w, i+1))
	}
	return fmt.Sprintf("Kind = \"service-splitter\"\nName = \"catalog\"\nSplits = [%s]\n", strings.Join(legs, ", "))
}

// Shares are true, change hot, carry their headers; a leg without instances gets
// nothing, and one whose instances are gone without a word costs nothing.
func TestSplit(t *testing.T) {
	w := newWorld(t)
	w.write(allHTTP)
	w.write(versions)
	w.http("catalog", "v1-a", version(1))
	w.http("catalog", "v1-b", version(1))
	v2 := w.http("catalog", "v2-a", version(2))
	web := w.caller("web", "web-1", "catalog")
	web.eventually("catalog answers by its default subset", "catalog", "/", by("v1"))

	w.write(splitter(90, 10))
	took := web.eventually("v2 gets requests", "catalog", "/", by("v2"))
	t.Logf("a split was in force after %v", took)
	const n = 4000
	got := byVersion(web.shares(n, "catalog", "/"))
	within(t, "v2 at 10 %", got["v2"], n, 0.1)

	w.write(splitter(50, 50))
	meshtest.Eventually(t, "half of the requests go to v2", func() error {
		if n := byVersion(web.shares(200, "catalog", "/"))["v2"]; n < 60 {
			return fmt.Errorf("%d of 200", n)
		}
		return nil
	})
	for range 20 {
		if a := web.get("catalog", "/"); a.header.Get("Got-X-Leg") != a.instance[:2] {
			t.Errorf("%s was sent x-leg %q", a.instance, a.header.Get("Got-X-Leg"))
		}
	}

	t.Run("dead leg", func(t *testing.T) {
		v2.stop() // still registered
		before := v2.served.Load()
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			for range 200 {
				if a := web.do(method, "catalog", "/"); a.ok() != nil || !strings.HasPrefix(a.instance, "v1") {
					t.Fatalf("%s: %v, by %q", method, a.ok(), a.instance)
				}
			}
		}
		if v2.served.Load() != before {
			t.Error("v2 is not dead")
		}
	})
	t.Run("empty leg", func(t *testing.T) {
		v2.deregister()
		if got := web.shares(400, "catalog", "/"); byVersion(got)["v1"] != 400 {
			t.Errorf("answered by %v", got)
		}
	})
	t.Run("no crossing", func(t *testing.T) {
		w.write("Kind = \"traffic-policy\"\nName = \"catalog\"\nCrossing = false\n")
		web.eventually("requests for the empty leg fail", "catalog", "/", func(a answer) error {
			if a.err != nil || a.code == 503 {
				return a.err
			}
			return fmt.Errorf("status %d", a.code)
		})
	})
}

// users asks as many users' first and later requests, and tells the leg of each.
func users(c *caller, n int, name func(int) string) map[string]string {
	legs := map[string]string{}
	for i := range n {
		a := c.get("catalog", "/", header("x-user", name(i)))
		if a.ok() != nil {
			c.w.t.Fatal(a.ok())
		}
		legs[name(i)], _, _ = strings.Cut(a.instance, "-")
	}
	return legs
}

// moved counts users whose leg differs, and those who went to another one than to.
func moved(before, after map[string]string, to string) (all, wrong int) {
	for user, leg := range after {
		if before[user] != leg {
			all++
			if leg != to {
				wrong++
			}
		}
	}
	return all, wrong
}

func TestSticky(t *testing.T) {
	w := newWorld(t)
	w.write(allHTTP)
	w.write(versions)
	for v := 1; v <= 3; v++ {
		for _, i := range []string{"a", "b"} {
			w.http("catalog", fmt.Sprintf("v%d-%s", v, i), version(v))
		}
	}
	w.write(splitter(90, 10))
	w.write("Kind = \"traffic-policy\"\nName = \"catalog\"\nSticky { Header = \"x-user\" }\n")
	web := w.caller("web", "web-1", "catalog")
	web.eventually("catalog answers", "catalog", "/", answer.ok)
	name := func(i int) string { return fmt.Sprintf("user-%d", i) }
	const n = 1000

	// stable waits until the same users are on the same legs twice, and p of them on v2.
	stable := func(what string, leg string, p float64) map[string]string {
		t.Helper()
		var legs map[string]string
		meshtest.Eventually(t, what, func() error {
			legs = users(web, n, name)
			count := 0
			for _, l := range legs {
				if l == leg {
					count++
				}
			}
			if math.Abs(float64(count)/n-p) > 0.05 {
				return fmt.Errorf("%d of %d on %s", count, n, leg)
			}
			if all, _ := moved(legs, users(web, n, name), ""); all != 0 {
				return fmt.Errorf("%d users changed their leg", all)
			}
			return nil
		})
		return legs
	}
	t.Run("header", func(t *testing.T) {
		at10 := stable("10 % of the users are on v2, always the same", "v2", 0.1)
		w.write(splitter(70, 30))
		at30 := stable("30 % of the users are on v2", "v2", 0.3)
		all, wrong := moved(at10, at30, "v2")
		if wrong > 0 || all < n*15/100 || all > n*25/100 {
			t.Errorf("10 to 30 %%: %d of %d users moved, %d of them the wrong way", all, n, wrong)
		}
	})
	t.Run("three legs", func(t *testing.T) {
		w.write(splitter(60, 30, 10))
		before := stable("10 % of the users are on v3", "v3", 0.1)
		w.write(splitter(50, 30, 20))
		after := stable("20 % of the users are on v3", "v3", 0.2)
		all, wrong := moved(before, after, "v3")
		// No rule that knows the weights alone can do with exactly those 10 %.
		if wrong > n*4/100 || all > n*17/100 {
			t.Errorf("10 %% changed hands: %d of %d users moved, %d of them elsewhere", all, n, wrong)
		}
	})
	t.Run("cookie", func(t *testing.T) {
		w.write("Kind = \"traffic-policy\"\nName = \"catalog\"\nSticky { Cookie { Name = \"leg\", TTL = \"1h\" } }\n")
		web.eventually("a cookie is made", "catalog", "/", func(a answer) error {
			if a.ok() == nil && !strings.Contains(a.header.Get("Set-Cookie"), "leg=") {
				return fmt.Errorf("Set-Cookie %q", a.header.Get("Set-Cookie"))
			}
			return a.ok()
		})
		legs := map[string]int{}
		for range 200 {
			jar, err := cookiejar.New(nil)
			if err != nil {
				t.Fatal(err)
			}
			own := *web
			own.client = &http.Client{Transport: web.client.Transport, Jar: jar}
			first := own.get("catalog", "/")
			for range 5 {
				if a := own.get("catalog", "/"); a.ok() != nil || a.instance[:2] != first.instance[:2] || a.header.Get("Set-Cookie") != "" {
					t.Fatalf("first answered by %s, then by %s (%v), with cookie %q", first.instance, a.instance, a.ok(), a.header.Get("Set-Cookie"))
				}
			}
			if u, err := url.Parse(fmt.Sprintf("http://127.0.0.1:%d/", web.ports["catalog"])); err != nil || len(jar.Cookies(u)) != 1 {
				t.Fatalf("cookies %v, %v", jar.Cookies(u), err)
			}
			legs[first.instance[:2]]++
		}
		within(t, "v1 at 50 %", legs["v1"], 200, 0.5)
		within(t, "v3 at 20 %", legs["v3"], 200, 0.2)
	})
	t.Run("source", func(t *testing.T) {
		w.write("Kind = \"traffic-policy\"\nName = \"catalog\"\nSticky { Source = true }\n")
		meshtest.Eventually(t, "the instance stays on one leg", func() error {
			if got := byVersion(web.shares(100, "catalog", "/")); len(got) != 1 {
				return fmt.Errorf("answered by %v", got)
			}
			return nil
		})
	})
}
