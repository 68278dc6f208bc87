package sidecar

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestGrowth(t *testing.T) {
	const mib = 1 << 20
	flat := sample{memory: 60 * mib, files: 200, limit: 10000}
	with := func(change func(*sample)) sample {
		s := flat
		change(&s)
		return s
	}
	for name, tt := range map[string]struct {
		hours float64
		at    func(hour float64) sample
		want  string // alarms raised, in order
		left  string // that hold at the end
	}{
		"flat":  {24, func(float64) sample { return flat }, "", ""},
		"noise": {24, func(h float64) sample { return with(func(s *sample) { s.memory += int64(20 * mib * math.Sin(40*h)) }) }, "", ""},
		"a step, as a new configuration makes": {24, func(h float64) sample {
			return with(func(s *sample) {
				if h > 5 {
					s.memory *= 2
				}
			})
		}, "", ""},
		"leaks 100 MiB an hour": {1, func(h float64) sample { return with(func(s *sample) { s.memory += int64(100 * mib * h) }) }, "memory-growth", "memory-growth"},
		"leaks 3 MiB an hour":   {24, func(h float64) sample { return with(func(s *sample) { s.memory += int64(3 * mib * h) }) }, "memory-growth", "memory-growth"},
		"too little to matter":  {1, func(h float64) sample { return with(func(s *sample) { s.memory = mib + int64(10*mib*h) }) }, "", ""},
		"leaks descriptors":     {1, func(h float64) sample { return with(func(s *sample) { s.files += int(600 * h) }) }, "files-growth", "files-growth"},
		"grew, and stays": {30, func(h float64) sample {
			return with(func(s *sample) { s.memory += int64(100 * mib * min(h, 2)) })
		}, "memory-growth", ""},
		"near the heap limit, and back": {1, func(h float64) sample {
			return with(func(s *sample) {
				switch {
				case h < 0.2:
					s.heap = 79
				case h < 0.4:
					s.heap = 85
				case h < 0.6:
					s.heap = 75 // not back yet
				case h < 0.8:
					s.heap = 60
				}
			})
		}, "heap-limit", ""},
		"all limits": {0.1, func(float64) sample {
			return with(func(s *sample) { s.heap, s.conns, s.files = 99, 100, 8000 })
		}, "heap-limit connection-limit files-limit", "heap-limit connection-limit files-limit"},
		"limit of files unknown": {0.1, func(float64) sample { return with(func(s *sample) { s.limit = 0 }) }, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Unix(1_800_000_000, 0)
			var g growth
			var raised []string
			for at := time.Duration(0); at.Hours() <= tt.hours; at += 10 * time.Second {
				var news []Alarm
				g, news = g.step(start.Add(at), tt.at(at.Hours()))
				for _, a := range news {
					raised = append(raised, a.Name)
					if a.Since != start.Add(at) || a.Text == "" {
						t.Errorf("alarm %+v", a)
					}
				}
			}
			var left []string
			for _, a := range g.alarms {
				left = append(left, a.Name)
			}
			if got := strings.Join(raised, " "); got != tt.want {
				t.Errorf("raised %q, want %q", got, tt.want)
			}
			if got := strings.Join(left, " "); got != tt.left {
				t.Errorf("left %q, want %q", got, tt.left)
			}
			for i := range growthWindows() {
				if n := len(g.memory[i].points); n > growthPoints+1 {
					t.Errorf("%d points are kept", n)
				}
			}
		})
	}
}

// A step changes nothing of the state that it began with.
func TestGrowthStepIsPure(t *testing.T) {
	now := time.Unix(0, 0)
	var g growth
	for i := range 200 {
		g, _ = g.step(now.Add(time.Duration(i)*time.Minute), sample{memory: int64(i) << 24})
	}
	later := now.Add(300 * time.Minute)
	one, _ := g.step(later, sample{memory: 1})
	two, _ := g.step(later, sample{memory: 2})
	if a, b := one.memory[0].points, two.memory[0].points; a[len(a)-1].value != 1 || b[len(b)-1].value != 2 {
		t.Errorf("one step changed the other: %v, %v", a[len(a)-1], b[len(b)-1])
	}
}
