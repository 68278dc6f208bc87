package check

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// rig is a runner whose probes answer what the test says, with a log of what was reported when.
type rig struct {
	*Runner
	start time.Time

	mu      sync.Mutex
	lines   []string
	answers []Result // taken in turn; the last one stays
	probes  int
	aliased Result
}

func newRig(t *testing.T, o Options, answers ...Result) *rig {
	t.Helper()
	g := &rig{start: time.Now(), answers: answers}
	o.Report = func(node, id string, r Result) { g.log("%s/%s %s %q", node, id, r.Status, r.Output) }
	o.Deregister = func(node, service string) { g.log("deregister %s/%s", node, service) }
	o.Alias = func(node, service string) (catalog.Status, string) {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.aliased.Status, node + "/" + service + " " + g.aliased.Output
	}
	g.Runner = New(o)
	g.probe = func(config.CheckDefinition) (probeFunc, error) { return g.answer, nil }
	t.Cleanup(g.Close)
	return g
}

func (g *rig) answer(context.Context) Result {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.probes++
	r := g.answers[0]
	if len(g.answers) > 1 {
		g.answers = g.answers[1:]
	}
	return r
}

func (g *rig) log(format string, args ...any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lines = append(g.lines, fmt.Sprintf(format, args...))
}

// after lets d pass and returns what was logged since the last call.
func (g *rig) after(d time.Duration) []string {
	<-time.After(d)
	synctest.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	lines := g.lines
	g.lines = nil
	return lines
}

func (g *rig) set(t *testing.T, def config.CheckDefinition) {
	t.Helper()
	if err := g.Set("n1", "web-1", def); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, got []string, lines ...string) {
	t.Helper()
	if !slices.Equal(got, lines) {
		t.Errorf("reported %q, want %q", got, lines)
	}
}

const second = config.Duration(time.Second)

func TestThresholds(t *testing.T) {
	ok, bad, warn := Result{catalog.Passing, "ok"}, Result{catalog.Critical, "bad"}, Result{catalog.Warning, "busy"}
	for _, tt := range []struct {
		name    string
		def     config.CheckDefinition
		answers []Result
		want    []string
	}{
		{"none", config.CheckDefinition{}, []Result{bad, ok, warn, bad}, []string{"critical bad", "passing ok", "warning busy", "critical bad"}},
		{"success before passing", config.CheckDefinition{SuccessBeforePassing: 3}, []Result{ok, ok, bad, ok, ok, ok}, []string{"", "", "critical bad", "", "", "passing ok"}},
		{"a warning counts as success", config.CheckDefinition{SuccessBeforePassing: 2}, []Result{warn, ok}, []string{"", "passing ok"}},
		{"failures before critical", config.CheckDefinition{FailuresBeforeCritical: 2}, []Result{ok, bad, ok, bad, bad}, []string{"passing ok", "", "", "", "critical bad"}},
		{"never succeeded", config.CheckDefinition{FailuresBeforeCritical: 3}, []Result{bad}, []string{"critical bad"}},
		{"failures before warning", config.CheckDefinition{FailuresBeforeWarning: 2, FailuresBeforeCritical: 3}, []Result{ok, bad, bad, bad}, []string{"passing ok", "", "warning bad", "critical bad"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newRig(t, Options{}, tt.answers...)
				def := tt.def
				def.ID, def.Interval = "c", config.Duration(10*time.Second)
				g.set(t, def)
				g.after(0)
				for i, w := range tt.want {
					d := 10 * time.Second
					if i == 0 {
						d = maxStagger
					}
					var lines []string
					if w != "" {
						status, output, _ := strings.Cut(w, " ")
						lines = []string{fmt.Sprintf("n1/c %s %q", status, output)}
					}
					want(t, g.after(d), lines...)
				}
			})
		})
	}
}

func TestOutputAloneIsReportedRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var answers []Result
		for i := range 100 {
			answers = append(answers, Result{catalog.Passing, fmt.Sprint(i)})
		}
		g := newRig(t, Options{OutputEvery: 30 * time.Second}, answers...)
		g.set(t, config.CheckDefinition{ID: "c", Interval: second})
		if got := g.after(65 * time.Second); len(got) != 3 {
			t.Errorf("%d reports in 65 s, want one at first and one each 30 s: %q", len(got), got)
		}
	})
}

func TestSetAndRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, Options{}, Result{catalog.Passing, "ok"})
		def := config.CheckDefinition{ID: "c", Interval: second, Header: map[string][]string{"A": {"b"}}}
		g.set(t, def)
		want(t, g.after(90*time.Second), `n1/c passing "ok"`)

		g.mu.Lock()
		probes := g.probes
		g.mu.Unlock()
		same := def
		same.Header = map[string][]string{"A": {"b"}}
		g.set(t, same)
		want(t, g.after(0), `n1/c passing "ok"`)
		g.mu.Lock()
		if g.probes != probes {
			t.Errorf("an identical definition probed again")
		}
		g.mu.Unlock()

		def.Interval = 2 * second
		g.set(t, def)
		want(t, g.after(time.Second), `n1/c passing "ok"`)

		g.Remove("n1", "c")
		g.Remove("n1", "c")
		g.Remove("n1", "other")
		g.after(0)
		g.mu.Lock()
		probes = g.probes
		g.mu.Unlock()
		want(t, g.after(time.Minute))
		if g.probes != probes {
			t.Errorf("probed after Remove")
		}
		if len(g.tasks) != 0 {
			t.Errorf("%d tasks kept after Remove", len(g.tasks))
		}
		g.set(t, def)
		want(t, g.after(time.Second), `n1/c passing "ok"`)
	})
}

func TestTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, Options{OutputEvery: 20 * time.Second})
		pulse := func(s catalog.Status, out string) {
			t.Helper()
			if err := g.Pulse("n1", "ttl", s, out); err != nil {
				t.Fatal(err)
			}
		}
		g.set(t, config.CheckDefinition{ID: "ttl", TTL: 10 * second})
		want(t, g.after(9*time.Second))
		want(t, g.after(time.Second), `n1/ttl critical "TTL expired"`)

		pulse(catalog.Passing, "one")
		want(t, g.after(0), `n1/ttl passing "one"`)
		for _, out := range []string{"one", "two", "three"} {
			want(t, g.after(6*time.Second))
			pulse(catalog.Passing, out)
		}
		want(t, g.after(2*time.Second), `n1/ttl passing "three"`)
		want(t, g.after(7*time.Second))
		want(t, g.after(time.Second), `n1/ttl critical "TTL expired (last output before timeout follows): three"`)
		pulse(catalog.Warning, strings.Repeat("é", MaxOutput))
		if got := g.after(0); len(got) != 1 || len(got[0]) > MaxOutput+50 {
			t.Errorf("a long output gave %d reports, first of %d bytes", len(got), len(got[0]))
		}
		g.Remove("n1", "ttl")
		want(t, g.after(time.Minute))
	})
}

func TestPulseRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, Options{}, Result{catalog.Passing, ""})
		g.set(t, config.CheckDefinition{ID: "http", Interval: second})
		g.set(t, config.CheckDefinition{ID: "gone", TTL: second})
		g.Remove("n1", "gone")
		for _, tt := range []struct {
			id      string
			status  catalog.Status
			unknown bool
		}{{"none", catalog.Passing, true}, {"gone", catalog.Passing, true}, {"http", catalog.Passing, false}, {"http", "fine", false}} {
			if err := g.Pulse("n1", tt.id, tt.status, ""); err == nil || errors.Is(err, ErrUnknown) != tt.unknown {
				t.Errorf("Pulse(%s, %s) = %v, want an error, unknown: %v", tt.id, tt.status, err, tt.unknown)
			}
		}
	})
}

func TestAlias(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, Options{})
		become := func(r Result) {
			g.mu.Lock()
			g.aliased = r
			g.mu.Unlock()
		}
		become(Result{catalog.Passing, "fine"})
		g.set(t, config.CheckDefinition{ID: "alias", AliasService: "db-1"})
		g.set(t, config.CheckDefinition{ID: "far", AliasService: "db-1", AliasNode: "n2"})
		got := g.after(0)
		slices.Sort(got)
		want(t, got, `n1/alias passing "n1/db-1 fine"`, `n1/far passing "n2/db-1 fine"`)

		become(Result{catalog.Critical, "down"})
		g.Notify("n1", "other")
		g.Notify("n1", "")
		want(t, g.after(0))
		g.Notify("n1", "db-1")
		want(t, g.after(0), `n1/alias critical "n1/db-1 down"`)
		want(t, g.after(aliasInterval), `n1/far critical "n2/db-1 down"`)
	})
}

func TestDeregisterCritical(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, Options{})
		g.set(t, config.CheckDefinition{ID: "c", TTL: 3600 * second, DeregisterCriticalServiceAfter: 60 * second})
		want(t, g.after(59*time.Second))
		if err := g.Pulse("n1", "c", catalog.Passing, ""); err != nil {
			t.Fatal(err)
		}
		want(t, g.after(2*time.Minute), `n1/c passing ""`)
		for range 2 {
			if err := g.Pulse("n1", "c", catalog.Critical, ""); err != nil {
				t.Fatal(err)
			}
			g.after(40 * time.Second)
		}
		want(t, g.after(39*time.Second))
		want(t, g.after(time.Second), "deregister n1/web-1")
		want(t, g.after(time.Minute), "deregister n1/web-1")
		g.Remove("n1", "c")
		want(t, g.after(time.Hour))
	})
}

