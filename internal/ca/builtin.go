package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"fmt"
	"log/slog"
	"time"
)

// Limits of [Options].LeafTTL. The default and the upper limit are Consul's.
const (
	DefaultLeafTTL = 72 * time.Hour
	MinLeafTTL     = time.Minute
	MaxLeafTTL     = 365 * 24 * time.Hour
)

// BuiltIn signs with a root and a key of its own.
type BuiltIn struct {
	*CA
	root *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Open loads the authority in opts.Dir, or creates it there when the directory
// holds none. A root that is present but cannot be used is an error and stays
// as it is: a new root in its place would cut off every sidecar.
func Open(opts Options) (*BuiltIn, error) {
	opts, err := opts.checked()
	if err != nil {
		return nil, err
	}
	if opts.LeafTTL == 0 {
		opts.LeafTTL = DefaultLeafTTL
	}
	if opts.LeafTTL < MinLeafTTL || opts.LeafTTL > MaxLeafTTL {
		return nil, fmt.Errorf("CA: leaf TTL %s: want %s to %s", opts.LeafTTL, MinLeafTTL, MaxLeafTTL)
	}
	root, key, err := openRoot(opts)
	if err != nil {
		return nil, err
	}
	trustDomain, err := trustDomainOf(root)
	if err != nil {
		return nil, err
	}
	b := &BuiltIn{root: root, key: key}
	b.CA = newCA(opts, b, Roots{ActiveRootID: fingerprint(root), TrustDomain: trustDomain, Roots: []Root{describe(root, true)}})
	return b, nil
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

// sign implements provider.
func (b *BuiltIn) sign(_ context.Context, _ []byte, req Request, through string, now time.Time) ([]byte, error) {
	return issueLeaf(b.root, b.key, req, through, now, b.opts.LeafTTL)
}

// through implements provider.
func (b *BuiltIn) through(leaf *x509.Certificate) string { return leaf.Subject.SerialNumber }
