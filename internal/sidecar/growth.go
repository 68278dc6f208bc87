package sidecar

import (
	"fmt"
	"slices"
	"time"
)

// Watching Envoy's size, decided without a clock: [growth.step] takes the time and a
// sample, and gives the alarms that hold.

const (
	// growthShare and growthParts say what steady growth is: a window in so many parts,
	// of which the last lies this much above the first, and all but one above the one
	// before. Two neighbouring differences make up no more than growthJump of the
	// whole: a step, as from a new configuration, is no growth.
	growthShare = 1.20
	growthParts = 6
	growthJump  = 0.67
	// growthPoints is how many points of a window are kept.
	growthPoints = 90
	// Below these differences growth is noise.
	leastMemoryGrowth = 16 << 20
	leastFilesGrowth  = 100
	// An alarm about a limit is raised at raiseAt percent of it and ends below endAt.
	raiseAt, endAt = 80, 70
)

// growthWindows are for what grows fast and what grows slowly.
func growthWindows() []time.Duration { return []time.Duration{30 * time.Minute, 12 * time.Hour} }

// sample is one look at a running Envoy. Shares are in percent.
type sample struct {
	memory int64 // anonymous: without the pages of its binary, which it shares
	files  int   // open descriptors
	limit  int   // of files; 0: unknown
	heap   int   // share of the heap limit, as Envoy sees it; 0 without one
	conns  int   // share of the connections it may have
}

// Alarm is something that an operator should know before it becomes an outage.
type Alarm struct {
	Since time.Time `json:"since"`
	Name  string    `json:"name"` // memory-growth, files-growth, heap-limit, connection-limit, files-limit
	Text  string    `json:"text"`
}

// growth is what is remembered of one Envoy. The zero value is a new one.
type growth struct {
	memory, files []trend // by window
	alarms        []Alarm // that hold, by name
}

// trend is the points of one window, oldest first.
type trend struct {
	points []point
}

type point struct {
	at    time.Time
	value float64
}

// step takes a sample in. It returns the new state, whose alarms hold, and which of them
// were not there before. It changes nothing of g.
func (g growth) step(now time.Time, s sample) (growth, []Alarm) {
	next := growth{memory: follow(g.memory, now, float64(s.memory)), files: follow(g.files, now, float64(s.files))}
	var raised []Alarm
	hold := func(name, text string) {
		i := slices.IndexFunc(g.alarms, func(a Alarm) bool { return a.Name == name })
		a := Alarm{Since: now, Name: name, Text: text}
		if i >= 0 {
			a = g.alarms[i] // as it was first said
		} else {
			raised = append(raised, a)
		}
		next.alarms = append(next.alarms, a)
	}
	if from, to, in, yes := grows(next.memory, leastMemoryGrowth); yes {
		hold("memory-growth", fmt.Sprintf("memory grew steadily from %.0f to %.0f MiB in %s", from/(1<<20), to/(1<<20), in))
	}
	if from, to, in, yes := grows(next.files, leastFilesGrowth); yes {
		hold("files-growth", fmt.Sprintf("open descriptors grew steadily from %.0f to %.0f in %s", from, to, in))
	}
	files := 0
	if s.limit > 0 {
		files = s.files * 100 / s.limit
	}
	for _, l := range []struct {
		name, what string
		share      int
	}{
		{"heap-limit", "memory in use is at %d %% of the heap limit: give the sidecar more memory, at the limit it refuses requests", s.heap},
		{"connection-limit", "connections are at %d %% of the limit: more than that are refused", s.conns},
		{"files-limit", "open descriptors are at %d %% of what Envoy may have: raise RLIMIT_NOFILE", files},
	} {
		held := slices.ContainsFunc(g.alarms, func(a Alarm) bool { return a.Name == l.name })
		if l.share >= raiseAt || held && l.share >= endAt {
			hold(l.name, fmt.Sprintf(l.what, l.share))
		}
	}
	return next, raised
}

// follow adds a value to the trend of each window, not more often than it can keep.
func follow(trends []trend, now time.Time, value float64) []trend {
	windows := growthWindows()
	out := make([]trend, len(windows))
	for i, window := range windows {
		var points []point
		if i < len(trends) {
			points = trends[i].points
		}
		if n := len(points); n > 0 && now.Sub(points[n-1].at) < window/growthPoints {
			out[i].points = points
			continue
		}
		from := 0
		for from < len(points) && now.Sub(points[from].at) > window {
			from++
		}
		out[i].points = append(slices.Clone(points[from:]), point{now, value})
	}
	return out
}

// grows reports steady growth in any window, of at least the given amount.
func grows(trends []trend, least float64) (from, to float64, in time.Duration, yes bool) {
	for i, window := range growthWindows() {
		points := trends[i].points
		n := len(points)
		if n < growthPoints/2 || points[n-1].at.Sub(points[0].at) < window*9/10 {
			continue
		}
		parts := make([]float64, growthParts)
		for i := range parts {
			parts[i] = mean(points[n*i/growthParts : n*(i+1)/growthParts])
		}
		first, last := parts[0], parts[growthParts-1]
		if last > first*growthShare && last-first >= least && steady(parts, last-first) {
			return first, last, window, true
		}
	}
	return 0, 0, 0, false
}

// steady reports whether parts rise by about the same all along, to a total of rise.
func steady(parts []float64, rise float64) bool {
	falls := 0
	for i := 1; i < len(parts); i++ {
		if parts[i] <= parts[i-1] {
			falls++
		}
		if i > 1 && parts[i]-parts[i-2] > growthJump*rise {
			return false
		}
	}
	return falls <= 1
}

func mean(points []point) float64 {
	sum := 0.0
	for _, p := range points {
		sum += p.value
	}
	return sum / float64(len(points))
}
