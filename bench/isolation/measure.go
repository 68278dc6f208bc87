package main

import "github.com/crossfade-mesh/crossfade/bench/lab/load"

// line is what is printed for a kind. Figures are medians over the rounds; RatioP99 is
// the median of each round's own ratio.
type line struct {
	Bench    string  `json:"bench"`
	Kind     string  `json:"kind"`
	Base     float64 `json:"base_rps"`  // to each service while all is quiet, always to the neighbours
	Burst    float64 `json:"burst_rps"` // to the third in the burst
	QuietP50 float64 `json:"neighbour_p50_quiet_ms"`
	QuietP99 float64 `json:"neighbour_p99_quiet_ms"`
	BurstP50 float64 `json:"neighbour_p50_burst_ms"`
	BurstP99 float64 `json:"neighbour_p99_burst_ms"`
	// RatioP99 is that in the burst against that while all is quiet.
	RatioP99    float64    `json:"ratio_p99"`
	RatioSpread [2]float64 `json:"ratio_spread"`       // least and greatest of the rounds
	Answered    float64    `json:"burst_answered_rps"` // of the burst
	Requests    int        `json:"requests"`           // of the neighbours, measured, all rounds
	Failed      int        `json:"failed"`             // of the neighbours', warm-up included
	BurstFailed int        `json:"burst_failed"`
	Cgroup      bool       `json:"cgroup"`   // holds each sidecar's Envoy to its cpu
	RealTime    bool       `json:"realtime"` // scheduling of all processes in a request's path, and of the load
	Rounds      int        `json:"rounds"`
	Seconds     float64    `json:"seconds_per_run"`
	Connections int        `json:"connections"`
	Load        float64    `json:"load"` // average of the machine over the last minute, at the end
}

func (l lane) summarize() line {
	var quiet50, quiet99, burst50, burst99, ratios, answered []float64
	out := line{Bench: "isolation", Rounds: len(l.rounds)}
	for _, r := range l.rounds {
		quiet50, burst50 = append(quiet50, r.quiet.quantile(0.50)), append(burst50, r.burst.quantile(0.50))
		q, b := r.quiet.quantile(0.99), r.burst.quantile(0.99)
		quiet99, burst99 = append(quiet99, q), append(burst99, b)
		if q > 0 && b > 0 {
			ratios = append(ratios, b/q)
		}
		answered = append(answered, r.burst.answered...)
		for _, p := range []phase{r.quiet, r.burst} {
			out.Requests += len(p.latencies)
			out.Failed += p.failed
			out.BurstFailed += p.burstFailed
		}
	}
	median := func(v []float64) float64 { return load.Round(load.Median(v)) }
	out.QuietP50, out.QuietP99, out.BurstP50, out.BurstP99 = median(quiet50), median(quiet99), median(burst50), median(burst99)
	out.RatioP99, out.RatioSpread, out.Answered = median(ratios), load.Spread(ratios), median(answered)
	return out
}
