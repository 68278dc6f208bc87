package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Headers on the answer to a write of an entry; a plain Consul agent has neither.
const (
	indexHeader     = "X-Crossfade-Index"
	unchangedHeader = "X-Crossfade-Unchanged"
)

const (
	// askEvery is how long one request waits for sidecars, less than any answer may take.
	askEvery = 20 * time.Second
	// maxNamed bounds the sidecars that one message names, maxSaid the length of what
	// an Envoy said.
	maxNamed = 10
	maxSaid  = 1000
)

// waiting is how a write waits for the sidecars that it changes.
type waiting struct {
	not     bool
	timeout time.Duration
}

func addWaiting(cmd *cobra.Command) *waiting {
	w := &waiting{}
	cmd.Flags().BoolVar(&w.not, "no-wait", false, "return at once, before any sidecar has acknowledged")
	cmd.Flags().DurationVar(&w.timeout, "timeout", 10*time.Second, "how long to wait for sidecars")
	return w
}

// check refuses what cannot be meant, before anything is written.
func (w *waiting) check(cmd *cobra.Command) error {
	if w.timeout < 0 {
		return usageError{fmt.Errorf("--timeout %s: want 0 or more", w.timeout), cmd.CommandPath() + " --help"}
	}
	return nil
}

// taken is a write that a server has taken.
type taken struct {
	key   config.Key
	what  string // "written"
	h     http.Header
	began time.Time
}

// awaited is a change of which sidecars are to acknowledge what it makes different for them.
type awaited struct {
	subject string // as errors name it
	what    string // "written"
	index   string
	began   time.Time
	back    string // the command that goes back; empty for none
	// absent are sidecars that no server tells anything now, and how many there are in all.
	absent      []string
	absentTotal int
}

func (d taken) awaited() awaited {
	return awaited{
		subject: d.key.String(), what: d.what, index: d.h.Get(indexHeader), began: d.began,
		back: fmt.Sprintf("crossfade config rollback %s %s", d.key.Kind, d.key.Name),
	}
}

// applied is what a server says of a change.
type applied struct{ api.Applied }

// open reports whether waiting longer may change something.
func (a applied) open() bool {
	if !a.Told {
		return true
	}
	open := len(a.Unheard) > 0
	for _, sc := range a.Sidecars {
		if sc.State == "refused" {
			return false
		}
		open = open || sc.State != "acked"
	}
	return open
}

// tell says what was done, waits for the sidecars, and says what they made of it.
func (w *waiting) tell(ctx context.Context, t *target, d taken) error {
	switch {
	case d.h.Get(unchangedHeader) != "":
		fmt.Fprintf(t.s.out, "Config entry unchanged: %s\n", d.key)
		return nil
	case w.not || d.h.Get(indexHeader) == "":
		fmt.Fprintf(t.s.out, "Config entry %s: %s\n", d.what, d.key)
		return nil
	}
	fmt.Fprintf(t.s.out, "Config entry %s: %s\n", d.what, d.key)
	return w.settle(ctx, t, d.awaited())
}

// settle waits for the sidecars, and says what they made of a change.
func (w *waiting) settle(ctx context.Context, t *target, d awaited) error {
	end := d.began.Add(w.timeout)
	var now applied
	for {
		left := max(0, time.Until(end))
		if err := t.call(ctx, http.MethodGet, "/v1/crossfade/applied?index="+d.index+"&wait="+min(left, askEvery).String(), nil, &now); err != nil {
			return fmt.Errorf("%s: %s, but what sidecars made of it is not known: %w", d.subject, d.what, err)
		}
		if !now.open() || time.Until(end) <= 0 {
			break
		}
	}
	for _, p := range now.Problems {
		fmt.Fprintf(t.s.err, "warning: %s\n", p)
	}
	line, err := now.verdict(d, w.timeout, time.Since(d.began))
	fmt.Fprintln(t.s.out, line)
	return err
}

