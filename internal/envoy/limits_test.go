package envoy_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/demo/load"
	"github.com/crossfade-mesh/crossfade/internal/identity"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// sidecars lists instances of a service at those ports, as definitions.
func sidecars(service string, ports ...int) string {
	var b strings.Builder
	for i, port := range ports {
		fmt.Fprintf(&b, "services { name = %q id = \"%s-%d\" port = 1 connect { sidecar_service { port = %d } } }\n", service, service, i+1, port)
	}
	return b.String()
}

// startCaller runs the sidecar of storefront. Its upstreams are written in HCL with
// a %d for each local port; callees are definitions.
func startCaller(t *testing.T, m *mesh, callees, upstreams string) (e *meshtest.Envoy, at []string) {
	t.Helper()
	free := meshtest.FreePorts(t, 1+strings.Count(upstreams, "%d"))
	var ports []any
	for _, port := range free[1:] {
		ports, at = append(ports, port), append(at, fmt.Sprintf("127.0.0.1:%d", port))
	}
	m.scenario = meshtest.Parse(t, txtar.Parse(fmt.Appendf(nil, `
-- services/callees.hcl --
%s
-- services/storefront.hcl --
service { name = "storefront" port = 1 connect { sidecar_service { port = %d proxy { upstreams = [ %s ] } } } }
-- config/global.hcl --
Kind = "proxy-defaults"
Name = "global"
Config { protocol = "http" }
`, callees, free[0], fmt.Sprintf(upstreams, ports...))).Files)
	return m.start("storefront-sidecar-proxy"), at
}

func clusterStat(service, stat string) string {
	return "cluster." + spiffe(service).SNI() + "." + stat
}

