package load

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestOpenLoopSendsOnScheduleThroughAStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stallEnds := time.Now().Add(2 * time.Second)
		var mu sync.Mutex
		var sent []time.Duration
		start := time.Now()
		rec := NewRecorder()
		g := Generator{Rate: 100, Timeout: 5 * time.Second, Outstanding: 1000, Record: rec, Call: func(uint64, time.Time) (Answer, error) {
			mu.Lock()
			sent = append(sent, time.Since(start))
			mu.Unlock()
			time.Sleep(max(0, time.Until(stallEnds)) + time.Millisecond)
			return Answer{From: "a"}, nil
		}}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second-time.Millisecond)
		defer cancel()
		g.Run(ctx)

		if len(sent) != 300 {
			t.Fatalf("sent %d requests in 3 s at 100/s, want 300", len(sent))
		}
		for i, at := range sent {
			if want := time.Duration(i) * 10 * time.Millisecond; at != want {
				t.Fatalf("request %d was sent at %s, want %s", i, at, want)
			}
		}
		lat := rec.Latency()
		if p50 := lat.Quantile(0.5); p50 < 400*time.Millisecond {
			t.Errorf("p50 is %s: the stall of 2 s is hidden", p50)
		}
		if got, want := lat.Max(), 2*time.Second+time.Millisecond; got != want {
			t.Errorf("max is %s, want %s", got, want)
		}
	})
}

func TestLatencyCountsFromWhenARequestWasDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := NewRecorder()
		due := time.Now()
		time.Sleep(300 * time.Millisecond)
		id := rec.begin(time.Now())
		time.Sleep(100 * time.Millisecond)
		rec.end(id, due, Answer{}, nil)
		if got, want := rec.Latency().Max(), 400*time.Millisecond; got != want {
			t.Errorf("latency is %s, want %s", got, want)
		}
		if got, want := rec.Late(), 300*time.Millisecond; got != want {
			t.Errorf("late by %s, want %s", got, want)
		}
	})
}

func TestOverloadFailsUnsentRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := NewRecorder()
		g := Generator{Rate: 100, Timeout: 5 * time.Second, Outstanding: 10, Record: rec, Call: func(uint64, time.Time) (Answer, error) {
			time.Sleep(time.Hour)
			return Answer{}, nil
		}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second-time.Millisecond)
		defer cancel()
		g.Run(ctx)
		if got := rec.Totals(); got.Requests != 100 || got.Failed != 90 {
			t.Errorf("%d requests, %d failed; want 100 and 90", got.Requests, got.Failed)
		}
	})
}

func TestPatientLoadWaitsForAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := NewRecorder()
		g := Generator{Rate: 1000, Timeout: 5 * time.Second, Outstanding: 10, Patient: true, Record: rec, Call: func(uint64, time.Time) (Answer, error) {
			time.Sleep(100 * time.Millisecond)
			return Answer{}, nil
		}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second-time.Millisecond)
		defer cancel()
		g.Run(ctx)
		if got := rec.Totals(); got.Requests != 100 || got.Failed != 0 {
			t.Errorf("%d requests, %d failed; want 100 (10 at a time, each 100 ms) and 0", got.Requests, got.Failed)
		}
		if got := rec.Latency().Max(); got != 100*time.Millisecond {
			t.Errorf("the longest took %s", got)
		}
	})
}

func TestRecorderSettlesWithoutLaterRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := NewRecorder()
		early := rec.begin(time.Now())
		done := make(chan error, 1)
		go func() { done <- rec.Settle(t.Context()) }()
		time.Sleep(time.Second)
		late := rec.begin(time.Now())
		select {
		case <-done:
			t.Fatal("settled while an early request was unanswered")
		default:
		}
		rec.end(early, time.Now(), Answer{}, nil)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if rec.Outstanding() != 1 {
			t.Errorf("%d outstanding, want the late one", rec.Outstanding())
		}
		rec.end(late, time.Now(), Answer{}, nil)
	})
}

func TestTotalsSince(t *testing.T) {
	rec := NewRecorder()
	one := func(from string, err error) {
		rec.end(rec.begin(time.Now()), time.Now(), Answer{From: from, NewConnection: true}, err)
	}
	one("a", nil)
	one("b", nil)
	before := rec.Totals()
	one("a", nil)
	one("", errors.New("wrong token"))
	got := rec.Totals().Since(before)
	if got.Requests != 2 || got.Failed != 1 || got.NewConnections != 1 || got.From["a"] != 1 || len(got.From) != 1 {
		t.Errorf("since: %+v", got)
	}
	if f := rec.Failures(); len(f) != 1 || f[0].Reason != "wrong token" || f[0].Sent.IsZero() {
		t.Errorf("failures: %+v", f)
	}
}

func TestQuantilesAreWithinABucketOfTheTruth(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var h Histogram
	var all []time.Duration
	for range 20000 {
		d := time.Duration(rng.ExpFloat64() * float64(3*time.Millisecond))
		all = append(all, d)
		h.Add(d)
	}
	slices.Sort(all)
	for _, q := range []float64{0.01, 0.5, 0.9, 0.99, 0.999, 1} {
		want := all[max(0, int(q*float64(len(all)))-1)]
		got := h.Quantile(q)
		if got < want-time.Microsecond || float64(got) > float64(want)*(1+1.0/half)+float64(2*time.Microsecond) {
			t.Errorf("quantile %v is %s, truth is %s", q, got, want)
		}
	}
	if h.Count() != 20000 || h.Max() != all[len(all)-1] {
		t.Errorf("count %d, max %s", h.Count(), h.Max())
	}
}

func TestEveryValueFallsIntoTheBucketWithItsEdge(t *testing.T) {
	for us := range uint64(1 << 16) {
		i := bucket(us)
		if us > upperEdge(i) || i > 0 && us <= upperEdge(i-1) {
			t.Fatalf("%d µs is in bucket %d, which ends at %d", us, i, upperEdge(i))
		}
	}
	if i := bucket(1 << 60); i != buckets-1 {
		t.Errorf("a huge value is in bucket %d of %d", i, buckets)
	}
}
