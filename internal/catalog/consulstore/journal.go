package consulstore

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

const (
	// maxInline is how large a record in the log may be: with the rest of its transaction, and in
	// base64, it stays below the 512 KiB that a Consul takes.
	maxInline = 300 << 10
	// fetchOneByOne is how many records are read one by one, before the whole log is.
	fetchOneByOne = 8
	// maxConclude is how often a transaction is made that has no answer.
	maxConclude = 3
	// verifyWithin is how long to ask whether a commit without an answer was made.
	verifyWithin = 2 * time.Second
	// format is that of the rows, the log and the head.
	format = 1
)

// head is the newest commit.
type head struct {
	store.Mark
	Format int `json:"format"`

	modify uint64 // Consul's index of the key
	index  uint64 // to wait after
	read   bool
}

// record is a commit in the log.
type record struct {
	Format  int        `json:"format"`
	Prev    store.Mark `json:"prev"`
	Mark    store.Mark `json:"mark"`
	Changes []row      `json:"changes"`
	// Kinds are Consul's indexes at which the entries of these kinds were what they are after the
	// commit. What was read of Consul earlier says nothing about them.
	Kinds map[config.Kind]uint64 `json:"kinds,omitempty"`
}

// row is a [store.Change]; without a value it is gone.
type row struct {
	Table string          `json:"t"`
	Key   []byte          `json:"k"`
	Value json.RawMessage `json:"v,omitempty"`
}

func keyOfRecord(seq uint64) string { return fmt.Sprintf("%s%016d", belowLog, seq) }

