package sidecar

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
)

// settleTime is how long a sidecar may take to start, or to find a server again.
const settleTime = time.Minute

// Look is what can be seen of a sidecar on its host, without asking it.
type Look struct {
	Dir    string // its state directory
	Status Status
	// Written is when the status was, LastGood when the configuration was that it starts from
	// without a server; zero: there is none.
	Written, LastGood time.Time
	Alive             bool // the process is there
}

// LookAt reads what a sidecar keeps in its state directory.
func LookAt(dir string) (Look, error) {
	l := Look{Dir: dir}
	file := filepath.Join(dir, StatusFile)
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, &l.Status)
	}
	if err != nil {
		return l, fmt.Errorf("sidecar in %q: its status can't be read: %w", dir, err)
	}
	if st, err := os.Stat(file); err == nil {
		l.Written = st.ModTime()
	}
	if st, err := os.Stat(filepath.Join(dir, lastGoodFile)); err == nil {
		l.LastGood = st.ModTime()
	}
	// EPERM: it is another user's, and there.
	l.Alive = l.Status.State != Stopped && l.Status.PID > 0 && !errors.Is(syscall.Kill(l.Status.PID, 0), syscall.ESRCH)
	return l, nil
}

// Check says what is stale or broken at the given time.
func (l Look) Check(now time.Time) (out []api.Finding) {
	st := l.Status
	say := func(severity string, since time.Time, format string, args ...any) {
		if !since.IsZero() {
			since = since.UTC()
		}
		out = append(out, api.Finding{Severity: severity, Subject: "sidecar " + st.ID, Since: since, Text: fmt.Sprintf(format, args...)})
	}
	switch {
	case st.State == Stopped:
		return nil // as it was asked to
	case !l.Alive:
		say(api.Critical, l.Written, "its process %d is gone", st.PID)
		return out
	case st.State == Starting && now.Sub(l.Written) >= settleTime:
		say(api.Critical, l.Written, "Envoy is not ready")
	}
	if x := st.XDS; !x.Connected && now.Sub(x.Since) >= settleTime {
		text := "no server, Envoy keeps what it runs"
		if !l.LastGood.IsZero() {
			text += "; a start would be from the configuration of " + l.LastGood.UTC().Format(time.RFC3339)
		} else {
			text += "; there is no last good configuration to start from"
		}
		say(api.Warning, x.Since, "%s", text)
	}
	if !st.Registered && st.XDS.Connected && st.State == Ready {
		say(api.Warning, time.Time{}, "no server confirms its registration")
	}
	if c := st.Certificate; c != nil {
		out = append(out, api.Expiry("certificate of sidecar "+st.ID, c.NotBefore, c.NotAfter, now)...)
	} else if st.State == Ready {
		say(api.Critical, time.Time{}, "it has no certificate")
	}
	if d := st.Drift; d != nil && !d.Since.IsZero() {
		say(api.Warning, d.Since, "%s", d.Text())
	}
	if q := st.Quarantine; q != nil {
		say(api.Warning, q.Since, "%s: %s", strings.Join(q.Resources, ", "), q.Reason)
	}
	for _, a := range st.Alarms {
		say(api.Warning, a.Since, "%s", a.Text)
	}
	return out
}
