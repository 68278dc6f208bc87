package routing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/demo/load"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// telemetry is what the server says that a pair did, by way.
func (w *world) telemetry(source, destination string) map[string]api.WayTelemetry {
	w.t.Helper()
	_, body := w.server.Call(http.MethodGet, "/v1/crossfade/telemetry/"+source+"/"+destination, nil)
	var t api.Telemetry
	if err := json.Unmarshal(body, &t); err != nil {
		w.t.Fatal(err)
	}
	out := map[string]api.WayTelemetry{}
	for _, way := range t.Ways {
		out[way.Way] = way
	}
	return out
}

// counted waits until the server says of a way what is wanted. Latencies and times are left out.
func (w *world) counted(source, destination string, want ...api.WayTelemetry) map[string]api.WayTelemetry {
	w.t.Helper()
	var got map[string]api.WayTelemetry
	meshtest.Eventually(w.t, "counts of "+destination, func() (err error) {
		got = w.telemetry(source, destination)
		for _, x := range want {
			g := got[x.Way]
			g.P50, g.P99, g.Last = 0, 0, nil
			if g.Way = x.Way; g != x {
				err = errors.Join(err, fmt.Errorf("got %+v, want %+v", g, x))
			}
		}
		return err
	})
	return got
}

const unguarded = "Guard { Off = true }"

// slow answers after a while, unless nobody waits any more.
func slow(d time.Duration, h http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(d):
			h.ServeHTTP(rw, r)
		case <-r.Context().Done():
		}
	})
}

// What the server knows of each way is what the callees have counted.
func TestTelemetryCountsAttempts(t *testing.T) {
	w := newWorld(t)
	w.write("Kind = \"service-defaults\"\nName = \"catalog\"\nProtocol = \"http\"")
	var down atomic.Bool
	direct := w.plainHTTP("direct-catalog", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if down.Load() {
			rw.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.teller("direct-catalog").ServeHTTP(rw, r)
	}))
	legacy := w.plainHTTP("legacy", slow(20*time.Millisecond, w.teller("legacy")))
	w.enlist("catalog", direct)
	mtls := w.http("catalog", "mtls-catalog", version(1))
	web := w.caller("web", "web-1", "catalog")
	w.apply(ways{legacy: legacy}.shift("catalog", [4]float64{40, 30, 0, 30}, unguarded))

	web.shares(1000, "catalog", "/")
	of := func(way string, n int64) api.WayTelemetry {
		return api.WayTelemetry{Way: way, Attempts: uint64(n), First: uint64(n)}
	}
	w.counted("web", "catalog", of("legacy", legacy.served.Load()), of("direct", direct.served.Load()), of("mtls", mtls.served.Load()))
	if n := legacy.served.Load() + direct.served.Load() + mtls.served.Load(); n != 1000 {
		t.Fatalf("the callees counted %d, not 1000", n)
	}
	meshtest.Eventually(t, "latencies", func() error { // Envoy adds them up twice a second
		got := w.telemetry("web", "catalog")
		if l := got["legacy"]; l.P50 < 20 || l.P50 > 60 || l.P99 < l.P50 {
			return fmt.Errorf("legacy takes 20 ms: %+v", l)
		}
		if m := got["mtls"]; m.P50 <= 0 || m.P50 >= 20 {
			return fmt.Errorf("mtls takes no time: %+v", m)
		}
		return nil
	})

	// Answers that are failures, which the caller gets.
	down.Store(true)
	failed := 0
	for range 200 {
		if web.get("catalog", "/").code == http.StatusServiceUnavailable {
			failed++
		}
	}
	down.Store(false)
	want := of("direct", direct.served.Load())
	want.Failed = uint64(failed)
	if failed == 0 {
		t.Fatal("nothing failed")
	}
	w.counted("web", "catalog", want)

	// Connections that are refused: what is tried again elsewhere failed here all the same.
	before := w.quiet("web", "catalog")
	direct.stop()
	served := map[string]int64{"legacy": legacy.served.Load(), "mtls": mtls.served.Load()}
	web.shares(200, "catalog", "/")
	if n := legacy.served.Load() + mtls.served.Load() - served["legacy"] - served["mtls"]; n != 200 {
		t.Fatalf("the others served %d, not 200", n)
	}
	meshtest.Eventually(t, "refused attempts are counted", func() error {
		now, first := w.telemetry("web", "catalog"), uint64(0)
		for way, n := range now {
			first += n.First - before[way].First
		}
		d, was := now["direct"], before["direct"]
		if first != 200 || d.Failed == was.Failed || d.Failed-was.Failed != d.Attempts-was.Attempts || d.ConnectFailed != d.Failed-was.Failed {
			return fmt.Errorf("%d first attempts, %+v", first, now)
		}
		for way, n := range served {
			served := map[string]int64{"legacy": legacy.served.Load(), "mtls": mtls.served.Load()}[way] - n
			if got := now[way].Attempts - before[way].Attempts; got != uint64(served) {
				return fmt.Errorf("%d attempts by %s, %d were served", got, way, served)
			}
		}
		return nil
	})

	// Nobody is there: requests are withheld, and sent by another way at once.
	w.server.Call(http.MethodPut, "/v1/agent/service/deregister/direct-catalog?wait=10s", nil)
	was := w.quiet("web", "catalog")
	web.shares(300, "catalog", "/")
	meshtest.Eventually(t, "withheld requests are counted", func() error {
		now := w.telemetry("web", "catalog")
		d, all := now["direct"], uint64(0)
		for way, n := range now {
			all += n.First - was[way].First
		}
		if n := d.Withheld - was["direct"].Withheld; n < 50 || n > 140 || d.Attempts != was["direct"].Attempts || all != 300 {
			return fmt.Errorf("%d withheld, %d first attempts: %+v", n, all, now)
		}
		return nil
	})
}

