package sidecar

import (
	"context"
	"sync"
)

// crew is goroutines that end together.
type crew struct {
	ctx context.Context
	end context.CancelFunc
	wg  sync.WaitGroup
}

func newCrew(ctx context.Context) *crew {
	c := &crew{}
	c.ctx, c.end = context.WithCancel(ctx)
	return c
}

func (c *crew) run(f func(context.Context)) { c.wg.Go(func() { f(c.ctx) }) }

// stop ends all and waits for them. It may be called twice.
func (c *crew) stop() {
	c.end()
	c.wg.Wait()
}
