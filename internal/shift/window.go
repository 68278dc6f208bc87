package shift

import (
	"fmt"
	"slices"
	"strconv"
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

// ParseWindow reads what [Window.String] writes, and ranges of days: "Mon-Fri 09:00-17:00",
// "Sat Sun 22:00-06:00", "00:00-24:00" for whole days.
func ParseWindow(text string) (Window, error) {
	var w Window
	words := strings.Fields(text)
	bad := fmt.Errorf("window %q: want days and times, as Mon-Fri 09:00-17:00", text)
	if len(words) == 0 || len(words) > 8 {
		return w, bad
	}
	for _, word := range words[:len(words)-1] {
		first, last, ranged := strings.Cut(word, "-")
		from, ok := dayOf(first)
		until := from
		if ranged && ok {
			until, ok = dayOf(last)
		}
		if !ok {
			return w, bad
		}
		for d := from; ; d = (d + 1) % 7 {
			if !slices.Contains(w.Days, d) {
				w.Days = append(w.Days, d)
			}
			if d == until {
				break
			}
		}
	}
	from, until, ok := strings.Cut(words[len(words)-1], "-")
	if !ok {
		return w, bad
	}
	var err, err2 error
	w.From, err = clockOf(from)
	w.Until, err2 = clockOf(until)
	if err != nil || err2 != nil {
		return w, bad
	}
	return w, w.Validate()
}

func dayOf(name string) (time.Weekday, bool) {
	for d := time.Sunday; d <= time.Saturday; d++ {
		if strings.EqualFold(d.String()[:3], name) {
			return d, true
		}
	}
	return 0, false
}

func clockOf(text string) (Clock, error) {
	hours, minutes, ok := strings.Cut(text, ":")
	if !ok || len(hours) != 2 || len(minutes) != 2 {
		return 0, fmt.Errorf("time of day %q: want 09:30", text)
	}
	h, err := strconv.Atoi(hours)
	m, err2 := strconv.Atoi(minutes)
	if err != nil || err2 != nil || h < 0 || m < 0 || m > 59 || h > 24 || h == 24 && m > 0 {
		return 0, fmt.Errorf("time of day %q: there is none", text)
	}
	return Clock(h*60 + m), nil
}

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
