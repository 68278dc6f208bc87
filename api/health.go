package api

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"time"
)

// The severities of a [Finding]: as Consul has them of checks.
const (
	Warning  = "warning"  // it serves, by what it knew before
	Critical = "critical" // it does not serve, or will not for long, or does not hear of changes
)

// Health is what is stale in a mesh, or about to be.
type Health struct {
	Findings []Finding `json:"findings"` // sorted; empty when all is well
}

// Finding is one thing that is stale, or about to be.
type Finding struct {
	Severity string `json:"severity"`
	Subject  string `json:"subject"` // "consul http://…", "sidecar host/web-sidecar-proxy"
	// Since is when it began; zero where that is not known.
	Since time.Time `json:"since,omitzero"`
	Text  string    `json:"text"`
}

// Compare orders findings: the worst first, then by subject, time and text.
func (f Finding) Compare(o Finding) int {
	return cmp.Or(cmp.Compare(f.Severity, o.Severity), cmp.Compare(f.Subject, o.Subject), f.Since.Compare(o.Since), cmp.Compare(f.Text, o.Text))
}

// Expiry is what there is to say of a certificate: nothing, while less than three quarters of
// its life are over. It should be renewed after two thirds.
func Expiry(subject string, from, to, now time.Time) []Finding {
	due := from.Add(to.Sub(from) / 4 * 3)
	switch {
	case !now.Before(to):
		return []Finding{{Critical, subject, to.UTC(), "it has expired: new connections are refused"}}
	case !now.Before(due):
		return []Finding{{Warning, subject, due.UTC(), fmt.Sprintf("it has not been renewed and expires at %s", to.UTC().Format(time.RFC3339))}}
	default:
		return nil
	}
}

// Drift is what a sidecar says of an Envoy that did not run what it was told. The totals count
// since the sidecar started.
type Drift struct {
	// Since is of the first fault that is still there; zero: none is.
	Since  time.Time `json:"since,omitzero"`
	Faults []string  `json:"faults,omitempty"` // the first of many
	Stuck  bool      `json:"stuck,omitempty"`  // Envoy has no stream, or does not answer on it
	// Done was done about them last: "sent again", "stream restarted", or "nothing" where
	// only Envoy can.
	Done string `json:"done,omitempty"`

	Drifts   uint64 `json:"drifts_total"`   // how often faults were named
	Resends  uint64 `json:"resends_total"`  // how often resources were sent again
	Restarts uint64 `json:"restarts_total"` // how often Envoy's stream was restarted
}

// Text says what is wrong in a line.
func (d Drift) Text() string {
	text := "Envoy does not run what it was told"
	if d.Stuck {
		text = "Envoy does not answer what it was told"
	}
	if len(d.Faults) > 0 {
		text = d.Faults[0]
	}
	if n := len(d.Faults) - 1; n > 0 {
		text += fmt.Sprintf(", and %d more", n)
	}
	return text + "; done about it: " + d.Done
}

// Health asks a server what is stale.
func (c *Client) Health(ctx context.Context) (out Health, err error) {
	return out, c.do(ctx, http.MethodGet, "/v1/crossfade/health", nil, &out)
}
