// Package ca is the built-in certificate authority of the mesh.
//
// In: a directory (or none, for memory), a clock, and certificate signing
// requests. Out: one self-signed root, the trust domain in it, and leaves that
// are SPIFFE X509-SVIDs with Consul Connect's identities. The same is offered
// over gRPC as Consul's ConnectCAService, with a [Client] for it. Servers get
// certificates for their own ports ([CA.ServerLeaf]), which clients believe by a
// [Trust]; [CA.Verify] says whose leaf a caller has shown.
//
// The rules for a request ([CheckCSR]) and the making of certificates take
// values and return values; only [Open] touches files and only [CA.Register]
// a server. A private key is never logged, sent or put into an error.
//
// It leaves to others who may have which identity ([Options].Authorize), when a
// leaf is renewed (sidecar), limits on the rate of requests (server), and HTTP
// (consulapi).
package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/identity"
)

// Limits of [Options].LeafTTL. The default and the upper limit are Consul's.
const (
	DefaultLeafTTL = 72 * time.Hour
	MinLeafTTL     = time.Minute
	MaxLeafTTL     = 365 * 24 * time.Hour
)

// Options configure [Open].
type Options struct {
	// Dir holds the root and its key, in one file. Empty keeps them in memory:
	// the next Open is then another authority with another trust domain.
	Dir string
	// Keep, if set, is where the root and its key are instead: it returns what is kept there,
	// PEM, which it takes from make when nothing is. Of several who ask at once all get the same.
	Keep func(make func() ([]byte, error)) ([]byte, error)
	// Datacenter is the only one whose identities are signed. Required.
	Datacenter string
	// LeafTTL is how long a leaf is valid from the moment it is signed.
	// 0 is DefaultLeafTTL.
	LeafTTL time.Duration
	// Authorize decides whether the caller of a gRPC request, known by its
	// context, may have a leaf for the identity, and through which join token it
	// came: the leaf names that token's accessor in its subject, so that a
	// revocation finds it. Nil refuses everybody; [Anyone] refuses nobody.
	// [CA.Sign] does not ask it.
	Authorize func(context.Context, identity.SPIFFE) (through string, err error)
	Now       func() time.Time // nil is time.Now
	Log       *slog.Logger     // nil discards
}

// Anyone is an [Options].Authorize for development mode: any caller may have any
// identity of this datacenter.
func Anyone(context.Context, identity.SPIFFE) (string, error) { return "", nil }

// CA signs leaves with one root. Safe for concurrent use.
type CA struct {
	opts Options
	root *x509.Certificate
	key  *ecdsa.PrivateKey

	trustDomain string

	mu      sync.Mutex
	roots   Roots
	changed chan struct{} // closed and replaced when roots change

	closed    chan struct{}
	closeOnce sync.Once
}

// Open loads the authority in opts.Dir, or creates it there when the directory
// holds none. A root that is present but cannot be used is an error and stays
// as it is: a new root in its place would cut off every sidecar.
func Open(opts Options) (*CA, error) {
	if opts.Datacenter == "" {
		return nil, errors.New("CA: no datacenter given")
	}
	if opts.LeafTTL == 0 {
		opts.LeafTTL = DefaultLeafTTL
	}
	if opts.LeafTTL < MinLeafTTL || opts.LeafTTL > MaxLeafTTL {
		return nil, fmt.Errorf("CA: leaf TTL %s: want %s to %s", opts.LeafTTL, MinLeafTTL, MaxLeafTTL)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	root, key, err := openRoot(opts)
	if err != nil {
		return nil, err
	}
	trustDomain, err := trustDomainOf(root)
	if err != nil {
		return nil, err
	}
	c := &CA{
		opts: opts, root: root, key: key, trustDomain: trustDomain,
		changed: make(chan struct{}), closed: make(chan struct{}),
	}
	c.publish(Roots{ActiveRootID: fingerprint(root), TrustDomain: trustDomain, Roots: []Root{describe(root, true)}})
	return c, nil
}

func openRoot(opts Options) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	now := opts.Now()
	if opts.Keep != nil {
		return keptRoot(opts, now)
	}
	if opts.Dir == "" {
		root, key, err := newRoot(now)
		if err != nil {
			return nil, nil, err
		}
		opts.Log.Info("created a CA root in memory", "root", root.Subject.CommonName, "not_after", root.NotAfter)
		return root, key, nil
	}
	root, key, created, err := loadOrCreate(opts.Dir, now)
	if err != nil {
		return nil, nil, err
	}
	sayRoot(opts.Log.With("root", root.Subject.CommonName, "dir", opts.Dir, "not_after", root.NotAfter), root, created, now)
	return root, key, nil
}

// keptRoot is the root that opts.Keep has.
func keptRoot(opts Options, now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	created := false
	text, err := opts.Keep(func() ([]byte, error) {
		created = true
		root, key, err := newRoot(now)
		if err != nil {
			return nil, err
		}
		return encodeRoot(root, key)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("CA root: %w", err)
	}
	root, key, err := decodeRoot(text)
	if err != nil {
		return nil, nil, fmt.Errorf("CA root: %w", err)
	}
	sayRoot(opts.Log.With("root", root.Subject.CommonName, "not_after", root.NotAfter), root, created, now)
	return root, key, nil
}

func sayRoot(log *slog.Logger, root *x509.Certificate, created bool, now time.Time) {
	switch left := root.NotAfter.Sub(now); {
	case left <= 0:
		log.Error("the CA root has expired: nothing is signed any more, and sidecars refuse each other")
	case left < rootWarning:
		log.Warn("the CA root expires soon")
	case created:
		log.Info("created a CA root")
	default:
		log.Info("loaded the CA root")
	}
}

// TrustDomain is the cluster's, "<cluster ID>.consul", as long as the root lives.
func (c *CA) TrustDomain() string { return c.trustDomain }

// Datacenter is the one whose identities are signed.
func (c *CA) Datacenter() string { return c.opts.Datacenter }

// Identity is that of a service of this datacenter.
func (c *CA) Identity(service string) identity.SPIFFE {
	return identity.SPIFFE{TrustDomain: c.trustDomain, Datacenter: c.opts.Datacenter, Service: service}
}

// Sign checks the request and returns a leaf for it, PEM. It trusts its caller;
// see [Options].Authorize for requests from elsewhere.
func (c *CA) Sign(csrPEM []byte, now time.Time) ([]byte, error) {
	req, err := CheckCSR(csrPEM, c.trustDomain, c.opts.Datacenter)
	if err != nil {
		return nil, err
	}
	return c.issue(req, "", now)
}

func (c *CA) issue(req Request, through string, now time.Time) ([]byte, error) {
	return issueLeaf(c.root, c.key, req, through, now, c.opts.LeafTTL)
}

// Roots are the certificates that leaves are to be verified with, now.
func (c *CA) Roots() Roots {
	r, _ := c.Watch()
	return r
}

// Watch is the roots now, and a channel that closes when they change.
func (c *CA) Watch() (Roots, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.roots.clone(), c.changed
}

func (c *CA) publish(r Roots) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.roots = r
	close(c.changed)
	c.changed = make(chan struct{})
}

// Close ends the streams of roots, so that a gRPC server can stop gracefully.
// Signing goes on.
func (c *CA) Close() { c.closeOnce.Do(func() { close(c.closed) }) }
