package routing

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/demo/load"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// restaged makes a change and returns when all sidecars have it in force.
func (w *world) restaged(r api.ShiftRequest) api.Changed {
	w.t.Helper()
	out := w.shift(r)
	w.applied(out)
	return out
}

// applied returns when all sidecars have a change in force.
func (w *world) applied(out api.Changed) {
	w.t.Helper()
	if len(out.Disconnected) > 0 {
		w.t.Errorf("not connected: %v", out.Disconnected)
	}
	_, body := w.server.Call(http.MethodGet, fmt.Sprintf("/v1/crossfade/applied?wait=20s&index=%d", out.Index), nil)
	var a api.Applied
	if err := json.Unmarshal(body, &a); err != nil || !a.Told {
		w.t.Fatalf("%v: %s", err, body)
	}
	for _, s := range a.Sidecars {
		if s.State != api.Acked {
			w.t.Errorf("%+v", s)
		}
	}
}

func webTo(service string) []api.PairIndex {
	return []api.PairIndex{{PairName: api.PairName{Source: "web", Destination: service}}}
}

// refusal is what the server says to a change that it does not make.
func (w *world) refusal(r api.ShiftRequest) string {
	w.t.Helper()
	in, err := json.Marshal(r)
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := http.Post("http://"+w.server.HTTPAddr()+"/v1/crossfade/shift", "application/json", strings.NewReader(string(in)))
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if resp.StatusCode == http.StatusOK {
		w.t.Errorf("%s is not refused: %s", in, b)
	}
	return string(b)
}

// walk is a pair whose callee has sidecars on 3 of 12 instances, under open-loop load.
type walk struct {
	w       *world
	web     *caller
	service string
	record  *load.Recorder
	end     func()
	gap     atomic.Int64 // the longest time for which this process stood still, in nanoseconds
}

// walk begins with all on the old mesh.
func (w *world) walk(web *caller, service string, old *app) *walk {
	w.t.Helper()
	w.apply(shiftText(service, fmt.Sprintf("127.0.0.1:%d", old.port), "", [4]float64{100, 0, 0, 0}, ""))
	out := &walk{w: w, web: web, service: service, record: load.NewRecorder()}
	call := out.request
	if service == "payments" {
		call = out.connect
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	g := load.Generator{Rate: 40, Timeout: 10 * time.Second, Outstanding: 400, Record: out.record, Call: call}
	go func() { defer close(done); g.Run(ctx) }()
	go out.notice(ctx)
	out.end = sync.OnceFunc(func() { cancel(); <-done })
	w.t.Cleanup(out.end)
	return out
}

// notice measures how busy the machine is.
func (s *walk) notice(ctx context.Context) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for last := time.Now(); ctx.Err() == nil; {
		now := <-tick.C
		s.gap.Store(max(s.gap.Load(), int64(now.Sub(last))))
		last = now
	}
}

// lateHandshakes are possible where whatever runs here may stand still for a while: the caller's Envoy begins
// one so late that the callee's takes it for plaintext, and connects once more.
func (s *walk) lateHandshakes() bool {
	return s.service == "payments" && time.Duration(s.gap.Load()) > 100*time.Millisecond
}

// request is one that nobody may send twice.
func (s *walk) request(n uint64, deadline time.Time) (load.Answer, error) {
	a := s.web.do(http.MethodPost, s.service, fmt.Sprintf("/%d", n))
	if err := a.ok(); err != nil {
		return load.Answer{}, err
	}
	if want := fmt.Sprintf("/%d sent", n); !strings.HasSuffix(a.body, want) {
		return load.Answer{}, fmt.Errorf("answer %q, want %q", a.body, want)
	}
	return load.Answer{From: a.instance}, nil
}

// connect waits for the server's first word, then has a line echoed.
func (s *walk) connect(n uint64, deadline time.Time) (load.Answer, error) {
	c, id, err := s.web.dial(s.service)
	if err != nil {
		return load.Answer{}, err
	}
	defer c.Close()
	return load.Answer{From: id}, echoed(c, fmt.Sprint("line ", n))
}

func echoed(c net.Conn, line string) error {
	c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintln(c, line)
	got, err := readLine(c)
	if err == nil && got != line {
		err = fmt.Errorf("%q came back for %q", got, line)
	}
	return err
}

// stage sets the pair's stage.
func (s *walk) stage(stage string) {
	s.w.t.Helper()
	s.w.restaged(api.ShiftRequest{Pairs: webTo(s.service), Stage: stage})
	s.is(stage)
}

