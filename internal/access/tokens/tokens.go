// Package tokens keeps the tokens of a control plane, and the trail of who wrote what.
//
// In: roles and services to make tokens for; the secrets and certificates that
// callers show; what they did. Out: [access.Principal]s, or why a caller is none; the
// list of tokens without their secrets; the last writes. A secret is told once, when
// its token is made: only its SHA-256 is kept. With a folder all of it is durable, in
// one file of bbolt.
//
// It leaves deciding what a principal may do to package access, verifying
// certificates to package ca, and ending the streams of a revoked one to the server.
package tokens

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/access"
)

const (
	// DefaultJoinTTL is the life of a join token that is asked for without one.
	DefaultJoinTTL = 24 * time.Hour
	// MaxTTL bounds every token's life that has a bound.
	MaxTTL = 10 * 365 * 24 * time.Hour

	// keptAfterEnd is how long a token that has ended is remembered after its last
	// use: longer than any leaf lives that came through it.
	keptAfterEnd = 400 * 24 * time.Hour
	// usedGrain is how exact [Token].Used is: so that use costs no write each time.
	usedGrain = time.Hour

	maxTokens      = 100_000
	maxServices    = 1000
	maxDescription = 256
)

// Sentinels for callers that answer differently.
var (
	ErrUnknown = errors.New("no such token")
	ErrInvalid = errors.New("invalid")
)

// Token is all that is known of a token but its secret.
type Token struct {
	Accessor    string      `json:"accessor"`
	Role        access.Role `json:"role"`
	Services    []string    `json:"services,omitempty"`
	Description string      `json:"description,omitempty"`
	Created     time.Time   `json:"created"`
	CreatedBy   string      `json:"created_by"`
	Expires     time.Time   `json:"expires,omitzero"` // zero: never
	Revoked     time.Time   `json:"revoked,omitzero"`
	Used        time.Time   `json:"used,omitzero"` // last, by the hour; also by leaves that came through it
}

// State is "active", "expired" or "revoked".
func (t Token) State(now time.Time) string {
	switch {
	case !t.Revoked.IsZero():
		return "revoked"
	case !t.Expires.IsZero() && now.After(t.Expires):
		return "expired"
	default:
		return "active"
	}
}

// New is a token to be made.
type New struct {
	Role        access.Role
	Services    []string
	Description string
	TTL         time.Duration // 0: a day for a join token, for ever for others
	By          string        // who asks
}

// Options configure [Open].
type Options struct {
	Dir string // empty: in memory
	// Shelf, if set, keeps the tokens, and Dir the trail alone.
	Shelf Shelf
	Now   func() time.Time // nil: time.Now
	// Revoked is told of each token that was revoked, after it is. May be nil.
	Revoked func(Token)
	Log     *slog.Logger // nil: discard
}

// Tokens is the store. Safe for concurrent use.
type Tokens struct {
	opts Options
	disk *disk // nil in memory

	mu     sync.Mutex          // guards the following
	by     map[string]*row     // by accessor
	secret map[[32]byte]*row   // by hash
	dirty  map[string]struct{} // accessors whose use is not on disk
	trail  trail

	writing sync.Mutex // held while the disk is written; taken before mu

	wake chan struct{} // capacity 1: something for the disk
	quit chan struct{} // closed by Close

	unfollow  context.CancelFunc // ends following of a shelf
	following sync.WaitGroup
	done      chan struct{} // closed when keep has ended
}

// row is a token as it is kept.
type row struct {
	Token
	Hash [32]byte `json:"hash"`
}

// Open reads what the folder holds.
func Open(o Options) (*Tokens, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	t := &Tokens{
		opts: o, by: map[string]*row{}, secret: map[[32]byte]*row{}, dirty: map[string]struct{}{},
		wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}),
	}
	if o.Shelf != nil {
		if err := t.openShelf(); err != nil {
			return nil, err
		}
	}
	if o.Dir == "" {
		close(t.done)
		return t, nil
	}
	var err error
	if t.disk, err = openDisk(o.Dir); err != nil {
		return nil, err
	}
	rows, entries, err := t.disk.load()
	if err != nil {
		return nil, errors.Join(err, t.disk.close())
	}
	if o.Shelf == nil {
		for _, r := range rows {
			t.by[r.Accessor], t.secret[r.Hash] = r, r
		}
	}
	t.trail.entries = entries
	if len(entries) > 0 {
		t.trail.next = entries[len(entries)-1].Index
	}
	t.trail.saved = t.trail.next
	go t.keep()
	return t, nil
}

