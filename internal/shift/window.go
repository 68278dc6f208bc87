package shift

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Window is a stretch of the day in which steps may run. Its times are those of
// the location that the step's time is in, so nothing here loads a time zone.
type Window struct {
	Days  []time.Weekday `json:"days,omitempty"` // on which it begins; none means every day
	From  Clock          `json:"from"`
	Until Clock          `json:"until"` // not in the window; before From: on the next day; equal to it: 24 hours
}

// Clock is a time of day in minutes after midnight.
type Clock int

const day = Clock(24 * 60)

// String is "09:30".
func (c Clock) String() string { return fmt.Sprintf("%02d:%02d", int(c)/60, int(c)%60) }

// Validate refuses times and days that do not exist.
func (w Window) Validate() error {
	if w.From < 0 || w.From >= day || w.Until < 0 || w.Until > day {
		return fmt.Errorf("window %q: no such time of day", w)
	}
	for _, d := range w.Days {
		if d < time.Sunday || d > time.Saturday {
			return fmt.Errorf("window %q: no such day of the week: %d", w, int(d))
		}
	}
	return nil
}

// String is "Mon Tue 09:00-17:00".
func (w Window) String() string {
	var words []string
	for _, d := range w.Days {
		name := d.String()
		words = append(words, name[:min(3, len(name))])
	}
	return strings.Join(append(words, w.From.String()+"-"+w.Until.String()), " ")
}

// Contains says whether t lies in the window.
func (w Window) Contains(t time.Time) bool {
	at := Clock(t.Hour()*60 + t.Minute())
	on := func(d time.Weekday) bool { return len(w.Days) == 0 || slices.Contains(w.Days, d) }
	yesterday := (t.Weekday() + 6) % 7
	if w.From < w.Until {
		return on(t.Weekday()) && w.From <= at && at < w.Until
	}
	return at >= w.From && on(t.Weekday()) || at < w.Until && on(yesterday)
}

// open says whether any of the windows contains t; no windows are always open.
func open(windows []Window, t time.Time) bool {
	return len(windows) == 0 || slices.ContainsFunc(windows, func(w Window) bool { return w.Contains(t) })
}
