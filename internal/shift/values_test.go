package shift_test

import (
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/shift"
)

func TestSharesValidate(t *testing.T) {
	for _, c := range []struct {
		shares shift.Shares
		stage  shift.Stage
		want   string // "" is none
	}{
		{shift.AllOn(shift.Legacy), shift.Client, ""},
		{shift.Shares{Direct: 9_950, Plain: 50}, shift.PlainStage, ""},
		{shift.AllOn(shift.MTLS), shift.StrictStage, ""},
		{shift.Shares{Legacy: 1, Direct: 2, Plain: 3, MTLS: 9_994}, shift.Permissive, ""},
		{shift.AllOn(shift.Plain), shift.Client, `shares of "storefront -> catalog": way "plain" has 100%: stage client closes it, plain opens with stage plain`},
		{shift.AllOn(shift.MTLS), shift.PlainStage, `shares of "storefront -> catalog": way "mtls" has 100%: stage plain closes it, mtls opens with stage permissive`},
		{shift.AllOn(shift.Direct), shift.StrictStage, `shares of "storefront -> catalog": way "direct" has 100%: stage strict closes it, the callee takes nothing but mtls`},
		{shift.AllOn(shift.Legacy), shift.Outside, `shares of "storefront -> catalog": way "legacy" has 100%: stage outside opens no way, the app is not on its sidecar yet`},
		{shift.AllOn(shift.Legacy), "", `shares of "storefront -> catalog": way "legacy" has 100%: the pair's stage is not known`},
		{shift.Shares{Direct: 9_999}, shift.Client, `shares of "storefront -> catalog": they add to 99.99%: they must add to 100%`},
		{shift.Shares{Direct: 10_100, Legacy: -100}, shift.Client, `shares of "storefront -> catalog": way "legacy" has -1%: a share is between 0% and 100%`},
	} {
		got := ""
		if err := c.shares.Validate(pair, c.stage); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s in stage %q:\n got %s\nwant %s", c.shares, c.stage, got, c.want)
		}
	}
}

func TestWindow(t *testing.T) {
	office := shift.Window{Days: []time.Weekday{time.Monday, time.Friday}, From: 9 * 60, Until: 17 * 60}
	night := shift.Window{Days: []time.Weekday{time.Monday}, From: 22 * 60, Until: 6 * 60}
	always := shift.Window{}
	for _, c := range []struct {
		w    shift.Window
		day  int // of March 2026; the 2nd is a Monday
		hour int
		want bool
	}{
		{office, 2, 9, true}, {office, 2, 8, false}, {office, 2, 17, false}, {office, 3, 12, false}, {office, 6, 16, true},
		{night, 2, 22, true}, {night, 3, 5, true}, {night, 3, 6, false}, {night, 2, 5, false}, {night, 3, 23, false},
		{always, 4, 3, true},
	} {
		at := time.Date(2026, 3, c.day, c.hour, 0, 0, 0, time.UTC)
		if got := c.w.Contains(at); got != c.want {
			t.Errorf("%s contains %s: %v, want %v", c.w, at.Format("Mon 15:04"), got, c.want)
		}
	}
	if err := (shift.Window{From: 24 * 60}).Validate(); err == nil {
		t.Error("a window from 24:00 is taken")
	}
}

func TestPlanValidate(t *testing.T) {
	for want, p := range map[string]shift.Plan{
		"no such way":                  {From: "old", To: shift.Plain},
		"nothing would move":           {From: shift.Plain, To: shift.Plain},
		"steps rise":                   {From: shift.Direct, To: shift.Plain, Steps: []shift.Share{500, 500}},
		"step 101% after 0%":           {From: shift.Direct, To: shift.Plain, Steps: []shift.Share{10_100}},
		"at least 30s":                 {From: shift.Direct, To: shift.Plain, Dwell: time.Second},
		"no such policy":               {From: shift.Direct, To: shift.Plain, OnBreach: "hope"},
		"false trips are a part of 1":  {From: shift.Direct, To: shift.Plain, Limits: shift.Limits{FalseTrips: 1}},
		"no such time of day":          {From: shift.Direct, To: shift.Plain, Windows: []shift.Window{{From: -1}}},
		"shift of \"a -> b\": no such": {From: "", To: shift.Plain},
	} {
		err := p.Validate(shift.Pair{Source: "a", Destination: "b"})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", p, err, want)
		}
	}
	if err := fast.Validate(pair); err != nil {
		t.Error(err)
	}
}

func TestNewer(t *testing.T) {
	low, high := shift.Setting{Shares: shift.AllOn(shift.Plain), Generation: 3}, shift.Setting{Shares: shift.AllOn(shift.Direct), Generation: 4}
	back := shift.Setting{Shares: shift.AllOn(shift.Direct), Generation: 3, Back: true}
	for _, c := range []struct{ held, offered, want shift.Setting }{
		{low, high, high}, {high, low, high}, {low, back, back}, {back, low, back}, {low, low, low},
	} {
		if got := shift.Newer(c.held, c.offered); got != c.want {
			t.Errorf("%+v over %+v is %+v", c.offered, c.held, got)
		}
	}
}
