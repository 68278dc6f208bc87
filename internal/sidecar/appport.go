package sidecar

import (
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/appport"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

// lookAtPortEvery is how often the way past the sidecar is looked at, and reported.
const lookAtPortEvery = 10 * time.Second

// portWatch looks at how the app's own port can be reached.
type portWatch struct {
	port int // 0: the app has none
	next time.Time
}

// add puts what it finds into a report, when it is time.
func (w *portWatch) add(r *telemetry.Report, now time.Time) {
	if w.port == 0 || now.Before(w.next) {
		return
	}
	w.next = now.Add(lookAtPortEvery)
	at, err := appport.Listening(w.port)
	if err != nil {
		return // not known is what it stays
	}
	out := &telemetry.AppPort{Port: w.port, Loopback: appport.Loopback(at)}
	for _, a := range at {
		out.Listening = append(out.Listening, a.String())
	}
	if !out.Loopback {
		protected, err := appport.Protected()
		out.Protected = err == nil && slices.Contains(protected, w.port)
	}
	r.App = out
}
