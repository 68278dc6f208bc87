package consulapi

import (
	"fmt"
	"net/http"
	"slices"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// author is who makes the call, now.
func (c *call) author() store.Author {
	return store.Author{Who: c.api.Who(c.r), Time: c.api.Now()}
}

// named is the key that ends the path, of a kind that is served.
func (c *call) named() (config.Key, error) {
	k := c.key()
	if k.Kind == "" || k.Name == "" {
		return k, badRequest("Must provide both a kind and name")
	}
	if err := config.CheckKind(k.Kind); err != nil {
		return k, badRequest("invalid config entry kind: %v", err)
	}
	return k, nil
}

// entryHistory lists the versions of an entry that are kept, the newest first.
func entryHistory(c *call) (any, error) {
	k, err := c.named()
	if err != nil {
		return nil, err
	}
	var past []*store.Version
	if err := c.read(func(r *store.Reader) { past = r.History(k) }); err != nil {
		return nil, err
	}
	if len(past) == 0 {
		return nil, notFound("%s %q: no history: nobody has written it", k.Kind, k.Name)
	}
	return past, nil
}

// rolledBack is what became of a rollback.
type rolledBack struct {
	From    uint64 `json:"from"`
	To      uint64 `json:"to"`      // 0: before there was an entry
	Deleted bool   `json:"deleted"` // there was none at To, and there is none now
}

// rollBackEntry makes an entry what it was at ?to=INDEX, or before its newest version.
// With ?cas=INDEX only if that is the newest version.
func rollBackEntry(c *call) (any, error) {
	k, err := c.named()
	if err != nil {
		return nil, err
	}
	cas, err := c.number("cas")
	if err != nil {
		return nil, badRequest("cas: want the index of the newest version: %v", err)
	}
	to, err := c.number("to")
	if err != nil {
		return nil, badRequest("to: want the index of a version: %v", err)
	}
	var out rolledBack
	err = c.writeEntries(func(w *store.Writer) error {
		past := w.History(k)
		if len(past) == 0 {
			return notFound("%s %q: no history: nobody has written it", k.Kind, k.Name)
		}
		out = rolledBack{From: past[0].Index}
		if cas != nil && *cas != out.From {
			return &httpError{http.StatusConflict, fmt.Sprintf("%s %q: not rolled back: its newest version is %d, not %d: look at its history again", k.Kind, k.Name, out.From, *cas)}
		}
		target, err := versionAt(k, past, to)
		if err != nil {
			return err
		}
		by := c.author()
		by.Back = true
		if target == nil || target.Entry == nil {
			out.Deleted = true
			if target != nil {
				by.To = target.Index
			}
			out.To = by.To
			return w.DeleteEntry(k, by)
		}
		e, err := config.DecodeEntryJSON(target.Entry)
		if err != nil {
			return &httpError{http.StatusConflict, fmt.Sprintf("%s %q: cannot go back to version %d: %v", k.Kind, k.Name, target.Index, err)}
		}
		by.To, out.To = target.Index, target.Index
		return w.PutEntry(e, by)
	})
	return out, err
}

// versionAt is the version of an index, or for nil that before the newest. Nil: there
// was no entry then.
func versionAt(k config.Key, past []*store.Version, index *uint64) (*store.Version, error) {
	if index == nil {
		switch {
		case len(past) > 1:
			return past[1], nil
		case past[0].What == store.Created:
			return nil, nil
		}
		return nil, notFound("%s %q: no version before %d is kept", k.Kind, k.Name, past[0].Index)
	}
	i := slices.IndexFunc(past, func(v *store.Version) bool { return v.Index == *index })
	if i < 0 {
		return nil, notFound("%s %q: no version %d is kept: see crossfade config history %s %s", k.Kind, k.Name, *index, k.Kind, k.Name)
	}
	return past[i], nil
}
