package routing

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/demo/load"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// The traffic that TestRandomWrites relies on counts what a bad write does.
func TestBadWritesAreCounted(t *testing.T) {
	w, web, _, _ := everything(t)
	ready(t, web)
	traffic := w.traffic(t, web.ports)
	more := func(kinds ...string) func() error {
		before := map[string]uint64{}
		for _, kind := range kinds {
			before[kind] = traffic.kinds[kind].Totals().Failed
		}
		return func() error {
			for kind, n := range before {
				if traffic.kinds[kind].Totals().Failed == n {
					return errors.New(kind + " do not fail")
				}
			}
			return nil
		}
	}
	if f := traffic.failures(); len(f) > 0 {
		t.Fatalf("before any write: %s", f[0].Reason)
	}

	fail := more("requests", "requests on new connections", "new WebSockets")
	w.write("Kind = \"service-resolver\"\nName = \"catalog\"\nDefaultSubset = \"v5\"\nSubsets { v5 { Filter = \"Service.Meta.version == v5\" } }\n")
	meshtest.Eventually(t, "a subset that nobody is in", fail)
	w.delete("service-resolver", "catalog")

	fail = more("TCP connections")
	w.write("Kind = \"service-intentions\"\nName = \"payments\"\nSources = [{ Name = \"web\", Action = \"deny\" }]\n")
	meshtest.Eventually(t, "an intention that denies connections", fail)
	w.delete("service-intentions", "payments")

	fail = more("gRPC calls")
	w.write("Kind = \"service-intentions\"\nName = \"chat\"\nSources = [{ Name = \"web\", Action = \"deny\" }]\n")
	meshtest.Eventually(t, "an intention that denies requests", fail)

	w.write("Kind = \"service-defaults\"\nName = \"web\"\nProtocol = \"http\"\nUpstreamConfig { Defaults { BalanceOutboundConnections = \"exact_balance\" } }\n")
	meshtest.Eventually(t, "a listener that changes", func() error {
		if traffic.closed.Load() == 0 {
			return errors.New("no connection is closed")
		}
		return nil
	})
	traffic.stop()
	if n := len(traffic.failures()); n == 0 {
		t.Error("no failure has particulars")
	}
}

// ready waits until all upstreams answer.
func ready(t *testing.T, web *caller) {
	t.Helper()
	web.eventually("catalog answers", "catalog", "/", answer.ok)
	meshtest.Eventually(t, "all upstreams answer", func() error {
		probe := &traffic{ports: web.ports}
		for _, open := range []func(time.Time) (*wire, error){probe.socket, probe.connection} {
			c, err := open(time.Now().Add(patience))
			if err != nil {
				return err
			}
			c.Close()
		}
		return nil
	})
}

