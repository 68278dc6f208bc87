package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
)

// ways are all by which requests travel, in the order of the move.
var ways = api.Ways()

// step moves a percent of all pairs' requests to a way, or all of them back.
type step struct {
	way     string // "" reverts
	percent float64
}

func (s step) String() string {
	if s.way == "" {
		return "revert"
	}
	return fmt.Sprintf("%s %v%%", s.way, s.percent)
}

// plan is the way there and back, and there and back once more at a stroke.
func plan() []step {
	var out []step
	for _, way := range ways[1:] {
		for _, percent := range []float64{10, 50, 100} {
			out = append(out, step{way, percent})
		}
	}
	return append(out, step{}, step{api.MTLS, 100}, step{})
}

// applyLimit bounds the wait for Envoys.
const applyLimit = 30 * time.Second

// take takes a step, and returns how long it took until all Envoys had acknowledged it.
func (s step) take(ctx context.Context, c *api.Client) (time.Duration, error) {
	begun := time.Now()
	var done *api.Changed
	var err error
	if s.way == "" {
		done, err = c.Revert(ctx, api.RevertRequest{All: true})
	} else {
		in := api.ShiftRequest{Via: map[string]float64{s.way: s.percent}}
		for _, p := range pairs {
			in.Pairs = append(in.Pairs, api.PairIndex{PairName: api.PairName{Source: caller, Destination: p.service}})
		}
		done, err = c.Shift(ctx, in)
	}
	if err != nil {
		return 0, err
	}
	for _, p := range done.Pairs {
		if p.Refused != "" {
			return 0, fmt.Errorf("%s: refused: %s", p, p.Refused)
		}
		if p.Same() {
			return 0, fmt.Errorf("%s: it is %s already", p, p.After)
		}
	}
	got, err := c.Applied(ctx, done.Index, applyLimit)
	if err != nil {
		return 0, err
	}
	if !got.Told || len(got.Sidecars) == 0 {
		return 0, errors.New("no sidecar was told")
	}
	for _, sidecar := range got.Sidecars {
		if sidecar.State != api.Acked {
			return 0, fmt.Errorf("sidecar %s: %s %v %v", sidecar.Sidecar, sidecar.State, sidecar.Refused, sidecar.Waiting)
		}
	}
	return time.Since(begun), nil
}
