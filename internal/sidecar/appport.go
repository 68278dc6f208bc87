package sidecar

import (
	"reflect"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/appport"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

// lookAtPortEvery is how often the way past the sidecar is looked at, and sayPortEvery how
// often it is reported while nothing changes.
const (
	lookAtPortEvery = 2 * time.Second
	sayPortEvery    = 10 * time.Second
)

// portWatch looks at how the app's own port can be reached.
type portWatch struct {
	port         int // 0: the app has none
	sockets      appport.Sockets
	looked, said time.Time
	last         *telemetry.AppPort
}

// add puts what it finds into a report, when it is time.
func (w *portWatch) add(r *telemetry.Report, now time.Time) {
	if w.port == 0 || now.Sub(w.looked) < lookAtPortEvery {
		return
	}
	w.looked = now
	at, err := w.sockets.Listening(w.port)
	if err != nil {
		return // not known is what it stays
	}
	out := &telemetry.AppPort{Port: w.port, Loopback: appport.Loopback(at)}
	for _, a := range at {
		out.Listening = append(out.Listening, a.String())
	}
	protected, err := appport.Protected()
	out.Protected, out.Unseen = err == nil && slices.Contains(protected, w.port), err != nil
	if now.Sub(w.said) >= sayPortEvery || !reflect.DeepEqual(w.last, out) {
		w.said, w.last, r.App = now, out, out
	}
}
