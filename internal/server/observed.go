package server

import (
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/shift"
)

const (
	// maxStepLog is how many steps are kept to be looked at, some ten minutes.
	maxStepLog = 600
	// maxLogWeight bounds the pairs in them.
	maxLogWeight = 20_000
	// attemptsAtLeast is how many one request may make on a way: the first and the retries that
	// every request has.
	attemptsAtLeast = 3
	// rateOver is about how long a rate looks back. Sidecars report each second, and not in step
	// with whoever looks: a second without a report says nothing.
	rateOver = 10 * time.Second
)

// window is what a pair did since the last look.
type window struct {
	ways    []shift.WayTelemetry
	failing []shift.FailedRequest
}

// rates are attempts a second of pairs by way, as of late.
type rates map[shift.Pair]map[shift.Way]rate

type rate struct {
	perSecond float64
	at        time.Time
}

// take counts what came since it was last called.
func (r rates) take(now time.Time, windows map[shift.Pair]int, counted []window) {
	for pair, i := range windows {
		if r[pair] == nil {
			r[pair] = map[shift.Way]rate{}
		}
		for _, t := range counted[i].ways {
			if _, known := r[pair][t.Way]; !known {
				r[pair][t.Way] = rate{at: now.Add(-rateOver)}
			}
		}
	}
	for pair, ways := range r {
		for way, was := range ways {
			n := uint64(0)
			if i, ok := windows[pair]; ok {
				for _, t := range counted[i].ways {
					if t.Way == way {
						n += t.Attempts
					}
				}
			}
			over := now.Sub(was.at).Seconds()
			if over <= 0 {
				over = stepEvery.Seconds()
			}
			old := math.Exp(-over / rateOver.Seconds())
			was = rate{was.perSecond*old + float64(n)/over*(1-old), now}
			if was.perSecond < 0.001 && n == 0 {
				delete(ways, way)
				continue
			}
			ways[way] = was
		}
		if len(ways) == 0 {
			delete(r, pair)
		}
	}
}

// of is a pair's rate, by all ways.
func (r rates) of(pair shift.Pair) (sum float64) {
	for _, way := range shift.Ways() {
		sum += r[pair][way].perSecond
	}
	return rounded(sum)
}

// byCallee are the rates of all pairs of a callee.
func (r rates) byCallee() map[string]map[shift.Way]float64 {
	out := map[string]map[shift.Way]float64{}
	for _, pair := range sortedPairs(r) {
		of := out[pair.Destination]
		if of == nil {
			of = map[shift.Way]float64{}
			out[pair.Destination] = of
		}
		for way, one := range r[pair] {
			of[way] += rounded(one.perSecond)
		}
	}
	return out
}

func sortedPairs(r rates) []shift.Pair {
	out := make([]shift.Pair, 0, len(r))
	for pair := range r {
		out = append(out, pair)
	}
	slices.SortFunc(out, shift.Pair.Compare)
	return out
}

func rounded(v float64) float64 { return math.Round(v*1000) / 1000 }

// attemptsOf is the most that one request to a service makes on a way, by its routes.
func attemptsOf(entries *config.Set, service string) int {
	out := attemptsAtLeast
	router := entries.Router(service)
	if router == nil {
		return out
	}
	for _, r := range router.Routes {
		if r.Destination != nil {
			out = max(out, int(r.Destination.NumRetries)+1)
		}
	}
	return out
}

// remember keeps a step, and the state before the oldest that is kept. The caller holds mu.
func (p *stepper) remember(e shift.LogEntry) {
	if len(p.steps) == 0 {
		p.start = p.state
	}
	p.steps = append(p.steps, e)
	p.heavy += weight(e)
	if len(p.steps) < maxStepLog*5/4 && p.heavy < maxLogWeight*5/4 { // not each time: it goes through what it drops
		return
	}
	n := 0
	for ; len(p.steps)-n > maxStepLog || p.heavy > maxLogWeight && n < len(p.steps)-1; n++ {
		p.heavy -= weight(p.steps[n])
	}
	p.start, _ = shift.Replay(p.start, p.steps[:n])
	p.steps = slices.Clone(p.steps[n:])
}

func weight(e shift.LogEntry) int { return 1 + len(e.Observed.Pairs) }

// stepLog is what was decided of late, and from what: [shift.Replay] decides the same.
type stepLog struct {
	Start   shift.State      `json:"start"` // before the first step
	Steps   []shift.LogEntry `json:"steps"`
	Actions [][]shift.Action `json:"actions"` // of each
}

// recorded is the log, for a replay.
func (p *stepper) recorded() stepLog {
	p.mu.Lock()
	out := stepLog{Start: p.start, Steps: slices.Clone(p.steps)}
	p.mu.Unlock()
	_, out.Actions = shift.Replay(out.Start, out.Steps)
	return out
}

// shiftLog shows the log.
func (s *Server) shiftLog(w http.ResponseWriter, _ *http.Request) {
	s.answer(w, s.steps.recorded())
}
