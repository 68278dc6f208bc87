package server

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/shift"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

// ramp is a pair that a stepper moves, in a time of its own.
type ramp struct {
	t     *testing.T
	s     *Server
	now   time.Time
	seq   uint64
	worse float64 // part of attempts on the new way that fail
	gone  string  // why the old way takes no connections
}

func newRamp(t *testing.T) *ramp {
	st, err := store.Open(store.Options{NodeName: "n", NodeAddress: "127.0.0.1", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	log := slog.New(slog.DiscardHandler)
	r := &ramp{t: t, s: &Server{opts: Options{Log: log}, store: st, mesh: newMesh("dc1", "test", true, nil, log), names: newNames(nil, nil, nil), probes: newProber(newNames(nil, nil, nil).dial)}, now: time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)}
	r.restart()
	r.s.mesh.setCatalog(caller(t))
	r.write(func(w *store.Writer) error {
		e := &config.TrafficShift{Source: "web", Destination: "catalog", Shares: config.Shares{Direct: 100}, Steps: []float64{10, 50, 100}, Dwell: config.Duration(30 * time.Second)}
		e.Normalize()
		return w.PutEntry(e, store.Author{Who: "test", Time: r.now})
	})
	return r
}

// caller is a catalog in which web calls catalog, both with a sidecar.
func caller(t *testing.T) *catalog.Snapshot {
	t.Helper()
	node := &catalog.Node{Name: "n", Address: "127.0.0.1"}
	sets := map[string]*catalog.Set{}
	for _, name := range []string{"web", "catalog"} {
		sets[name] = catalog.NewSet(name, []catalog.Instance{{Node: node, Service: &catalog.Service{ID: name, Name: name, Port: 80}}})
		proxy := &catalog.Proxy{DestinationServiceName: name, DestinationServiceID: name}
		if name == "web" {
			proxy.Upstreams = []catalog.Upstream{{DestinationName: "catalog", LocalBindPort: 7100}}
		}
		side := name + "-sidecar-proxy"
		sets[side] = catalog.NewSet(side, []catalog.Instance{{Node: node, Service: &catalog.Service{Kind: catalog.ConnectProxy, ID: side, Name: side, Port: 21000, Proxy: proxy}}})
	}
	return catalog.NewSnapshot("dc1", 1, sets)
}

// restart is a server that begins anew with what the store has.
func (r *ramp) restart() {
	r.t.Helper()
	r.s.mesh.book = telemetry.NewBook()
	r.s.steps = newStepper(r.s)
	r.s.steps.runs = func(*books, string, uint64) bool { return true }
	if err := r.s.steps.open(); err != nil {
		r.t.Fatal(err)
	}
	r.publish()
}

func (r *ramp) write(write func(*store.Writer) error) {
	r.t.Helper()
	if _, err := r.s.change(write); err != nil {
		r.t.Fatal(err)
	}
	r.publish()
}

// publish gives the mesh the entries, as the store does.
func (r *ramp) publish() {
	r.s.store.Read(context.Background(), 0, func(from *store.Reader) {
		var list []config.Entry
		for _, row := range from.Entries("") {
			list = append(list, row.Entry)
		}
		r.s.mesh.setEntries(config.NewSet(list...), from.EntriesIndex())
	})
}

// second is one more of traffic by the shares, and of looking.
func (r *ramp) second() { r.told(time.Second) }

// told is a stretch that sidecars tell of at its end, and looking then.
func (r *ramp) told(over time.Duration) {
	for range over/time.Second - 1 {
		r.now = r.now.Add(time.Second)
		r.s.steps.step(r.now, nil, true)
	}
	r.now = r.now.Add(time.Second)
	e := r.entry()
	var ways []shift.WayTelemetry
	for _, w := range shift.Ways() {
		if n := uint64(e.Shares.Hundredths(string(w))) / 10; n > 0 { // 1,000 a second
			n *= uint64(over / time.Second)
			failed := uint64(0)
			if w == shift.MTLS {
				failed = uint64(float64(n) * r.worse)
			}
			ways = append(ways, shift.WayTelemetry{Way: w, Telemetry: shift.Telemetry{Attempts: n, Failed: failed}})
		}
	}
	r.seq++
	r.s.mesh.book.Put(telemetry.Key{Node: "n", Sidecar: "web-sidecar-proxy", Service: "web"}, telemetry.Report{
		Session: 1, Seq: r.seq, Over: over, Outbound: []telemetry.Outbound{{Destination: "catalog", Ways: ways}},
		Probes: []telemetry.Probe{{Destination: "catalog", Way: shift.Direct, Works: r.gone == "", Why: r.gone}},
	}, r.now)
	r.s.steps.step(r.now, nil, true)
	r.publish()
}

func (r *ramp) entry() *config.TrafficShift {
	return r.s.mesh.config().TrafficShift("web", "catalog")
}

func (r *ramp) order(v shift.Verb) error {
	plan, err := planOf(r.s.mesh.config(), r.entry(), shift.MTLS)
	if err != nil {
		r.t.Fatal(err)
	}
	pair := shift.Pair{Source: "web", Destination: "catalog"}
	for _, a := range r.s.steps.step(r.now, []shift.Command{{Verb: v, Pair: pair, Plan: plan, By: "test"}}, false) {
		if a.Kind == shift.Refused {
			return fmt.Errorf("%s", a.Reason)
		}
	}
	r.publish()
	return nil
}

func (r *ramp) status() shift.Status {
	at, _ := r.s.steps.find(shift.Pair{Source: "web", Destination: "catalog"})
	return at.Status
}

// Shares move by themselves to the end, whatever is killed in between, and never back.
func TestStepsSurviveRestarts(t *testing.T) {
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(1, seed))
		r := newRamp(t)
		if err := r.order(shift.CommandStart); err != nil {
			t.Fatal(err)
		}
		most := 0.0
		for range 400 {
			r.second()
			if random.IntN(15) == 0 {
				r.restart()
			}
			now := r.entry().Shares.MTLS
			if now < most {
				t.Fatalf("seed %d: back from %v to %v", seed, most, now)
			}
			most = now
			if r.status() == shift.Done {
				break
			}
		}
		if r.status() != shift.Done || most != 100 {
			t.Errorf("seed %d: %s at %v", seed, r.status(), most)
		}
	}
}

