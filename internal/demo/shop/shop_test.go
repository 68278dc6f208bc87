package shop

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/demo/load"
)

// start runs an app on a free port until the test ends and returns its address.
func start(t *testing.T, a App) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve, _ := a.server()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", a.Instance, err)
		}
	})
	return ln.Addr().String()
}

func soon() time.Time { return time.Now().Add(5 * time.Second) }

type addrs struct{ storefront, catalog, assignments, payments string }

func startShop(t *testing.T) addrs {
	var a addrs
	a.assignments = start(t, App{Service: "assignments", Instance: "assignments-1"})
	a.payments = start(t, App{Service: "payments", Instance: "payments-1"})
	a.catalog = start(t, App{Service: "catalog", Instance: "catalog-1", Upstreams: map[string]Road{"assignments": At(a.assignments)}})
	a.storefront = start(t, App{Service: "storefront", Instance: "storefront-1", Upstreams: map[string]Road{"catalog": At(a.catalog), "payments": At(a.payments)}})
	return a
}

func TestAPageTakesAllFourServices(t *testing.T) {
	a := startShop(t)
	c := NewHTTP(a.storefront, 3)
	defer c.Close()
	for n := range uint64(9) {
		got, err := c.Page(n, soon())
		if err != nil {
			t.Fatalf("page %d: %v", n, err)
		}
		if wantNew := n%3 == 0 || n == 1; got.NewConnection != wantNew {
			t.Errorf("page %d: new connection is %v, want %v", n, got.NewConnection, wantNew)
		}
	}
}

func TestClientsGetRightAnswersOverNewAndKeptConnections(t *testing.T) {
	a := startShop(t)
	catalog, payments := NewHTTP(a.catalog, 4), NewPayments(a.payments, 4)
	defer catalog.Close()
	defer payments.Close()
	assignments, err := NewAssignments(a.assignments, 4)
	if err != nil {
		t.Fatal(err)
	}
	defer assignments.Close()
	for name, call := range map[string]load.Call{"catalog-1": catalog.Item, "payments-1": payments.PayNumbered, "assignments-1": assignments.AssignNumbered} {
		for n := range uint64(8) {
			got, err := call(n, soon())
			if err != nil || got.From != name {
				t.Errorf("%s, request %d: from %q, %v", name, n, got.From, err)
			}
			if n%4 == 0 && !got.NewConnection {
				t.Errorf("%s, request %d went over a kept connection", name, n)
			}
		}
	}
	if n := assignments.Repeats(); n != 0 {
		t.Errorf("%d calls were repeated", n)
	}
}

func TestWrongAnswersAreFailures(t *testing.T) {
	for _, tc := range []struct{ name, body, want string }{
		{"another's token", "catalog-1 i5 sku-6 %d\n", "wrong answer"},
		{"another price", "catalog-1 i6 sku-6 1\n", "wrong answer"},
		{"no instance", " i6 sku-6 %d\n", "wrong answer"},
		{"cut short", "catalog-1 i6 sku-6 %d", "wrong answer"},
		{"an error with status 200", "upstream connect error", "wrong answer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				fmt.Fprint(w, strings.Replace(tc.body, "%d", fmt.Sprint(Price("sku-6")), 1))
			}))
			defer srv.Close()
			c := NewHTTP(srv.Listener.Addr().String(), 0)
			defer c.Close()
			if _, err := c.Item(6, soon()); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestAFailedRequestIsNotRepeated(t *testing.T) {
	var requests atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if requests.Add(1) > 1 {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprintf(w, "catalog-1 i1 sku-1 %d\n", Price("sku-1"))
	}))
	defer srv.Close()
	c := NewHTTP(srv.Listener.Addr().String(), 0)
	defer c.Close()
	if _, err := c.Item(1, soon()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Item(2, soon()); err == nil {
		t.Error("an aborted answer passed")
	}
	if n := requests.Load(); n != 2 {
		t.Errorf("the server saw %d requests, want 2", n)
	}
}

func TestHeldRequestNamesItsInstanceAtOnce(t *testing.T) {
	a := startShop(t)
	c := NewHTTP(a.catalog, 0)
	h, err := c.Hold("h1", 200*time.Millisecond, soon())
	if err != nil {
		t.Fatal(err)
	}
	if since := time.Since(h.Sent); h.Instance != "catalog-1" || since > 150*time.Millisecond {
		t.Errorf("named %q after %s", h.Instance, since)
	}
	if err := h.Wait(); err != nil || time.Since(h.Sent) < 200*time.Millisecond {
		t.Errorf("ended after %s: %v", time.Since(h.Sent), err)
	}
}

func TestHeldRequestThatIsCutOffFails(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "catalog-1")
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	defer srv.Close()
	h, err := NewHTTP(srv.Listener.Addr().String(), 0).Hold("h1", time.Second, soon())
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Wait(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
}

func TestWatchDeliversAllThatWasSent(t *testing.T) {
	a := startShop(t)
	c, err := NewAssignments(a.assignments, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w, err := c.OpenWatch("w")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	waitMessages(t, w.LongLived, 3)
	if err := w.Finish(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestWatchThatBreaksSaysWhere(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- App{Service: "assignments", Instance: "a"}.serveAssignments(ctx, ln) }()
	c, err := NewAssignments(ln.Addr().String(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w, err := c.OpenWatch("w")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	waitMessages(t, w.LongLived, 2)
	stop()
	<-w.Done()
	if err := w.Err(); err == nil || !strings.Contains(err.Error(), "of the stream") {
		t.Errorf("got %v", err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestPaymentsSpeaksFirst(t *testing.T) {
	a := startShop(t)
	c, err := net.Dial("tcp", a.payments)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if line, err := bufio.NewReader(c).ReadString('\n'); line != "payments payments-1 ready\n" || err != nil {
		t.Errorf("greeting is %q, %v", line, err)
	}
}

func TestHeldConnectionEndsWithoutErrorWhenTold(t *testing.T) {
	a := startShop(t)
	ctx, cancel := context.WithCancel(t.Context())
	l, err := NewPayments(a.payments, 0).HoldConnection(ctx, "held")
	if err != nil {
		t.Fatal(err)
	}
	waitMessages(t, l, 3)
	cancel()
	<-l.Done()
	if err := l.Err(); err != nil {
		t.Error(err)
	}
}

func TestServeRefusesWhatItCannotRun(t *testing.T) {
	for _, tc := range []struct {
		app  App
		want string
	}{
		{App{Service: "basket"}, `app "basket": unknown service`},
		{App{Service: "catalog", Listen: "127.0.0.1:0"}, `app "catalog": upstream "assignments" has no address`},
	} {
		if err := tc.app.Serve(t.Context()); err == nil || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("got %v, want %s", err, tc.want)
		}
	}
}

func waitMessages(t *testing.T, l *LongLived, want uint64) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for limit := soon(); ; <-tick.C {
		n, _ := l.Messages()
		if n >= want {
			return
		}
		if time.Now().After(limit) || l.Err() != nil {
			t.Fatalf("only %d messages: %v", n, l.Err())
		}
	}
}