// quiet waits until counts stand still.
func (w *world) quiet(source, destination string) map[string]api.WayTelemetry {
	w.t.Helper()
	var last string
	var same time.Time
	meshtest.Eventually(w.t, "counts stand still", func() error {
		text := fmt.Sprint(w.telemetry(source, destination))
		if text != last {
			last, same = text, time.Now()
		}
		if time.Since(same) < 2500*time.Millisecond {
			return errors.New("they move")
		}
		return nil
	})
	return w.telemetry(source, destination)
}

// Connections count by way, those that fail too, and those that are open.
func TestTelemetryCountsConnections(t *testing.T) {
	w := newWorld(t)
	pay := w.three("payments")
	web := w.caller("web", "web-1", "payments")
	w.apply(pay.shift("payments", [4]float64{40, 30, 0, 30}, unguarded))
	var open []net.Conn
	by := map[string]uint64{}
	dial := func(n int) {
		for range n {
			conn, id, err := web.dial("payments")
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, conn)
			by[map[string]string{"legacy": "legacy", "direct": "direct", "mtls-payments": "mtls"}[id]]++
		}
	}
	of := func(way string, open uint64) api.WayTelemetry {
		return api.WayTelemetry{Way: way, Attempts: by[way], First: by[way], Open: open}
	}
	dial(200)
	if by["legacy"] == 0 || by["direct"] == 0 || by["mtls"] == 0 {
		t.Fatalf("%v", by)
	}
	w.counted("web", "payments", of("legacy", by["legacy"]), of("direct", by["direct"]), of("mtls", by["mtls"]))
	for _, c := range open {
		c.Close()
	}
	open = nil
	got := w.counted("web", "payments", of("legacy", 0), of("direct", 0), of("mtls", 0))
	meshtest.Eventually(t, "times to connect", func() error {
		for way, n := range w.telemetry("web", "payments") {
			if n.P50 <= 0 || n.P99 < n.P50 || n.P99 > 1000 {
				return fmt.Errorf("%s connects in no time, or for ever: %+v", way, n)
			}
		}
		return nil
	})

	// One that is refused and saved by another way failed on its own.
	pay.direct.stop()
	direct := by["direct"]
	dial(100)
	if by["direct"] != direct {
		t.Fatal("direct still answers")
	}
	meshtest.Eventually(t, "failed connections are counted", func() error {
		now := w.telemetry("web", "payments")
		d := now["direct"]
		if d.Failed == 0 || d.Failed != d.ConnectFailed || d.Attempts != direct+d.Failed || now["legacy"].Failed+now["mtls"].Failed != 0 {
			return fmt.Errorf("%+v", now)
		}
		return nil
	})
	w.counted("web", "payments", of("legacy", by["legacy"]-got["legacy"].Attempts), of("mtls", by["mtls"]-got["mtls"].Attempts))
	for _, c := range open {
		c.Close()
	}
}

