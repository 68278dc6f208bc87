package server

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/client"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/shift"
)

// The client convention: crossfade/<source>/<destination>/mesh_percent holds the percent of
// a pair's requests that go the new way. Client libraries read it; sidecars follow it, too.
const (
	kvPrefix = "crossfade/"
	kvSuffix = "/mesh_percent"
)

// kvPair is the pair of a key of the convention.
func kvPair(key string) (shift.Pair, bool) {
	rest, ok := strings.CutPrefix(key, kvPrefix)
	if rest, ok2 := strings.CutSuffix(rest, kvSuffix); ok && ok2 {
		source, destination, cut := strings.Cut(rest, "/")
		return shift.Pair{Source: source, Destination: destination}, cut && source != "" && destination != "" && !strings.Contains(destination, "/")
	}
	return shift.Pair{}, false
}

// followKV gives pairs the shares that keys of the convention ask for: of a key and the pair's
// traffic-shift the one written later counts. What cannot be followed changes nothing, and is
// said: in the log once, and in the ledger as long as it is so.
func (p *stepper) followKV(now time.Time, b *books) {
	var rows []*store.KV
	p.s.store.Read(context.Background(), 0, func(r *store.Reader) { rows = r.KVs(kvPrefix) })
	wrong := map[shift.Pair]string{}
	for _, row := range rows {
		pair, ok := kvPair(row.Key)
		if !ok {
			continue
		}
		if err := p.followOne(now, b, pair, row); err != nil {
			wrong[pair] = fmt.Sprintf("key %s: %v: it has no effect", row.Key, err)
			if p.kvWrong[pair] != wrong[pair] {
				p.log.Warn("a share in KV can't be followed, the last one holds", "pair", pair.String(), "reason", wrong[pair])
			}
		}
	}
	p.kvWrong = wrong
}

func (p *stepper) followOne(now time.Time, b *books, pair shift.Pair, row *store.KV) error {
	name := api.PairName{Source: pair.Source, Destination: pair.Destination}
	share, ok := client.ParsePercent(string(row.Value))
	if !ok {
		return fmt.Errorf("value %.40q: want a percentage, 0 to 100", row.Value)
	}
	e, entry := b.deciding(name)
	if e == nil {
		return fmt.Errorf("the pair has no traffic-shift, which says what its old way is")
	}
	if entry.ModifyIndex >= row.ModifyIndex {
		return nil // written later
	}
	stage := openStage(p.s.mesh.config(), pair.Destination, e)
	if stage == shift.StrictStage {
		return fmt.Errorf("%q is strict, it takes nothing but mtls", pair.Destination)
	}
	from := shift.Way(oldWay(e))
	to, ok := newWay(stage, from)
	if !ok {
		return fmt.Errorf("stage %s opens no way besides %s", stage, from)
	}
	shares := shift.AllOn(from).With(from, shift.Whole-shift.Share(share)).With(to, shift.Share(share))
	_, err := p.s.change(func(w *store.Writer) error {
		old, at := decidingOf(name, w.Entry)
		if old == nil || at.ModifyIndex >= row.ModifyIndex {
			return nil
		}
		e := next(name, old)
		e.Shares = entryShares(shares)
		if err := checked(e); err != nil {
			return err
		}
		if e.Shares == old.Shares {
			return nil
		}
		return w.PutEntry(e, store.Author{Who: "key " + row.Key, Time: now, What: "followed"})
	})
	return err
}

// newWay is the most secure way that a stage opens, besides the old one.
func newWay(stage shift.Stage, from shift.Way) (to shift.Way, ok bool) {
	for _, w := range stage.OpenWays() {
		if w != from && w != shift.Legacy { // which is the old way, where there is one
			to, ok = w, true
		}
	}
	return to, ok
}

// wrongKV is what keeps a key of the convention from being followed, by pair.
func (p *stepper) wrongKV() map[shift.Pair]string {
	return p.seen.Load().kvWrong
}