// TestOwnerMayCallBack holds that Report and Deregister can change checks, their own included.
func TestOwnerMayCallBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r *Runner
		var seen []string
		r = New(Options{
			Report:     func(node, id string, res Result) { seen = append(seen, string(res.Status)); r.Notify(node, "web-1") },
			Deregister: func(node, _ string) { seen = append(seen, "deregister"); r.Remove(node, "c") },
		})
		defer r.Close()
		if err := r.Set("n1", "web-1", config.CheckDefinition{ID: "c", TTL: second, DeregisterCriticalServiceAfter: second * 5}); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Hour)
		synctest.Wait()
		want(t, seen, "critical", "deregister")
	})
}

// TestReportsOfOneCheckDoNotOverlap: what replaces a check waits for a report of the earlier one.
func TestReportsOfOneCheckDoNotOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var seen []string
		r := New(Options{Report: func(_, _ string, r Result) {
			if r.Output == "slow" {
				<-time.After(time.Minute)
			}
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, r.Output)
		}})
		defer r.Close()
		for i, output := range []string{"slow", "quick", "last"} {
			r.probe = func(config.CheckDefinition) (probeFunc, error) {
				return func(context.Context) Result { return Result{catalog.Passing, output} }, nil
			}
			if i == 2 {
				r.Remove("n1", "c")
			}
			if err := r.Set("n1", "web-1", config.CheckDefinition{ID: "c", Interval: config.Duration(i+1) * second}); err != nil {
				t.Fatal(err)
			}
			<-time.After(2 * time.Second)
		}
		<-time.After(time.Hour)
		synctest.Wait()
		want(t, seen, "slow", "last")
	})
}

func TestProbesAtOnceAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, Options{MaxProbes: 3})
		var mu sync.Mutex
		var now, most, total int
		g.probe = func(config.CheckDefinition) (probeFunc, error) {
			return func(ctx context.Context) Result {
				mu.Lock()
				now, total = now+1, total+1
				most = max(most, now)
				mu.Unlock()
				<-ctx.Done() // until the timeout
				mu.Lock()
				now--
				mu.Unlock()
				return Result{catalog.Critical, "timeout"}
			}, nil
		}
		for i := range 12 {
			g.set(t, config.CheckDefinition{ID: fmt.Sprint(i), Interval: 3600 * second, Timeout: 2 * second})
		}
		if got := g.after(time.Minute); len(got) != 12 || most != 3 || total != 12 {
			t.Errorf("%d reports of %d probes, %d at once; want 12 of 12, 3 at once", len(got), total, most)
		}
	})
}

func TestSetRefuses(t *testing.T) {
	r := New(Options{})
	for _, tt := range []struct {
		def  config.CheckDefinition
		want string
	}{
		{config.CheckDefinition{TTL: second}, "ID is empty"},
		{config.CheckDefinition{ID: "c"}, "must be set"},
		{config.CheckDefinition{ID: "c", HTTP: "http://127.0.0.1:1/"}, "Interval is missing"},
		{config.CheckDefinition{ID: "c", HTTP: "http://127.0.0.1:x/", Interval: second}, "invalid port"},
		{config.CheckDefinition{ID: "c", HTTP: "http://127.0.0.1/", Method: "A B", Interval: second}, "invalid method"},
		{config.CheckDefinition{ID: "c", TCP: "127.0.0.1", Interval: second}, "missing port"},
		{config.CheckDefinition{ID: "c", GRPC: "/svc", Interval: second}, "want host:port[/service]"},
		{config.CheckDefinition{ID: "c", AliasService: "db"}, "not served here"},
	} {
		if err := r.Set("n1", "web-1", tt.def); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Set(%+v) = %v, want %q", tt.def, err, tt.want)
		}
	}
	r.Close()
	if err := r.Set("n1", "web-1", config.CheckDefinition{ID: "c", TTL: second}); err == nil {
		t.Error("Set after Close is accepted")
	}
}

// A process that was stopped for longer than a TTL has not seen the pulses that
// came meanwhile: it must not take everything for dead when it goes on.
func TestTTLSurvivesASleepOfThisProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, Options{})
		task, err := g.newTask("n1", "web-1", config.CheckDefinition{ID: "ttl", TTL: 10 * second, Status: catalog.Passing})
		if err != nil {
			t.Fatal(err)
		}
		task.due = time.NewTimer(time.Hour)
		defer task.due.Stop()
		task.expiry = time.Now().Add(-time.Minute) // the timer fires a minute late
		task.step()
		want(t, g.after(0))
		if left := time.Until(task.expiry); left != 10*time.Second {
			t.Errorf("the TTL ends in %v, want a whole one", left)
		}
		task.flush, task.reap = time.NewTimer(time.Hour), time.NewTimer(time.Hour)
		defer task.flush.Stop()
		defer task.reap.Stop()
		time.Sleep(10 * time.Second) // virtual
		task.step()
		want(t, g.after(0), `n1/ttl critical "TTL expired"`)
	})
}
