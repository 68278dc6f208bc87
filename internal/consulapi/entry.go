package consulapi

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// entryShape is an entry with its indexes, as Consul shows it.
type entryShape store.Entry

// MarshalJSON puts the indexes behind the entry's own fields.
func (e *entryShape) MarshalJSON() ([]byte, error) {
	body, err := config.EncodeEntry(e.Entry)
	if err != nil {
		return nil, err
	}
	body = body[:len(body)-1] // the closing brace
	return fmt.Appendf(body, `,"CreateIndex":%d,"ModifyIndex":%d}`, e.CreateIndex, e.ModifyIndex), nil
}

// key splits the path below /v1/config/. Name is empty when only a kind is given.
func (c *call) key() config.Key {
	kind, name, _ := strings.Cut(c.arg, "/")
	return config.Key{Kind: config.Kind(kind), Name: name}
}

// Headers that Consul doesn't have, on the answer to a write of an entry.
const (
	// indexHeader is the registry's index after the write, for /v1/crossfade/applied.
	indexHeader = "X-Crossfade-Index"
	// unchangedHeader says that all was as it was asked to be.
	unchangedHeader = "X-Crossfade-Unchanged"
)

// writeEntries makes one atomic change of entries, and says in the answer's header
// what it came to.
func (c *call) writeEntries(write func(*store.Writer) error) error {
	var before, after uint64
	err := c.api.store.Update(func(w *store.Writer) error {
		before = w.Index()
		err := write(w)
		after = w.Index()
		return err
	})
	if err != nil {
		return err
	}
	c.w.Header().Set(indexHeader, strconv.FormatUint(after, 10))
	if after == before {
		c.w.Header().Set(unchangedHeader, "true")
	}
	return nil
}

func putEntry(c *call) (any, error) {
	cas, err := c.number("cas")
	if err != nil {
		return nil, err
	}
	raw, err := c.body(maxBody)
	if err != nil {
		return nil, err
	}
	e, err := config.DecodeEntryJSON(raw)
	if err != nil {
		return nil, badRequest("Request decoding failed: %v", err)
	}
	var ok bool
	err = c.writeEntries(func(w *store.Writer) error {
		old := w.Entry(config.KeyOf(e))
		if ok = compare(cas, old != nil, entryModified(old)); !ok {
			return nil
		}
		return w.PutEntry(e, c.author())
	})
	return ok, err
}

func entryModified(e *store.Entry) uint64 {
	if e == nil {
		return 0
	}
	return e.ModifyIndex
}

func getEntry(c *call) (any, error) {
	k := c.key()
	if k.Kind != "" {
		if err := config.CheckKind(k.Kind); err != nil {
			return nil, internal("invalid config entry kind: %v", err)
		}
	}
	if k.Name == "" {
		var out []*entryShape
		err := c.read(func(r *store.Reader) {
			out = []*entryShape{}
			for _, e := range r.Entries(k.Kind) {
				out = append(out, (*entryShape)(e))
			}
		})
		if err != nil {
			return nil, err
		}
		return filterEntries(c, out)
	}
	var e *store.Entry
	if err := c.read(func(r *store.Reader) { e = r.Entry(k) }); err != nil {
		return nil, err
	}
	if e == nil {
		return nil, notFound("Config entry not found for %q / %q", k.Kind, k.Name)
	}
	return (*entryShape)(e), nil
}

// deleteEntry answers {} or, with cas, whether the entry was the one meant.
func deleteEntry(c *call) (any, error) {
	k := c.key()
	if k.Kind == "" || k.Name == "" {
		return nil, notFound("Must provide both a kind and name to delete")
	}
	if err := config.CheckKind(k.Kind); err != nil {
		return nil, badRequest("invalid config entry kind: %v", err)
	}
	cas, err := c.number("cas")
	if err != nil {
		return nil, err
	}
	var ok bool
	err = c.writeEntries(func(w *store.Writer) error {
		old := w.Entry(k)
		if ok = cas == nil || old != nil && *cas == old.ModifyIndex; !ok {
			return nil
		}
		return w.DeleteEntry(k, c.author())
	})
	if err != nil || cas != nil {
		return ok, err
	}
	return struct{}{}, nil
}
