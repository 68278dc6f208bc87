package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// watchEvery is how often what is watched is printed.
const watchEvery = time.Second

// watching prints again and again, where it is asked for.
type watching struct{ on bool }

func addWatch(cmd *cobra.Command) *watching {
	w := &watching{}
	cmd.Flags().BoolVar(&w.on, "watch", false, "print anew each second until interrupted; with -o json one value after the other")
	return w
}

// run prints once, or until it is interrupted. What has worked once and then fails, as while a
// server is down, is tried again.
func (w *watching) run(ctx context.Context, s streams, o *output, show func() error) error {
	heading := func() {
		if w.on && o.format != "json" {
			fmt.Fprintf(s.out, "%s\n", time.Now().Format(time.DateTime))
		}
	}
	heading()
	if err := show(); err != nil || !w.on {
		return err
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if o.format != "json" {
			fmt.Fprintln(s.out)
		}
		heading()
		if err := show(); err != nil && ctx.Err() == nil {
			fmt.Fprintf(s.err, "crossfade: %v: it is tried again\n", err)
		}
	}
}