// Aborted at any moment, killed at any moment, all is back in the end, and stays so.
func TestAbortAlwaysEndsBack(t *testing.T) {
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(2, seed))
		r := newRamp(t)
		if err := r.order(shift.CommandStart); err != nil {
			t.Fatal(err)
		}
		for range random.IntN(120) {
			r.second()
			if random.IntN(20) == 0 {
				r.restart()
			}
		}
		if err := r.order(shift.CommandAbort); err != nil {
			t.Fatal(err)
		}
		for range 40 {
			if random.IntN(5) == 0 {
				r.restart()
			}
			r.second()
		}
		if r.entry().Shares != (config.Shares{Direct: 100}) || r.status() != shift.Aborted {
			t.Errorf("seed %d: %s at %+v", seed, r.status(), r.entry().Shares)
		}
	}
}

// What turns bad is left within ten seconds; what people set is watched as well; a revert
// of somebody else's is not overruled.
func TestGuardOfTheServer(t *testing.T) {
	r := newRamp(t)
	r.write(func(w *store.Writer) error {
		e := next(api.PairName{Source: "web", Destination: "catalog"}, r.entry())
		e.Shares = config.Shares{Direct: 50, MTLS: 50}
		return w.PutEntry(e, store.Author{Who: "test", Time: r.now})
	})
	for range 30 {
		r.second()
	}
	if r.entry().Shares.MTLS != 50 || r.status() != shift.Running {
		t.Fatalf("%s at %+v", r.status(), r.entry().Shares)
	}
	r.worse = 0.5
	for range 10 {
		r.second()
	}
	if r.entry().Shares != (config.Shares{Direct: 100}) || r.status() != shift.Reverted {
		t.Errorf("%s at %+v", r.status(), r.entry().Shares)
	}
	r.worse = 0
	if err := r.order(shift.CommandStart); err != nil {
		t.Fatal(err)
	}
	for r.entry().Shares.MTLS == 0 {
		r.second()
	}
	r.write(func(w *store.Writer) error {
		e := next(api.PairName{Source: "web", Destination: "catalog"}, r.entry())
		e.Shares = config.Shares{Direct: 100}
		return w.PutEntry(e, store.Author{Who: "somebody", Time: r.now, Reverted: true})
	})
	for range 100 {
		r.second()
	}
	if r.entry().Shares != (config.Shares{Direct: 100}) || r.status() != shift.Reverted {
		t.Errorf("after somebody's revert: %s at %+v", r.status(), r.entry().Shares)
	}
}

// Small samples wait.
func TestSmallSamplesWait(t *testing.T) {
	r := newRamp(t)
	if err := r.order(shift.CommandStart); err != nil {
		t.Fatal(err)
	}
	for r.entry().Shares.MTLS == 0 {
		r.second()
	}
	for range 600 {
		r.now = r.now.Add(time.Second)
		r.s.steps.step(r.now, nil, true)
		r.publish()
	}
	at, _ := r.s.steps.find(shift.Pair{Source: "web", Destination: "catalog"})
	if at.Wait != shift.WaitGuard || r.entry().Shares.MTLS != 10 {
		t.Errorf("%+v at %+v", at, r.entry().Shares)
	}
}

