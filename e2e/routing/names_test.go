package routing

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/crossfade-mesh/crossfade/internal/demo/load"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/server"
)

// zone is a name server with one name, "old.test".
type zone struct {
	at    string
	asked atomic.Int64 // for the name

	mu        sync.Mutex
	addresses []string // none: there is no such name
	broken    bool     // answers SERVFAIL
}

func newZone(t *testing.T) *zone {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	z := &zone{at: conn.LocalAddr().String()}
	s := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(z.answer)}
	done := make(chan error, 1)
	go func() { done <- s.ActivateAndServe() }()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return z
}

func (z *zone) answer(w dns.ResponseWriter, q *dns.Msg) {
	z.mu.Lock()
	defer z.mu.Unlock()
	out := new(dns.Msg).SetReply(q)
	known := q.Question[0].Name == "old.test." && len(z.addresses) > 0
	switch {
	case z.broken:
		out.Rcode = dns.RcodeServerFailure
	case !known:
		out.Rcode = dns.RcodeNameError
	case q.Question[0].Qtype == dns.TypeA:
		z.asked.Add(1)
		for _, a := range z.addresses {
			out.Answer = append(out.Answer, &dns.A{Hdr: dns.RR_Header{Name: "old.test.", Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.ParseIP(a)})
		}
	}
	_ = w.WriteMsg(out)
}

func (z *zone) set(broken bool, addresses ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.broken, z.addresses = broken, addresses
}

func (z *zone) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", z.at)
	}}
}

// balanced is one of the ends behind a load balancer's name.
type balanced struct {
	served atomic.Int64
	open   sync.Map // connections
}

// balanced runs a server at an address that says it first, then echoes.
func (w *world) balanced(address string, port int) *balanced {
	w.t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(port)))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { l.Close() })
	out := &balanced{}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			out.open.Store(c, nil)
			go func() {
				defer c.Close()
				defer out.open.Delete(c)
				if _, err := fmt.Fprintln(c, address); err != nil {
					return
				}
				in := bufio.NewReader(c)
				if line, err := in.ReadString('\n'); err == nil { // no probe
					out.served.Add(1)
					_, _ = io.WriteString(c, line)
					_, _ = io.Copy(c, in)
				}
			}()
		}
	}()
	return out
}

func (b *balanced) cut() {
	b.open.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
}