// WebSockets and streams count once each, when they end, and are known while they are open.
func TestTelemetryCountsStreams(t *testing.T) {
	w := newWorld(t)
	w.speak()
	chat := w.three("chat")
	web := w.caller("web", "web-1", "chat")
	w.apply(chat.shift("chat", [4]float64{50, 0, 0, 50}, unguarded))
	conn := web.grpc()
	ctx, end := context.WithCancel(t.Context())
	defer end()
	for range 20 {
		stream, err := healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{Service: "ticks"})
		if err == nil {
			_, err = stream.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	meshtest.Eventually(t, "20 streams are open", func() error {
		now := w.telemetry("web", "chat")
		if now["legacy"].Open != uint64(chat.legacy.served.Load()) || now["mtls"].Open != uint64(chat.mtls.served.Load()) || now["legacy"].Open+now["mtls"].Open != 20 {
			return fmt.Errorf("%+v", now)
		}
		return nil
	})
	end()
	of := func(a *app, way string) api.WayTelemetry {
		n := uint64(a.served.Load())
		return api.WayTelemetry{Way: way, Attempts: n, First: n}
	}
	w.counted("web", "chat", of(chat.legacy, "legacy"), of(chat.mtls, "mtls"))
}

// What gRPC says counts by what it says of the way, whether it comes in headers or trailers.
func TestTelemetryJudgesGRPC(t *testing.T) {
	w := newWorld(t)
	w.speak()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		var in wrapperspb.UInt64Value
		if err := s.RecvMsg(&in); err != nil {
			return err
		}
		code := codes.Code(in.GetValue() % 100)
		if in.GetValue() >= 100 { // an answer first, so that the status comes in trailers
			if err := s.SendMsg(&in); err != nil {
				return err
			}
		}
		return status.Error(code, "as asked")
	}))
	go g.Serve(l)
	t.Cleanup(g.Stop)
	web := w.caller("web", "web-1", "chat")
	w.apply(shiftText("chat", l.Addr().String(), "", [4]float64{100, 0, 0, 0}, unguarded))
	conn := web.grpc()
	for n := range uint64(17) {
		for _, ask := range []uint64{n, 100 + n} {
			st, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, "/any/thing")
			if err == nil {
				err = st.SendMsg(wrapperspb.UInt64(ask))
			}
			if err = errors.Join(err, st.CloseSend()); err != nil {
				t.Fatal(err)
			}
			var out wrapperspb.UInt64Value
			for err == nil {
				err = st.RecvMsg(&out)
			}
			if want := codes.Code(n); status.Code(err) != want && !(n == 0 && errors.Is(err, io.EOF)) {
				t.Fatalf("%v, want %v", err, want)
			}
		}
	}
	meshtest.Eventually(t, "statuses are counted", func() error {
		_, body := w.server.Call(http.MethodGet, "/v1/crossfade/telemetry/web/chat", nil)
		var got api.Telemetry
		if err := json.Unmarshal(body, &got); err != nil {
			return err
		}
		kinds := map[string]uint64{}
		for _, f := range got.Failing {
			kinds[f.What] = f.Count
		}
		for _, n := range []int{2, 4, 13, 14, 15} {
			if kinds[fmt.Sprintf("200 grpc %d", n)] != 2 {
				return fmt.Errorf("%s", body)
			}
		}
		if len(kinds) != 5 || len(got.Ways) != 1 || got.Ways[0].Attempts != 34 || got.Ways[0].Failed != 10 {
			return fmt.Errorf("%s", body)
		}
		return nil
	})
}

// How long a request took is with the server within two seconds, too.
func TestLatenciesAreYoung(t *testing.T) {
	w := newWorld(t)
	w.write("Kind = \"service-defaults\"\nName = \"catalog\"\nProtocol = \"http\"")
	var takes atomic.Int64
	mtls := w.secureHTTP("catalog", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		slow(time.Duration(takes.Load()), w.teller("mtls")).ServeHTTP(rw, r)
	}))
	w.native("catalog", "mtls-catalog", "v1", mtls.port, mtls.stop)
	web := w.caller("web", "web-1", "catalog")
	web.eventually("catalog answers", "catalog", "/", by("mtls"))
	p99 := func() float64 { return w.telemetry("web", "catalog")["mtls"].P99 }
	var took load.Histogram
	for i := range 10 { // each the longest so far
		ms := 20 * (i + 1)
		takes.Store(int64(time.Duration(ms) * time.Millisecond))
		if err := web.get("catalog", "/").ok(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		meshtest.Eventually(t, "the latency is known", func() error {
			if got := p99(); got < float64(ms)*.95 {
				return fmt.Errorf("p99 %v after one of %d ms", got, ms)
			}
			return nil
		})
		took.Add(time.Since(began))
	}
	t.Logf("after %v at the median, %v at most", took.Quantile(.5), took.Max())
	if median := took.Quantile(.5); median > 2*time.Second {
		t.Errorf("half of the latencies are known later than after %v", median)
	}
}

// What a sidecar did is with the server within two seconds.
func TestTelemetryIsYoung(t *testing.T) {
	w := newWorld(t)
	w.write("Kind = \"service-defaults\"\nName = \"catalog\"\nProtocol = \"http\"")
	catalog := w.http("catalog", "mtls-catalog", version(1))
	web := w.caller("web", "web-1", "catalog")
	web.eventually("catalog answers", "catalog", "/", by("mtls"))
	attempts := func() uint64 { return w.telemetry("web", "catalog")["mtls"].Attempts }
	var took load.Histogram
	for range 15 {
		// Whatever went before is there: what comes next is what this request adds.
		var before uint64
		meshtest.Eventually(t, "all is counted", func() error {
			if n := uint64(catalog.served.Load()); attempts() < n {
				return fmt.Errorf("%d of %d are", attempts(), n)
			}
			before = attempts()
			return nil
		})
		if err := web.get("catalog", "/").ok(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		meshtest.Eventually(t, "the request is counted", func() error {
			if attempts() == before {
				return errors.New("it is not")
			}
			return nil
		})
		took.Add(time.Since(began))
	}
	t.Logf("after %v at the median, %v at most", took.Quantile(.5), took.Max())
	if median := took.Quantile(.5); median > 2*time.Second {
		t.Errorf("half of the requests are counted later than after %v", median)
	}
}