// What sidecars could not tell for two minutes, and tell at once, is no burst: it keeps no
// step from being taken.
func TestCountsOfAnOutageAreNoBurst(t *testing.T) {
	r := newRamp(t)
	for range 60 {
		r.second()
	}
	if err := r.order(shift.CommandStart); err != nil {
		t.Fatal(err)
	}
	for r.entry().Shares.MTLS == 0 {
		r.second()
	}
	for range 3 {
		r.told(2 * time.Minute)
		for range 3 {
			r.second()
			last := r.s.steps.steps[len(r.s.steps.steps)-1].Observed
			if rate := last.Pairs[0].Rate; rate < 900 || rate > 1100 {
				t.Errorf("%v requests a second, there were 1000 all the time", rate)
			}
		}
	}
}

// What was counted before the present shares were in force is not held against a way.
func TestCountsOfOtherSharesAreLeftOut(t *testing.T) {
	r := newRamp(t)
	if err := r.order(shift.CommandStart); err != nil {
		t.Fatal(err)
	}
	for r.entry().Shares.MTLS == 0 {
		r.second()
	}
	for range 10 {
		r.second()
	}
	for _, c := range []struct {
		over time.Duration
		want bool
	}{{2 * time.Minute, false}, {time.Second, true}} {
		r.seq++
		r.now = r.now.Add(time.Second)
		r.s.mesh.book.Put(telemetry.Key{Node: "n", Sidecar: "web-sidecar-proxy", Service: "web"}, telemetry.Report{
			Session: 1, Seq: r.seq, Over: c.over,
			Outbound: []telemetry.Outbound{{Destination: "catalog", Ways: []shift.WayTelemetry{{Way: shift.MTLS, Telemetry: shift.Telemetry{Attempts: 10, Failed: 10}}}}},
		}, r.now)
		r.s.steps.step(r.now, nil, true)
		last := r.s.steps.steps[len(r.s.steps.steps)-1].Observed
		if got := len(last.Pairs[0].Ways) > 0; got != c.want {
			t.Errorf("counts of %v, ten seconds after the step: compared %v, want %v", c.over, got, c.want)
		}
	}
}

// What an entry says of its guard holds for a shift that is under way.
func TestEntryChangesTheGuardOfARunningShift(t *testing.T) {
	for _, c := range []struct {
		guard  *config.ShiftGuard
		status shift.Status
		mtls   float64
	}{
		{nil, shift.Reverted, 0},
		{&config.ShiftGuard{OnBreach: config.OnBreachPause}, shift.Paused, 10},
		{&config.ShiftGuard{Failures: 70}, shift.Running, 10},
		{&config.ShiftGuard{Off: true}, shift.Running, 10},
	} {
		r := newRamp(t)
		if err := r.order(shift.CommandStart); err != nil {
			t.Fatal(err)
		}
		for r.entry().Shares.MTLS == 0 {
			r.second()
		}
		r.write(func(w *store.Writer) error {
			e := next(api.PairName{Source: "web", Destination: "catalog"}, r.entry())
			e.Guard = c.guard
			return w.PutEntry(e, store.Author{Who: "test", Time: r.now})
		})
		r.worse = 0.5
		for range 15 {
			r.second()
		}
		if r.entry().Shares.MTLS != c.mtls || r.status() != c.status {
			t.Errorf("%+v: %s at %+v, want %s at %v", c.guard, r.status(), r.entry().Shares, c.status, c.mtls)
		}
	}
}

