package sidecar

import (
	"testing"
	"time"
)

func TestBackOff(t *testing.T) {
	const base, limit = 100 * time.Millisecond, 5 * time.Second
	for _, tt := range []struct {
		attempt   int
		low, high time.Duration
	}{
		{0, 50 * time.Millisecond, 100 * time.Millisecond},
		{1, 100 * time.Millisecond, 200 * time.Millisecond},
		{5, 1600 * time.Millisecond, 3200 * time.Millisecond},
		{6, limit / 2, limit},
		{1000, limit / 2, limit},
	} {
		if got := backOff(tt.attempt, base, limit, 0); got != tt.low {
			t.Errorf("backOff(%d), least = %v, want %v", tt.attempt, got, tt.low)
		}
		if got := backOff(tt.attempt, base, limit, 0.999999); got > tt.high || got < tt.high*99/100 {
			t.Errorf("backOff(%d), most = %v, want about %v", tt.attempt, got, tt.high)
		}
	}
}

func TestRenewAt(t *testing.T) {
	issued := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, life := range []time.Duration{time.Minute, 72 * time.Hour} {
		if got, want := renewAt(issued, issued.Add(life), 0), issued.Add(life/2); !got.Equal(want) {
			t.Errorf("earliest renewal of %v = %v, want %v", life, got, want)
		}
		if got, last := renewAt(issued, issued.Add(life), 0.999), issued.Add(life*2/3); got.After(last) || got.Before(last.Add(-life/100)) {
			t.Errorf("latest renewal of %v = %v, want about %v", life, got, last)
		}
	}
}

func TestRetryRenewal(t *testing.T) {
	for _, tt := range []struct {
		attempt int
		left    time.Duration
		most    time.Duration
	}{
		{0, 24 * time.Hour, time.Second},
		{20, 24 * time.Hour, 5 * time.Minute},
		{20, 10 * time.Minute, time.Minute}, // a tenth of what is left
		{20, time.Second, time.Second},      // never busier than that
		{20, 0, 5 * time.Minute},            // no certificate at all
	} {
		if got := retryRenewal(tt.attempt, tt.left, 0.99999); got > tt.most || got < tt.most*9/10 {
			t.Errorf("retryRenewal(%d, %v) = %v, want about %v", tt.attempt, tt.left, got, tt.most)
		}
	}
}
