package sidecar

import (
	"context"
	"time"
)

// What happens when, decided without a clock. r is a random number in [0, 1).

// backOff is the wait before try number attempt+1 (attempt counts from 0): it
// doubles from base to limit, and r spreads it over [½, 1] of that.
func backOff(attempt int, base, limit time.Duration, r float64) time.Duration {
	d := limit
	if attempt < 30 && base<<attempt < limit {
		d = base << attempt
	}
	return d/2 + time.Duration(r*float64(d/2))
}

// renewAt is when a leaf is to be replaced: between a half and two thirds of the
// time from its issue to its end.
func renewAt(issued, notAfter time.Time, r float64) time.Time {
	life := notAfter.Sub(issued)
	return issued.Add(life/2 + time.Duration(r*float64(life)/6))
}

// retryRenewal is the wait after a failed renewal, the attempt-th in a row from 0:
// as [backOff] up to 5 minutes, but never more than a tenth of the life that is left.
func retryRenewal(attempt int, left time.Duration, r float64) time.Duration {
	limit := 5 * time.Minute
	if left > 0 {
		limit = max(min(limit, left/10), time.Second)
	}
	return backOff(attempt, time.Second, limit, r)
}

// jitter spreads d over [¾, 1¼] of it.
func jitter(d time.Duration, r float64) time.Duration {
	return d*3/4 + time.Duration(r*float64(d/2))
}

// sleep waits for d and reports whether ctx still goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return ctx.Err() == nil
	}
}
