// Package migrate moves the state of servers between a data directory and a Consul.
//
// In: a directory that no server is using, and the engine of a Consul. Out: the same entries with
// their history and indexes, shifts under way, tokens and CA on the other side, and what was moved.
// What is moved away is renamed, never deleted; what is on the other side already, and differs, is
// named and stays unless it is to be replaced.
//
// Nodes, services, checks and sessions are not moved: with a Consul its agents hold them. It leaves
// stopping the servers to people.
package migrate

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/access/tokens"
	"github.com/crossfade-mesh/crossfade/internal/ca"
	"github.com/crossfade-mesh/crossfade/internal/catalog/consulstore"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// What parts of a server share, by the name of the state, where several servers do.
const (
	StateCA     = "ca/root"
	StateTokens = "token/"
	StateLeaves = "leaf/"
)

// caDir is where the CA is below a data directory.
const caDir = "ca"

// Report is what was moved.
type Report struct {
	Entries, Versions, Keys, Tokens int
	CA                              bool
	Index                           uint64
}

// ErrDiffers is wrapped by what is refused for what is on the other side.
var ErrDiffers = errors.New("is there already")

// ToConsul moves the state in a directory into a Consul. With replace it takes the place of what
// the Consul has. The directory may be that of a server that had its state in the Consul: then the
// other servers that have seen as much go on with it.
func ToConsul(ctx context.Context, dir string, e *consulstore.Engine, replace bool) (out Report, err error) {
	rows, index, mark, err := store.ReadDir(dir)
	if err != nil {
		return out, err
	}
	newest, err := e.Newest(ctx)
	if err != nil {
		return out, err
	}
	if newest != (store.Mark{}) {
		if !replace {
			return out, fmt.Errorf("state of crossfade %w: the Consul is at index %d: nothing was moved: --replace puts that of %q in its place", ErrDiffers, newest.Index, dir)
		}
		switch busy, err := e.InUse(ctx); {
		case err != nil:
			return out, err
		case len(busy) > 0:
			return out, fmt.Errorf("state of crossfade is in use by server %s: nothing was moved: stop all servers first", strings.Join(busy, ", "))
		}
	}
	var entries []config.Entry
	var keys []*store.KV
	for _, c := range rows {
		entry, err := c.Entry()
		if err != nil {
			return out, err
		}
		if entry != nil && !store.Own(entry.EntryKind()) {
			entries = append(entries, entry)
		}
		if pair := c.KV(); pair != nil {
			keys = append(keys, pair)
		}
	}
	differ, err := e.Differ(ctx, entries, keys)
	if err != nil {
		return out, err
	}
	if len(differ) > 0 && !replace {
		return out, fmt.Errorf("in the Consul otherwise than in %q: %s: %w: nothing was moved: --replace puts those of the directory in their place", dir, strings.Join(differ[:min(len(differ), 20)], ", "), ErrDiffers)
	}
	if mark == (store.Mark{}) {
		if rows, err = withSecrets(dir, rows); err != nil {
			return out, err
		}
		mark = store.Mark{Index: index, Seq: newest.Seq + 1, ID: rand.Text()}
	}
	rows = onlyConvention(rows)
	if err := e.Put(ctx, entries, keys); err != nil {
		return out, fmt.Errorf("not all was moved, do it again when this is mended: %w", err)
	}
	if err := e.Become(ctx, rows, mark); err != nil {
		return out, fmt.Errorf("not all was moved, do it again when this is mended: %w", err)
	}
	out = reportOf(rows)
	out.Index, out.Keys = mark.Index, len(keys)
	return out, store.Retire(dir, "")
}

// withSecrets adds the tokens and the CA of a directory.
func withSecrets(dir string, rows []store.Change) ([]store.Change, error) {
	states := map[string][]byte{}
	all, err := tokens.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for accessor, value := range all {
		states[StateTokens+accessor] = value
	}
	root, err := ca.ReadDir(filepath.Join(dir, caDir))
	if err != nil {
		return nil, err
	}
	if root != nil {
		states[StateCA] = root
	}
	for name, value := range states {
		row, err := store.StateRow(name, value)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// onlyConvention leaves out keys that are none of the client convention's: those are Consul's alone.
func onlyConvention(rows []store.Change) (out []store.Change) {
	for _, c := range rows {
		if pair := c.KV(); pair == nil || strings.HasPrefix(pair.Key, store.ConventionPrefix) {
			out = append(out, c)
		}
	}
	return out
}

func reportOf(rows []store.Change) (out Report) {
	for _, c := range rows {
		name, _, isState := c.State()
		switch {
		case isState && name == StateCA:
			out.CA = true
		case isState && strings.HasPrefix(name, StateTokens):
			out.Tokens++
		case c.KV() != nil:
			out.Keys++
		case c.Table == "entries":
			out.Entries++
		case c.Table == "entry-history":
			out.Versions++
		}
	}
	return out
}

// ToDir copies the state in a Consul into a directory that has none, for a server without Consul.
func ToDir(ctx context.Context, e *consulstore.Engine, dir string) (out Report, err error) {
	if err := store.Free(dir); err != nil {
		return out, err
	}
	switch busy, err := e.InUse(ctx); {
	case err != nil:
		return out, err
	case len(busy) > 0:
		return out, fmt.Errorf("state of crossfade is in use by server %s: nothing was moved: stop all servers first", strings.Join(busy, ", "))
	}
	rows, mark, err := e.Load(ctx)
	if err != nil {
		return out, err
	}
	if mark == (store.Mark{}) {
		return out, errors.New("the Consul has no state of crossfade: nothing was moved")
	}
	out = reportOf(rows)
	out.Index = mark.Index
	var kept []store.Change
	var root []byte
	who := map[string][]byte{}
	for _, c := range rows {
		name, value, isState := c.State()
		accessor, isToken := strings.CutPrefix(name, StateTokens)
		switch {
		case isState && name == StateCA:
			root = value
		case isState && isToken:
			who[accessor] = value
		case isState && strings.HasPrefix(name, StateLeaves): // of Consul's CA, which a server without Consul has not
		default:
			kept = append(kept, c)
		}
	}
	if root != nil {
		if err := ca.WriteDir(filepath.Join(dir, caDir), root); err != nil {
			return Report{}, err
		}
	}
	if err := tokens.WriteDir(dir, who); err != nil {
		return Report{}, err
	}
	return out, store.WriteDir(dir, kept, mark.Index)
}
