package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-mesh/crossfade/bench/lab"
	"github.com/crossfade-mesh/crossfade/internal/fleet"
)

// line is what a scenario says. Times are seconds from the write of a change, or the scenario's
// own beginning, until sidecars had it.
type line struct {
	Bench     string `json:"bench"`
	Scenario  string `json:"scenario"`
	Streams   int    `json:"streams"`
	Instances int    `json:"instances"`
	Services  int    `json:"services"`

	Changes int     `json:"changes,omitempty"`
	First   float64 `json:"first_s"`
	P50     float64 `json:"p50_s"`
	P99     float64 `json:"p99_s"`
	Last    float64 `json:"last_s"`
	// P99Begin and P99End are of the first and the last third of the changes: a queue that grows shows there.
	P99Begin float64 `json:"p99_begin_s,omitempty"`
	P99End   float64 `json:"p99_end_s,omitempty"`

	Seconds   float64 `json:"seconds"`                 // that the scenario took
	CPU       float64 `json:"cp_cpu_s"`                // of the server, all of the scenario
	Each      float64 `json:"cp_cpu_each_s,omitempty"` // of the server, for one change
	ClientCPU float64 `json:"client_cpu_s"`            // of all simulated sidecars and the bench
	RSS       float64 `json:"rss_mib"`                 // of the server, at the end
	Anon      float64 `json:"anon_mib"`                // of that, what is not pages of files
	Peak      float64 `json:"peak_mib"`                // of the server, the most since it started
	Consul    *share  `json:"consul,omitempty"`        // what of it is Consul's, where that is the engine
	Bytes     int64   `json:"bytes"`                   // of responses, at the sidecars
	Responses int64   `json:"responses"`
	Nacks     int64   `json:"nacks"`
	Broken    int64   `json:"broken"`      // connections that ended, or were not taken
	GCPause   float64 `json:"gc_pause_ms"` // the longest stop of the server's collector
	PerSecond float64 `json:"per_second,omitempty"`

	Real     int    `json:"real"`     // real Envoys
	Requests uint64 `json:"requests"` // between them, during the scenario
	Failed   uint64 `json:"failed"`   // of these

	CDF  []float64 `json:"cdf_s,omitempty"` // the 0th, 1st, … 100th percentile
	Load float64   `json:"load"`
}

// share is a real Consul's part. Its times are from the write of a change until it has answered a
// blocking query of the service, as a client of its own sees it: until then no server can know.
type share struct {
	P50 float64 `json:"p50_s,omitempty"`
	P99 float64 `json:"p99_s,omitempty"`
	CPU float64 `json:"cpu_s"`
	RSS float64 `json:"rss_mib"`
}

// meter measures one scenario.
type meter struct {
	w        *world
	began    time.Time
	pid      int
	cpu      time.Duration
	client   time.Duration
	consul   time.Duration
	totals   fleet.Totals
	requests uint64
	failed   uint64
	logAt    int64
}

// meter begins a measurement.
func (w *world) meter() (*meter, error) {
	m := &meter{w: w, began: time.Now(), pid: w.server.PID(), totals: w.fleet.Totals(), client: ownCPU()}
	real := w.real.record.Totals()
	m.requests, m.failed = real.Requests, real.Failed
	var err error
	if st, err := os.Stat(w.server.Log()); err == nil {
		m.logAt = st.Size()
	}
	if w.consul != nil {
		w.consul.took = nil
		if m.consul, err = lab.CPUTime(w.consul.PID()); err != nil {
			return nil, err
		}
	}
	m.cpu, err = lab.CPUTime(m.pid)
	return m, err
}

// anew begins again with another server process.
func (m *meter) anew() { m.pid, m.cpu, m.logAt = m.w.server.PID(), 0, 0 }

func (m *meter) end(l *line) error {
	s := m.w.settings
	l.Bench, l.Streams, l.Instances, l.Services, l.Real = "fleet", s.Streams, s.Instances, s.Services, s.Real/2*2
	cpu, err := lab.CPUTime(m.pid)
	if err != nil {
		return err
	}
	l.CPU, l.ClientCPU = (cpu - m.cpu).Seconds(), (ownCPU() - m.client).Seconds()
	if l.Changes > 0 {
		l.Each = l.CPU / float64(l.Changes)
	}
	l.Seconds = time.Since(m.began).Seconds()
	if l.RSS, l.Anon, l.Peak, err = memory(m.pid); err != nil {
		return err
	}
	if l.Consul, err = m.consulShare(); err != nil {
		return err
	}
	now := m.w.fleet.Totals()
	l.Bytes, l.Responses, l.Nacks, l.Broken = now.Bytes-m.totals.Bytes, now.Responses-m.totals.Responses, now.Nacks-m.totals.Nacks, now.Broken-m.totals.Broken
	if l.GCPause, err = longestPause(m.w.server.Log(), m.logAt); err != nil {
		return err
	}
	real := m.w.real.record.Totals()
	l.Requests, l.Failed = real.Requests-m.requests, real.Failed-m.failed
	l.Load = lab.Load()
	return nil
}

// ownCPU is what this process has run for.
func ownCPU() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// memory is a process's resident size, what of that is not pages of files, and the most that it was, in MiB.
func memory(pid int) (now, anon, most float64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, 0, err
	}
	for l := range strings.Lines(string(b)) {
		f := strings.Fields(l)
		if len(f) < 2 {
			continue
		}
		kib, _ := strconv.ParseFloat(f[1], 64)
		switch f[0] {
		case "VmRSS:":
			now = kib / 1024
		case "RssAnon:":
			anon = kib / 1024
		case "VmHWM:":
			most = kib / 1024
		}
	}
	return now, anon, most, nil
}

// longestPause reads the collector's trace from an offset on: "gc 7 @1.2s 3%: 0.02+4.1+0.05 ms clock, …",
// of which the first and the third stop the world. In milliseconds.
func longestPause(file string, from int64) (most float64, err error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return 0, err
	}
	scan := bufio.NewScanner(f)
	for scan.Scan() {
		if !bytes.HasPrefix(scan.Bytes(), []byte("gc ")) {
			continue
		}
		_, times, _ := strings.Cut(scan.Text(), "%: ")
		times, _, ok := strings.Cut(times, " ms clock")
		parts := strings.Split(times, "+")
		if !ok || len(parts) != 3 {
			continue
		}
		for _, text := range []string{parts[0], parts[2]} {
			if ms, err := strconv.ParseFloat(text, 64); err == nil {
				most = max(most, ms)
			}
		}
	}
	return most, scan.Err()
}

// spread fills in the quantiles.
func (l *line) spread(times []time.Duration) {
	if len(times) == 0 {
		return
	}
	times = slices.Sorted(slices.Values(times))
	l.First, l.P50, l.P99, l.Last = times[0].Seconds(), quantile(times, 0.5), quantile(times, 0.99), times[len(times)-1].Seconds()
	l.CDF = make([]float64, 101)
	for i := range l.CDF {
		l.CDF[i] = math.Round(quantile(times, float64(i)/100)*1e4) / 1e4
	}
}

// quantile is of sorted times, in seconds.
func quantile(sorted []time.Duration, q float64) float64 {
	return sorted[int(q*float64(len(sorted)-1))].Seconds()
}