// Close writes what is not written yet.
func (t *Tokens) Close() error {
	if t.unfollow != nil {
		t.unfollow()
		t.following.Wait()
	}
	if t.disk == nil {
		return nil
	}
	close(t.quit)
	<-t.done
	return t.disk.close()
}

// Create makes a token and returns its secret, which is not kept.
func (t *Tokens) Create(n New) (secret string, _ Token, err error) {
	now := t.opts.Now().UTC()
	if n, err = n.checked(); err != nil {
		return "", Token{}, err
	}
	var random [32]byte
	rand.Read(random[:]) // never fails
	secret = "cf-" + string(n.Role) + "-" + base64.RawURLEncoding.EncodeToString(random[:])
	r := &row{Hash: sha256.Sum256([]byte(secret)), Token: Token{
		Accessor: newAccessor(), Role: n.Role, Services: n.Services, Description: n.Description, Created: now, CreatedBy: n.By,
	}}
	if n.TTL > 0 {
		r.Expires = now.Add(n.TTL)
	}
	t.writing.Lock()
	defer t.writing.Unlock()
	t.mu.Lock()
	gone, kept := t.outlived(now), len(t.by)
	t.mu.Unlock()
	if kept-len(gone) >= maxTokens {
		return "", Token{}, fmt.Errorf("token: %d are kept, which is the limit: revoke those that nobody uses", maxTokens)
	}
	if err := t.write([]*row{r}, gone, true); err != nil {
		return "", Token{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, accessor := range gone {
		if old := t.by[accessor]; old != nil {
			delete(t.secret, old.Hash)
			delete(t.by, accessor)
		}
	}
	t.by[r.Accessor], t.secret[r.Hash] = r, r
	return secret, r.Token, nil
}

func (n New) checked() (New, error) {
	n.Services = slices.Compact(slices.Sorted(slices.Values(n.Services)))
	bad := func(format string, args ...any) (New, error) {
		return n, fmt.Errorf("token: %w: "+format, append([]any{ErrInvalid}, args...)...)
	}
	switch n.Role {
	case access.Reader, access.Operator, access.Auditor:
		if len(n.Services) > 0 {
			return bad("role %q is for all services: leave the services out", n.Role)
		}
	case access.Owner:
		if len(n.Services) == 0 {
			return bad("an owner owns at least one service: name it")
		}
	case access.Join:
		if len(n.Services) != 1 {
			return bad("a join token is for exactly one service, got %d", len(n.Services))
		}
		n.TTL = cmp.Or(n.TTL, DefaultJoinTTL)
	default:
		return bad("role %q: want reader, owner, operator, auditor or join", n.Role)
	}
	if len(n.Services) > maxServices {
		return bad("%d services, at most %d are allowed", len(n.Services), maxServices)
	}
	for _, s := range n.Services {
		if s == "" || s == "*" || len(s) > 128 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '/' || r == 0x7f }) {
			return bad("service %q: want the name of a service", s)
		}
	}
	if n.TTL < 0 || n.TTL > MaxTTL {
		return bad("TTL %s: want more than 0 and at most %s", n.TTL, MaxTTL)
	}
	if len(n.Description) > maxDescription {
		return bad("a description of %d bytes, at most %d are allowed", len(n.Description), maxDescription)
	}
	return n, nil
}

// outlived lists tokens that nobody can use or have a leaf through any more. It needs mu.
func (t *Tokens) outlived(now time.Time) []string {
	var out []string
	for accessor, r := range t.by {
		last := r.Created
		for _, at := range []time.Time{r.Used, r.Revoked, r.Expires} {
			if at.After(last) {
				last = at
			}
		}
		if r.State(now) != "active" && now.Sub(last) > keptAfterEnd {
			out = append(out, accessor)
		}
	}
	return out
}

