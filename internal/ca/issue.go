package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"
)

const (
	rootTTL = 10 * 365 * 24 * time.Hour
	// rootWarning is how long before its end a root is complained about.
	rootWarning = 180 * 24 * time.Hour

	minBackdate = 5 * time.Minute
	maxBackdate = time.Hour

	trustDomainSuffix = ".consul"
	typeCertificate   = "CERTIFICATE"
)

// backdate is how far before its signing a leaf begins to be valid, so that hosts
// whose clocks are behind accept it at once: an hour covers a clock set back by one,
// a short-lived leaf has as much as it lives, and never less than five minutes. So
// a leaf's NotBefore does not tell when it was signed.
func backdate(ttl time.Duration) time.Duration {
	return min(max(ttl, minBackdate), maxBackdate)
}

// newRoot makes the key and the self-signed certificate of a new trust domain.
func newRoot(now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	return newRootOf(newUUID()+trustDomainSuffix, now)
}

func newRootOf(trustDomain string, now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("CA root: generate key: %w", err)
	}
	// Consul's API shows a root's serial number as a JSON number; 52 bits survive every reader.
	serial, err := randomSerial(52)
	if err != nil {
		return nil, nil, fmt.Errorf("CA root: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "crossfade CA " + trustDomain[:8]},
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
		NotBefore:             now.Add(-maxBackdate),
		NotAfter:              now.Add(rootTTL),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("CA root: %w", err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("CA root: %w", err)
	}
	return root, key, nil
}

// issueLeaf signs an X509-SVID for a request that [CheckCSR] let pass. The subject
// holds only the accessor of the join token that the leaf comes through. Where it
// is empty, the name is critical, as RFC 5280 has it.
func issueLeaf(root *x509.Certificate, key *ecdsa.PrivateKey, req Request, through string, now time.Time, ttl time.Duration) ([]byte, error) {
	if now.Before(root.NotBefore) || !now.Before(root.NotAfter) {
		return nil, fmt.Errorf("CA root %q: valid from %s to %s, and now is %s", root.Subject.CommonName,
			root.NotBefore.Format(time.RFC3339), root.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	uri, err := url.Parse(req.ID.URI())
	if err != nil {
		return nil, fmt.Errorf("leaf for %q: %w", req.ID, err)
	}
	serial, err := randomSerial(128)
	if err != nil {
		return nil, fmt.Errorf("leaf for %q: %w", req.ID, err)
	}
	notAfter := now.Add(ttl)
	if notAfter.After(root.NotAfter) {
		notAfter = root.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{SerialNumber: through},
		URIs:                  []*url.URL{uri},
		NotBefore:             now.Add(-backdate(ttl)),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}, root, req.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("leaf for %q: %w", req.ID, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: typeCertificate, Bytes: der}), nil
}

// randomSerial is a positive number of at most that many bits.
func randomSerial(bits uint) (*big.Int, error) {
	limit := new(big.Int).Lsh(big.NewInt(1), bits)
	for {
		n, err := rand.Int(rand.Reader, limit)
		if err != nil {
			return nil, fmt.Errorf("serial number: %w", err)
		}
		if n.Sign() > 0 {
			return n, nil
		}
	}
}

// newUUID is a random (version 4) UUID.
func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// trustDomainOf reads it from a root's only name, spiffe://<trust-domain>.
func trustDomainOf(root *x509.Certificate) (string, error) {
	if len(root.URIs) != 1 || root.URIs[0].Scheme != "spiffe" || root.URIs[0].Path != "" ||
		strings.TrimSuffix(root.URIs[0].Host, trustDomainSuffix) == "" {
		return "", fmt.Errorf("CA root %q: want one URI name spiffe://<trust-domain>", root.Subject.CommonName)
	}
	return root.URIs[0].Host, nil
}

// checkRoot reports why a certificate and a key cannot be an authority.
func checkRoot(root *x509.Certificate, key *ecdsa.PrivateKey) error {
	pub, ok := root.PublicKey.(*ecdsa.PublicKey)
	switch {
	case !ok || !pub.Equal(key.Public()):
		return errors.New("the key does not belong to the certificate")
	case !root.BasicConstraintsValid || !root.IsCA || root.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("the certificate is not one of a CA")
	}
	if err := root.CheckSignatureFrom(root); err != nil {
		return fmt.Errorf("the certificate is not self-signed: %w", err)
	}
	_, err := trustDomainOf(root)
	return err
}