// readHead reads the newest mark, the zero one when nothing was ever committed. With wait it waits until there is
// another than the last that was read.
func (e *Engine) readHead(ctx context.Context, query url.Values, after uint64, wait time.Duration) (head, error) {
	pair, index, err := e.get(ctx, keyHead, query, after, wait)
	if err != nil {
		return head{}, err
	}
	h := head{index: index, read: true}
	if pair != nil {
		if err := json.Unmarshal(pair.Value, &h); err != nil {
			return head{}, fmt.Errorf("Consul at %s: key %s cannot be read: %w", e.opts.Address, keyHead, err)
		}
		h.modify = pair.ModifyIndex
		if h.Format != format {
			return head{}, fmt.Errorf("Consul at %s: key %s has format %d, this version has %d: run the version of crossfade that the other servers run", e.opts.Address, keyHead, h.Format, format)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.head = h
	return h, nil
}

func (e *Engine) lastHead() head {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.head
}

// Since implements [store.Shared]. It asks as long as the Consul has a leader: what that is asked without one may be
// without an answer long after it has one again.
func (e *Engine) Since(ctx context.Context, after store.Mark, wait time.Duration) ([]store.Batch, error) {
	holding, done := e.quorum.holding(ctx)
	defer done()
	batches, err := e.since(holding, after, wait)
	if err != nil && holding.Err() != nil && ctx.Err() == nil {
		err = context.Cause(holding)
	}
	return batches, err
}

func (e *Engine) since(ctx context.Context, after store.Mark, wait time.Duration) ([]store.Batch, error) {
	from := uint64(0)
	if last := e.lastHead(); wait > 0 && last.read && last.Mark == after {
		from = last.index
	}
	h, err := e.readHead(ctx, nil, from, wait)
	if err != nil {
		return nil, err
	}
	if h.Mark == after {
		return nil, nil
	}
	if h.Seq <= after.Seq {
		// It may be an old answer, which a new leader may give for a moment.
		if h, err = e.readHead(ctx, url.Values{"consistent": {""}}, 0, 0); err != nil {
			return nil, err
		}
		switch {
		case h.Mark == after:
			return nil, nil
		case h.Mark == (store.Mark{}):
			return nil, fmt.Errorf("%w: Consul at %s has no key %s any more, and this server has seen index %d: put it back with crossfade migrate store, or start with an empty data directory to begin anew", store.ErrForeign, e.opts.Address, keyHead, after.Index)
		case h.Seq <= after.Seq:
			return nil, fmt.Errorf("%w: Consul at %s is at index %d, and this server has seen index %d: Consul may have been restored: put the newer state back with crossfade migrate store, or start with an empty data directory to take Consul's", store.ErrForeign, e.opts.Address, h.Index, after.Index)
		}
	}
	records, err := e.records(ctx, after.Seq, h.Seq)
	if err != nil {
		return nil, err
	}
	var out []store.Batch
	for _, r := range records {
		e.outside.require(r)
		out = append(out, store.Batch{Prev: r.Prev, Mark: r.Mark, Changes: changesOf(r.Changes)})
	}
	return out, nil
}

// records are those after one sequence number up to another.
func (e *Engine) records(ctx context.Context, after, to uint64) (out []record, err error) {
	if to-after > fetchOneByOne {
		all, err := e.wholeLog(ctx)
		if err != nil {
			return nil, err
		}
		all = slices.DeleteFunc(all, func(r record) bool { return r.Mark.Seq <= after || r.Mark.Seq > to })
		if uint64(len(all)) != to-after {
			return nil, store.ErrGap
		}
		return all, nil
	}
	for seq := after + 1; seq <= to; seq++ {
		pair, _, err := e.get(ctx, keyOfRecord(seq), nil, 0, 0)
		switch {
		case err != nil:
			return nil, err
		case pair == nil:
			return nil, store.ErrGap
		}
		r, err := e.decode(ctx, pair)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// wholeLog is all records that are kept, in order.
func (e *Engine) wholeLog(ctx context.Context) (out []record, err error) {
	pairs, err := e.list(ctx, belowLog)
	if err != nil {
		return nil, err
	}
	for i := range pairs {
		r, err := e.decode(ctx, &pairs[i])
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b record) int { return strings.Compare(keyOfRecord(a.Mark.Seq), keyOfRecord(b.Mark.Seq)) })
	return out, nil
}

func (e *Engine) decode(ctx context.Context, pair *kvPair) (r record, err error) {
	text, err := e.unpack(ctx, pair.Value)
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err == nil && r.Format != format {
		err = fmt.Errorf("it has format %d, this version has %d", r.Format, format)
	}
	if err == nil && keyOfRecord(r.Mark.Seq) != pair.Key {
		err = errors.New("it is the record of another commit")
	}
	if err != nil {
		err = fmt.Errorf("Consul at %s: key %s cannot be read: %w", e.opts.Address, pair.Key, err)
	}
	return r, err
}

func changesOf(rows []row) []store.Change {
	out := make([]store.Change, len(rows))
	for i, r := range rows {
		out[i] = store.Change{Table: r.Table, Key: r.Key, Value: r.Value}
	}
	return out
}

func rowsOf(changes []store.Change) []row {
	out := make([]row, len(changes))
	for i, c := range changes {
		out[i] = row{c.Table, c.Key, c.Value}
	}
	return out
}

// Commit implements [store.Shared].
func (e *Engine) Commit(ctx context.Context, c store.Commit) (store.Mark, error) {
	if why := e.quorum.missing(); why != nil {
		// Consul would keep a write for some seconds, and make it if it has a leader by then.
		return store.Mark{}, fmt.Errorf("nothing was written: %w", why)
	}
	ctx, done := e.quorum.holding(ctx) // other writes wait behind this one
	defer done()
	h := e.lastHead()
	if !h.read || h.Mark != c.After {
		var err error
		if h, err = e.readHead(ctx, nil, 0, 0); err != nil {
			return store.Mark{}, err
		}
		if h.Mark != c.After {
			return store.Mark{}, store.ErrBehind
		}
	}
	ops, err := e.lockOps(c.Locks)
	if err != nil {
		return store.Mark{}, err
	}
	next := head{Mark: store.Mark{Index: c.Index, Seq: h.Seq + 1, ID: rand.Text()}, Format: format}
	headValue, err := json.Marshal(next)
	if err != nil {
		return store.Mark{}, err
	}
	wrote, undo, err := e.outside.write(ctx, c.Entries)
	if err != nil {
		return store.Mark{}, err
	}
	value, err := e.pack(ctx, keyOfBlob(next.Mark), record{format, c.After, next.Mark, rowsOf(c.Changes), e.outside.indexes(c.Entries)})
	if err != nil {
		undo()
		return store.Mark{}, err
	}
	ops = append([]kvOp{
		{Verb: "cas", Key: keyHead, Value: headValue, Index: h.modify},
		{Verb: "set", Key: keyOfRecord(next.Seq), Value: value},
	}, ops...)
	modify, made, err := e.conclude(ctx, ops, next)
	switch {
	case made:
		return next.Mark, nil
	case errors.Is(err, store.ErrUnknown):
		return store.Mark{}, err
	case errors.As(err, new(*rolledBack)):
		if err = e.reason(err, ops); errors.Is(err, store.ErrBehind) && len(wrote) > 0 {
			return store.Mark{}, &store.HalfDone{Entries: wrote, Err: err}
		}
	}
	if err != nil {
		undo()
		return store.Mark{}, err
	}
	next.modify, next.index, next.read = modify, modify, true
	e.mu.Lock()
	e.head = next
	e.mu.Unlock()
	if next.Seq%compactEvery == 0 {
		e.background.Go(func() { e.compact(context.WithoutCancel(ctx)) })
	}
	return next.Mark, nil
}

// conclude makes the transaction of a commit. One without an answer is made again as long as it has
// surely not been: it moves the head, so that of the same ones at most one is made. It is
// [store.ErrUnknown] when nobody can say. made reports that it was, though the answer was lost.
func (e *Engine) conclude(ctx context.Context, ops []kvOp, next head) (modify uint64, made bool, err error) {
	for again := range maxConclude {
		modify, err = e.transact(ctx, ops)
		answered := !errors.Is(err, store.ErrUnreachable)
		if err == nil || errors.As(err, new(*denied)) || again == 0 && errors.As(err, new(*rolledBack)) {
			return modify, false, err
		}
		verify, cancel := context.WithTimeout(context.WithoutCancel(ctx), verifyWithin)
		made, unclear := e.made(verify, next)
		cancel()
		if made {
			return 0, true, nil
		}
		if answered && unclear == nil {
			return 0, false, err
		}
		if unclear != nil || ctx.Err() != nil {
			break
		}
	}
	return 0, false, fmt.Errorf("%w: %w", store.ErrUnknown, err)
}

// made reports whether a commit is in the log.
func (e *Engine) made(ctx context.Context, h head) (bool, error) {
	pair, _, err := e.get(ctx, keyOfRecord(h.Seq), url.Values{"consistent": {""}}, 0, 0)
	if err != nil || pair == nil {
		return false, err
	}
	r, err := e.decode(ctx, pair)
	return r.Mark.ID == h.ID, err
}

// lockOps check that locks are held.
func (e *Engine) lockOps(names []string) (ops []kvOp, err error) {
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		session := e.locks.session(name)
		if session == "" {
			return nil, &store.LockLost{Lock: name}
		}
		ops = append(ops, kvOp{Verb: "check-session", Key: belowLocks + name, Session: session})
	}
	return ops, nil
}

// reason is what it means that a transaction was rolled back.
func (e *Engine) reason(err error, ops []kvOp) error {
	back, ok := errors.AsType[*rolledBack](err)
	if !ok || len(back.Errors) == 0 || errors.As(err, new(*denied)) {
		return err
	}
	for _, failed := range back.Errors {
		if i := failed.OpIndex; i > 1 && i < len(ops) {
			e.locks.lost()
			return &store.LockLost{Lock: strings.TrimPrefix(ops[i].Key, belowLocks)}
		}
	}
	e.mu.Lock()
	e.head.read = false
	e.mu.Unlock()
	return store.ErrBehind
}

// kvOp is an operation of a transaction.
type kvOp struct {
	Verb    string
	Key     string
	Value   []byte `json:",omitempty"`
	Index   uint64 `json:",omitempty"`
	Session string `json:",omitempty"`
}

// rolledBack is a transaction that did nothing.
type rolledBack struct {
	Errors []struct {
		OpIndex int
		What    string
	}
}

// Error implements error.
func (r *rolledBack) Error() string {
	if len(r.Errors) > 0 {
		return "rolled back: " + r.Errors[0].What
	}
	return "rolled back"
}

// transact does all operations or none, and returns Consul's index of what the first one wrote.
func (e *Engine) transact(ctx context.Context, ops []kvOp) (uint64, error) {
	type op struct{ KV kvOp }
	list := make([]op, len(ops))
	for i, o := range ops {
		list[i].KV = o
	}
	body, err := json.Marshal(list)
	if err != nil {
		return 0, err
	}
	a, err := e.do(ctx, http.MethodPut, "/v1/txn", nil, body, http.StatusConflict)
	if err != nil {
		return 0, err
	}
	var out struct {
		rolledBack
		Results []struct{ KV kvPair }
	}
	if err := json.Unmarshal(a.Body, &out); err != nil {
		return 0, fmt.Errorf("Consul at %s: the answer to a transaction is not Consul's: %w", e.opts.Address, err)
	}
	if a.Status == http.StatusConflict || len(out.Errors) > 0 {
		if strings.Contains(out.Error(), "ermission denied") {
			return 0, &denied{fmt.Errorf("Consul at %s: %w: the token lacks the rule %s", e.opts.Address, &out.rolledBack, ruleFor("/v1/kv/"+Prefix, http.MethodPut))}
		}
		return 0, &out.rolledBack
	}
	for _, r := range out.Results {
		if r.KV.Key == ops[0].Key {
			return r.KV.ModifyIndex, nil
		}
	}
	return 0, nil
}
