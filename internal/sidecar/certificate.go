package sidecar

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/ca"
	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/identity"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

const (
	signTimeout = 10 * time.Second
	// rootSpread is over how long sidecars renew after the root changed, and rootPause how
	// long they wait at least: peers have to know the root before they are shown a leaf of it.
	rootSpread = 5 * time.Second
	rootPause  = time.Second
	// nextSuffix marks a key or leaf that is written but not in place yet.
	nextSuffix = ".next"
)

// leaf is a certificate with its key, both PEM. The key is never logged.
type leaf struct {
	key, chain []byte
	cert       *x509.Certificate
	id         identity.SPIFFE
	issued     time.Time // when it was got; NotBefore may be backdated
}

func (l *leaf) status() *CertificateStatus {
	return &CertificateStatus{
		Serial: colonHex(l.cert.SerialNumber.Bytes()), URI: l.id.URI(),
		NotBefore: l.cert.NotBefore.UTC(), NotAfter: l.cert.NotAfter.UTC(),
	}
}

func colonHex(b []byte) string {
	parts := make([]string, len(b))
	for i := range b {
		parts[i] = hex.EncodeToString(b[i : i+1])
	}
	return strings.Join(parts, ":")
}

// parseLeaf checks that key and certificate belong together.
func parseLeaf(key, chain []byte, issued time.Time) (*leaf, error) {
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, err
	}
	if len(pair.Leaf.URIs) != 1 {
		return nil, fmt.Errorf("the certificate has %d URIs, want one", len(pair.Leaf.URIs))
	}
	id, err := identity.ParseURI(pair.Leaf.URIs[0].String())
	if err != nil {
		return nil, err
	}
	return &leaf{key: key, chain: chain, cert: pair.Leaf, id: id, issued: issued}, nil
}

// certificates gets the instance's leaf, keeps it fresh and hands it to Envoy.
type certificates struct {
	dir        *stateDir
	client     *ca.Client
	cred       *credential
	joiner     func() (client *ca.Client, done func(), err error)
	redial     func() // so that servers see the first leaf
	idle       func() // lets go of connections that nobody uses
	service    string
	datacenter func() string // empty while unknown
	// give hands leaf and roots to Envoy's relay.
	give func(leaf, roots *xds.Resource)
	// report is told each leaf that was handed over.
	report func(*CertificateStatus)
	log    *slog.Logger

	renew chan struct{}  // capacity 1
	news  chan *ca.Roots // capacity 1, the newest only
	held  *leaf          // may be nil
	roots []byte         // PEM; nil while unknown
	trust string         // trust domain; empty until a server told it
	due   time.Time      // of the next renewal
	fails int            // renewals failed in a row
}

// load reads what the state directory has. A key that others may have read, or
// that cannot be read, is an error; a leaf that is expired, of another service or
// without its key is left out.
func (c *certificates) load(now time.Time) error {
	c.renew, c.news = make(chan struct{}, 1), make(chan *ca.Roots, 1)
	key, err := c.readKey(keyFile)
	if err != nil || key == nil {
		return err
	}
	for _, name := range []string{leafFile, leafFile + nextSuffix} {
		st, err := os.Stat(c.dir.file(name))
		if err != nil {
			continue
		}
		chain, err := c.dir.read(name)
		if err != nil {
			return fmt.Errorf("certificate %q: cannot be read: %w", c.dir.file(name), cause(err))
		}
		l, err := parseLeaf(key, chain, st.ModTime())
		switch {
		case err != nil:
			c.log.Warn("the certificate on disk is not used, a new one will be asked for", "file", c.dir.file(name), "error", err)
		case l.id.Service != c.service:
			return fmt.Errorf("certificate %q: belongs to service %q, this sidecar is for %q: give it its own --state-dir", c.dir.file(name), l.id.Service, c.service)
		case now.After(l.cert.NotAfter):
			c.log.Warn("the certificate on disk has expired, a new one is needed", "file", c.dir.file(name), "expired", l.cert.NotAfter.UTC())
			if err := c.cred.hold(l); err != nil { // which says why a token is wanted
				return fmt.Errorf("certificate %q: %w", c.dir.file(name), err)
			}
		default:
			c.held = l
			c.due = renewAt(l.issued, l.cert.NotAfter, rand.Float64())
			if err := c.cred.hold(l); err != nil {
				return fmt.Errorf("certificate %q: %w", c.dir.file(name), err)
			}
		}
		if c.held != nil {
			break
		}
	}
	if c.roots, err = c.dir.read(rootsFile); err != nil {
		return fmt.Errorf("roots %q: cannot be read: %w", c.dir.file(rootsFile), cause(err))
	}
	return nil
}