func (s *walk) is(stage string) {
	s.w.t.Helper()
	if p := s.w.ledger("web", s.service); p.Stage != stage || p.Callee.Instances < p.Callee.Sidecars {
		s.w.t.Errorf("%s: stage %q, want %q; %+v", s.service, p.Stage, stage, p.Callee)
	}
}

// via sets shares, be they too large for a few instances, and waits until fifty more have been
// answered, by those who should.
func (s *walk) via(shares map[string]float64, instances int) {
	s.w.t.Helper()
	s.w.restaged(api.ShiftRequest{Pairs: webTo(s.service), Via: shares, Force: true})
	s.answered(instances, fmt.Sprint(shares))
}

func (s *walk) answered(instances int, what string) {
	s.w.t.Helper()
	settle, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := s.record.Settle(settle); err != nil { // what was sent before
		s.w.t.Fatal(err)
	}
	before := s.record.Totals()
	meshtest.Eventually(s.w.t, s.service+" goes on", func() error {
		now := s.record.Totals().Since(before)
		if now.Requests < 50 || len(now.From) < instances {
			return fmt.Errorf("%d requests, by %v", now.Requests, now.From)
		}
		if len(now.From) > instances {
			s.w.t.Errorf("%s by %s: answers of %v, want %d", s.service, what, now.From, instances)
		}
		return nil
	})
}

// unfailing wants that no request failed, nor an attempt that another one saved.
func (s *walk) unfailing() {
	s.w.t.Helper()
	s.end()
	got := s.record.Totals()
	s.w.t.Logf("%s: %d requests, %d failed", s.service, got.Requests, got.Failed)
	if failed := s.record.Failures(); len(failed) > 0 {
		s.w.t.Errorf("%s: %d of %d failed, such as %+v", s.service, len(failed), got.Requests, failed[:min(3, len(failed))])
	}
	s.sound()
}

func (s *walk) sound() {
	s.w.t.Helper()
	for _, f := range s.w.ledger("web", s.service).Failing {
		if f.Way == api.MTLS && s.lateHandshakes() {
			s.w.t.Logf("payments: attempts failed: %+v", f)
			continue
		}
		s.w.t.Errorf("%s: attempts failed: %+v", s.service, f)
	}
}

