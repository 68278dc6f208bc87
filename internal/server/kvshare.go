package server

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/client"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/shift"
)

// The client convention: crossfade/<source>/<destination>/mesh_percent holds the percent of
// a pair's requests that go the new way. Client libraries read it; sidecars follow it, too.
const (
	kvPrefix = "crossfade/"
	kvSuffix = "/mesh_percent"
	// keysName is under which the store remembers the pairs whose shares a key has set.
	keysName = "keys"
)

// keyed is a pair whose shares a key has set. As in the convention a key lies over what is
// there without it.
type keyed struct {
	Before     shift.Shares `json:"before"`     // without the key
	Generation uint64       `json:"generation"` // of the entry that the key has made
}

// keyedPairs are those that the store remembers, by key.
func keyedPairs(r *store.Reader) map[string]keyed {
	out := map[string]keyed{}
	if err := json.Unmarshal(r.State(keysName), &out); err != nil {
		return map[string]keyed{}
	}
	return out
}

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
// traffic-shift the one written later counts. A key that is deleted leaves the shares that were
// there before it, if nobody has set others since. What cannot be followed changes nothing, and
// is said: in the log once, and in the ledger as long as it is so.
func (p *stepper) followKV(now time.Time, b *books) {
	var rows []*store.KV
	var gone map[string]keyed
	p.s.store.Read(context.Background(), 0, func(r *store.Reader) { rows, gone = r.KVs(kvPrefix), keyedPairs(r) })
	wrong := map[shift.Pair]string{}
	say := func(pair shift.Pair, key string, err error, so string) {
		wrong[pair] = fmt.Sprintf("key %s: %v: %s", key, err, so)
		if p.kvWrong[pair] != wrong[pair] {
			p.log.Warn("a share in KV can't be followed, the last one holds", "pair", pair.String(), "reason", wrong[pair])
		}
	}
	for _, row := range rows {
		pair, ok := kvPair(row.Key)
		if !ok {
			continue
		}
		delete(gone, row.Key)
		if err := p.followOne(now, b, pair, row); err != nil {
			say(pair, row.Key, err, "it has no effect")
		}
	}
	for _, key := range slices.Sorted(maps.Keys(gone)) {
		pair, _ := kvPair(key)
		if err := p.letGo(now, pair, key); err != nil {
			say(pair, key, err, "it was deleted, and what it has set stays")
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
	if sharesOfEntry(e.Shares) == shares {
		return nil // nothing to be written, each second
	}
	_, err := p.s.change(func(w *store.Writer) error {
		old, at := decidingOf(name, w.Entry)
		if old == nil || at.ModifyIndex >= row.ModifyIndex {
			return nil
		}
		keys := keyedPairs(&w.Reader)
		if keys[row.Key].Generation != old.Generation || keys[row.Key] == (keyed{}) {
			keys[row.Key] = keyed{Before: sharesOfEntry(old.Shares)}
		}
		e, err := putShares(w, name, old, shares, store.Author{Who: "key " + row.Key, Time: now, What: "followed"})
		if err != nil {
			return err
		}
		keys[row.Key] = keyed{keys[row.Key].Before, e.Generation}
		return putKeyed(w, keys)
	})
	return err
}

// letGo puts a pair back to what it was before a key that is gone now.
func (p *stepper) letGo(now time.Time, pair shift.Pair, key string) error {
	name := api.PairName{Source: pair.Source, Destination: pair.Destination}
	_, err := p.s.change(func(w *store.Writer) error {
		keys := keyedPairs(&w.Reader)
		was, ok := keys[key]
		if !ok || w.KV(key) != nil {
			return nil
		}
		delete(keys, key)
		if old, _ := decidingOf(name, w.Entry); old != nil && old.Generation == was.Generation {
			if _, err := putShares(w, name, old, was.Before, store.Author{Who: "key " + key, Time: now, What: "gone"}); err != nil {
				return err
			}
		}
		return putKeyed(w, keys)
	})
	return err
}

// putShares writes a pair's shares, and returns its entry as it is then.
func putShares(w *store.Writer, name api.PairName, old *config.TrafficShift, shares shift.Shares, by store.Author) (*config.TrafficShift, error) {
	e := next(name, old)
	e.Shares = entryShares(shares)
	if err := checked(e); err != nil {
		return nil, err
	}
	if err := w.PutEntry(e, by); err != nil {
		return nil, err
	}
	e, _ = decidingOf(name, w.Entry)
	return e, nil
}

func putKeyed(w *store.Writer, keys map[string]keyed) error {
	b, err := json.Marshal(keys)
	if err != nil {
		return err
	}
	return w.PutState(keysName, b)
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
