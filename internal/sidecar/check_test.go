package sidecar

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/sidecar/relay"
)

func TestCheck(t *testing.T) {
	now := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, tt := range []struct {
		name   string
		change func(*Look)
		want   string // severity, since, and the text's beginning
	}{
		{"well", func(*Look) {}, ""},
		{"stopped", func(l *Look) { l.Alive, l.Status.State = false, Stopped }, ""},
		{"gone", func(l *Look) { l.Alive = false }, "critical 11:59:00 its process 4711 is gone"},
		{"starting", func(l *Look) { l.Status.State = Starting }, "critical 11:59:00 Envoy is not ready"},
		{"just starting", func(l *Look) { l.Status.State, l.Written = Starting, ago(time.Second) }, ""},
		{"no server", func(l *Look) { l.Status.XDS.Connected, l.Status.XDS.Since = false, ago(time.Hour) }, "warning 11:00:00 no server, Envoy keeps what it runs; a start would be from the configuration of 2026-01-02T10:00:00Z"},
		{"no server, nothing kept", func(l *Look) {
			l.Status.XDS.Connected, l.Status.XDS.Since, l.LastGood = false, ago(time.Hour), time.Time{}
		}, "warning 11:00:00 no server, Envoy keeps what it runs; there is no last good configuration to start from"},
		{"a server is looked for", func(l *Look) { l.Status.XDS.Connected, l.Status.XDS.Since = false, ago(time.Second) }, ""},
		{"not registered", func(l *Look) { l.Status.Registered = false }, "warning - no server confirms its registration"},
		{"not renewed", func(l *Look) { l.Status.Certificate.NotAfter = now.Add(2 * time.Hour) }, "warning 11:00:00 it has not been renewed and expires at 2026-01-02T14:00:00Z"},
		{"expired", func(l *Look) { l.Status.Certificate.NotAfter = ago(time.Minute) }, "critical 11:59:00 it has expired"},
		{"no certificate", func(l *Look) { l.Status.Certificate = nil }, "critical - it has no certificate"},
		{"drift", func(l *Look) {
			l.Status.Drift = &api.Drift{Since: ago(time.Minute), Faults: []string{"a", "b"}, Done: "sent again"}
		}, "warning 11:59:00 a, and 1 more; done about it: sent again"},
		{"drift that is over", func(l *Look) { l.Status.Drift = &api.Drift{Drifts: 1} }, ""},
		{"quarantine", func(l *Look) {
			l.Status.Quarantine = &relay.Quarantine{Since: ago(time.Minute), Reason: "why", Resources: []string{`Cluster "a"`}}
		}, `warning 11:59:00 Cluster "a": why`},
		{"alarm", func(l *Look) { l.Status.Alarms = []Alarm{{Since: ago(time.Minute), Text: "it grows"}} }, "warning 11:59:00 it grows"},
	} {
		l := Look{Alive: true, Written: ago(time.Minute), LastGood: ago(2 * time.Hour), Status: Status{
			State: Ready, ID: "web", PID: 4711, Registered: true, XDS: XDSStatus{Connected: true, Since: ago(time.Hour)},
			Certificate: &CertificateStatus{NotBefore: ago(10 * time.Hour), NotAfter: now.Add(10 * time.Hour)},
		}}
		tt.change(&l)
		var got []string
		for _, f := range l.Check(now) {
			since := "-"
			if !f.Since.IsZero() {
				since = f.Since.Format(time.TimeOnly)
			}
			got = append(got, fmt.Sprintf("%s %s %s", f.Severity, since, f.Text))
		}
		if tt.want == "" && len(got) > 0 || tt.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], tt.want)) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestLookAt(t *testing.T) {
	dir := t.TempDir()
	if _, err := LookAt(dir); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("an empty directory: %v", err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(StatusFile, fmt.Sprintf(`{"state":"ready","pid":%d}`, os.Getpid()))
	l, err := LookAt(dir)
	if err != nil || !l.Alive || !l.LastGood.IsZero() || l.Written.IsZero() {
		t.Errorf("%+v, %v", l, err)
	}
	write(lastGoodFile, "")
	write(StatusFile, `{"state":"stopped","pid":1}`)
	if l, err = LookAt(dir); err != nil || l.Alive || l.LastGood.IsZero() {
		t.Errorf("%+v, %v", l, err)
	}
	write(StatusFile, "{")
	if _, err = LookAt(dir); err == nil {
		t.Error("half a status is read")
	}
}