// A limit refuses what is beyond it, at once, and another upstream does not notice.
func TestUpstreamLimits(t *testing.T) {
	m := &mesh{t: t, ca: meshtest.NewAuthority(t)}
	release, inside := make(chan struct{}), make(chan struct{}, 100)
	stuck := m.tlsServer(spiffe("catalog"), func(w http.ResponseWriter, r *http.Request) {
		inside <- struct{}{}
		<-release
	})
	fine := m.tlsServer(spiffe("payments"), catalogApp)
	e, at := startCaller(t, m, sidecars("catalog", stuck)+sidecars("payments", fine), `
		{ destination_name = "catalog" local_bind_port = %d config { limits { max_concurrent_requests = 3 } } },
		{ destination_name = "payments" local_bind_port = %d }`)

	const calls = 10
	statuses := make(chan string, calls)
	call := func() {
		resp, err := http.Get("http://" + at[0] + "/")
		if err != nil {
			statuses <- err.Error()
			return
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		statuses <- fmt.Sprintf("%d %s", resp.StatusCode, body)
	}
	for range 3 {
		go call()
	}
	for range 3 {
		<-inside
	}
	for range calls - 3 {
		go call()
	}
	for range calls - 3 {
		if got, want := <-statuses, "503 crossfade: upstream \"catalog\": too many connections or requests at once (UO)\n"; got != want {
			t.Errorf("beyond the limit: %q, want %q", got, want)
		}
	}
	for range 20 {
		if status, _, body := get(t, at[1]); status != 200 {
			t.Errorf("the other upstream: %d %q", status, body)
		}
	}
	close(release)
	for range 3 {
		if got := <-statuses; got != "200 " {
			t.Errorf("within the limit: %q", got)
		}
	}
	if n := e.Stat(clusterStat("catalog", "upstream_rq_active_overflow")); n != calls-3 {
		t.Errorf("overflow counted %d times, want %d", n, calls-3)
	}
	if n := e.Stat(clusterStat("payments", "upstream_rq_active_overflow")); n != 0 {
		t.Errorf("overflow of the other upstream counted %d times", n)
	}
}

// Each setting of an upstream's own does what it says.
func TestUpstreamSettings(t *testing.T) {
	m := &mesh{t: t, ca: meshtest.NewAuthority(t)}
	failing := func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusInternalServerError) }
	silent, stop := silentPort(t)
	defer stop()
	e, at := startCaller(t, m, sidecars("search", m.tlsServer(spiffe("search"), failing), m.tlsServer(spiffe("search"), catalogApp))+
		sidecars("ads", silent)+sidecars("queue", m.tlsServer(spiffe("queue"), catalogApp)), `
		{ destination_name = "search" local_bind_port = %d config { passive_health_check { max_failures = 2 max_ejection_percent = 50 } } },
		{ destination_name = "ads" local_bind_port = %d config { connect_timeout_ms = 100 } },
		{ destination_name = "queue" local_bind_port = %d config { protocol = "tcp" limits { max_connections = 1 } balance_outbound_connections = "exact_balance" } }`)

	meshtest.Eventually(t, "the instance that answers 500 goes out", func() error {
		get(t, at[0])
		if e.Stat(clusterStat("search", "outlier_detection.ejections_active")) != 1 {
			return errors.New("it is in")
		}
		return nil
	})
	for range 20 {
		if status, _, _ := get(t, at[0]); status != 200 {
			t.Errorf("%d when it is out, want 200", status)
		}
	}

	begin := time.Now()
	if status, _, body := get(t, at[1]); status != 503 || !strings.Contains(body, "(UF)") {
		t.Errorf("a silent instance: %d %q", status, body)
	}
	if took := time.Since(begin); took < 100*time.Millisecond || took > 4*time.Second {
		t.Errorf("giving up on a silent instance took %v, want 0.1 s a try, not Envoy's 5 s", took)
	}
	if n := e.Stat(clusterStat("ads", "upstream_cx_connect_timeout")); n == 0 {
		t.Error("no connect timeout is counted")
	}

	held := dial(t, at[2])
	meshtest.Eventually(t, "the one connection is open", func() error {
		if n := e.Stat(clusterStat("queue", "upstream_cx_active")); n != 1 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	if n, err := dial(t, at[2]).Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a second connection: %d, %v, want it closed", n, err)
	}
	fmt.Fprint(held, "nonsense\r\n\r\n") // by HTTP it would be answered here
	if line, _ := io.ReadAll(held); !strings.Contains(string(line), "400 Bad Request") || strings.Contains(string(line), "crossfade") {
		t.Errorf("tcp: the app itself answered %q", line)
	}
}

// silentPort accepts no connection: its queue is full, and SYNs get no answer.
func silentPort(t *testing.T) (port int, stop func()) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0))
	}
	if err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port = name.(*syscall.SockaddrInet4).Port
	ctx, cancel := context.WithCancel(t.Context())
	for { // until one is not taken any more
		d := net.Dialer{Timeout: 300 * time.Millisecond}
		c, err := d.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			break
		}
		t.Cleanup(func() { c.Close() })
	}
	return port, func() { cancel(); syscall.Close(fd) }
}

// offer calls addr at a constant rate for d, and counts who answered.
func offer(t *testing.T, addr string, rate int, d time.Duration) *load.Recorder {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}}
	t.Cleanup(c.CloseIdleConnections)
	rec := load.NewRecorder()
	g := load.Generator{Rate: rate, Timeout: 5 * time.Second, Outstanding: 1000, Record: rec, Call: func(_ uint64, deadline time.Time) (load.Answer, error) {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, "GET", "http://"+addr+"/", nil)
		if err != nil {
			return load.Answer{}, err
		}
		resp, err := c.Do(req)
		if err != nil {
			return load.Answer{}, err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return load.Answer{}, err
		}
		if resp.StatusCode != http.StatusOK {
			return load.Answer{}, errors.New(resp.Status)
		}
		return load.Answer{}, nil
	}}
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	g.Run(ctx)
	return rec
}