// Connections go where the name of an old mesh leads, as the server resolves it: to the addresses
// of now, to the last ones while there is no answer, and nothing that is open is cut by either.
func TestConnectionsToAName(t *testing.T) {
	t.Parallel()
	z := newZone(t)
	addresses := []string{"127.0.0.11", "127.0.0.12", "127.0.0.13"}
	z.set(false, addresses[1], addresses[0])
	w := newWorld(t, func(o *server.Options) { o.Resolver = z.resolver() })
	w.speak()
	port := meshtest.FreePorts(t, 1)[0]
	ends := map[string]*balanced{}
	for _, a := range addresses {
		ends[a] = w.balanced(a, port)
	}
	all := w.three("payments")
	web := w.caller("web", "web-1", "payments")
	shares := func(legacy float64) {
		w.apply(shiftText("payments", fmt.Sprintf("old.test:%d", port), "", [4]float64{legacy, 0, 0, 100 - legacy}, ""))
	}
	shares(100)
	traffic := &traffic{t: t, ports: web.ports}
	var recorders []*load.Recorder
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	stop := sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(stop)
	send := func(rate int, call load.Call) *load.Recorder {
		rec := load.NewRecorder()
		recorders = append(recorders, rec)
		running.Go(func() {
			(&load.Generator{Rate: rate, Timeout: patience, Outstanding: 1000, Call: call, Record: rec}).Run(ctx)
		})
		return rec
	}
	send(60, short(traffic.connection)) // at once: the name was resolved before anybody was told of it
	var lines []*wire
	for range 20 {
		c, err := traffic.connection(time.Now().Add(patience))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		lines = append(lines, c)
	}
	lasting := send(60, lasting(lines))

	// goTo waits until new connections go to these alone, and to each.
	goTo := func(what string, want ...string) {
		t.Helper()
		meshtest.Eventually(t, what, func() error {
			before := map[string]int64{}
			for a, e := range ends {
				before[a] = e.served.Load()
			}
			for range 40 {
				c, err := traffic.connection(time.Now().Add(patience))
				if err != nil {
					return err
				}
				err = c.line(1, time.Now().Add(patience))
				c.Close()
				if err != nil {
					return err
				}
			}
			for a, e := range ends {
				if got := e.served.Load() > before[a]; got != slices.Contains(want, a) {
					return fmt.Errorf("%s got some: %v, want %v", a, got, want)
				}
			}
			return nil
		})
	}
	healthy := func(when string) {
		t.Helper()
		for _, rec := range recorders {
			for _, f := range rec.Failures() {
				t.Fatalf("%s: %s", when, f.Reason)
			}
		}
	}
	goTo("both addresses", addresses[0], addresses[1])
	z.set(false, addresses[2], addresses[1])
	goTo("one address is another", addresses[1], addresses[2])
	healthy("an address has gone")

	z.set(true)
	asks := func(want bool, text string) {
		t.Helper()
		meshtest.Eventually(t, fmt.Sprintf("the ledger says that the name is lost: %v", want), func() error {
			_, body := w.server.Call(http.MethodGet, "/v1/crossfade/pairs/web/payments", nil)
			var row struct {
				Blockers   []string
				Revertible struct{ State, Why string }
			}
			if err := json.Unmarshal(body, &row); err != nil {
				return err
			}
			if got := strings.Join(row.Blockers, "; "); strings.Contains(got, "cannot resolve its name since") != want || !strings.Contains(got, text) {
				return fmt.Errorf("%q", got)
			}
			if r := row.Revertible; r.State != "yes" || !strings.Contains(r.Why, fmt.Sprintf("legacy address old.test:%d answers 1 callers", port)) {
				return fmt.Errorf("revertible: %+v", r)
			}
			return nil
		})
	}
	asks(true, "the last 2 addresses stay")
	goTo("the name server is broken", addresses[1], addresses[2])
	z.set(false)
	asks(true, "no such host")
	goTo("the name is gone", addresses[1], addresses[2])
	z.set(false, addresses[0])
	goTo("the name is back", addresses[0])
	asks(false, "")
	shares(50)
	healthy("shares moved")
	shares(0)
	on := all.mtls.id
	meshtest.Eventually(t, "all goes by mtls", func() error {
		got, failed := count(20, web.calls()["payments"])
		if len(failed) > 0 || got[on] != 20 {
			return fmt.Errorf("%v, %v", got, failed)
		}
		return nil
	})
	healthy("all is on mtls")
	t.Logf("%d connections and %d messages on 20 open ones, none failed; the name was asked for %d times", recorders[0].Totals().Requests, lasting.Totals().Requests, z.asked.Load())

	for _, e := range ends { // and were one cut, it would have been seen
		e.cut()
	}
	meshtest.Eventually(t, "cut connections are noticed", func() error {
		if len(lasting.Failures()) == 0 {
			return fmt.Errorf("none is")
		}
		return nil
	})
}

// A name that leads nowhere is refused as an address that answers nothing is.
func TestShiftToANameThatLeadsNowhere(t *testing.T) {
	z := newZone(t)
	w := newWorld(t, func(o *server.Options) { o.Resolver = z.resolver() })
	w.speak()
	w.three("payments")
	port := meshtest.FreePorts(t, 1)[0]
	w.balanced("127.0.0.11", port)
	shift := func(address string, force bool) (int, string) {
		t.Helper()
		body := fmt.Sprintf(`{"pairs":[{"source":"web","destination":"payments"}],"via":{"legacy":100},"legacy":{"address":%q},"force":%v}`, address, force)
		r, err := http.Post("http://"+w.server.HTTPAddr()+"/v1/crossfade/shift", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		text, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(text)
	}
	here, dead := fmt.Sprintf("old.test:%d", port), fmt.Sprintf("old.test:%d", meshtest.FreePorts(t, 1)[0])
	for _, tc := range []struct {
		what    string
		zone    []string
		address string
		force   bool
		status  int
		text    string
	}{
		{"no such name", nil, here, false, 409, "no such host"},
		{"all the same", nil, here, true, 200, ""},
		{"nobody listens", []string{"127.0.0.11"}, dead, false, 409, "connection refused"},
		{"somebody does", []string{"127.0.0.11"}, here, false, 200, ""},
	} {
		z.set(false, tc.zone...)
		if status, text := shift(tc.address, tc.force); status != tc.status || !strings.Contains(text, tc.text) {
			t.Errorf("%s: %d %s, want %d %s", tc.what, status, text, tc.status, tc.text)
		}
	}
}
