package main

import (
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab/load"
)

// sample is one round of one path.
type sample struct {
	requests  uint64
	elapsed   time.Duration
	latencies []time.Duration
	cpu       []time.Duration // of each Envoy, caller's first
	rss       int64           // bytes, both Envoys, at the end
}

func (s sample) cpuPerRequest() float64 {
	var sum time.Duration
	for _, d := range s.cpu {
		sum += d
	}
	return perRequest(sum, s.requests)
}

// perRequest is in microseconds.
func perRequest(d time.Duration, requests uint64) float64 {
	if requests == 0 {
		return 0
	}
	return float64(d) / float64(time.Microsecond) / float64(requests)
}

// line is what is printed for a path and protocol. Every figure is the median over the
// rounds; the ratios are medians of each round's ratio, so that a slow spell of the machine,
// which meets all paths of its round, does not count.
type line struct {
	Bench     string  `json:"bench"`
	Path      string  `json:"path"`
	Protocol  string  `json:"protocol"`
	RPS       float64 `json:"rps"`
	P50       float64 `json:"p50_ms"`
	P99       float64 `json:"p99_ms"`
	CPU       float64 `json:"cpu_us_per_request"` // both Envoys, user and system
	CPUCaller float64 `json:"cpu_us_caller"`
	CPUCallee float64 `json:"cpu_us_callee"`
	RSS       float64 `json:"rss_mib"`
	// Ratio is CPU against the plain pair, RatioLean against the lean pair; absent where either does not exist.
	Ratio       float64    `json:"ratio,omitzero"`
	RatioSpread [2]float64 `json:"ratio_spread,omitzero"` // least and greatest of the rounds
	RatioLean   float64    `json:"ratio_lean,omitzero"`
	CPUSpread   [2]float64 `json:"cpu_spread"`
	// RatioCrossfade is what 5,000 intentions cost against one: CPU of the path intentions against crossfade.
	RatioCrossfade  float64    `json:"ratio_crossfade,omitzero"`
	CrossfadeSpread [2]float64 `json:"ratio_crossfade_spread,omitzero"`
	// At a fixed rate: median and 99th percentile beyond those of direct in the same round.
	AddedP50    float64 `json:"added_p50_ms,omitzero"`
	AddedP99    float64 `json:"added_p99_ms,omitzero"`
	Rate        float64 `json:"rate,omitzero"`
	Requests    uint64  `json:"requests"` // measured, all rounds
	Failed      int     `json:"failed"`   // all rounds, warm-up included
	Rounds      int     `json:"rounds"`
	Seconds     float64 `json:"seconds_per_run"`
	Connections int     `json:"connections"`
	Load        float64 `json:"load"` // average of the machine over the last minute, at the end
}

// bases are samples of the same rounds on the paths to compare with; nil: not compared with.
type bases struct{ plain, lean, crossfade, direct []sample }

// summarize makes the line from a path's samples.
func summarize(own []sample, b bases) line {
	l := line{
		Bench:     "datapath",
		RPS:       medianOf(own, func(s sample) float64 { return float64(s.requests) / s.elapsed.Seconds() }),
		P50:       medianOf(own, func(s sample) float64 { return load.Milliseconds(load.Quantile(s.latencies, 0.50)) }),
		P99:       medianOf(own, func(s sample) float64 { return load.Milliseconds(load.Quantile(s.latencies, 0.99)) }),
		CPU:       medianOf(own, sample.cpuPerRequest),
		CPUCaller: medianOf(own, func(s sample) float64 { return s.cpuOf(0) }),
		CPUCallee: medianOf(own, func(s sample) float64 { return s.cpuOf(1) }),
		RSS:       medianOf(own, func(s sample) float64 { return float64(s.rss) / (1 << 20) }),
		CPUSpread: load.Spread(each(own, sample.cpuPerRequest)),
		Rounds:    len(own),
	}
	for _, s := range own {
		l.Requests += s.requests
	}
	if r := ratios(own, b.plain); len(r) > 0 {
		l.Ratio, l.RatioSpread = load.Round(load.Median(r)), load.Spread(r)
	}
	if r := ratios(own, b.lean); len(r) > 0 {
		l.RatioLean = load.Round(load.Median(r))
	}
	if r := ratios(own, b.crossfade); len(r) > 0 {
		l.RatioCrossfade, l.CrossfadeSpread = load.Round(load.Median(r)), load.Spread(r)
	}
	l.AddedP50 = load.Round(load.Median(added(own, b.direct, 0.50)))
	l.AddedP99 = load.Round(load.Median(added(own, b.direct, 0.99)))
	return l
}

func (s sample) cpuOf(i int) float64 {
	if i >= len(s.cpu) {
		return 0
	}
	return perRequest(s.cpu[i], s.requests)
}

// ratios of CPU per request, round by round.
func ratios(own, base []sample) []float64 {
	var out []float64
	for i := range min(len(own), len(base)) {
		if a, b := own[i].cpuPerRequest(), base[i].cpuPerRequest(); a > 0 && b > 0 {
			out = append(out, a/b)
		}
	}
	return out
}

// added is how much longer a quantile of own is than that of base, round by round, in milliseconds.
func added(own, base []sample, q float64) []float64 {
	var out []float64
	for i := range min(len(own), len(base)) {
		out = append(out, load.Milliseconds(load.Quantile(own[i].latencies, q)-load.Quantile(base[i].latencies, q)))
	}
	return out
}

func each(samples []sample, f func(sample) float64) []float64 {
	out := make([]float64, len(samples))
	for i, s := range samples {
		out[i] = f(s)
	}
	return out
}

func medianOf(samples []sample, f func(sample) float64) float64 {
	return load.Round(load.Median(each(samples, f)))
}
