package cli

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
)

// What is watched is printed each second, over a server that is down for a while, until
// somebody interrupts; what never worked is an error at once.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out, errs bytes.Buffer
		s := streams{out: &out, err: &errs}
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		w := &watching{on: true}
		err := w.run(ctx, s, &output{format: "table"}, func() error {
			switch n++; n {
			case 3:
				return errors.New("connection refused")
			case 5:
				cancel()
			}
			out.WriteString("row\n")
			return nil
		})
		if err != nil || n != 5 || strings.Count(out.String(), "row\n") != 4 || errs.String() != "crossfade: connection refused: it is tried again\n" {
			t.Errorf("%d times, %v\n%s%s", n, err, out.String(), errs.String())
		}
		if err := w.run(t.Context(), s, &output{}, func() error { return errors.New("no") }); err == nil {
			t.Error("what never worked is no error")
		}
	})
}
