package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Slot is a run of callers, by the place that their hash has, who are on one way. The slots
// of a traffic-shift are in the order of places and as wide as its shares.
type Slot struct {
	Way   string
	Width int // in hundredths of a percent
}

const (
	// allSlots is how wide they are together.
	allSlots = 100_00
	// maxSlots bounds how many there are. Moves between two ways that border on each other
	// add none, so that a few are enough.
	maxSlots = 200
)

// SlotsFor are the entry's slots for shares that may be others than its own, as where a way is
// closed. No more callers change their way than the shares differ by.
//
// No rule that knows the shares alone can do that beside a third way: what makes it possible
// is that the entry remembers its slots, where they are not simply its shares in order.
func (e *TrafficShift) SlotsFor(hundredths func(way string) int) []Slot {
	slots, err := parseSlots(e.Slots)
	if err != nil || len(slots) == 0 {
		slots = inOrder(e.Shares.Hundredths)
	}
	return moveSlots(slots, hundredths)
}

// succeedSlots is what the entry remembers, after one that it takes the place of.
func (e *TrafficShift) succeedSlots(was *TrafficShift) string {
	if e.Sticky == nil {
		return ""
	}
	if was == nil || was.Sticky == nil {
		was = e
	}
	slots := was.SlotsFor(e.Shares.Hundredths)
	if len(slots) > maxSlots || slices.Equal(slots, inOrder(e.Shares.Hundredths)) {
		return ""
	}
	return slotsText(slots)
}

// inOrder are shares as slots, a way after the other.
func inOrder(hundredths func(way string) int) (out []Slot) {
	for _, s := range new(Shares).all() {
		if n := hundredths(s.way); n > 0 {
			out = append(out, Slot{s.way, n})
		}
	}
	return out
}

// moveSlots gives ways with too much to ways with too little, in the order of ways.
func moveSlots(slots []Slot, hundredths func(way string) int) []Slot {
	slots = slices.Clone(slots)
	more := map[string]int{} // that a way is to get
	for _, s := range new(Shares).all() {
		more[s.way] = hundredths(s.way)
	}
	for _, s := range slots {
		more[s.Way] -= s.Width
	}
	for _, from := range new(Shares).all() {
		for _, to := range new(Shares).all() {
			n := min(-more[from.way], more[to.way])
			if n <= 0 {
				continue
			}
			slots = moveSlot(slots, from.way, to.way, n)
			more[from.way] += n
			more[to.way] -= n
		}
	}
	return slots
}

// moveSlot moves places from one way to another, which has as many: where the two border on
// each other if anywhere, else from the end of the widest slot.
func moveSlot(slots []Slot, from, to string, n int) []Slot {
	for n > 0 {
		at, after := -1, true
		for i, s := range slots {
			switch {
			case s.Way != from:
				continue
			case i+1 < len(slots) && slots[i+1].Way == to:
				at, after = i, true
			case i > 0 && slots[i-1].Way == to:
				at, after = i, false
			default:
				continue
			}
			break
		}
		if at < 0 {
			for i, s := range slots {
				if s.Way == from && (at < 0 || s.Width > slots[at].Width) {
					at = i
				}
			}
		}
		part := min(n, slots[at].Width)
		n -= part
		slots[at].Width -= part
		if after {
			at++
		}
		slots = joined(slices.Insert(slots, at, Slot{to, part}))
	}
	return slots
}

// joined makes one of neighbours of the same way, and drops what is empty.
func joined(slots []Slot) (out []Slot) {
	for _, s := range slots {
		switch n := len(out); {
		case s.Width == 0:
		case n > 0 && out[n-1].Way == s.Way:
			out[n-1].Width += s.Width
		default:
			out = append(out, s)
		}
	}
	return out
}

// slotsText is "legacy=7000,mtls=1000,direct=2000".
func slotsText(slots []Slot) string {
	out := make([]string, len(slots))
	for i, s := range slots {
		out[i] = s.Way + "=" + strconv.Itoa(s.Width)
	}
	return strings.Join(out, ",")
}

// parseSlots is the inverse of slotsText.
func parseSlots(text string) (out []Slot, err error) {
	if text == "" {
		return nil, nil
	}
	sum := 0
	for word := range strings.SplitSeq(text, ",") {
		way, width, _ := strings.Cut(word, "=")
		n, err := strconv.Atoi(width)
		known := slices.ContainsFunc(new(Shares).all(), func(s share) bool { return s.way == way })
		if err != nil || !known || n <= 0 || n > allSlots || len(out) == maxSlots {
			return nil, fmt.Errorf("%.40q: want at most %d of WAY=WIDTH with commas between, the widths in hundredths of a percent", word, maxSlots)
		}
		out = append(out, Slot{way, n})
		sum += n
	}
	if sum != allSlots {
		return nil, fmt.Errorf("the widths add up to %d, want %d", sum, allSlots)
	}
	return joined(out), nil
}