// Of three instances one fails every request: it goes out, and stays out.
func TestFailingInstanceIsLeftOut(t *testing.T) {
	t.Parallel()
	m := &mesh{t: t, ca: meshtest.NewAuthority(t)}
	broken := func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
	id := spiffe("catalog")
	_, at := startCaller(t, m, sidecars("catalog", m.tlsServer(id, broken), m.tlsServer(id, catalogApp), m.tlsServer(id, catalogApp)),
		`{ destination_name = "catalog" local_bind_port = %d }`)
	first := offer(t, at[0], 100, 10*time.Second).Totals()
	then := offer(t, at[0], 100, 10*time.Second).Totals() // it is let back once, and fails again
	t.Logf("first 10 s: %d of %d failed; next 10 s: %d of %d", first.Failed, first.Requests, then.Failed, then.Requests)
	if then.Requests < 800 || then.Failed*100 >= then.Requests || first.Failed == 0 {
		t.Errorf("%d of %d failed in the first 10 s, %d of %d in the next 10: want some, then less than 1%%", first.Failed, first.Requests, then.Failed, then.Requests)
	}
}

// Of three instances one is slow: it gets less than its third.
func TestSlowInstanceGetsLess(t *testing.T) {
	t.Parallel()
	m := &mesh{t: t, ca: meshtest.NewAuthority(t)}
	var slowly, total atomic.Int64
	app := func(slow bool) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			total.Add(1)
			if slow {
				slowly.Add(1)
				late := time.NewTimer(300 * time.Millisecond)
				defer late.Stop()
				<-late.C
			}
		}
	}
	id := spiffe("catalog")
	_, at := startCaller(t, m, sidecars("catalog", m.tlsServer(id, app(true)), m.tlsServer(id, app(false)), m.tlsServer(id, app(false))),
		`{ destination_name = "catalog" local_bind_port = %d }`)
	rec := offer(t, at[0], 200, 5*time.Second)
	share := float64(slowly.Load()) / float64(total.Load())
	h := rec.Latency()
	t.Logf("the slow one answered %.1f%% of %d, p50 %v, p90 %v, p99 %v", 100*share, total.Load(), h.Quantile(0.5), h.Quantile(0.9), h.Quantile(0.99))
	if rec.Totals().Failed > 0 || share > 0.22 {
		t.Errorf("%d failed, the slow one answered %.1f%%: want 0 and well below 33.3%%", rec.Totals().Failed, 100*share)
	}
}

// What bounds an upstream changes while it is in use: open connections and requests
// go on, and the next ones meet the new bound.
func TestLimitsChangeUnderUse(t *testing.T) {
	ca := meshtest.NewAuthority(t)
	m := &mesh{t: t, ca: ca}
	release, inside := make(chan struct{}), make(chan struct{}, 10)
	app := m.tlsServer(spiffe("catalog"), func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			inside <- struct{}{}
			<-release
		}
		fmt.Fprint(w, "done")
	})
	free := meshtest.FreePorts(t, 3)
	l := startLive(t, fmt.Sprintf(`
-- services/storefront.hcl --
service { name = "storefront" port = 1 connect { sidecar_service { port = %d proxy { upstreams = [
  { destination_name = "catalog" local_bind_port = %d }, { destination_name = "payments" local_bind_port = %d } ] } } } }
-- services/callees.hcl --
%s
-- config/catalog.hcl --
Kind = "service-defaults"
Name = "catalog"
Protocol = "http"
`, free[0], free[1], free[2], sidecars("catalog", app)+sidecars("payments", m.tlsEcho(spiffe("payments")))), ca)
	toCatalog, toPayments := fmt.Sprintf("127.0.0.1:%d", free[1]), fmt.Sprintf("127.0.0.1:%d", free[2])

	held := dial(t, toPayments)
	echo(t, held)
	waiting := make(chan string, 1)
	go func() {
		resp, err := http.Get("http://" + toCatalog + "/wait")
		if err != nil {
			waiting <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		waiting <- fmt.Sprintf("%d %s", resp.StatusCode, body)
	}()
	<-inside

	one, none := 1, 0
	l.write(&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "storefront", UpstreamConfig: &config.UpstreamConfiguration{Overrides: []config.UpstreamSettings{
		{Name: "payments", ConnectTimeoutMs: 2000, Limits: &config.UpstreamLimits{MaxConnections: &one}},
		{Name: "catalog", Limits: &config.UpstreamLimits{MaxConcurrentRequests: &none}},
	}}})
	if status, _, body := get(t, toCatalog); status != 503 || !strings.Contains(body, "(UO)") {
		t.Errorf("beyond the new bound: %d %q", status, body)
	}
	second := dial(t, toPayments)
	echo(t, second)
	if n, err := dial(t, toPayments).Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection beyond the new bound: %d, %v, want it closed", n, err)
	}
	echo(t, held)
	close(release)
	if got := <-waiting; got != "200 done" {
		t.Errorf("the request under way: %q", got)
	}
	l.untouched()
}

