package server

import (
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/shift"
)

// stageOf is a pair's stage: that of a callee which is explicitly strict, else what the
// pair's deciding entry says or, where that says nothing, what its shares need. A pair that
// nothing was said of is strict: all goes by mtls, and the sidecar's port takes nothing else.
func stageOf(entries *config.Set, destination string, e *config.TrafficShift) shift.Stage {
	switch {
	case entries.MutualTLSMode(destination) == config.MutualTLSStrict || e == nil:
		return shift.StrictStage
	case e.Stage != "":
		return shift.Stage(e.Stage)
	case e.Shares.MTLS > 0:
		return shift.Permissive
	case e.Shares.Plain > 0:
		return shift.PlainStage
	}
	return shift.Client
}

// openStage is the stage for steps of a pair: where its entry closes nothing, all ways that
// lead anywhere are open.
func openStage(entries *config.Set, destination string, e *config.TrafficShift) shift.Stage {
	stage := stageOf(entries, destination, e)
	if stage != shift.StrictStage && e.Stage == "" {
		return shift.Permissive
	}
	return stage
}

// sharesOfEntry are an entry's shares in hundredths of a percent.
func sharesOfEntry(s config.Shares) shift.Shares {
	var out shift.Shares
	for _, w := range shift.Ways() {
		out = out.With(w, shift.Share(s.Hundredths(string(w))))
	}
	return out
}

// entryShares is the inverse of [sharesOfEntry].
func entryShares(s shift.Shares) config.Shares {
	hundredths := map[string]int{}
	for _, w := range shift.Ways() {
		hundredths[string(w)] = int(s.Of(w))
	}
	return sharesOf(hundredths)
}

// waysOf are the old way of an entry and the new one: the most secure that has a share,
// besides the old; false when there is none.
func waysOf(e *config.TrafficShift) (from, to shift.Way, ok bool) {
	from = shift.Way(oldWay(e))
	shares := sharesOfEntry(e.Shares)
	for _, w := range shift.Ways() {
		if w != from && shares.Of(w) > 0 {
			to, ok = w, true
		}
	}
	return from, to, ok
}

// limitsOf are an entry's limits of the shift guard. cluster is the most attempts that one
// request makes on a way.
func limitsOf(g *config.ShiftGuard, cluster int) shift.Limits {
	out := shift.Limits{Cluster: cluster}
	if g == nil {
		return out
	}
	out.Failures, out.Slower = share(g.Failures), share(g.Slower)
	out.SlowerBy, out.Attempts = duration(g.SlowerBy), g.Attempts
	return out
}
