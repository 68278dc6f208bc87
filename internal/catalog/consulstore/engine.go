// Package consulstore keeps what several servers share in a real Consul, so that any number of
// them need no other coordination.
//
// In: a [consul.Client]; commits of a [store.Store]. Out: a [store.Shared]. Below [Prefix] in
// Consul's KV are a head, which every commit moves by compare-and-set, a log of commits, and now
// and then a snapshot of all rows, up to which the log is cut off. Entries of Consul's kinds are
// written to Consul's own configuration entries, by compare-and-set too, before the commit that
// says so; what others write there, and keys of the client convention, is watched. Locks are
// Consul's sessions. What servers tell each other of the moment is in a key of each.
//
// A server follows with one blocking query on the head, one for each of Consul's kinds, one on
// the convention's keys, one on the locks and one on what others tell, however many rows there are. What cannot be read or
// understood changes nothing.
//
// It leaves what rows mean to catalog/store, Consul's catalog and health to catalog/consul, and
// what the locks are for to the server.
package consulstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog/consul"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
)

// Prefix of all keys that are crossfade's own. It is none of the client convention's: who may
// read or write those must not get at tokens and keys.
const Prefix = "crossfade-store/"

// Keys below [Prefix].
const (
	keyHead     = Prefix + "head"
	keySnapshot = Prefix + "snapshot"
	belowLog    = Prefix + "log/"
	belowBlobs  = Prefix + "blob/"
	belowLocks  = Prefix + "lock/"
)

// Options say which Consul to use.
type Options struct {
	Client *consul.Client
	// Address is the Consul's, for people.
	Address string
	// Node is this server's name, for people.
	Node string
	// Locks are those to hold whenever nobody else does.
	Locks []string
	Log   *slog.Logger // nil: discard
}

// Engine is a [store.Shared] over one Consul. Make it with [New].
type Engine struct {
	opts    Options
	client  *consul.Client
	log     *slog.Logger
	outside *mirror
	locks   *locks
	notes   *notes
	quorum  *quorum

	mu   sync.Mutex
	head head // as last read or written; guarded by mu

	compacting sync.Mutex
	background sync.WaitGroup
}

var _ store.Shared = (*Engine)(nil)

// New does not connect.
func New(o Options) *Engine {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	e := &Engine{opts: o, client: o.Client, log: o.Log.With("consul", o.Address)}
	e.outside = newMirror(e)
	e.locks = newLocks(e)
	e.notes = newNotes(e)
	e.quorum = newQuorum(e)
	return e
}

// Run implements [store.Shared].
func (e *Engine) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { e.outside.run(ctx) })
	wg.Go(func() { e.locks.run(ctx) })
	wg.Go(func() { e.notes.run(ctx) })
	wg.Go(func() { e.quorum.run(ctx) })
	wg.Wait()
	e.background.Wait()
	e.client.Close()
}

// Outside implements [store.Shared].
func (e *Engine) Outside() (*store.Outside, <-chan struct{}) { return e.outside.read() }

// Holds implements [store.Shared].
func (e *Engine) Holds(lock string) bool { return e.locks.holds(lock) }

// do makes a request; the error names the Consul. An answer of another status than 200 and those
// of also is an error, too.
func (e *Engine) do(ctx context.Context, method, path string, query url.Values, body []byte, also ...int) (consul.Answer, error) {
	return e.ask(ctx, method, path, query, body, 0, 0, also...)
}

func (e *Engine) ask(ctx context.Context, method, path string, query url.Values, body []byte, after uint64, wait time.Duration, also ...int) (consul.Answer, error) {
	a, err := e.client.Do(ctx, method, path, query, body, after, wait)
	if err != nil {
		if errors.As(err, new(consul.Unreachable)) {
			err = fmt.Errorf("%w: %w", store.ErrUnreachable, err)
		}
		return a, fmt.Errorf("Consul at %s: %w", e.opts.Address, err)
	}
	if a.Status == http.StatusOK || slices.Contains(also, a.Status) {
		return a, nil
	}
	return a, fmt.Errorf("Consul at %s: %s %s: %w", e.opts.Address, method, path, refused(a, path, method))
}

// refused is an answer that is none of those expected, and what is missing where that is known.
func refused(a consul.Answer, path, method string) error {
	text := strings.ToValidUTF8(strings.TrimSpace(string(a.Body[:min(len(a.Body), 300)])), "?")
	err := fmt.Errorf("status %d: %s", a.Status, text)
	if a.Status != http.StatusForbidden {
		return err
	}
	if strings.Contains(text, "ACL not found") || strings.Contains(text, "token does not exist") {
		return &denied{fmt.Errorf("%w: Consul does not know the token: check $CONSUL_HTTP_TOKEN or --consul-token-file", err)}
	}
	return &denied{fmt.Errorf("%w: the token lacks the rule %s", err, ruleFor(path, method))}
}

// denied is what the token may not do.
type denied struct{ error }

// Unwrap is the cause.
func (d *denied) Unwrap() error { return d.error }

// kvPair is a pair as Consul shows it.
type kvPair struct {
	Key         string
	Value       []byte
	Flags       uint64
	Session     string
	ModifyIndex uint64
}

// get reads one key, or nil. With after > 0 it waits for a change.
func (e *Engine) get(ctx context.Context, key string, query url.Values, after uint64, wait time.Duration) (*kvPair, uint64, error) {
	a, err := e.ask(ctx, http.MethodGet, "/v1/kv/"+escapeKey(key), query, nil, after, wait, http.StatusNotFound)
	if err != nil {
		return nil, 0, err
	}
	index, err := a.Index()
	if err == nil && index == 0 {
		err = errors.New("the answer has no X-Consul-Index; is this a Consul agent?")
	}
	if err != nil || a.Status == http.StatusNotFound {
		return nil, index, err
	}
	var pairs []kvPair
	if err := json.Unmarshal(a.Body, &pairs); err != nil || len(pairs) != 1 || pairs[0].Key != key {
		return nil, index, fmt.Errorf("Consul at %s: key %s: the answer is not Consul's", e.opts.Address, key)
	}
	return &pairs[0], index, nil
}

// list reads all keys with a prefix.
func (e *Engine) list(ctx context.Context, prefix string) ([]kvPair, error) {
	a, err := e.do(ctx, http.MethodGet, "/v1/kv/"+prefix, url.Values{"recurse": {""}}, nil, http.StatusNotFound)
	if err != nil || a.Status == http.StatusNotFound {
		return nil, err
	}
	var pairs []kvPair
	if err := json.Unmarshal(a.Body, &pairs); err != nil {
		return nil, fmt.Errorf("Consul at %s: keys below %s: the answer is not Consul's: %w", e.opts.Address, prefix, err)
	}
	return pairs, nil
}

// keys lists the names of all keys with a prefix.
func (e *Engine) keys(ctx context.Context, prefix string) (keys []string, err error) {
	a, err := e.do(ctx, http.MethodGet, "/v1/kv/"+prefix, url.Values{"keys": {""}}, nil, http.StatusNotFound)
	if err != nil || a.Status == http.StatusNotFound {
		return nil, err
	}
	return keys, json.Unmarshal(a.Body, &keys)
}

// put writes one key.
func (e *Engine) put(ctx context.Context, key string, value []byte) error {
	_, err := e.do(ctx, http.MethodPut, "/v1/kv/"+key, nil, value)
	return err
}