// tlsEcho is a TCP app that is its own sidecar, and sends back what it gets.
func (m *mesh) tlsEcho(id identity.SPIFFE) int {
	m.t.Helper()
	lis, err := tls.Listen("tcp", "127.0.0.1:0", m.ca.Client(id))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { lis.Close() })
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return lis.Addr().(*net.TCPAddr).Port
}

func echo(t *testing.T, c net.Conn) {
	t.Helper()
	buf := make([]byte, 5)
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Error(err)
	} else if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "hello" {
		t.Errorf("the other end says %q, %v", buf, err)
	}
}

// However many requests could not be sent at once, each is tried elsewhere: nobody has seen them, so that nobody has more to
// do. Where a retry is asked for of what may have been seen, a budget bounds retries.
func TestRetriesAtOnce(t *testing.T) {
	const calls = 200
	for name, tc := range map[string]struct {
		router string
		bound  bool
	}{
		"never sent":    {"", false},
		"may have been": {"-- config/router.hcl --\nKind = \"service-router\"\nName = \"catalog\"\nRoutes = [ { Destination { RetryOnStatusCodes = [500] NumRetries = 2 } } ]\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			m := &mesh{t: t, ca: meshtest.NewAuthority(t)}
			inside, release := make(chan struct{}, calls), make(chan struct{})
			legacy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				inside <- struct{}{}
				<-release
			}))
			defer legacy.Close()
			gone := meshtest.FreePorts(t, 12)
			_, at := startCaller(t, m, sidecars("catalog", gone...)+fmt.Sprintf(`
-- config/shares.hcl --
Kind = "traffic-shift"
Source = "storefront"
Destination = "catalog"
Legacy { Address = %q }
Shares { legacy = 1, mtls = 99 }
%s`, legacy.Listener.Addr(), tc.router), `{ destination_name = "catalog" local_bind_port = %d }`)
			statuses := make(chan int, calls)
			for range calls {
				go func() {
					resp, err := http.Get("http://" + at[0] + "/")
					if err != nil {
						t.Error(err)
						statuses <- 0
						return
					}
					resp.Body.Close()
					statuses <- resp.StatusCode
				}()
			}
			answers, held := map[int]int{}, 0
			for range calls {
				select {
				case <-inside:
					held++
				case status := <-statuses:
					answers[status]++
				}
			}
			close(release)
			for range held {
				answers[<-statuses]++
			}
			switch {
			case answers[200]+answers[503] != calls:
				t.Errorf("answers are %v", answers)
			case tc.bound && (answers[200] < 100 || answers[503] == 0):
				t.Errorf("%d of %d were tried elsewhere, want 100 and few more", answers[200], calls)
			case !tc.bound && answers[200] != calls:
				t.Errorf("%d of %d were tried elsewhere, want all", answers[200], calls)
			}
		})
	}
}
