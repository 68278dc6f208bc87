package telemetry

import (
	"maps"
	"slices"
)

// Merge adds a later stretch to an earlier one, as of a report that could not be sent.
func (r Report) Merge(later Report) Report {
	later.Over += r.Over
	pairs := map[string]*tally{}
	for _, o := range slices.Concat(r.Outbound, later.Outbound) {
		t := tallyOf(pairs, o.Destination)
		for _, w := range o.Ways {
			*t.way(w.Way) = t.way(w.Way).Merge(w.Telemetry)
		}
		for _, f := range o.Failing {
			n := f.Count
			f.Count = 0
			t.failing[f] += n
		}
	}
	later.Outbound = outbounds(pairs)
	later.Plaintext = addPlaintext(r.Plaintext, later.Plaintext)
	later.Open = mergeOpen(r.Open, later.Open)
	if later.Local == nil {
		later.Local = r.Local
	}
	if later.Probes == nil {
		later.Probes = r.Probes
	}
	if later.App == nil {
		later.App = r.App
	}
	return later
}

// mergeOpen keeps the later count of each.
func mergeOpen(a, b []Open) []Open {
	counts := map[way]uint64{}
	for _, o := range slices.Concat(a, b) {
		counts[way{o.Destination, o.Way}] = o.Count
	}
	return openOf(counts)
}

// Bounded cuts a report into one that a server takes and what is left for the next.
func (r Report) Bounded() (fits, rest Report) {
	fits = r
	cut := func(n, most int) int { return min(n, most) }
	o, p, g, b := cut(len(r.Outbound), maxOutbound), cut(len(r.Plaintext), maxSources), cut(len(r.Open), maxOpen), cut(len(r.Probes), maxProbes)
	for {
		fits.Outbound, fits.Plaintext, fits.Open, fits.Probes = r.Outbound[:o], r.Plaintext[:p], r.Open[:g], r.Probes[:b]
		if text, err := fits.Encode(); err == nil && len(text) <= MaxReport || o+p+g+b == 0 {
			break
		}
		o, p, g, b = o/2, p/2, g/2, b/2
	}
	rest = Report{Outbound: r.Outbound[o:], Plaintext: r.Plaintext[p:], Open: r.Open[g:], Probes: r.Probes[b:]}
	if len(rest.Outbound) > 0 {
		rest.Over = r.Over
	}
	return fits, rest
}

// Late drops what tells nobody anything when it comes late: how attempts went. Who sent
// plaintext, and what is so now, stays.
func (r Report) Late() Report {
	r.Outbound, r.Over = nil, 0
	return r
}

func outbounds(pairs map[string]*tally) (out []Outbound) {
	for _, destination := range slices.Sorted(maps.Keys(pairs)) {
		if o := pairs[destination].outbound(destination); len(o.Ways)+len(o.Failing) > 0 {
			out = append(out, o)
		}
	}
	return out
}
