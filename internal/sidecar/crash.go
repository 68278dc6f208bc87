package sidecar

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/atomicfile"
	"github.com/crossfade-mesh/crossfade/internal/process"
	"github.com/crossfade-mesh/crossfade/internal/sidecar/relay"
)

const (
	crashFolder = "crashes" // in the state directory
	keptCrashes = 10
)

// Crash is an end of Envoy that nobody asked for, as in status.json and in a file of
// its own.
type Crash struct {
	Time          time.Time     `json:"time"`
	How           string        `json:"how"`                   // "signal: killed", "exit status 1"
	Signal        string        `json:"signal,omitempty"`      // "segmentation fault"; empty when it exited
	ExitCode      int           `json:"exit_code"`             // 128 and the signal's number after one
	Configuration string        `json:"configuration"`         // version of what it was told
	LastChange    *relay.Change `json:"last_change,omitempty"` // of the configuration
	Quarantined   []string      `json:"quarantined,omitempty"` // resources that it is no longer told, as a result
	EnvoyVersion  string        `json:"envoy_version"`
	Uptime        float64       `json:"uptime_seconds"`
	RSS           int64         `json:"rss_bytes,omitempty"`      // when last looked at, up to 10 s before
	PeakRSS       int64         `json:"peak_rss_bytes,omitempty"` // its whole life
	Report        string        `json:"report,omitempty"`         // the file that holds this
	Lines         []string      `json:"lines"`                    // the end of its log
}

// newCrash is a report with what an end itself tells.
func newCrash(end process.State, began, now time.Time, configuration string, lines []string) *Crash {
	c := &Crash{
		Time: now.UTC(), How: end.String(), ExitCode: end.Code, Configuration: configuration,
		Uptime: math.Round(now.Sub(began).Seconds()*1000) / 1000, PeakRSS: end.Peak, Lines: lines,
	}
	if end.Signal != 0 {
		c.Signal = end.Signal.String()
	}
	return c
}

// clean reports an end that Envoy was asked for, by somebody else.
func (c *Crash) clean() bool { return c.ExitCode == 0 }

// writeCrash keeps c as a file, beside the newest before it.
func (d *stateDir) writeCrash(c *Crash) error {
	folder := d.file(crashFolder)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return fmt.Errorf("crash report: %w", err)
	}
	c.Report = filepath.Join(folder, c.Time.UTC().Format("20060102T150405.000000000Z")+".json")
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	if err := atomicfile.Write(c.Report, append(text, '\n')); err != nil {
		c.Report = ""
		return fmt.Errorf("crash report: %w", err)
	}
	reports, err := filepath.Glob(filepath.Join(folder, "*.json"))
	if err != nil {
		return err
	}
	slices.Sort(reports) // by time, as their names are
	for _, old := range reports[:max(0, len(reports)-keptCrashes)] {
		if err := os.Remove(old); err != nil {
			return fmt.Errorf("crash report: %w", err)
		}
	}
	return nil
}

// crashed completes a report, decides with the relay what Envoy is told next, and
// says all of it in one line.
func (s *sidecar) crashed(c *Crash) {
	c.EnvoyVersion = s.envoyVersion
	c.RSS = s.watch.lastRSS()
	if change := s.relay.LastChange(); !change.Time.IsZero() {
		c.LastChange = &change
	}
	if !c.clean() {
		c.Quarantined = s.relay.Crashed(c.How, c.Time)
	}
	if err := s.dir.writeCrash(c); err != nil {
		s.log.Error("crash report cannot be kept", "error", err)
	}
	attrs := []any{
		"how", c.How, "configuration", c.Configuration, "uptime", time.Duration(c.Uptime * float64(time.Second)).Round(time.Millisecond),
		"rss_mib", cmp.Or(c.RSS, c.PeakRSS) >> 20, "envoy", c.EnvoyVersion,
	}
	if c.LastChange != nil {
		attrs = append(attrs, "last_change", c.Time.Sub(c.LastChange.Time).Round(time.Millisecond).String()+" before", "changed", strings.Join(tail(c.LastChange.Resources, 3), ", "))
	}
	if len(c.Quarantined) > 0 {
		attrs = append(attrs, "quarantined", len(c.Quarantined))
	}
	s.log.Error("Envoy ended by itself", append(attrs, "report", c.Report, "last_lines", strings.Join(tail(c.Lines, 5), " | "))...)
}
