package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/identity"
)

// serverTTL is how long a server's certificate is valid. It is renewed at half.
const serverTTL = 24 * time.Hour

// Fingerprint is the SHA-256 of the active root, "sha256:<hex>": what an operator
// hands to those who are to trust this authority.
func (b *BuiltIn) Fingerprint() string { return sha256Of(b.root) }

func sha256Of(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// RootPEM is the active root's certificate, without its key.
func (b *BuiltIn) RootPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: typeCertificate, Bytes: b.root.Raw})
}

// ServerLeaf is the certificate of a server's own ports. Its key is made in memory,
// and made anew with each certificate. Safe for concurrent use.
type ServerLeaf struct {
	ca    *BuiltIn
	names []string
	ips   []net.IP

	mu   sync.Mutex
	cert *tls.Certificate // guarded by mu
	due  time.Time        // of its renewal; guarded by mu
}

// ServerLeaf makes a certificate whose one URI is [identity.ServerURI]; the DNS names
// and addresses are for clients that check those. It does not serve as a client's.
func (b *BuiltIn) ServerLeaf(names []string, ips []net.IP) (*ServerLeaf, error) {
	s := &ServerLeaf{ca: b, names: names, ips: ips}
	_, err := s.Get(nil)
	return s, err
}

// Get is for [tls.Config].GetCertificate. The chain ends with the root, so that a
// client that knows only the root's fingerprint can find it.
func (s *ServerLeaf) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.ca.opts.Now()
	if s.cert != nil && now.Before(s.due) {
		return s.cert, nil
	}
	cert, err := s.ca.issueServer(s.names, s.ips, now)
	switch {
	case err == nil:
		s.cert, s.due = cert, now.Add(cert.Leaf.NotAfter.Sub(now)/2)
	case s.cert == nil || now.After(s.cert.Leaf.NotAfter):
		return nil, err
	default:
		s.ca.opts.Log.Error("the server's own certificate can't be renewed, the present one stays in use", "not_after", s.cert.Leaf.NotAfter, "reason", err)
	}
	return s.cert, nil
}

func (b *BuiltIn) issueServer(names []string, ips []net.IP, now time.Time) (*tls.Certificate, error) {
	uri, err := url.Parse(identity.ServerURI(b.trustDomain, b.opts.Datacenter))
	if err != nil {
		return nil, fmt.Errorf("server certificate: %w", err)
	}
	serial, err := randomSerial(128)
	if err != nil {
		return nil, fmt.Errorf("server certificate: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("server certificate: %w", err)
	}
	if !now.Before(b.root.NotAfter) {
		return nil, fmt.Errorf("server certificate: the CA root has expired at %s", b.root.NotAfter.Format(time.RFC3339))
	}
	notAfter := now.Add(serverTTL)
	if notAfter.After(b.root.NotAfter) {
		notAfter = b.root.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial,
		URIs:                  []*url.URL{uri},
		DNSNames:              names,
		IPAddresses:           ips,
		NotBefore:             now.Add(-maxBackdate),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}, b.root, key.Public(), b.key)
	if err != nil {
		return nil, fmt.Errorf("server certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("server certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, b.root.Raw}, PrivateKey: key, Leaf: leaf}, nil
}