// verdict is one line, and an error of further ones unless all have acknowledged.
func (a applied) verdict(d awaited, timeout, took time.Duration) (string, error) {
	if !a.Told {
		return "applied on no sidecar yet", fmt.Errorf("%s: %s, but the server has not told any sidecar within %s: see its log", d.subject, d.what, shortly(timeout))
	}
	acked := 0
	for _, sc := range a.Sidecars {
		if sc.State == "acked" {
			acked++
		}
	}
	total := len(a.Sidecars) + d.absentTotal
	line := fmt.Sprintf("applied on %d/%d sidecars in %s", acked, total, shortly(took))
	if total == 0 && len(a.Unheard) == 0 {
		line = "applied on 0/0 sidecars: it changes nothing for those that are connected"
	}
	if acked == total && len(a.Unheard) == 0 {
		return line, nil
	}
	var errs []error
	if len(a.Unheard) > 0 {
		errs = append(errs, fmt.Errorf("%s %s not said within %s what sidecars connected there made of it", named("server", a.Unheard), verbOf(len(a.Unheard), "has", "have"), shortly(min(took, timeout))))
	}
	for _, g := range a.sayings(min(took, timeout)) {
		errs = append(errs, fmt.Errorf("%s %s", sidecarsNamed(g.sidecars), g.text))
	}
	if d.absentTotal > 0 {
		all := append(slices.Clone(d.absent), make([]string, d.absentTotal-len(d.absent))...)
		errs = append(errs, fmt.Errorf("%s %s not connected to the server: %s the change when %s back", sidecarsNamed(all), verbOf(len(all), "is", "are"), verbOf(len(all), "it gets", "they get"), verbOf(len(all), "it is", "they are")))
	}
	if d.back != "" {
		errs = append(errs, fmt.Errorf("%s: it is %s all the same: to go back run %s", d.subject, d.what, d.back))
	}
	return line, errors.Join(errs...)
}

// saying is what is to be said of some sidecars.
type saying struct {
	text     string
	sidecars []string
}

func (a applied) sayings(within time.Duration) []saying {
	var out []saying
	say := func(sidecar, text string) {
		for i := range out {
			if out[i].text == text {
				out[i].sidecars = append(out[i].sidecars, sidecar)
				return
			}
		}
		out = append(out, saying{text, []string{sidecar}})
	}
	for _, sc := range a.Sidecars {
		switch sc.State {
		case "refused":
			for _, r := range sc.Refused {
				say(sc.Sidecar, fmt.Sprintf("refused %s %q: %s; it keeps the version before", plainType(r.Type), r.Name, clip(r.Message, maxSaid)))
			}
		case "waiting":
			say(sc.Sidecar, fmt.Sprintf("has not acknowledged %s within %s", clip(strings.Join(sc.Waiting, ", "), 200), shortly(within)))
		case "disconnected":
			say(sc.Sidecar, "has lost its connection to the server: it gets the change when it is back")
		}
	}
	return out
}

func sidecarsNamed(ids []string) string { return named("sidecar", ids) }

// named is `sidecar "a"`, or `sidecars "a", "b" and 3 more`.
func named(what string, ids []string) string {
	if len(ids) == 1 {
		return fmt.Sprintf("%s %q", what, ids[0])
	}
	more := ""
	if len(ids) > maxNamed {
		more = fmt.Sprintf(" and %d more", len(ids)-maxNamed)
		ids = ids[:maxNamed]
	}
	quoted := make([]string, len(ids))
	for i, id := range ids {
		quoted[i] = fmt.Sprintf("%q", id)
	}
	return what + "s " + strings.Join(quoted, ", ") + more
}

// plainType is what people call a resource of a type.
func plainType(short string) string {
	switch short {
	case "RouteConfiguration":
		return "Route"
	case "ClusterLoadAssignment":
		return "Endpoints"
	case "TypedExtensionConfig":
		return "Extension"
	}
	return short
}

// clip makes one line of at most so many bytes of what somebody else wrote.
func clip(s string, most int) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// shortly is a duration as people say it: 180 ms, 2.1 s.
func shortly(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", d.Seconds()), ".0") + " s"
}
