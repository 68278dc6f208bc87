package demo

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

const (
	millisecond = time.Millisecond
	// A generator that is late by so much has not had the CPU that the demo needs.
	starvedMS = 500.0
)

// Report is what the demo found.
type Report struct {
	Held        bool     `json:"held"` // all of it
	Seconds     float64  `json:"seconds"`
	Envoy       string   `json:"envoy"`
	TrustDomain string   `json:"trust_domain"`
	Sabotage    []string `json:"sabotage,omitempty"`
	// LateMS is the longest that the load generator sent a request after it was due.
	LateMS float64  `json:"generator_late_ms"`
	Pairs  []Pair   `json:"pairs"`
	Proofs []*Proof `json:"proofs"`
}

// Pair is the load from one service to another and what came of it.
type Pair struct {
	From     string `json:"from"`
	To       string `json:"to"`
	Protocol string `json:"protocol"`
	Requests uint64 `json:"requests"`
	// Failed does not count KilledInFlight: requests in flight on an Envoy when it
	// was killed on purpose.
	Failed         uint64 `json:"failed"`
	KilledInFlight uint64 `json:"killed_in_flight"`
	NewConnections uint64 `json:"new_connections"`
	// The rest is of the open-loop load alone.
	PerSecond float64  `json:"requests_per_second"`
	P50       float64  `json:"p50_ms"`
	P99       float64  `json:"p99_ms"`
	Max       float64  `json:"max_ms"`
	Caller    Identity `json:"caller,omitzero"`
	Callee    Identity `json:"callee,omitzero"`
}

// count fills in the pairs from the load, which has ended.
func (r *Report) count(t *traffic) {
	r.Pairs = nil
	for _, p := range t.all() {
		r.LateMS = max(r.LateMS, inMS(p.rec.Late()))
		totals, latency := p.totals(), p.rec.Latency()
		out := Pair{
			From: p.from.service, To: p.to.service, Protocol: p.to.protocol,
			PerSecond: p.rate(t),
			Caller:    p.caller, Callee: p.callee, KilledInFlight: p.inFlight,
		}
		out.Requests, out.Failed, out.NewConnections = totals.Requests, totals.Failed-p.inFlight, totals.NewConnections
		out.P50, out.P99, out.Max = inMS(latency.Quantile(0.5)), inMS(latency.Quantile(0.99)), inMS(latency.Max())
		r.Pairs = append(r.Pairs, out)
	}
}

// write writes the report for a person, or for a machine.
func (r *Report) write(o Options) error {
	if o.JSON {
		e := json.NewEncoder(o.Stdout)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(r)
	}
	return r.print(o.Stdout, palette{on: o.Color})
}

func (r *Report) print(w io.Writer, c palette) error {
	var b strings.Builder
	if len(r.Pairs) > 0 {
		fmt.Fprintf(&b, "\n%s\n\n", c.bold("What went through the mesh"))
		t := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
		fmt.Fprintln(t, "  PAIR\tPROTOCOL\tREQUESTS\tFAILED\tP50\tP99\tPER SECOND\tON NEW CONNECTIONS")
		for _, p := range r.Pairs {
			failed := strconv.FormatUint(p.Failed, 10)
			if p.KilledInFlight > 0 {
				failed += fmt.Sprintf(" (+%d killed in flight)", p.KilledInFlight)
			}
			fmt.Fprintf(t, "  %s → %s\t%s\t%s\t%s\t%.1f ms\t%.1f ms\t%.0f\t%s\n", p.From, p.To, p.Protocol, count(p.Requests), failed, p.P50, p.P99, p.PerSecond, count(p.NewConnections))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	r.printIdentities(&b, c)
	held := 0
	for _, p := range r.Proofs {
		if p.Held {
			held++
		}
	}
	switch {
	case r.Held:
		fmt.Fprintf(&b, "\n%s all %d proofs held, in %.1f s, on Envoy %s\n", c.green("✓"), held, r.Seconds, r.Envoy)
	default:
		fmt.Fprintf(&b, "\n%s %d of the %d proofs tried held, in %.1f s, on Envoy %s:\n", c.red("✗"), held, len(r.Proofs), r.Seconds, r.Envoy)
		for _, p := range r.Proofs {
			if !p.Held {
				fmt.Fprintf(&b, "  %s %s: %s\n", c.red("✗"), p.Name, p.Claim)
			}
		}
		if r.LateMS > starvedMS {
			fmt.Fprintf(&b, "  This machine was short of CPU: the load generator itself was late by up to %.1f s, whatever the mesh did. Try again with less else running.\n", r.LateMS/1000)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *Report) printIdentities(b *strings.Builder, c palette) {
	if r.TrustDomain == "" {
		return
	}
	fmt.Fprintf(b, "\n%s (trust domain %s)\n\n", c.bold("Who was at the ends"), r.TrustDomain)
	for _, p := range r.Pairs {
		if p.Caller.URI == "" {
			continue
		}
		fmt.Fprintf(b, "  %s → %s\n", p.From, p.To)
		fmt.Fprintf(b, "    caller  %-36s serial %s\n", path(p.Caller.URI), p.Caller.Serial)
		fmt.Fprintf(b, "    callee  %-36s serial %s\n", path(p.Callee.URI), p.Callee.Serial)
	}
}

func inMS(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// ms writes a latency, seconds a longer time, count a number with separators.
func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", inMS(d)) }

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

func count[N int | uint64](n N) string {
	s := strconv.FormatUint(uint64(n), 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