// Revoke ends a token, and with it the identity of every leaf that came through it.
func (t *Tokens) Revoke(accessor string) (Token, error) {
	changed, err := t.revoke(accessor)
	if err == nil && t.opts.Revoked != nil {
		t.opts.Revoked(changed)
	}
	return changed, err
}

func (t *Tokens) revoke(accessor string) (Token, error) {
	t.writing.Lock()
	defer t.writing.Unlock()
	t.mu.Lock()
	r := t.by[accessor]
	if r == nil {
		t.mu.Unlock()
		return Token{}, fmt.Errorf("token %q: %w: crossfade token list shows all", accessor, ErrUnknown)
	}
	changed := *r
	t.mu.Unlock()
	if !changed.Revoked.IsZero() {
		return changed.Token, nil
	}
	changed.Revoked = t.opts.Now().UTC()
	if err := t.write([]*row{&changed}, nil, false); err != nil {
		return Token{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if r = t.by[accessor]; r != nil { // a shelf may have made another of it
		r.Revoked = changed.Revoked
	}
	return changed.Token, nil
}

// List is all tokens, by time of making.
func (t *Tokens) List() []Token {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]Token, 0, len(t.by))
	for _, r := range t.by {
		out = append(out, r.Token)
	}
	slices.SortFunc(out, func(a, b Token) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Accessor, b.Accessor)) })
	return out
}

// Get is one token.
func (t *Tokens) Get(accessor string) (Token, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.by[accessor]
	if r == nil {
		return Token{}, false
	}
	return r.Token, true
}

// Bearer says whose a secret is, and until when. The error never repeats the secret.
func (t *Tokens) Bearer(secret string) (access.Principal, time.Time, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.secret[sha256.Sum256([]byte(secret))]
	if r == nil {
		return access.Principal{}, time.Time{}, errors.New("token: unknown to this server")
	}
	now := t.opts.Now()
	switch r.State(now) {
	case "revoked":
		return access.Principal{}, time.Time{}, fmt.Errorf("token %s: revoked at %s", r.Accessor, r.Revoked.Format(time.RFC3339))
	case "expired":
		return access.Principal{}, time.Time{}, fmt.Errorf("token %s: expired at %s", r.Accessor, r.Expires.Format(time.RFC3339))
	}
	t.use(r, now)
	return access.Principal{Role: r.Role, Accessor: r.Accessor, Services: r.Services}, r.Expires, nil
}

// Instance says whether a leaf for the service that came through a token still
// counts: the token's end by time ends no identity, its revocation does.
func (t *Tokens) Instance(service, through string) (access.Principal, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.by[through]
	switch {
	case through == "" || r == nil:
		return access.Principal{}, fmt.Errorf("certificate for service %q: it comes through no join token of this server: join again with a token", service)
	case !r.Revoked.IsZero():
		return access.Principal{}, fmt.Errorf("certificate for service %q: the token %s that it comes through was revoked at %s", service, through, r.Revoked.Format(time.RFC3339))
	case r.Role != access.Join || !slices.Contains(r.Services, service):
		return access.Principal{}, fmt.Errorf("certificate for service %q: the token %s that it comes through is not for that service", service, through)
	}
	t.use(r, t.opts.Now())
	return access.Principal{Role: access.Service, Accessor: through, Services: []string{service}}, nil
}

// use needs mu.
func (t *Tokens) use(r *row, now time.Time) {
	if now.Sub(r.Used) < usedGrain {
		return
	}
	r.Used = now.UTC().Truncate(usedGrain)
	t.dirty[r.Accessor] = struct{}{}
	t.poke()
}

// write puts rows where they are kept, if they are. It needs writing. With made they are new.
func (t *Tokens) write(put []*row, gone []string, made bool) error {
	if t.opts.Shelf != nil {
		if err := t.shelve(put, gone, made); err != nil {
			return fmt.Errorf("token: cannot be kept: %w", err)
		}
		return nil
	}
	if t.disk == nil {
		return nil
	}
	if err := t.disk.write(put, gone, nil, 0); err != nil {
		return fmt.Errorf("token: cannot be kept: %w", err)
	}
	return nil
}

// newAccessor is a random (version 4) UUID.
func newAccessor() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}
