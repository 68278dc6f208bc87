package client_test

import (
	"context"
	"math"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/crossfade-mesh/crossfade/client"
)

// at returns a pair with both addresses at a percent.
func at(t testing.TB, percent string, change func(*client.Options)) *client.Pair {
	o := client.Options{Destination: "catalog", Getenv: getenv(map[string]string{
		"CROSSFADE_PERCENT_catalog":     percent,
		"CROSSFADE_LEGACY_ADDR_catalog": "10.0.0.1:80",
		"NOMAD_UPSTREAM_ADDR_catalog":   "127.0.0.1:7100",
	})}
	if change != nil {
		change(&o)
	}
	p, err := client.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func way(t testing.TB, p *client.Pair, key string) client.Way {
	c, err := p.Choose(key)
	if err != nil {
		t.Fatal(err)
	}
	return c.Way
}

// far returns whether a count of new ways is 4 sigma or more from what a share says.
func far(count, calls int, share float64) bool {
	n := float64(calls)
	return math.Abs(float64(count)-n*share) > 4*math.Sqrt(n*share*(1-share))
}

func TestShareOfCalls(t *testing.T) {
	const calls = 40_000
	for i, percent := range []float64{0, 0.01, 0.5, 1, 10, 33.33, 50, 75, 99, 99.99, 100} {
		rng := rand.New(rand.NewPCG(1, uint64(i)))
		p := at(t, strconv.FormatFloat(percent, 'f', -1, 64), func(o *client.Options) { o.Draw = rng.IntN })
		for range calls {
			way(t, p, "")
		}
		s := p.Stats()
		if s.Old+s.New != calls || far(int(s.New), calls, percent/100) {
			t.Errorf("%v percent: %d of %d calls are new", percent, s.New, calls)
		}
		keyed := at(t, strconv.FormatFloat(percent, 'f', -1, 64), nil)
		for k := range calls {
			way(t, keyed, "user-"+strconv.Itoa(k))
		}
		if n := keyed.Stats().New; far(int(n), calls, percent/100) {
			t.Errorf("%v percent: %d of %d users are new", percent, n, calls)
		}
	}
}

// The measure above can fail: a percent point off is seen.
func TestShareOffByAPointIsSeen(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	p := at(t, "51", func(o *client.Options) { o.Draw = rng.IntN })
	for range 40_000 {
		way(t, p, "")
	}
	if n := p.Stats().New; !far(int(n), 40_000, 0.50) {
		t.Errorf("%d of 40000 calls at 51 percent pass for 50", n)
	}
}

// The ends need no luck: they do not draw.
func TestEndsDoNotDraw(t *testing.T) {
	for percent, want := range map[string]client.Way{"0": client.Old, "100": client.New} {
		p := at(t, percent, func(o *client.Options) {
			o.Draw = func(int) int { t.Error("drew"); return -1 }
		})
		for _, key := range []string{"", "ada", "grace"} {
			if got := way(t, p, key); got != want {
				t.Errorf("%s percent: %s", percent, got)
			}
		}
	}
}

func TestRaisingMovesOnlyWhoMust(t *testing.T) {
	decimal := func(h int) string { return strconv.FormatFloat(float64(h)/100, 'f', -1, 64) }
	rapid.Check(t, func(r *rapid.T) {
		low := rapid.IntRange(0, 10_000).Draw(r, "low")
		high := rapid.IntRange(low, 10_000).Draw(r, "high")
		before, after := at(t, decimal(low), nil), at(t, decimal(high), nil)
		for _, key := range rapid.SliceOfN(rapid.StringN(1, -1, 80), 1, 50).Draw(r, "keys") {
			b, a := way(t, before, key), way(t, after, key)
			must := low <= client.Bucket(key) && client.Bucket(key) < high
			if (a != b) != must || a < b {
				r.Fatalf("from %d to %d key %q in bucket %d goes from %s to %s", low, high, key, client.Bucket(key), b, a)
			}
			if again := way(t, after, key); again != a {
				r.Fatalf("key %q goes %s, then %s", key, a, again)
			}
		}
	})
}

// Whatever the settings hold, a call has a way as long as there is one.
func TestNoSettingFailsACall(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		odd := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", "50", "100", "1.5", "127.0.0.1:80", "http://a:1", "https://[::1]:2/"}))
		env := map[string]string{
			"CROSSFADE_PERCENT_catalog":     odd.Draw(r, "percent"),
			"CROSSFADE_LEGACY_ADDR_catalog": odd.Draw(r, "old"),
			"NOMAD_UPSTREAM_ADDR_catalog":   odd.Draw(r, "new"),
		}
		p, err := client.Open(client.Options{Destination: "catalog", Getenv: getenv(env)})
		if err != nil {
			r.Fatal(err)
		}
		_, old := p.Address(client.Old)
		_, new := p.Address(client.New)
		c, err := p.Choose(rapid.String().Draw(r, "key"))
		if (err == nil) != (old || new) {
			r.Fatalf("%v: %+v, %v", env, c, err)
		}
		if err == nil && c.Addr == "" {
			r.Fatalf("%v: a choice without an address", env)
		}
	})
}