// readKey refuses a key that is not for this user alone.
func (c *certificates) readKey(name string) ([]byte, error) {
	path := c.dir.file(name)
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("private key %q: mode %04o lets other users read it: delete it and a new one will be made", path, st.Mode().Perm())
	}
	key, err := c.dir.read(name)
	if err != nil {
		return nil, fmt.Errorf("private key %q: cannot be read: %w", path, cause(err))
	}
	if block, _ := pem.Decode(key); block == nil {
		return nil, fmt.Errorf("private key %q: not a key in PEM: delete it and a new one will be made", path)
	}
	return key, nil
}

// complete reports whether Envoy can be given what it needs without a server.
func (c *certificates) complete() bool { return c.held != nil && c.roots != nil }

// renewNow asks for a new leaf at once.
func (c *certificates) renewNow() {
	select {
	case c.renew <- struct{}{}:
	default:
	}
}

// watch passes roots on to run until ctx ends.
func (c *certificates) watch(ctx context.Context) {
	for attempt := 0; ; attempt++ {
		err := c.client.WatchRoots(ctx, func(r ca.Roots) {
			attempt = 0
			select {
			case <-c.news:
			default:
			}
			c.news <- &r
		})
		c.log.Debug("the watch on the CA's roots ended", "error", err)
		if !sleep(ctx, backOff(attempt, 100*time.Millisecond, 5*time.Second, rand.Float64())) {
			return
		}
	}
}

// run keeps leaf and roots fresh until ctx ends.
func (c *certificates) run(ctx context.Context) {
	c.hand()
	for {
		wait := time.Hour
		if c.trust != "" {
			wait = max(0, time.Until(c.due))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case r := <-c.news:
			c.takeRoots(*r)
		case <-c.renew:
			c.due = time.Now()
			if c.trust == "" {
				c.log.Warn("the certificate cannot be renewed yet, no server has told the CA's roots", "service", c.service)
			}
		case <-timer.C:
			if c.trust != "" {
				c.try(ctx)
			}
		}
		timer.Stop()
	}
}

// takeRoots hands new roots to Envoy and plans a renewal if the leaf is not the
// active root's.
func (c *certificates) takeRoots(r ca.Roots) {
	bundle := r.PEM()
	changed := !bytes.Equal(bundle, c.roots)
	c.roots, c.trust = bundle, r.TrustDomain
	if err := c.cred.setRoots(bundle); err != nil {
		c.log.Error("the CA's roots cannot be used to know servers by", "error", err)
	}
	if changed {
		if err := c.dir.write(rootsFile, bundle); err != nil {
			c.log.Error("the CA's roots cannot be kept, a start without a server may fail", "error", cause(err))
		}
		c.hand()
	}
	switch {
	case c.held == nil:
		c.due = time.Now()
	case !c.signedBy(r, false):
		c.log.Warn("the CA is another one, the certificate is renewed now: peers accept the old one no more", "service", c.service)
		c.due = time.Now()
	case !c.signedBy(r, true):
		c.log.Info("the CA has a new root, the certificate will be renewed", "service", c.service)
		if soon := time.Now().Add(rootPause + rand.N(rootSpread)); soon.Before(c.due) {
			c.due = soon
		}
	}
}

// signedBy reports whether the held leaf is of the trust domain and chains to one
// of its roots, or to the active one.
func (c *certificates) signedBy(r ca.Roots, active bool) bool {
	pool, between := x509.NewCertPool(), x509.NewCertPool()
	for _, root := range r.Roots {
		if root.Active || !active {
			pool.AppendCertsFromPEM([]byte(root.RootCert))
		}
	}
	between.AppendCertsFromPEM(c.held.chain)
	_, err := c.held.cert.Verify(x509.VerifyOptions{
		Roots: pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		CurrentTime: ca.Midlife(c.held.cert),
	})
	return err == nil && c.held.id.TrustDomain == r.TrustDomain
}

