package sidecar

import (
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestBoardWritesChangesOnly(t *testing.T) {
	var log strings.Builder
	var written []string
	var fail error
	b := &board{log: slog.New(slog.NewTextHandler(&log, nil)), write: func(p []byte) error {
		written = append(written, string(p))
		return fail
	}}
	b.set(func(s *Status) { s.State = Starting; s.ID = "catalog-1" })
	b.set(func(s *Status) { s.State = Starting })
	fail = errors.New("disk full")
	b.set(func(s *Status) { s.State = Ready })
	b.set(func(s *Status) { s.State = Draining })
	if len(written) != 3 {
		t.Errorf("written %d times, want 3", len(written))
	}
	if n := strings.Count(log.String(), "disk full"); n != 1 {
		t.Errorf("the failure was logged %d times, want once", n)
	}
}

func TestStatusNames(t *testing.T) {
	b, err := json.Marshal(Status{
		State: Ready, Envoy: EnvoyStatus{LastCrash: &Crash{Time: time.Unix(0, 0).UTC()}},
		Certificate: &CertificateStatus{Serial: colonHex([]byte{0x0a, 0xff})}, App: &AppStatus{PID: 4},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"state":"ready"`, `"public_address":`, `"admin_socket":`, `"last_crash":{"time":"1970`, `"serial":"0a:ff"`, `"not_after":`,
		`"xds":{"connected":false,"server":"","from_last_good":false}`, `"app":{"pid":4}`,
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("status %s lacks %s", b, want)
		}
	}
}
