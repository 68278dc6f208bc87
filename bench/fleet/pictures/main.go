// Command pictures draws what bench/fleet has measured.
//
//	go run ./bench/fleet/pictures OUT LINES…
//
// In: files of JSON lines. Out, in the folder OUT: propagation.svg, how many sidecars have a change after how
// long, of the lines with the most streams; streams.svg, the server's memory after idle, and its CPU for a change
// that all see, against the number of streams.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// line is what is drawn of one.
type line struct {
	Scenario  string    `json:"scenario"`
	Instances int       `json:"instances"`
	Streams   int       `json:"streams"`
	RSS       float64   `json:"rss_mib"`
	Each      float64   `json:"cp_cpu_each_s"`
	CDF       []float64 `json:"cdf_s"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "pictures:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("want a folder for the pictures, and files of JSON lines")
	}
	var all []line
	for _, file := range args[1:] {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		scan := bufio.NewScanner(f)
		scan.Buffer(nil, 1<<20)
		for scan.Scan() {
			var l line
			if err := json.Unmarshal(scan.Bytes(), &l); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			all = append(all, l)
		}
		if err := errors.Join(scan.Err(), f.Close()); err != nil {
			return err
		}
	}
	return errors.Join(
		os.WriteFile(filepath.Join(args[0], "propagation.svg"), []byte(propagation(all)), 0o644),
		os.WriteFile(filepath.Join(args[0], "streams.svg"), []byte(streams(all)), 0o644),
	)
}

// propagation is the share of sidecars that have a change, by time.
func propagation(all []line) string {
	most := 0
	for _, l := range all {
		most = max(most, l.Streams)
	}
	c := chart{title: fmt.Sprintf("Sidecars that have a change, of %d streams", most), x: "seconds after the write", y: "% of those concerned", top: 100}
	for _, l := range all {
		if l.Streams != most || l.CDF == nil || !slices.Contains([]string{"endpoint-all", "endpoint-few", "rate-100"}, l.Scenario) {
			continue
		}
		s := series{name: l.Scenario}
		for i, at := range l.CDF {
			s.points = append(s.points, point{at, float64(i)})
		}
		c.series = append(c.series, s)
	}
	return c.svg()
}

// streams is memory at rest and CPU against the number of streams, of the registry that was measured with
// the most of them.
func streams(all []line) string {
	by := map[int]int{}
	instances := 0
	for _, l := range all {
		if l.Scenario == "endpoint-all" {
			if by[l.Instances]++; by[l.Instances] > by[instances] {
				instances = l.Instances
			}
		}
	}
	memory := series{name: "resident memory at rest, MiB"}
	cpu := series{name: "CPU of a change that all see, ms"}
	for _, l := range all {
		switch {
		case l.Instances != instances:
		case l.Scenario == "idle":
			memory.points = append(memory.points, point{float64(l.Streams), l.RSS})
		case l.Scenario == "endpoint-all":
			cpu.points = append(cpu.points, point{float64(l.Streams), l.Each * 1000})
		}
	}
	for _, s := range []series{memory, cpu} {
		slices.SortFunc(s.points, func(a, b point) int { return int(math.Copysign(1, a.x-b.x)) })
	}
	c := chart{title: fmt.Sprintf("The server against the number of streams, with %d instances", instances), x: "streams", y: "MiB, ms", series: []series{memory, cpu}, dots: true}
	return c.svg()
}

type point struct{ x, y float64 }

type series struct {
	name   string
	points []point
}

// chart is lines over two axes that begin at 0.
type chart struct {
	title, x, y string
	top         float64 // of y; 0: what the points need
	dots        bool
	series      []series
}

const width, height, left, right, above, below = 720, 400, 70, 20, 40, 60

func (c chart) svg() string {
	var xMax, yMax float64
	for _, s := range c.series {
		for _, p := range s.points {
			xMax, yMax = max(xMax, p.x), max(yMax, p.y)
		}
	}
	xStep, yStep := step(xMax), step(max(yMax, c.top))
	xMax, yMax = math.Ceil(xMax/xStep)*xStep, math.Ceil(max(yMax, c.top)/yStep)*yStep
	at := func(p point) (float64, float64) {
		return left + p.x/xMax*(width-left-right), height - below - p.y/yMax*(height-above-below)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="%d" y="24" font-size="15">%s</text>`+"\n", left, c.title)
	for x := 0.0; x <= xMax*1.0001; x += xStep {
		px, py := at(point{x, 0})
		fmt.Fprintf(&b, `<path d="M%.1f %.1fV%d" stroke="#ddd"/><text x="%.1f" y="%.1f" text-anchor="middle">%s</text>`+"\n", px, py, above, px, py+18, number(x))
	}
	for y := 0.0; y <= yMax*1.0001; y += yStep {
		px, py := at(point{0, y})
		fmt.Fprintf(&b, `<path d="M%.1f %.1fH%d" stroke="#ddd"/><text x="%.1f" y="%.1f" text-anchor="end">%s</text>`+"\n", px, py, width-right, px-8, py+4, number(y))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", (width+left)/2, height-14, c.x)
	fmt.Fprintf(&b, `<text x="16" y="%d" text-anchor="middle" transform="rotate(-90 16 %d)">%s</text>`+"\n", height/2, height/2, c.y)
	for i, s := range c.series {
		color := []string{"#1f5fa8", "#c0392b", "#2e7d32", "#8e44ad"}[i%4]
		var path []string
		for _, p := range s.points {
			x, y := at(p)
			path = append(path, fmt.Sprintf("%.1f %.1f", x, y))
			if c.dots {
				fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", x, y, color)
			}
		}
		fmt.Fprintf(&b, `<path d="M%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(path, "L"), color)
		// At the lower right, where curves that rise early and lines that rise slowly leave room.
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end" fill="%s">%s</text>`+"\n", width-right-14, height-below-14-16*(len(c.series)-1-i), color, s.name)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// step is a round distance between marks.
func step(most float64) float64 {
	if most <= 0 {
		return 1
	}
	base := math.Pow(10, math.Floor(math.Log10(most)))
	for _, s := range []float64{0.1, 0.2, 0.5, 1} {
		if most/(s*base) <= 10 {
			return s * base
		}
	}
	return 2 * base
}

func number(v float64) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.3f", v), "0"), ".")
}
