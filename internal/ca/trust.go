package ca

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/identity"
)

// Peer is whose leaf a caller has shown.
type Peer struct {
	ID       identity.SPIFFE
	Through  string // accessor of the join token that the leaf comes through; empty where none is known
	Serial   string // hex
	NotAfter time.Time

	roots *x509.CertPool // that it was verified by
}

// Verify says who the owner of a certificate chain is: a leaf of this authority, for
// a service of its datacenter, valid now. That the caller has the leaf's key is for
// the TLS handshake to prove.
func (c *CA) Verify(chain []*x509.Certificate, now time.Time) (Peer, error) {
	if len(chain) == 0 {
		return Peer{}, errors.New("client certificate: none was shown")
	}
	leaf, pool := chain[0], c.trusted()
	between := x509.NewCertPool()
	for _, cert := range chain[1:] {
		between.AddCert(cert)
	}
	if now.After(leaf.NotAfter) {
		return Peer{}, fmt.Errorf("client certificate %x: it has expired at %s", leaf.SerialNumber, leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, CurrentTime: now,
	}); err != nil {
		return Peer{}, fmt.Errorf("client certificate %x: %w", leaf.SerialNumber, err)
	}
	if len(leaf.URIs) != 1 || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0 || leaf.IsCA {
		return Peer{}, fmt.Errorf("client certificate %x: want one URI and no other name", leaf.SerialNumber)
	}
	id, err := identity.ParseURI(leaf.URIs[0].String())
	switch {
	case err != nil:
		return Peer{}, fmt.Errorf("client certificate %x: %w", leaf.SerialNumber, err)
	case id.TrustDomain != c.trustDomain || id.Datacenter != c.opts.Datacenter:
		return Peer{}, fmt.Errorf("client certificate %x: %s is of another trust domain or datacenter", leaf.SerialNumber, id)
	}
	return Peer{ID: id, Through: c.provider.through(leaf), Serial: leaf.SerialNumber.Text(16), NotAfter: leaf.NotAfter, roots: pool}, nil
}

// VerifyAgain is [CA.Verify] of a chain of which it has returned before, in DER. Nothing of that is looked into while the
// roots are the same, and it is known which token the leaf comes through.
func (c *CA) VerifyAgain(before Peer, chain [][]byte, now time.Time) (Peer, error) {
	if before.Through != "" && before.roots == c.trusted() && !now.After(before.NotAfter) {
		return before, nil
	}
	certs := make([]*x509.Certificate, len(chain))
	for i, der := range chain {
		var err error
		if certs[i], err = x509.ParseCertificate(der); err != nil {
			return Peer{}, fmt.Errorf("client certificate: %w", err)
		}
	}
	return c.Verify(certs, now)
}

// Trust is which servers a client believes: those with a certificate of a known root,
// or of the root with a known fingerprint, which a server shows and from then on is known. A service's own leaf never passes for a server's. Safe for concurrent use.
type Trust struct {
	pin []byte // SHA-256; nil without

	mu    sync.Mutex
	roots []*x509.Certificate // guarded by mu
}

// NewTrust takes roots in PEM, a fingerprint ([BuiltIn.Fingerprint]), or both.
func NewTrust(roots []byte, fingerprint string) (*Trust, error) {
	t := &Trust{}
	if fingerprint != "" {
		sum := strings.ReplaceAll(strings.TrimPrefix(strings.ToLower(strings.TrimSpace(fingerprint)), "sha256:"), ":", "")
		pin, err := hex.DecodeString(sum)
		if err != nil || len(pin) != sha256.Size {
			return nil, fmt.Errorf("CA fingerprint %q: want the 64 hex digits of a SHA-256, as a server prints them when it starts", fingerprint)
		}
		t.pin = pin
	}
	if len(roots) > 0 {
		return t, t.SetRoots(roots)
	}
	if t.pin == nil {
		return nil, errors.New("no CA certificate and no fingerprint of one")
	}
	return t, nil
}

// SetRoots replaces the known roots.
func (t *Trust) SetRoots(text []byte) error {
	var roots []*x509.Certificate
	for len(text) > 0 {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("CA certificate: %w", err)
		}
		roots = append(roots, cert)
	}
	if len(roots) == 0 {
		return errors.New("CA certificate: none in PEM")
	}
	t.mu.Lock()
	t.roots = roots
	t.mu.Unlock()
	return nil
}

// Roots are the known roots, PEM; empty while only a fingerprint is known.
func (t *Trust) Roots() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []byte
	for _, r := range t.roots {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: typeCertificate, Bytes: r.Raw})...)
	}
	return out
}

// Curves are what sidecars and servers agree on a key with. The default begins with X25519MLKEM768, which
// costs a server a quarter of a handshake, and each end a buffer for its larger messages that lasts as long as
// the connection; what goes over these is no secret for decades, and has no keys in it.
var Curves = []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384}

// TLS is a client's configuration. certificate gives what the client shows of
// itself, and may be nil.
func (t *Trust) TLS(certificate func() *tls.Certificate) *tls.Config {
	c := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		CurvePreferences:   Curves,
		InsecureSkipVerify: true, // VerifyConnection does it, by identity
		VerifyConnection:   func(cs tls.ConnectionState) error { return t.verify(cs, time.Now()) },
	}
	if certificate != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if own := certificate(); own != nil {
				return own, nil
			}
			return &tls.Certificate{}, nil
		}
	}
	return c
}

func (t *Trust) verify(cs tls.ConnectionState, now time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	leaf := cs.PeerCertificates[0]
	roots := t.roots
	for _, cert := range cs.PeerCertificates {
		if sum := sha256.Sum256(cert.Raw); t.pin != nil && string(sum[:]) == string(t.pin) && !slices.ContainsFunc(roots, cert.Equal) {
			roots = append(slices.Clip(roots), cert)
		}
	}
	if len(roots) == 0 {
		return errors.New("server certificate: its chain has no CA with the given fingerprint: compare --ca-fingerprint with what the server printed")
	}
	pool, between := x509.NewCertPool(), x509.NewCertPool()
	for _, r := range roots {
		pool.AddCert(r)
	}
	for _, cert := range cs.PeerCertificates[1:] {
		between.AddCert(cert)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, CurrentTime: now,
	})
	if err != nil {
		return fmt.Errorf("server certificate: %w", err)
	}
	for _, chain := range chains {
		td, err := trustDomainOf(chain[len(chain)-1])
		if err == nil && len(leaf.URIs) == 1 && identity.IsServer(leaf.URIs[0].String(), td) {
			t.roots = roots
			return nil
		}
	}
	if len(leaf.URIs) == 0 && cs.ServerName != "" && leaf.VerifyHostname(cs.ServerName) == nil {
		return nil // a Consul's
	}
	return fmt.Errorf("server certificate: it names %v, not a control-plane server", leaf.URIs)
}