// A pair goes from the old mesh to strict and back to it, through every stage, and so does one
// of connections on which the server speaks first; while its callee has sidecars on 3 of 12
// instances, until it is to be strict. Not one request fails, nor a single attempt. What is
// open stays open.
func TestWalkThroughStages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write(allowPlaintext)
	olds := map[string]*app{"catalog": w.plainHTTP("old", w.teller("old")), "payments": w.plainTCP("old")}
	var bare []string
	for service, protocol := range map[string]string{"catalog": "http", "payments": "tcp"} {
		w.write(fmt.Sprintf("Kind = \"service-defaults\"\nName = %q\nProtocol = %q\n", service, protocol))
		for i := range 12 {
			id := fmt.Sprintf("%s-%d", service, i)
			a := w.plainTCP
			if service == "catalog" {
				a = func(id string) *app { return w.plainHTTP(id, w.teller(id)) }
			}
			if one := a(id); i < 3 {
				w.beside(service, id, "v1", one.port)
			} else {
				w.enlist(service, one)
				bare = append(bare, id)
			}
		}
	}
	web := w.caller("web", "web-1", "catalog", "payments")
	for service := range olds {
		w.reachable(service, map[string]int{"direct": 12, "mtls": 3})
	}
	pairs := []*walk{w.walk(web, "catalog", olds["catalog"]), w.walk(web, "payments", olds["payments"])}
	first, id, err := web.dial("payments")
	if err != nil || id != "old" {
		t.Fatalf("%q, %v", id, err)
	}
	defer first.Close()
	var secure net.Conn

	for _, s := range pairs {
		s.answered(1, "the old mesh")
		s.stage("client")
		if got := w.refusal(api.ShiftRequest{Pairs: webTo(s.service), Via: map[string]float64{"plain": 1}}); !strings.Contains(got, "stage client closes this way") {
			t.Errorf("%s", got)
		}
		s.via(map[string]float64{"direct": 50}, 13)
		s.stage("plain")
		w.takesPlaintext(s.service, 3)
		if got := w.refusal(api.ShiftRequest{Pairs: webTo(s.service), Via: map[string]float64{"legacy": 50, "plain": 50}}); !strings.Contains(got, "3 of 12 instances take way plain: each would get ") {
			t.Errorf("%s", got)
		}
		s.via(map[string]float64{"legacy": 50, "plain": 50}, 4)
		s.via(map[string]float64{"plain": 100}, 3)
		s.stage("permissive")
		s.via(map[string]float64{"plain": 50, "mtls": 50}, 3)
		s.via(map[string]float64{"mtls": 100}, 3)
		if s.service == "payments" {
			if secure, _, err = web.dial("payments"); err != nil {
				t.Fatal(err)
			}
			defer secure.Close()
		}
		strict := api.ShiftRequest{Service: s.service, Stage: "strict", Window: "3s"}
		if got := w.refusal(strict); !strings.Contains(got, "3 of 12 instances have a sidecar") {
			t.Errorf("%s", got)
		}
	}
	// What has no sidecar leaves, and silence begins: it is not counted before.
	for _, id := range bare {
		w.server.Call(http.MethodPut, "/v1/agent/service/deregister/"+id+"?wait=10s", nil)
	}
	for _, s := range pairs {
		strict := api.ShiftRequest{Service: s.service, Stage: "strict"}
		if got := w.refusal(strict); !strings.Contains(got, "plaintext came from 127.0.0.1 (a host of catalog, payments, web) at ") {
			t.Errorf("%s", got)
		}
		strict.Window = "3s"
		var out api.Changed
		meshtest.Eventually(t, "the silence lasts", func() error { // a handshake that a busy machine delays may break it
			in, _ := json.Marshal(strict)
			resp, err := http.Post("http://"+w.server.HTTPAddr()+"/v1/crossfade/shift", "application/json", strings.NewReader(string(in)))
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err == nil && resp.StatusCode != http.StatusOK {
				err = fmt.Errorf("%s", b)
			}
			return cmp.Or(err, json.Unmarshal(b, &out))
		})
		w.applied(out)
		s.is("strict")
		s.answered(3, "mtls alone")
		if got := w.refusal(api.ShiftRequest{Pairs: webTo(s.service), Via: map[string]float64{"legacy": 100}}); !strings.Contains(got, "strict") {
			t.Errorf("%s", got)
		}
		s.sound()
		// Back: where the shares were goes to the old way, in the same write.
		out = w.restaged(api.ShiftRequest{Pairs: webTo(s.service), Stage: "client"})
		if len(out.Pairs) != 1 || out.Pairs[0].After != (api.Shares{Legacy: 100}) {
			t.Errorf("%+v", out.Pairs)
		}
		s.is("client")
		s.answered(1, "the old mesh again")
	}
	for name, c := range map[string]net.Conn{"legacy": first, "mtls": secure} {
		if err := echoed(c, "still here"); err != nil {
			t.Errorf("a connection that was opened by %s: %v", name, err)
		}
	}
	for _, s := range pairs {
		s.unfailing()
	}
}

// takesPlaintext waits until so many sidecars have told that they do, and web knows.
func (w *world) takesPlaintext(service string, n int) {
	w.t.Helper()
	meshtest.Eventually(w.t, service+" takes plaintext", func() error {
		got, err := w.healthy(service)
		if err == nil && got["plain"] != n {
			err = fmt.Errorf("healthy: %v", got)
		}
		return err
	})
}

// The walk would see a caller that sends plaintext before the instance takes it: an instance
// that says it does too early has attempts fail, which the ledger names though retries hide
// them from callers.
func TestWalkSeesPlaintextTooEarly(t *testing.T) {
	w := newWorld(t)
	w.write(allowPlaintext)
	w.write(fmt.Sprintf(protocols, "catalog", "http"))
	good := w.plainHTTP("good", w.teller("good"))
	w.beside("catalog", "good", "v1", good.port)
	web := w.caller("web", "web-1", "catalog")
	s := w.walk(web, "catalog", w.plainHTTP("old", w.teller("old")))
	w.takesPlaintext("catalog", 1)
	s.via(map[string]float64{"plain": 100}, 1)
	s.sound()
	dead := meshtest.FreePorts(t, 2)
	liar, err := json.Marshal(map[string]any{
		"Kind": "connect-proxy", "ID": "liar-sidecar-proxy", "Name": "catalog-sidecar-proxy", "Address": "127.0.0.1", "Port": dead[0],
		"Meta": map[string]string{"crossfade_plaintext": fmt.Sprint(dead[1])}, "Proxy": map[string]any{"DestinationServiceName": "catalog"},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.server.Call(http.MethodPut, "/v1/agent/service/register", liar)
	meshtest.Eventually(t, "attempts fail", func() error {
		if p := w.ledger("web", "catalog"); len(p.Failing) == 0 || p.Failing[0].Way != api.Plain {
			return fmt.Errorf("%+v", p.Failing)
		}
		return nil
	})
}
