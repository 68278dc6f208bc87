package relay

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/crossfade-mesh/crossfade/internal/atomicfile"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// The file is a line that names the format, the hash of what follows, and the
// resources in their wire form, by type and name.
const header = "crossfade last good configuration 1\n"

// store replaces the file as a whole: a reader finds the old content or the new. Resources are
// written as they are held, and not copied.
func store(path string, good map[xds.Type]map[string]*xds.Resource) error {
	lists := map[xds.Type][]*xds.Resource{}
	for t, byName := range good {
		for _, name := range slices.Sorted(maps.Keys(byName)) {
			lists[t] = append(lists[t], byName[name])
		}
	}
	records := func(w io.Writer) error {
		for _, t := range xds.Types {
			if len(lists[t]) == 0 {
				continue
			}
			if err := xds.WriteRecord(w, t, lists[t]); err != nil {
				return err
			}
		}
		return nil
	}
	sum := sha256.New()
	if err := records(sum); err != nil {
		return err
	}
	return atomicfile.WriteTo(path, func(w io.Writer) error {
		if _, err := w.Write(sum.Sum([]byte(header))); err != nil {
			return err
		}
		return records(w)
	})
}

// load reads what store wrote.
func load(path string) (map[xds.Type]map[string]*xds.Resource, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	rest, ok := bytes.CutPrefix(b, []byte(header))
	if !ok || len(rest) < sha256.Size {
		return nil, errors.New("not a last good configuration of this version")
	}
	sum, body := rest[:sha256.Size], rest[sha256.Size:]
	if got := sha256.Sum256(body); !bytes.Equal(got[:], sum) {
		return nil, errors.New("content doesn't match its hash, the file is damaged")
	}
	list, err := xds.ParseRecords(body)
	if err != nil {
		return nil, err
	}
	out := map[xds.Type]map[string]*xds.Resource{}
	for _, res := range list {
		if out[res.Type] == nil {
			out[res.Type] = map[string]*xds.Resource{}
		}
		out[res.Type][res.Name] = res
	}
	return out, nil
}

// versionOf hashes the versions of all resources.
func versionOf(held map[xds.Type]map[string]*xds.Resource) string {
	h := sha256.New()
	for _, t := range xds.Types {
		for _, name := range slices.Sorted(maps.Keys(held[t])) {
			fmt.Fprintf(h, "%s/%s=%s\n", t, name, held[t][name].Version)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:6])
}
