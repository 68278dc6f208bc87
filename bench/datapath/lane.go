package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
	"github.com/crossfade-mesh/crossfade/bench/lab/load"
)

// lane is a path under measurement.
type lane struct {
	path    string
	running *running
	crew    *load.Crew
	samples []sample // one for each round; the last is that of the present round
	failed  int
}

// play loads the lane for one turn and adds what it measured to the last sample.
func (l *lane) play(ctx context.Context, warmUp, measured time.Duration, stderr io.Writer) error {
	out := &l.samples[len(l.samples)-1]
	var (
		begun      time.Time
		doneBefore uint64
		cpuBefore  = make([]time.Duration, len(l.running.envoys))
		requests   uint64
	)
	latencies, failures, err := l.crew.Turn(ctx, warmUp, measured, load.Hooks{
		Begin: func(done uint64) (err error) {
			for i, pid := range l.running.envoys {
				if cpuBefore[i], err = lab.CPUTime(pid); err != nil {
					return err
				}
			}
			begun, doneBefore = time.Now(), done
			return nil
		},
		End: func(done uint64) error {
			requests = done - doneBefore
			out.elapsed += time.Since(begun)
			out.requests += requests
			out.rss = 0
			for i, pid := range l.running.envoys {
				now, err := lab.CPUTime(pid)
				if err != nil {
					return err
				}
				rss, err := lab.ResidentSize(pid)
				if err != nil {
					return err
				}
				out.cpu[i] += now - cpuBefore[i]
				out.rss += rss
			}
			return nil
		},
	})
	out.latencies = append(out.latencies, latencies...)
	if len(failures) > 0 {
		l.failed += len(failures)
		fmt.Fprintf(stderr, "%s: %d failed: %v\n", l.path, len(failures), failures[0])
	}
	if err == nil && requests == 0 {
		err = errors.Join(append([]error{errors.New("no request succeeded")}, failures...)...)
	}
	return err
}