// try renews once, and plans what follows.
func (c *certificates) try(ctx context.Context) {
	l, err := c.issue(ctx)
	now := time.Now()
	if err != nil {
		if ctx.Err() != nil {
			return
		}
		left := time.Duration(0)
		if c.held != nil {
			left = c.held.cert.NotAfter.Sub(now)
		}
		wait := retryRenewal(c.fails, left, rand.Float64())
		c.fails++
		c.due = now.Add(wait)
		args := []any{"service", c.service, "error", err, "retry_in", wait.Round(time.Millisecond)}
		if c.held == nil {
			c.log.Warn("no certificate yet", args...)
		} else {
			c.log.Warn("the certificate could not be renewed, the present one stays in use", append(args, "valid_for", left.Round(time.Second))...)
		}
		return
	}
	c.take(l)
	c.log.Info("new certificate", "uri", l.id.URI(), "serial", l.status().Serial, "not_after", l.cert.NotAfter.UTC())
}

// take puts a new leaf in use.
func (c *certificates) take(l *leaf) {
	stranger := c.cred.certificate() == nil
	if err := c.cred.hold(l); err != nil {
		c.log.Error("the new certificate cannot be shown to servers", "error", err)
	}
	if c.cred.secure() && stranger {
		c.redial()
	} else if c.cred.secure() {
		c.idle()
	}
	c.fails = 0
	c.held = l
	c.due = renewAt(l.issued, l.cert.NotAfter, rand.Float64())
	c.hand()
}

// join gets the first leaf, with the join token. It returns an error that
// [refusedToJoin] knows when a server won't give one.
func (c *certificates) join(ctx context.Context) error {
	client, done, err := c.joiner()
	if err != nil {
		return err
	}
	defer done()
	// The mesh's CA need not be that of the servers' own certificates.
	roots, err := firstRoots(ctx, client)
	if err != nil {
		return err
	}
	c.trust = roots.TrustDomain
	if bundle := roots.PEM(); !bytes.Equal(bundle, c.roots) {
		c.roots = bundle
		if err := c.dir.write(rootsFile, c.roots); err != nil {
			return fmt.Errorf("the CA's roots cannot be kept: %w", cause(err))
		}
	}
	l, err := c.issue(ctx)
	if err != nil {
		return err
	}
	c.take(l)
	c.log.Info("joined the mesh", "uri", l.id.URI(), "serial", l.status().Serial, "not_after", l.cert.NotAfter.UTC())
	return nil
}

// firstRoots asks for the roots as they are now.
func firstRoots(ctx context.Context, client *ca.Client) (got ca.Roots, err error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	err = client.WatchRoots(ctx, func(r ca.Roots) { got = r; cancel() })
	if got.TrustDomain != "" {
		err = nil
	}
	return got, err
}

// issue gets a leaf for a new key. One that cannot be kept on disk is used all the same.
func (c *certificates) issue(ctx context.Context) (*leaf, error) {
	dc := c.datacenter()
	if dc == "" {
		return nil, errors.New("no server has told the datacenter yet")
	}
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	key, csr, err := ca.NewKeyAndCSR(identity.SPIFFE{TrustDomain: c.trust, Datacenter: dc, Service: c.service})
	if err != nil {
		return nil, err
	}
	client := c.client
	if c.cred.secure() && c.cred.certificate() == nil {
		var done func()
		if client, done, err = c.joiner(); err != nil {
			return nil, err
		}
		defer done()
	}
	chain, err := client.Sign(ctx, csr)
	if err != nil {
		return nil, err
	}
	l, err := parseLeaf(key, chain, time.Now())
	if err != nil {
		return nil, fmt.Errorf("the CA's answer: %w", err)
	}
	if err := c.keep(l); err != nil {
		c.log.Error("the new certificate cannot be kept on disk, a start without a server will use an older one", "error", cause(err))
	}
	return l, nil
}

// keep writes key and leaf. Both are on disk before the key is put in place, so
// that a crash in between leaves a pair that load finds.
func (c *certificates) keep(l *leaf) error {
	if err := c.dir.write(leafFile+nextSuffix, l.chain); err != nil {
		return err
	}
	if err := c.dir.write(keyFile, l.key); err != nil {
		return err
	}
	return os.Rename(c.dir.file(leafFile+nextSuffix), c.dir.file(leafFile))
}

// hand gives Envoy what there is, once there is all of it.
func (c *certificates) hand() {
	if !c.complete() {
		return
	}
	l, err := xds.NewResource(xds.SecretType, "leaf", envoy.LeafSecret(c.held.chain, c.held.key))
	if err != nil {
		c.log.Error("certificate cannot be encoded for Envoy", "error", err)
		return
	}
	r, err := xds.NewResource(xds.SecretType, "roots", envoy.RootsSecret(c.roots))
	if err != nil {
		c.log.Error("roots cannot be encoded for Envoy", "error", err)
		return
	}
	c.give(l, r)
	c.report(c.held.status())
}
