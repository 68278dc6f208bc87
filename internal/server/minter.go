package server

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/crossfade-mesh/crossfade/internal/ca"
	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/identity"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// minter makes keys and certificates for Envoys that connect without a sidecar of
// ours. Development mode only: elsewhere a key never leaves the host it was made
// on. Used by one goroutine.
type minter struct {
	ca   *ca.CA
	made map[string]minted // by sidecar ID
}

type minted struct {
	secrets xds.Resources
	renewAt time.Time
	root    string // ID of the active one
}

const (
	// mintWithin bounds how long the making of one certificate may keep all others waiting.
	mintWithin = 3 * time.Second
	// mintAgain is after how long one that failed is tried again.
	mintAgain = 10 * time.Second
)

func newMinter(authority *ca.CA) *minter { return &minter{ca: authority, made: map[string]minted{}} }

// due reports whether the sidecar's certificate is past half of its life, or its root
// is not the active one.
func (m *minter) due(id string, now time.Time) bool {
	got := m.made[id]
	return now.After(got.renewAt) || got.root != m.ca.Roots().ActiveRootID
}

// secrets are the leaf and roots of a sidecar, the same until they are due.
func (m *minter) secrets(id string, who identity.SPIFFE, now time.Time) (xds.Resources, error) {
	if got, ok := m.made[id]; ok && !m.due(id, now) {
		return got.secrets, nil
	}
	key, csr, err := ca.NewKeyAndCSR(who)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), mintWithin)
	defer cancel()
	roots := m.ca.Roots()
	leaf, err := m.ca.Sign(ctx, csr, now)
	if err != nil {
		got := m.made[id].secrets
		m.made[id] = minted{secrets: got, renewAt: now.Add(mintAgain), root: roots.ActiveRootID}
		return got, err
	}
	var list []*xds.Resource
	for _, msg := range []*tlsv3.Secret{envoy.LeafSecret(leaf, key), envoy.RootsSecret(roots.PEM())} {
		res, err := xds.NewResource(xds.SecretType, msg.GetName(), msg)
		if err != nil {
			return nil, err
		}
		list = append(list, res)
	}
	out := xds.Sort(list)
	block, _ := pem.Decode(leaf)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	m.made[id] = minted{secrets: out, renewAt: now.Add(cert.NotAfter.Sub(now) / 2), root: roots.ActiveRootID}
	return out, nil
}
