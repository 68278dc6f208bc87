package server

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/shift"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

// convoy is several callers of catalog, of whose twelve instances some have a sidecar.
type convoy struct {
	*ramp
	callers []string
	worse   map[string]float64 // by caller
}

// newConvoy begins with all on direct, and no traffic for the callers named quiet.
func newConvoy(t *testing.T, sidecars int, callers ...string) *convoy {
	t.Helper()
	st, err := store.Open(store.Options{NodeName: "n", NodeAddress: "127.0.0.1", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	log := slog.New(slog.DiscardHandler)
	r := &ramp{t: t, s: &Server{opts: Options{Log: log}, store: st, mesh: newMesh("dc1", "test", true, nil, log), names: newNames(nil, nil, nil), probes: newProber(newNames(nil, nil, nil).dial), door: newDoor(true, log)},
		now: time.Date(2026, 3, 2, 16, 50, 0, 0, time.UTC)} // a Monday
	c := &convoy{ramp: r, callers: callers, worse: map[string]float64{}}
	r.restart()
	r.s.mesh.setCatalog(c.catalog(sidecars))
	for _, name := range callers {
		c.set(name, config.Shares{Direct: 100})
	}
	return c
}

func (c *convoy) catalog(sidecars int) *catalog.Snapshot {
	sets := map[string]*catalog.Set{}
	instance := func(service, id string, number int, proxy *catalog.Proxy) catalog.Instance {
		in := catalog.Instance{Node: &catalog.Node{Name: fmt.Sprintf("n-%s-%d", strings.TrimSuffix(service, "-sidecar-proxy"), number), Address: fmt.Sprintf("10.0.%d.%d", len(strings.TrimSuffix(service, "-sidecar-proxy")), number)},
			Service: &catalog.Service{ID: id, Name: service, Port: 80}}
		if proxy != nil {
			in.Service.Kind, in.Service.Proxy = catalog.ConnectProxy, proxy
		}
		return in
	}
	var all, sides []catalog.Instance
	for i := range 12 {
		id := fmt.Sprintf("catalog-%d", i)
		all = append(all, instance("catalog", id, i, nil))
		if i < sidecars {
			sides = append(sides, instance("catalog-sidecar-proxy", id+"-sidecar-proxy", i, &catalog.Proxy{DestinationServiceName: "catalog", DestinationServiceID: id}))
		}
	}
	sets["catalog"], sets["catalog-sidecar-proxy"] = catalog.NewSet("catalog", all), catalog.NewSet("catalog-sidecar-proxy", sides)
	for _, name := range c.callers {
		side := name + "-sidecar-proxy"
		sets[name] = catalog.NewSet(name, []catalog.Instance{instance(name, name, 0, nil)})
		sets[side] = catalog.NewSet(side, []catalog.Instance{instance(side, side, 0, &catalog.Proxy{DestinationServiceName: name, DestinationServiceID: name,
			Upstreams: []catalog.Upstream{{DestinationName: "catalog", LocalBindPort: 7100}}})})
	}
	sets["stray"] = catalog.NewSet("stray", []catalog.Instance{instance("stray", "stray", 77, nil)})
	return catalog.NewSnapshot("dc1", 1, sets)
}

func (c *convoy) of(name string) *config.TrafficShift {
	return c.s.mesh.config().TrafficShift(name, "catalog")
}

// set writes shares as people do.
func (c *convoy) set(name string, shares config.Shares, edit ...func(*config.TrafficShift)) {
	c.t.Helper()
	c.write(func(w *store.Writer) error {
		old, _ := decidingOf(api.PairName{Source: name, Destination: "catalog"}, w.Entry)
		e := next(api.PairName{Source: name, Destination: "catalog"}, old)
		e.Shares = shares
		for _, f := range edit {
			f(e)
		}
		return w.PutEntry(e, store.Author{Who: "test", Time: c.now})
	})
}

// second is one more of traffic by the shares, of 1,000 attempts of each caller, and of looking.
// Reports come late now and then.
func (c *convoy) second(random *rand.Rand) {
	c.now = c.now.Add(time.Second)
	for _, name := range c.callers {
		if random != nil && random.IntN(4) == 0 {
			continue
		}
		var ways []shift.WayTelemetry
		for _, w := range shift.Ways() {
			if n := uint64(c.of(name).Shares.Hundredths(string(w))) / 10; n > 0 {
				failed := uint64(0)
				if w == shift.MTLS {
					failed = uint64(float64(n) * c.worse[name])
				}
				ways = append(ways, shift.WayTelemetry{Way: w, Telemetry: shift.Telemetry{Attempts: n, Failed: failed}})
			}
		}
		c.seq++
		c.s.mesh.book.Put(telemetry.Key{Node: "n-" + name + "-0", Sidecar: name + "-sidecar-proxy", Service: name}, telemetry.Report{
			Session: 1, Seq: c.seq, Over: time.Second, Outbound: []telemetry.Outbound{{Destination: "catalog", Ways: ways}},
		}, c.now)
	}
	c.s.steps.step(c.now, nil, true)
	c.publish()
}

// start starts a shift of each caller to mtls, and says by pair why one is refused.
func (c *convoy) start(plan func(*shift.Plan)) {
	c.t.Helper()
	var list []shift.Command
	for _, name := range c.callers {
		p, err := planOf(c.s.mesh.config(), c.of(name), shift.MTLS)
		if err != nil {
			c.t.Fatal(err)
		}
		plan(&p)
		list = append(list, shift.Command{Verb: shift.CommandStart, Pair: shift.Pair{Source: name, Destination: "catalog"}, Plan: p, By: "test"})
	}
	for _, a := range c.s.steps.step(c.now, list, false) {
		if a.Kind == shift.Refused {
			c.t.Fatal(a.Reason)
		}
	}
	c.publish()
}

func (c *convoy) at(name string) shift.Shift {
	at, _ := c.s.steps.find(shift.Pair{Source: name, Destination: "catalog"})
	return at
}

// Never do two shifts of one callee move at once, no step is taken outside the windows, and
// all arrive, whatever is killed in between.
func TestOneShiftOfACalleeAtATime(t *testing.T) {
	for seed := range uint64(10) {
		random := rand.New(rand.NewPCG(3, seed))
		c := newConvoy(t, 12, "web", "app", "job")
		c.start(func(p *shift.Plan) {
			p.Steps, p.Dwell = []shift.Share{shift.Percent(50), shift.Percent(100)}, 30*time.Second
			p.Windows = []shift.Window{open(t, "Mon-Fri 09:00-17:00")}
		})
		was := map[string]float64{}
		done := 0
		for range 1200 {
			if c.now.Hour() == 17 && c.now.Minute() == 3 {
				c.now = time.Date(2026, 3, 3, 8, 58, 0, 0, time.UTC) // the night is over
			}
			c.second(random)
			if random.IntN(40) == 0 {
				c.restart()
			}
			moving, ended := 0, 0
			for _, name := range c.callers {
				now := c.of(name).Shares.MTLS
				if now < was[name] {
					t.Fatalf("seed %d: %s from %v back to %v", seed, name, was[name], now)
				}
				if now > was[name] && (c.now.Hour() < 9 || c.now.Hour() >= 17) {
					t.Fatalf("seed %d: %s steps at %s", seed, name, c.now.Format("15:04:05"))
				}
				was[name] = now
				at := c.at(name)
				if now > 0 && at.Status == shift.Running {
					moving++
				}
				if at.Status == shift.Done {
					ended++
				}
			}
			if moving > 1 {
				t.Fatalf("seed %d: %d shifts move at once: %v", seed, moving, was)
			}
			if done = ended; ended == len(c.callers) {
				break
			}
		}
		if done != len(c.callers) {
			t.Errorf("seed %d: %d of %d arrived: %v", seed, done, len(c.callers), was)
		}
	}
}

func open(t *testing.T, text string) shift.Window {
	t.Helper()
	w, err := shift.ParseWindow(text)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// A step that would load the few instances with a sidecar too much waits, also in seconds
// in which nobody has reported and after a restart, until there are more.
func TestCalleeTooSmallWaits(t *testing.T) {
	random := rand.New(rand.NewPCG(4, 1))
	c := newConvoy(t, 3, "web")
	c.start(func(p *shift.Plan) {
		p.Steps, p.Dwell = []shift.Share{shift.Percent(5), shift.Percent(25)}, 30*time.Second
	})
	for range 300 {
		c.second(random)
		if random.IntN(20) == 0 {
			c.restart()
		}
		if got := c.of("web").Shares.MTLS; got > 5 {
			t.Fatalf("%v", got)
		}
	}
	for range 60 {
		c.second(nil)
	}
	if at := c.at("web"); at.Wait != shift.WaitCapacity || !strings.Contains(at.Reason, "3 of 12 instances take way mtls") {
		t.Errorf("%+v", at)
	}
	c.s.mesh.setCatalog(c.catalog(12))
	c.second(nil)
	if got := c.of("web").Shares.MTLS; got != 25 {
		t.Errorf("%v", got)
	}
	// One that has no traffic at all is no way around.
	c = newConvoy(t, 3, "web")
	c.start(func(p *shift.Plan) { p.Steps = []shift.Share{shift.Percent(25)} })
	if at := c.at("web"); at.Wait != shift.WaitCapacity {
		t.Errorf("%+v", at)
	}
}

// Shares that load the few instances with a sidecar too much are refused, by pair and for all
// callers together, unless they are forced; a shift by steps says where it will wait.
func TestSharesOfACalleeTooSmallAreRefused(t *testing.T) {
	c := newConvoy(t, 3, "web", "app")
	shift := func(body string) (int, string) {
		w := httptest.NewRecorder()
		c.s.shift(w, httptest.NewRequest(http.MethodPost, "/v1/crossfade/shift", strings.NewReader(body)))
		return w.Code, w.Body.String()
	}
	const web, all = `"pairs":[{"source":"web","destination":"catalog"}],`, `"service":"catalog",`
	const small = `service "catalog": 3 of 12 instances take way mtls: each would get `
	for _, tc := range []struct {
		what, body string
		status     int
		text       string
	}{
		{"too much", web + `"via":{"mtls":25}`, 409, "shift: " + small + "1.75 times the mean load, at most 1.5: move less"},
		{"as a try", web + `"via":{"mtls":25},"dry_run":true`, 409, small},
		{"of all callers", all + `"via":{"mtls":17}`, 409, small + "1.51"},
		{"as much as they bear", all + `"via":{"mtls":16}`, 200, ""},
		{"more", web + `"via":{"mtls":17}`, 409, small},
		{"forced", web + `"via":{"mtls":60},"force":true`, 200, ""},
		{"less, and still too much", web + `"via":{"mtls":50}`, 200, ""},
		{"back", web + `"via":{"direct":100}`, 200, ""},
		{"step by step", web + `"to":"mtls","plan":{"steps":[5,10,30]}`, 200, `the shift will wait before step 30%: service \"catalog\": 3 of 12`},
	} {
		if status, text := shift("{" + tc.body + "}"); status != tc.status || !strings.Contains(text, tc.text) {
			t.Errorf("%s: %d %s, want %d %s", tc.what, status, text, tc.status, tc.text)
		}
		c.publish()
	}

	// With traffic, what pairs send counts, and not how many they are.
	c = newConvoy(t, 3, "web", "app")
	for range 15 {
		c.second(nil)
	}
	books := c.s.books(t.Context())
	move := func(n float64) error {
		return c.s.cramped(books, []api.PairChanged{{PairName: api.PairName{Source: "web", Destination: "catalog"}, Before: api.Shares{Direct: 100}, After: api.Shares{Direct: 100 - n, MTLS: n}}}, c.now)
	}
	if err := move(30); err != nil {
		t.Errorf("15%% of all requests: %v", err)
	}
	if err := move(40); err == nil {
		t.Error("20% of all requests are let pass")
	}
}

// What was decided is decided again from the log, also from its JSON, and from the middle.
func TestShiftLogReplays(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 1))
	c := newConvoy(t, 12, "web", "app")
	c.start(func(p *shift.Plan) {
		p.Steps, p.Dwell = []shift.Share{shift.Percent(10), shift.Percent(50), shift.Percent(100)}, 30*time.Second
	})
	for range 2 * maxStepLog {
		c.second(random)
		if c.at("app").Status == shift.Done {
			c.worse["web"] = 0.5
		}
	}
	if c.at("web").Breach == nil {
		t.Errorf("%+v", c.at("web"))
	}
	var got stepLog
	if err := json.Unmarshal([]byte(asJSON(t, c.s.steps.recorded())), &got); err != nil || len(got.Steps) < maxStepLog || len(got.Steps) != len(got.Actions) || len(got.Steps) > maxStepLog*5/4 {
		t.Fatalf("%d steps, %v", len(got.Steps), err)
	}
	state, actions := shift.Replay(got.Start, got.Steps)
	if !reflect.DeepEqual(asJSON(t, actions), asJSON(t, got.Actions)) {
		t.Error("a replay decides otherwise")
	}
	if asJSON(t, state) != asJSON(t, c.s.steps.state) {
		t.Errorf("a replay ends otherwise:\n%s\n%s", asJSON(t, state), asJSON(t, c.s.steps.state))
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A revert ends shifts that have not moved anything as well, though there is nothing to
// write, and waits for no stepper.
func TestRevertEndsWhatWaits(t *testing.T) {
	c := newConvoy(t, 12, "web", "app", "job")
	c.start(func(p *shift.Plan) { p.Windows = []shift.Window{open(t, "Sun 03:00-04:00")} })
	c.second(nil)
	revert := func(name string) {
		t.Helper()
		w := httptest.NewRecorder()
		c.s.revert(w, httptest.NewRequest(http.MethodPost, "/v1/crossfade/revert", strings.NewReader(fmt.Sprintf(`{"pairs": [{"source": %q, "destination": "catalog"}], "force": true}`, name))))
		if w.Code != http.StatusOK {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		c.publish()
	}
	c.set("app", config.Shares{Direct: 70, MTLS: 30}) // by hand, before its shift begins
	c.s.steps.turn <- struct{}{}                      // as if it hung
	revert("web")
	revert("app")
	<-c.s.steps.turn
	for range 5 {
		c.second(nil)
	}
	if a, b, o := c.at("web"), c.at("app"), c.at("job"); a.Status != shift.Reverted || b.Status != shift.Reverted || o.Status != shift.Queued {
		t.Errorf("%s, %s, %s", a.Status, b.Status, o.Status)
	}
	if got := c.of("app").Shares; got != (config.Shares{Direct: 100}) {
		t.Errorf("%+v", got)
	}
}

// What is watched is watched by the entry as it is: its limits, its ways, or not at all.
func TestWatchedByTheEntryInForce(t *testing.T) {
	c := newConvoy(t, 12, "web")
	half := config.Shares{Direct: 50, MTLS: 50}
	pause := func(e *config.TrafficShift) { e.Guard = &config.ShiftGuard{OnBreach: config.OnBreachPause} }
	off := func(e *config.TrafficShift) { e.Guard = &config.ShiftGuard{Off: true} }
	c.set("web", half)
	for range 20 {
		c.second(nil)
	}
	c.set("web", half, off)
	c.worse["web"] = 0.5
	for range 60 {
		c.second(nil)
	}
	if got := c.of("web").Shares; got != half {
		t.Fatalf("turned off: %+v", got)
	}
	c.set("web", half, pause)
	for range 20 {
		c.second(nil)
	}
	if at := c.at("web"); at.Status != shift.Paused || at.Breach == nil || c.of("web").Shares != half {
		t.Fatalf("to pause: %+v", at)
	}
	c.set("web", half, func(e *config.TrafficShift) { e.Guard, e.Legacy = nil, &config.LegacyWay{Address: "127.0.0.1:1"} })
	c.set("web", config.Shares{Legacy: 50, MTLS: 50})
	for range 20 {
		c.second(nil)
	}
	if got := c.of("web").Shares; got != (config.Shares{Legacy: 100}) {
		t.Errorf("a new old way: %+v, %+v", got, c.at("web"))
	}
}

// A caller past its sidecar is in the ledger, where it is known who it is.
func TestLedgerListsCallersPastTheirSidecar(t *testing.T) {
	c := newConvoy(t, 12, "web")
	last := time.Now().Add(-time.Minute).UTC().Truncate(time.Second)
	c.s.mesh.book.Put(telemetry.Key{Node: "n-catalog-0", Sidecar: "catalog-0-sidecar-proxy", Service: "catalog"}, telemetry.Report{Session: 1, Seq: 1, Plaintext: []telemetry.Plaintext{
		{Address: "10.0.5.77", Count: 7, Last: last},   // stray
		{Address: "10.0.3.0", Count: 7, Last: last},    // web, which declares it
		{Address: "10.0.7.3", Count: 7, Last: last},    // the callee
		{Address: "192.0.2.1", Count: 100, Last: last}, // nobody knows
	}}, time.Now())
	w := httptest.NewRecorder()
	c.s.pairs(w, httptest.NewRequest(http.MethodGet, "/v1/crossfade/pairs", nil))
	var rows []api.Pair
	if err := json.Unmarshal(w.Body.Bytes(), &rows); err != nil || len(rows) != 2 {
		t.Fatalf("%v, %s", err, w.Body)
	}
	got := rows[0]
	if got.PairName != (api.PairName{Source: "stray", Destination: "catalog"}) || got.Declared || got.Stage != "outside" || got.Shares != (api.Shares{}) || got.LastPlaintext.IsZero() {
		t.Errorf("%+v", got)
	}
	if want := []string{"not declared: stray does not name catalog as an upstream", "stray is not on its sidecar"}; !reflect.DeepEqual(got.Blockers, want) {
		t.Errorf("%q", got.Blockers)
	}
	if rows[1].LastPlaintext.IsZero() || rows[1].Stage == "outside" {
		t.Errorf("%+v", rows[1])
	}
}
