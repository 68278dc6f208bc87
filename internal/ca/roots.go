package ca

import (
	"crypto/ecdsa"
	"crypto/sha1"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"slices"
	"strings"
	"time"
)

// Roots are the certificates to verify leaves with, shaped as the answer of
// Consul's /v1/connect/ca/roots.
type Roots struct {
	ActiveRootID string
	TrustDomain  string
	Roots        []Root
}

// Root is one certificate of an authority; Consul's CARoot.
type Root struct {
	// ID is the SHA-1 fingerprint of the certificate, SigningKeyID its subject key
	// identifier; both as colon-separated hex.
	ID           string
	Name         string
	SerialNumber uint64
	SigningKeyID string
	// ExternalTrustDomain is the cluster ID: the trust domain without ".consul".
	ExternalTrustDomain string
	NotBefore           time.Time
	NotAfter            time.Time
	RootCert            string // PEM
	IntermediateCerts   []string
	Active              bool // true for exactly one, that which signs
	PrivateKeyType      string
	PrivateKeyBits      int
	// Indexes belong to the registry that serves the roots; zero here.
	CreateIndex uint64
	ModifyIndex uint64
}

// PEM is all roots as one bundle.
func (r Roots) PEM() []byte {
	var b strings.Builder
	for _, root := range r.Roots {
		b.WriteString(root.RootCert)
	}
	return []byte(b.String())
}

func (r Roots) clone() Roots {
	r.Roots = slices.Clone(r.Roots)
	return r
}

func describe(root *x509.Certificate, active bool) Root {
	r := Root{
		ID:           fingerprint(root),
		Name:         root.Subject.CommonName,
		SerialNumber: root.SerialNumber.Uint64(),
		SigningKeyID: colonHex(root.SubjectKeyId),
		NotBefore:    root.NotBefore,
		NotAfter:     root.NotAfter,
		RootCert:     string(pem.EncodeToMemory(&pem.Block{Type: typeCertificate, Bytes: root.Raw})),
		Active:       active,
	}
	if len(root.URIs) == 1 {
		r.ExternalTrustDomain = strings.TrimSuffix(root.URIs[0].Host, trustDomainSuffix)
	}
	if key, ok := root.PublicKey.(*ecdsa.PublicKey); ok {
		r.PrivateKeyType, r.PrivateKeyBits = "ec", key.Curve.Params().BitSize
	}
	return r
}

// fingerprint names a certificate; it protects nothing, so Consul's choice of hash is kept.
func fingerprint(c *x509.Certificate) string {
	sum := sha1.Sum(c.Raw)
	return colonHex(sum[:])
}

func colonHex(b []byte) string {
	parts := make([]string, len(b))
	for i := range b {
		parts[i] = hex.EncodeToString(b[i : i+1])
	}
	return strings.Join(parts, ":")
}
