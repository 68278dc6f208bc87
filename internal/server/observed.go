package server

import (
	"math"
	"net/http"
	"slices"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/shift"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

const (
	// maxStepLog is how many steps are kept to be looked at, some ten minutes.
	maxStepLog = 600
	// maxLogWeight bounds the pairs in them.
	maxLogWeight = 20_000
	// attemptsAtLeast is how many one request may make on a way: the first and the retries that
	// every request has.
	attemptsAtLeast = 3
)

// rates are attempts a second as of late, of pairs and of all that call a service by each way.
type rates struct {
	pairs   map[shift.Pair]float64
	callees map[string]map[shift.Way]float64
}

func ratesOf(list []telemetry.Rate) rates {
	out := rates{map[shift.Pair]float64{}, map[string]map[shift.Way]float64{}}
	for _, r := range list { // sorted, and so are the ways: a log of steps is the same byte for byte
		of := out.callees[r.Pair.Destination]
		if of == nil {
			of = map[shift.Way]float64{}
			out.callees[r.Pair.Destination] = of
		}
		for _, way := range shift.Ways() {
			out.pairs[r.Pair] = rounded(out.pairs[r.Pair] + r.Ways[way])
			of[way] = rounded(of[way] + r.Ways[way])
		}
	}
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

// remember keeps a step, and the state before the oldest that is kept. The caller
// has the turn.
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
	seen := p.seen.Load()
	out := stepLog{Start: seen.start, Steps: seen.steps}
	_, out.Actions = shift.Replay(out.Start, out.Steps)
	return out
}

// shiftLog shows the log.
func (s *Server) shiftLog(w http.ResponseWriter, _ *http.Request) {
	s.answer(w, s.steps.recorded())
}
