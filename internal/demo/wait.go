package demo

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// finalError is a state that no waiting can mend.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

func final(err error) error { return finalError{err} }

// await asks until ok returns nil, every 20 ms and for at most limit. Its error
// says what was awaited and why it is not so yet.
func await(ctx context.Context, limit time.Duration, what string, ok func() error) error {
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		var f finalError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &f):
			return fmt.Errorf("%s: %w", what, f.error)
		case time.Now().After(deadline):
			return fmt.Errorf("%s: not within %s: %w", what, limit, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// pause lets time go by under load.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