// A request that is tried again goes where it was on its way to, though no route leads
// there any more.
func TestRetryOutlivesItsRoute(t *testing.T) {
	w := newWorld(t)
	w.write(allHTTP)
	w.write(versions)
	w.http("catalog", "v1-a", version(1))
	met, let := make(chan struct{}, 10), make(chan struct{})
	first := true // only one request comes here, and its attempts one by one
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("x-instance", "v2-a")
		if first {
			first = false
			met <- struct{}{}
			<-let
			rw.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	s.TLS, s.EnableHTTP2 = w.tlsConfig("catalog"), true
	s.StartTLS()
	w.native("catalog", "v2-a", "v2", s.Listener.Addr().(*net.TCPAddr).Port, s.Close)
	web := w.caller("web", "web-1", "catalog")
	web.eventually("catalog answers", "catalog", "/", by("v1"))
	w.apply("Kind = \"service-router\"\nName = \"catalog\"\nRoutes = [{ Match { HTTP { PathExact = \"/slow\" } }, Destination { ServiceSubset = \"v2\", NumRetries = 2, RetryOnStatusCodes = [503] } }]\n")

	got := make(chan answer, 1)
	go func() { got <- web.get("catalog", "/slow") }()
	<-met
	w.delete("service-router", "catalog")
	web.eventually("the route is gone", "catalog", "/slow", by("v1"))
	for begin := time.Now(); time.Since(begin) < time.Second; { // all that follows from it
		if err := by("v1")(web.get("catalog", "/slow")); err != nil {
			t.Fatal(err)
		}
	}
	close(let)
	if err := by("v2")(<-got); err != nil {
		t.Error(err)
	}
}

// A write is in force within a second, at the last of all sidecars that it is for: the next request is answered
// as it says.
func TestWriteToFirstAnswer(t *testing.T) {
	const writes, callers = 90, 8
	w := newWorld(t)
	w.write(allHTTP)
	w.write(versions)
	w.http("catalog", "v1-a", version(1))
	w.http("catalog", "v2-a", version(2))
	var webs []*caller
	for i := range callers {
		webs = append(webs, w.caller("web", fmt.Sprintf("web-%d", i+1), "catalog"))
	}
	for _, web := range webs {
		web.eventually("catalog answers", "catalog", "/", by("v1"))
	}

	kinds := []struct{ kind, text string }{
		{"service-resolver", "Kind = \"service-resolver\"\nName = \"catalog\"\nDefaultSubset = %q\nSubsets { v1 { Filter = \"Service.Meta.version == v1\" } v2 { Filter = \"Service.Meta.version == v2\" } }\n"},
		{"service-splitter", "Kind = \"service-splitter\"\nName = \"catalog\"\nSplits = [{ Weight = 100, ServiceSubset = %q }]\n"},
		{"service-router", "Kind = \"service-router\"\nName = \"catalog\"\nRoutes = [{ Match { HTTP { PathPrefix = \"/\" } }, Destination { ServiceSubset = %q } }]\n"},
	}
	var all load.Histogram
	for k, kind := range kinds {
		if k > 0 {
			w.delete(kinds[k-1].kind, "catalog")
			if k == 1 {
				w.write(versions)
			}
		}
		var took load.Histogram
		for i := range writes / len(kinds) {
			want := fmt.Sprintf("v%d", 1+(i+1)%2)
			begin := time.Now()
			w.write(fmt.Sprintf(kind.text, want))
			var last sync.WaitGroup
			for i, web := range webs {
				last.Go(func() {
					for {
						err := by(want)(web.get("catalog", "/"))
						if err == nil {
							return
						}
						if time.Since(begin) > 20*time.Second {
							t.Errorf("%s: sidecar %d: %v", kind.kind, i+1, err)
							return
						}
					}
				})
			}
			last.Wait()
			took.Add(time.Since(begin))
			all.Add(time.Since(begin))
		}
		t.Logf("%s: p50 %v, longest %v", kind.kind, took.Quantile(.5), took.Max())
	}
	t.Logf("%d writes, until the last of %d sidecars: p50 %v, p99 %v", all.Count(), callers, all.Quantile(.5), all.Quantile(.99))
	if p99 := all.Quantile(.99); p99 > time.Second {
		t.Errorf("p99 is %v, want a second at most", p99)
	}
}

// What must not be repeated elsewhere is still answered by another leg when nobody is
// in its own: that is no repetition.
func TestEmptyLegCostsNothingThatIsRetried(t *testing.T) {
	w := newWorld(t)
	w.write(allHTTP)
	w.write(versions)
	w.http("catalog", "v1-a", version(1))
	web := w.caller("web", "web-1", "catalog")
	web.eventually("catalog answers", "catalog", "/", by("v1"))
	w.write(splitter(50, 50)) // nobody is in v2
	w.apply("Kind = \"service-router\"\nName = \"catalog\"\nRoutes = [{ Match { HTTP { PathPrefix = \"/\" } }, Destination { NumRetries = 2, RetryOnStatusCodes = [503] } }]\n")
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		for range 20 {
			if err := by("v1")(web.do(method, "catalog", "/")); err != nil {
				t.Fatalf("%s: %v", method, err)
			}
		}
	}
}
