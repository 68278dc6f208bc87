// Package ca is the certificate authority of the mesh.
//
// In: certificate signing requests. Out: roots, the trust domain in them, and leaves
// that are SPIFFE X509-SVIDs with Consul Connect's identities. A [CA] is that, with
// the rules for a request ([CheckCSR]); who signs is its provider: a [BuiltIn] does
// with a root of its own from a directory or in memory, a [Consul] has a real
// Consul's Connect CA do it. Every CA is offered over gRPC as Consul's
// ConnectCAService, with a [Client] for it, and says whose leaf a caller has shown
// ([CA.Verify]). A BuiltIn also makes the certificates of servers' own ports
// ([BuiltIn.ServerLeaf]), which clients believe by a [Trust].
//
// A leaf of a BuiltIn says through which join token it comes: its subject is that token's
// accessor, a UUID, as serialNumber (2.5.4.5), and empty without one. So every server
// that has the root knows whom a revocation is for, with no table of leaves. A request
// cannot bring it in, since nothing of its subject reaches the leaf; a renewal takes it
// from the leaf that the caller shows. SPIFFE gives the subject no meaning. A leaf of a
// Consul has no place for it: there [Options].Issued and Through have to remember it.
//
// The rules for a request and the making of certificates take values and return
// values; only [Open] and [OpenConsul] touch files and only [CA.Register] a server.
// A private key is never logged, sent or put into an error.
//
// It leaves to others who may have which identity ([Options].Authorize), when a
// leaf is renewed (sidecar), limits on the rate of requests (server), connecting to
// Consul (server), and HTTP (consulapi).
package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/identity"
)

// Options are of every provider, but for what is said to be of [Open] alone.
type Options struct {
	// Dir holds, of a BuiltIn, the root and its key in one file; of a Consul the roots
	// that were known last. Empty keeps them in memory: the next Open is then another
	// authority with another trust domain, the next OpenConsul needs Consul.
	Dir string
	// Keep, if set, is where the root and its key are instead: it returns what is kept there,
	// PEM, which it takes from make when nothing is. Of several who ask at once all get the same.
	Keep func(make func() ([]byte, error)) ([]byte, error)
	// Datacenter is the only one whose identities are signed. Required.
	Datacenter string
	// LeafTTL is how long a leaf is valid from the moment it is signed.
	// 0 is DefaultLeafTTL. Of Open alone: Consul has its own, LeafCertTTL.
	LeafTTL time.Duration
	// Authorize decides whether the caller of a gRPC request, known by its
	// context, may have a leaf for the identity, and through which join token it
	// came, so that a revocation finds the leaf: a BuiltIn names that token's accessor in
	// its subject. Nil refuses everybody; [Anyone] refuses nobody. [CA.Sign] does not ask it.
	Authorize func(context.Context, identity.SPIFFE) (through string, err error)
	// Issued and Through remember which leaf came through which token where a leaf cannot
	// name it, since others make it: an error of Issued keeps the leaf back, Through is ""
	// for one that is not known. Nil remember nothing. Of OpenConsul alone.
	Issued  func(leaf *x509.Certificate, through string) error
	Through func(leaf *x509.Certificate) string
	Now     func() time.Time // nil is time.Now
	Log     *slog.Logger     // nil discards
}

// checked fills what is not set.
func (o Options) checked() (Options, error) {
	if o.Datacenter == "" {
		return o, errors.New("CA: no datacenter given")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

// Anyone is an [Options].Authorize for development mode: any caller may have any
// identity of this datacenter.
func Anyone(context.Context, identity.SPIFFE) (string, error) { return "", nil }

// CA is an authority, whoever signs. Safe for concurrent use.
type CA struct {
	opts        Options
	provider    provider
	trustDomain string

	mu      sync.Mutex
	roots   Roots
	pool    *x509.CertPool // of roots
	changed chan struct{}  // closed and replaced when roots change

	closed    chan struct{}
	closeOnce sync.Once
}

// provider is who signs.
type provider interface {
	// sign makes a leaf for a request that [CheckCSR] has let pass. An error that is a
	// gRPC status goes to the caller as it is.
	sign(ctx context.Context, csrPEM []byte, req Request, through string, now time.Time) (chainPEM []byte, err error)
	// through is the accessor of the token that a leaf of this provider came through, or "".
	through(leaf *x509.Certificate) string
}

func newCA(o Options, p provider, roots Roots) *CA {
	return &CA{
		opts: o, provider: p, trustDomain: roots.TrustDomain, roots: roots, pool: poolOf(roots),
		changed: make(chan struct{}), closed: make(chan struct{}),
	}
}

// TrustDomain is the cluster's, "<cluster ID>.consul". It never changes.
func (c *CA) TrustDomain() string { return c.trustDomain }

// Datacenter is the one whose identities are signed.
func (c *CA) Datacenter() string { return c.opts.Datacenter }

// Identity is that of a service of this datacenter.
func (c *CA) Identity(service string) identity.SPIFFE {
	return identity.SPIFFE{TrustDomain: c.trustDomain, Datacenter: c.opts.Datacenter, Service: service}
}

// Sign checks the request and returns a leaf for it, PEM, with intermediates after it
// if there are any. It trusts its caller; see [Options].Authorize for requests from elsewhere.
func (c *CA) Sign(ctx context.Context, csrPEM []byte, now time.Time) ([]byte, error) {
	req, err := CheckCSR(csrPEM, c.trustDomain, c.opts.Datacenter)
	if err != nil {
		return nil, err
	}
	return c.provider.sign(ctx, csrPEM, req, "", now)
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

// trusted are the roots as a pool, which is not to be changed.
func (c *CA) trusted() *x509.CertPool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pool
}

func poolOf(r Roots) *x509.CertPool {
	out := x509.NewCertPool()
	for _, root := range r.Roots {
		out.AppendCertsFromPEM([]byte(root.RootCert))
	}
	return out
}

func (c *CA) publish(r Roots) {
	pool := poolOf(r)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.roots, c.pool = r, pool
	close(c.changed)
	c.changed = make(chan struct{})
}

// Close ends the streams of roots, so that a gRPC server can stop gracefully.
// Signing goes on.
func (c *CA) Close() { c.closeOnce.Do(func() { close(c.closed) }) }
