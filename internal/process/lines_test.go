package process

import (
	"strings"
	"testing"
)

func TestLines(t *testing.T) {
	var out strings.Builder
	w := &Lines{Out: &out, Prefix: "envoy: "}
	for _, part := range []string{"one\ntw", "o\n", "thr"} {
		if _, err := w.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.Take(); strings.Join(got, ",") != "one,two,thr" {
		t.Errorf("last lines = %q", got)
	}
	if got := out.String(); got != "envoy: one\nenvoy: two\nenvoy: thr\n" {
		t.Errorf("passed on %q", got)
	}
	_, _ = w.Write([]byte(strings.Repeat("x\n", 3*keptLines)))
	if got := w.Take(); len(got) != keptLines {
		t.Errorf("kept %d lines", len(got))
	}
}