// At 100 no call is old from the moment on that Percent says 100, whoever calls.
func TestChangesUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kv := newFakeKV()
		kv.set("50")
		p := open(t, kv, nil)
		for _, percent := range []string{"100", "0", "30", "0", "100"} {
			var callers sync.WaitGroup
			ctx, cancel := context.WithCancel(t.Context())
			for range 4 {
				callers.Go(func() {
					for ctx.Err() == nil {
						way(t, p, "")
						<-time.After(time.Millisecond)
					}
				})
			}
			kv.set(percent)
			<-time.After(time.Second)
			before := p.Stats()
			<-time.After(time.Second)
			after := p.Stats()
			cancel()
			callers.Wait()
			if percent == "100" && after.Old != before.Old || percent == "0" && after.New != before.New {
				t.Errorf("%s percent: from %+v to %+v", percent, before, after)
			}
			if after.Old+after.New == before.Old+before.New {
				t.Error("no calls")
			}
		}
	})
}

func TestOptionsAreJudged(t *testing.T) {
	for _, o := range []client.Options{{}, {Source: "web"}, {Destination: "a/b"}, {Source: "a/b", Destination: "c"}} {
		if _, err := client.Open(o); err == nil {
			t.Errorf("%+v: no error", o)
		}
	}
}

func TestOldAddrStandsInForTheVariable(t *testing.T) {
	for variable, want := range map[string]string{"": "catalog.example:80", "10.0.0.1:80": "10.0.0.1:80"} {
		p, err := client.Open(client.Options{
			Destination: "catalog", OldAddr: "catalog.example:80",
			Getenv: getenv(map[string]string{"CROSSFADE_LEGACY_ADDR_catalog": variable}),
		})
		if err != nil {
			t.Fatal(err)
		}
		if c, err := p.Choose(""); err != nil || c.Addr != want {
			t.Errorf("%q: %+v, %v, want %s", variable, c, err, want)
		}
		if got := p.Problems(); len(got) != 0 {
			t.Errorf("problems %v", got)
		}
	}
}

func TestProblemsSayWhere(t *testing.T) {
	var told []string
	_, err := client.Open(client.Options{
		Destination: "my-shop",
		OnProblem:   func(p client.Problem) { told = append(told, p.Error()) },
		Getenv:      getenv(map[string]string{"CROSSFADE_PERCENT_MY_SHOP": "1", "NOMAD_UPSTREAM_ADDR_my-shop": "x"}),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`NOMAD_UPSTREAM_ADDR_my-shop: "x" is no address: address x: missing port in address`,
		`CROSSFADE_PERCENT_MY_SHOP: is not read: names keep their case, set CROSSFADE_PERCENT_my_shop`,
		`my-shop: no address: neither the old nor the new way has one; set CROSSFADE_LEGACY_ADDR_my_shop or NOMAD_UPSTREAM_ADDR_my-shop`,
	}
	for i := range max(len(want), len(told)) {
		if i >= len(told) || i >= len(want) || told[i] != want[i] {
			t.Fatalf("told %q, want %q", told, want)
		}
	}
}

func TestChoosingAllocatesNothing(t *testing.T) {
	p := at(t, "50", nil)
	key := "a-session-of-more-than-thirty-two-bytes-0001"
	for _, k := range []string{"", key} {
		if n := testing.AllocsPerRun(1000, func() { way(t, p, k) }); n != 0 {
			t.Errorf("key %q: %v allocations a choice", k, n)
		}
	}
}

func BenchmarkChoose(b *testing.B) {
	for _, bb := range []struct{ name, percent, key string }{
		{"none", "0", ""}, {"random", "50", ""}, {"key", "50", "3f2504e0-4f89-11d3-9a0c-0305e82c3301"},
	} {
		b.Run(bb.name, func(b *testing.B) {
			p := at(b, bb.percent, nil)
			b.ReportAllocs()
			for b.Loop() {
				p.Choose(bb.key)
			}
		})
		b.Run(bb.name+"/parallel", func(b *testing.B) {
			p := at(b, bb.percent, nil)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					p.Choose(bb.key)
				}
			})
		})
	}
}
