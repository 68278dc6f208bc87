package consulapi

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
)

// pairShape is a pair as Consul shows it; the value is base64 in JSON, or null.
type pairShape struct {
	LockIndex   uint64
	Key         string
	Flags       uint64
	Value       []byte
	Session     string `json:",omitempty"`
	CreateIndex uint64
	ModifyIndex uint64
}

func showPair(p *store.KV) pairShape {
	out := pairShape{p.LockIndex, p.Key, p.Flags, p.Value, p.Session, p.CreateIndex, p.ModifyIndex}
	if len(out.Value) == 0 {
		out.Value = nil
	}
	return out
}

func getKV(c *call) (any, error) {
	switch {
	case c.query.Has("keys"):
		return c.keys()
	case c.query.Has("recurse"):
		var pairs []*store.KV
		if err := c.read(func(r *store.Reader) { pairs = r.KVs(c.arg) }); err != nil {
			return nil, err
		}
		if len(pairs) == 0 {
			return c.missing()
		}
		out := make([]pairShape, len(pairs))
		for i, p := range pairs {
			out[i] = showPair(p)
		}
		return out, nil
	}
	key, err := c.need("key name")
	if err != nil {
		return nil, err
	}
	var pair *store.KV
	if err := c.read(func(r *store.Reader) { pair = r.KV(key) }); err != nil {
		return nil, err
	}
	if pair == nil {
		return c.missing()
	}
	if c.query.Has("raw") {
		h := c.w.Header()
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "sandbox")
		c.w.Write(pair.Value)
		return done{}, nil
	}
	return []pairShape{showPair(pair)}, nil
}

// keys lists the keys below a prefix, up to the next separator when one is given.
func (c *call) keys() (any, error) {
	separator := c.query.Get("separator")
	var keys []string
	err := c.read(func(r *store.Reader) {
		keys = nil
		for _, p := range r.KVs(c.arg) {
			key := p.Key
			if separator != "" {
				if i := strings.Index(key[len(c.arg):], separator); i >= 0 {
					key = key[:len(c.arg)+i+len(separator)]
				}
			}
			keys = append(keys, key)
		}
		keys = slices.Compact(keys)
	})
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return c.missing()
	}
	return keys, nil
}

func putKV(c *call) (any, error) {
	key, err := c.need("key name")
	if err != nil {
		return nil, err
	}
	if err := c.exclusive("acquire", "cas", "release"); err != nil {
		return nil, err
	}
	cas, err := c.number("cas")
	if err != nil {
		return nil, err
	}
	flags, err := c.number("flags")
	if err != nil {
		return nil, err
	}
	value, err := c.body(maxKVValue)
	if err != nil {
		return nil, err
	}
	var ok bool
	err = c.api.store.Update(func(w *store.Writer) error {
		var f uint64
		if flags != nil {
			f = *flags
		}
		switch {
		case c.query.Has("acquire"):
			session := c.query.Get("acquire")
			if err := sessionError(w, session); err != nil {
				return internal("raft apply failed: %v", err)
			}
			ok, err = w.Acquire(key, value, f, session)
			return err
		case c.query.Has("release"):
			ok, err = w.Release(key, value, f, c.query.Get("release"))
			return err
		}
		old := w.KV(key)
		if ok = compare(cas, old != nil, modified(old)); !ok {
			return nil
		}
		return w.PutKV(key, value, f)
	})
	return ok, err
}

// sessionError says in Consul's words why a session cannot acquire anything.
func sessionError(r interface{ Session(string) *store.Session }, id string) error {
	switch {
	case id == "":
		return errors.New("missing session")
	case r.Session(id) == nil:
		return fmt.Errorf("invalid session %q", id)
	}
	return nil
}

// exclusive refuses a call with more than one of these parameters.
func (c *call) exclusive(names ...string) error {
	var given []string
	for _, name := range names {
		if c.query.Has(name) {
			given = append(given, name+"="+c.query.Get(name))
		}
	}
	if len(given) > 1 {
		return badRequest("Conflicting flags: %s\n", strings.Join(given, "&"))
	}
	return nil
}

func modified(p *store.KV) uint64 {
	if p == nil {
		return 0
	}
	return p.ModifyIndex
}

// canDelete judges a deletion's cas. A key that is not there is deleted already,
// unless cas asks for index 0.
func canDelete(cas *uint64, old *store.KV) bool {
	return cas == nil || *cas > 0 && (old == nil || *cas == old.ModifyIndex)
}

func deleteKV(c *call) (any, error) {
	if c.query.Has("recurse") {
		return true, c.api.store.Update(func(w *store.Writer) error { return w.DeleteKVs(c.arg) })
	}
	key, err := c.need("key name")
	if err != nil {
		return nil, err
	}
	cas, err := c.number("cas")
	if err != nil {
		return nil, err
	}
	var ok bool
	err = c.api.store.Update(func(w *store.Writer) error {
		old := w.KV(key)
		if ok = canDelete(cas, old); !ok {
			return nil
		}
		return w.DeleteKV(key)
	})
	return ok, err
}
