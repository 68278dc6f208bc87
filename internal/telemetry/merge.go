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
	later.Cuts = mergeCuts(r.Cuts, later.Cuts)
	if later.App == nil {
		later.App = r.App
	}
	if later.Connections == nil {
		later.Connections = r.Connections
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

// mergeCuts keeps the later word on each destination.
func mergeCuts(a, b []Cut) []Cut {
	last := map[string]Cut{}
	for _, c := range slices.Concat(a, b) {
		last[c.Destination] = c
	}
	var out []Cut
	for _, destination := range slices.Sorted(maps.Keys(last)) {
		out = append(out, last[destination])
	}
	return out
}

// Bounded cuts a report into one that a server takes and what is left for the next.
func (r Report) Bounded() (fits, rest Report) {
	fits = r
	o, p, g, b, c := min(len(r.Outbound), maxOutbound), min(len(r.Plaintext), maxSources), min(len(r.Open), maxOpen), min(len(r.Probes), maxProbes), min(len(r.Cuts), maxCuts)
	for {
		fits.Outbound, fits.Plaintext, fits.Open, fits.Probes, fits.Cuts = r.Outbound[:o], r.Plaintext[:p], r.Open[:g], r.Probes[:b], r.Cuts[:c]
		if text, err := fits.Encode(); err == nil && len(text) <= MaxReport || o+p+g+b+c == 0 {
			break
		}
		o, p, g, b, c = o/2, p/2, g/2, b/2, c/2
	}
	rest = Report{Outbound: r.Outbound[o:], Plaintext: r.Plaintext[p:], Open: r.Open[g:], Probes: r.Probes[b:], Cuts: r.Cuts[c:]}
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