// A way that fails once all is on it is left as well: by steps or by hand, as the entry says,
// and only for an old way that takes requests.
func TestGuardWhereAllIsOnTheNewWay(t *testing.T) {
	for _, c := range []struct {
		name   string
		byHand bool
		guard  *config.ShiftGuard
		gone   bool // for 20 seconds, the old way
		status shift.Status
		mtls   float64
	}{
		{name: "by steps", status: shift.Reverted},
		{name: "by hand", byHand: true, status: shift.Reverted},
		{name: "to pause", guard: &config.ShiftGuard{OnBreach: config.OnBreachPause}, status: shift.Paused, mtls: 100},
		{name: "off", guard: &config.ShiftGuard{Off: true}, status: shift.Running, mtls: 100},
		{name: "no way back", gone: true, status: shift.Paused, mtls: 100},
	} {
		r := newRamp(t)
		r.now = time.Now() // what callers say of the old way is asked for by this clock
		set := func(mtls float64) {
			r.write(func(w *store.Writer) error {
				e := next(api.PairName{Source: "web", Destination: "catalog"}, r.entry())
				e.Shares, e.Guard = config.Shares{Direct: 100 - mtls, MTLS: mtls}, c.guard
				return w.PutEntry(e, store.Author{Who: "test", Time: r.now})
			})
		}
		set(0)
		if c.byHand {
			set(50)
			for range 60 {
				r.second()
			}
			set(100)
		} else if err := r.order(shift.CommandStart); err != nil {
			t.Fatal(err)
		}
		for range 300 {
			if r.entry().Shares.MTLS == 100 {
				break
			}
			r.second()
		}
		for range 5 {
			r.second()
		}
		if r.entry().Shares.MTLS != 100 || r.status() != shift.Running {
			t.Fatalf("%s: %s at %+v", c.name, r.status(), r.entry().Shares)
		}
		if c.gone {
			r.gone = "connection refused"
		}
		r.worse = 0.2
		for range 15 {
			r.second()
		}
		if r.entry().Shares.MTLS != c.mtls || r.status() != c.status {
			at, _ := r.s.steps.find(shift.Pair{Source: "web", Destination: "catalog"})
			t.Errorf("%s: %s at %+v (%s), want %s at %v", c.name, r.status(), r.entry().Shares, at.Reason, c.status, c.mtls)
		}
		if c.gone {
			r.gone = ""
			for range 3 {
				r.second()
			}
			if r.entry().Shares.MTLS != 0 || r.status() != shift.Reverted {
				t.Errorf("%s, and then there is: %s at %+v", c.name, r.status(), r.entry().Shares)
			}
		}
	}
}

// While the store's disk takes its time, the ledger and all else that is only read answer at
// once, and commands say that they can't be obeyed.
func TestReadersWaitForNoStore(t *testing.T) {
	r := newRamp(t)
	if err := r.order(shift.CommandStart); err != nil {
		t.Fatal(err)
	}
	for r.entry().Shares.MTLS == 0 {
		r.second()
	}
	// A write that neither ends nor lets another begin, and reads meanwhile what a verb reads.
	begun, end := make(chan struct{}), make(chan struct{})
	var hung sync.WaitGroup
	defer hung.Wait()
	defer close(end)
	hung.Go(func() {
		_ = r.s.store.Update(func(*store.Writer) error {
			close(begun)
			<-end
			return nil
		})
	})
	<-begun
	hung.Go(func() { r.s.steps.step(r.now.Add(saveEvery), nil, true) })
	for len(r.s.steps.turn) == 0 {
		runtime.Gosched()
	}
	within := func(what string, most time.Duration, do func() string) string {
		t.Helper()
		done := make(chan string, 1)
		go func() { done <- do() }()
		select {
		case text := <-done:
			return text
		case <-time.After(most):
			t.Fatalf("%s: no answer within %v", what, most)
		}
		return ""
	}
	get := func(h http.HandlerFunc) func() string {
		return func() string {
			w, q := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil)
			q.SetPathValue("source", "web")
			q.SetPathValue("destination", "catalog")
			h(w, q)
			return w.Body.String()
		}
	}
	for what, h := range map[string]http.HandlerFunc{"pairs": r.s.pairs, "one pair": r.s.pair, "the log": r.s.shiftLog} {
		if text := within(what, time.Second, get(h)); !strings.Contains(text, `"running"`) {
			t.Errorf("%s: %s", what, text)
		}
	}
	b := r.s.books(t.Context())
	for _, do := range []string{api.Pause, api.Abort} {
		in := api.ShiftRequest{Do: do, Pairs: []api.PairIndex{{PairName: api.PairName{Source: "web", Destination: "catalog"}}}}
		text := within(do, 3*orderWithin, func() string { return r.s.command(b, in, "test").Pairs[0].Refused })
		if !strings.Contains(text, "revert, which does not wait") {
			t.Errorf("%s: %q", do, text)
		}
	}
	within("a dry run", time.Second, func() string {
		_, err := r.s.stage(t.Context(), b, api.ShiftRequest{Stage: "strict", Service: "catalog", DryRun: true}, store.Author{Time: r.now})
		return fmt.Sprint(err)
	})
}

// A key that asks for what is there already writes nothing, however new it is.
func TestKeyOfEqualSharesWritesNothing(t *testing.T) {
	r := newRamp(t)
	r.write(func(w *store.Writer) error {
		return w.PutKV("crossfade/web/catalog/mesh_percent", []byte("0"), 0)
	})
	b := r.s.books(t.Context())
	begun, end := make(chan struct{}), make(chan struct{})
	var hung sync.WaitGroup
	defer hung.Wait()
	defer close(end)
	hung.Go(func() {
		_ = r.s.store.Update(func(*store.Writer) error {
			close(begun)
			<-end
			return nil
		})
	})
	<-begun
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.s.steps.followKV(r.now, b)
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("it waits for the store, as if there were something to write")
	}
	if why := r.s.steps.kvWrong; len(why) > 0 {
		t.Error(why)
	}
}
