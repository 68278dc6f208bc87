package consulstore

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

const (
	// maxPart is below the 512 KiB that a Consul takes as a value.
	maxPart = 400 << 10
	// maxUnpacked bounds what is read.
	maxUnpacked = 1 << 30
	// compactEvery is after how many commits the rows are written anew and the log is cut off, and
	// keepLog how many records stay for servers that are behind.
	compactEvery = 256
	keepLog      = 256
)

// blob says where what is too large for one value is.
type blob struct {
	Blob  string `json:"blob"` // its parts are below this
	Parts int    `json:"parts"`
	Sum   string `json:"sha256"`
}

func keyOfBlob(m store.Mark) string { return fmt.Sprintf("%s%016d-%s/", belowBlobs, m.Seq, m.ID) }

// pack is a value as it is kept: compressed, or where that is too large for a value, a [blob]
// whose parts are written at once.
func (e *Engine) pack(ctx context.Context, below string, v any) ([]byte, error) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if err := errors.Join(json.NewEncoder(z).Encode(v), z.Close()); err != nil {
		return nil, err
	}
	packed := b.Bytes()
	if len(packed) <= maxInline {
		return packed, nil
	}
	out := blob{Blob: below, Sum: fmt.Sprintf("%x", sha256.Sum256(packed))}
	for part := range slices.Chunk(packed, maxPart) {
		if err := e.put(ctx, fmt.Sprintf("%s%06d", below, out.Parts), part); err != nil {
			return nil, err
		}
		out.Parts++
	}
	return json.Marshal(out)
}

// unpack is the inverse of pack.
func (e *Engine) unpack(ctx context.Context, value []byte) ([]byte, error) {
	if bytes.HasPrefix(value, []byte("{")) {
		var b blob
		if err := json.Unmarshal(value, &b); err != nil || !strings.HasPrefix(b.Blob, belowBlobs) {
			return nil, fmt.Errorf("it is not crossfade's: %w", err)
		}
		parts, err := e.list(ctx, b.Blob)
		if err != nil {
			return nil, err
		}
		value = nil
		for _, p := range parts {
			value = append(value, p.Value...)
		}
		if len(parts) != b.Parts || fmt.Sprintf("%x", sha256.Sum256(value)) != b.Sum {
			return nil, errDamaged
		}
	}
	z, err := gzip.NewReader(bytes.NewReader(value))
	if err != nil {
		return nil, err
	}
	out, err := io.ReadAll(io.LimitReader(z, maxUnpacked+1))
	if err == nil && len(out) > maxUnpacked {
		err = fmt.Errorf("it is larger than %d MiB", maxUnpacked>>20)
	}
	return out, err
}

// errDamaged is also what a reader finds that is overtaken by a newer snapshot.
var errDamaged = errors.New("its parts are not what was written")

// snapshot is all rows at a mark.
type snapshot struct {
	Format int        `json:"format"`
	Mark   store.Mark `json:"mark"`
	Rows   []row      `json:"rows"`

	Kinds map[config.Kind]uint64 `json:"kinds,omitempty"` // as in [record]
}

// Load implements [store.Shared].
func (e *Engine) Load(ctx context.Context) ([]store.Change, store.Mark, error) {
	var last error
	for range 3 { // a newer snapshot may be written meanwhile
		s, err := e.load(ctx)
		if err == nil {
			e.outside.require(record{Changes: s.Rows, Kinds: s.Kinds})
			return changesOf(s.Rows), s.Mark, nil
		}
		if last = err; !errors.Is(err, store.ErrGap) && !errors.Is(err, errDamaged) {
			break
		}
	}
	return nil, store.Mark{}, last
}

// load is the last snapshot and all that was committed after it.
func (e *Engine) load(ctx context.Context) (s snapshot, err error) {
	pair, _, err := e.get(ctx, keySnapshot, nil, 0, 0)
	if err != nil {
		return s, err
	}
	if pair != nil {
		text, err := e.unpack(ctx, pair.Value)
		if err == nil {
			err = json.Unmarshal(text, &s)
		}
		if err == nil && s.Format != format {
			err = fmt.Errorf("it has format %d, this version has %d", s.Format, format)
		}
		if err != nil {
			return s, fmt.Errorf("Consul at %s: key %s cannot be read: %w", e.opts.Address, keySnapshot, err)
		}
	}
	log, err := e.wholeLog(ctx)
	if err != nil {
		return s, err
	}
	rows := map[[2]string]json.RawMessage{}
	for _, r := range s.Rows {
		rows[[2]string{r.Table, string(r.Key)}] = r.Value
	}
	for _, r := range log {
		if r.Mark.Seq <= s.Mark.Seq {
			continue
		}
		if r.Prev != s.Mark {
			return s, store.ErrGap
		}
		s.Mark = r.Mark
		if s.Kinds == nil {
			s.Kinds = map[config.Kind]uint64{}
		}
		for kind, index := range r.Kinds {
			s.Kinds[kind] = max(s.Kinds[kind], index)
		}
		for _, c := range r.Changes {
			if !store.Kept(c.Table) {
				continue
			}
			if id := [2]string{c.Table, string(c.Key)}; c.Value == nil {
				delete(rows, id)
			} else {
				rows[id] = c.Value
			}
		}
	}
	s.Format, s.Rows = format, nil
	for id, value := range rows {
		s.Rows = append(s.Rows, row{id[0], []byte(id[1]), value})
	}
	slices.SortFunc(s.Rows, func(a, b row) int {
		if a.Table != b.Table {
			return strings.Compare(a.Table, b.Table)
		}
		return bytes.Compare(a.Key, b.Key)
	})
	return s, nil
}

// compact writes all rows anew, and drops of the log what nobody needs any more. What fails is
// done by the next one.
func (e *Engine) compact(ctx context.Context) {
	if !e.compacting.TryLock() {
		return
	}
	defer e.compacting.Unlock()
	if err := e.compactNow(ctx); err != nil {
		e.log.Warn("the log of commits is not cut off yet, the next server does it", "reason", err)
	}
}

func (e *Engine) compactNow(ctx context.Context) error {
	old, _, err := e.get(ctx, keySnapshot, nil, 0, 0)
	if err != nil {
		return err
	}
	s, err := e.load(ctx)
	if err != nil {
		return err
	}
	value, err := e.pack(ctx, keyOfBlob(s.Mark), s)
	if err != nil {
		return err
	}
	var modify uint64
	if old != nil {
		modify = old.ModifyIndex
	}
	if _, err := e.transact(ctx, []kvOp{{Verb: "cas", Key: keySnapshot, Value: value, Index: modify}}); err != nil {
		return err
	}
	if s.Mark.Seq <= keepLog {
		return nil
	}
	// Blobs and records are named by their place in the order.
	upTo := fmt.Sprintf("%016d", s.Mark.Seq-keepLog)
	for _, below := range []string{belowLog, belowBlobs} {
		keys, err := e.keys(ctx, below)
		if err != nil {
			return err
		}
		keys = slices.DeleteFunc(keys, func(k string) bool { return strings.TrimPrefix(k, below) >= upTo })
		for some := range slices.Chunk(keys, 32) {
			var ops []kvOp
			for _, k := range some {
				ops = append(ops, kvOp{Verb: "delete", Key: k})
			}
			if _, err := e.transact(ctx, ops); err != nil {
				return err
			}
		}
	}
	return nil
}
