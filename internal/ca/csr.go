package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/identity"
)

const (
	// maxCSR is in bytes of PEM. A P-384 request with the longest identity has less than 4 KiB.
	maxCSR = 8 << 10
	// maxURI is in bytes, from the SPIFFE ID standard.
	maxURI = 2048

	typeCSR  = "CERTIFICATE REQUEST"
	tagURI   = 6 // GeneralName.uniformResourceIdentifier
	wantKeys = "want an ECDSA key on P-256 or P-384"
)

// Request is what a sound signing request asks for. Nothing else of the request
// (its subject, its attributes) reaches the leaf.
type Request struct {
	ID        identity.SPIFFE
	PublicKey *ecdsa.PublicKey
}

// CheckCSR decides whether a PEM request may be signed for a service of the given
// trust domain and datacenter. It wants exactly one subject alternative name, the
// URI of such an identity, no other extension but CA:FALSE, a key on P-256 or
// P-384, and a signature by that key with SHA-2.
func CheckCSR(csrPEM []byte, trustDomain, datacenter string) (Request, error) {
	csr, err := decodeCSR(csrPEM)
	if err != nil {
		return Request{}, fmt.Errorf("CSR: %w", err)
	}
	uri, err := onlyURI(csr)
	if err != nil {
		return Request{}, fmt.Errorf("CSR: %w", err)
	}
	id, err := identity.ParseURI(uri)
	if err != nil {
		return Request{}, fmt.Errorf("CSR: %w", err)
	}
	key, err := soundKey(csr)
	switch {
	case err != nil:
	case id.TrustDomain != trustDomain:
		err = fmt.Errorf("its trust domain is not this one's, %s", trustDomain)
	case id.Datacenter != datacenter:
		err = fmt.Errorf("its datacenter is not this one's, %s", datacenter)
	case !pathSegment(id.Service):
		err = errors.New(`a service name in a SPIFFE ID has only letters, digits, ".", "-" and "_"`)
	}
	if err != nil {
		return Request{}, fmt.Errorf("CSR for %q: %w", uri, err)
	}
	return Request{ID: id, PublicKey: key}, nil
}

func decodeCSR(csrPEM []byte) (*x509.CertificateRequest, error) {
	if len(csrPEM) > maxCSR {
		return nil, fmt.Errorf("%d bytes, limit %d", len(csrPEM), maxCSR)
	}
	// Decode skips what stands before a block; nothing but space may.
	trimmed := bytes.TrimSpace(csrPEM)
	block, rest := pem.Decode(trimmed)
	switch {
	case block == nil || !bytes.HasPrefix(trimmed, []byte("-----BEGIN ")):
		return nil, errors.New("not PEM")
	case block.Type != typeCSR:
		return nil, fmt.Errorf("PEM block %q, want %q", block.Type, typeCSR)
	case len(block.Headers) != 0:
		return nil, errors.New("PEM block with headers")
	case len(bytes.TrimSpace(rest)) != 0:
		return nil, errors.New("more than one PEM block")
	}
	return x509.ParseCertificateRequest(block.Bytes)
}

// onlyURI returns the single name asked for. It reads the extension itself,
// because x509 passes over the kinds of name that it does not know.
func onlyURI(csr *x509.CertificateRequest) (string, error) {
	var (
		oidSAN              = asn1.ObjectIdentifier{2, 5, 29, 17}
		oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	)
	uri, found := "", false
	for _, ext := range csr.Extensions {
		switch {
		case ext.Id.Equal(oidSAN) && !found:
			var err error
			if uri, err = soleURI(ext.Value); err != nil {
				return "", err
			}
			found = true
		case ext.Id.Equal(oidBasicConstraints):
			var bc struct {
				IsCA       bool `asn1:"optional"`
				MaxPathLen int  `asn1:"optional,default:-1"`
			}
			if rest, err := asn1.Unmarshal(ext.Value, &bc); err != nil || len(rest) != 0 || bc.IsCA || bc.MaxPathLen != -1 {
				return "", errors.New("it asks to be a CA")
			}
		default:
			return "", fmt.Errorf("extension %s: want one subject alternative name and no other extension", ext.Id)
		}
	}
	if !found {
		return "", errors.New("no subject alternative name: want the URI of a SPIFFE ID")
	}
	return uri, nil
}

func soleURI(san []byte) (string, error) {
	var names []asn1.RawValue
	if rest, err := asn1.Unmarshal(san, &names); err != nil || len(rest) != 0 {
		return "", errors.New("subject alternative name: not a list of names")
	}
	if len(names) != 1 || names[0].Class != asn1.ClassContextSpecific || names[0].Tag != tagURI || names[0].IsCompound {
		return "", fmt.Errorf("subject alternative names: want exactly one, a URI; there are %d", len(names))
	}
	if n := len(names[0].Bytes); n > maxURI {
		return "", fmt.Errorf("URI of %d bytes, limit %d", n, maxURI)
	}
	return string(names[0].Bytes), nil
}

func soundKey(csr *x509.CertificateRequest) (*ecdsa.PublicKey, error) {
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("key of type %s: %s", csr.PublicKeyAlgorithm, wantKeys)
	}
	if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
		return nil, fmt.Errorf("key on %s: %s", key.Curve.Params().Name, wantKeys)
	}
	switch csr.SignatureAlgorithm {
	case x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512:
	default:
		return nil, fmt.Errorf("signed with %s: want ECDSA with SHA-256, 384 or 512", csr.SignatureAlgorithm)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	return key, nil
}

// pathSegment reports whether s may stand in the path of a SPIFFE ID, which knows
// no percent-encoding.
func pathSegment(s string) bool {
	return s != "" && s != "." && s != ".." && !strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_", r)
	})
}
