package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/identity"
)

const testDomain = "11111111-2222-3333-4444-555555555555.consul"

func mustURL(t testing.TB, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func ecKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func encodeCSR(t testing.TB, template x509.CertificateRequest, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: typeCSR, Bytes: der})
}

// san encodes general names, given as tag and value, as an extension.
func san(t testing.TB, names ...asn1.RawValue) pkix.Extension {
	t.Helper()
	value, err := asn1.Marshal(names)
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value}
}

func name(tag int, value string) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: []byte(value)}
}

func TestCheckCSR(t *testing.T) {
	const good = "spiffe://" + testDomain + "/ns/default/dc/dc1/svc/web"
	p256 := ecKey(t, elliptic.P256())
	caBit := func(ca bool) []pkix.Extension {
		value, err := asn1.Marshal(struct {
			IsCA bool `asn1:"optional"`
		}{ca})
		if err != nil {
			t.Fatal(err)
		}
		return []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Value: value}}
	}
	uri := func(raw string) x509.CertificateRequest {
		return x509.CertificateRequest{URIs: []*url.URL{mustURL(t, raw)}}
	}
	with := func(change func(*x509.CertificateRequest)) x509.CertificateRequest {
		r := uri(good)
		change(&r)
		return r
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		template x509.CertificateRequest
		key      crypto.Signer // nil: P-256
		want     string        // part of the error; empty: signed
	}{
		"P-256":           {template: uri(good)},
		"P-384":           {template: uri(good), key: ecKey(t, elliptic.P384())},
		"subject ignored": {template: with(func(r *x509.CertificateRequest) { r.Subject.CommonName = "root" })},
		"CA:FALSE":        {template: with(func(r *x509.CertificateRequest) { r.ExtraExtensions = caBit(false) })},
		"no name":         {template: x509.CertificateRequest{}, want: "no subject alternative name"},
		"two URIs":        {template: with(func(r *x509.CertificateRequest) { r.URIs = append(r.URIs, r.URIs[0]) }), want: "exactly one"},
		"DNS too":         {template: with(func(r *x509.CertificateRequest) { r.DNSNames = []string{"web"} }), want: "exactly one"},
		"IP too":          {template: with(func(r *x509.CertificateRequest) { r.IPAddresses = []net.IP{{127, 0, 0, 1}} }), want: "exactly one"},
		"email too":       {template: with(func(r *x509.CertificateRequest) { r.EmailAddresses = []string{"a@b"} }), want: "exactly one"},
		"DNS only":        {template: x509.CertificateRequest{DNSNames: []string{"web"}}, want: "a URI"},
		"registered ID":   {template: x509.CertificateRequest{ExtraExtensions: []pkix.Extension{san(t, name(6, good), name(8, "\x2a\x03"))}}, want: "exactly one"},
		"empty list":      {template: x509.CertificateRequest{ExtraExtensions: []pkix.Extension{san(t)}}, want: "exactly one"},
		"long URI":        {template: uri(good + strings.Repeat("x", maxURI)), want: "limit"},
		"CA:TRUE":         {template: with(func(r *x509.CertificateRequest) { r.ExtraExtensions = caBit(true) }), want: "asks to be a CA"},
		"other extension": {template: with(func(r *x509.CertificateRequest) {
			r.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: []byte{0x30, 0}}}
		}), want: "extension 2.5.29.37"},
		"other domain":     {template: uri(strings.Replace(good, "1111", "2222", 1)), want: "trust domain"},
		"other datacenter": {template: uri(strings.Replace(good, "dc1", "dc2", 1)), want: "datacenter"},
		"other namespace":  {template: uri(strings.Replace(good, "default", "team", 1)), want: "want path"},
		"agent":            {template: uri("spiffe://" + testDomain + "/agent/client/dc/dc1/id/n1"), want: "want path"},
		"the root's name":  {template: uri("spiffe://" + testDomain), want: "want path"},
		"https":            {template: uri("https://" + testDomain + "/ns/default/dc/dc1/svc/web"), want: "want spiffe://"},
		"port":             {template: uri(strings.Replace(good, ".consul", ".consul:1", 1)), want: "want spiffe://"},
		"query":            {template: uri(good + "?a"), want: "want spiffe://"},
		"escaped slash":    {template: uri(good + "%2fx"), want: "want path"},
		"escaped byte":     {template: uri(good + "%20x"), want: "only letters"},
		"dot dot":          {template: uri(strings.Replace(good, "svc/web", "svc/..", 1)), want: "only letters"},
		"RSA":              {template: uri(good), key: rsaKey, want: "key of type RSA"},
		"Ed25519":          {template: uri(good), key: edKey, want: "key of type Ed25519"},
		"P-521":            {template: uri(good), key: ecKey(t, elliptic.P521()), want: "key on P-521"},
		"P-224":            {template: uri(good), key: ecKey(t, elliptic.P224()), want: "key on P-224"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			key := tc.key
			if key == nil {
				key = p256
			}
			req, err := CheckCSR(encodeCSR(t, tc.template, key), testDomain, "dc1")
			switch {
			case tc.want != "":
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Fatalf("error %v, want %q in it", err, tc.want)
				}
			case err != nil:
				t.Fatal(err)
			case req.ID.URI() != good || !req.PublicKey.Equal(key.Public()):
				t.Errorf("request %+v", req)
			}
		})
	}
}

func TestCheckCSREncoding(t *testing.T) {
	id := identity.SPIFFE{TrustDomain: testDomain, Datacenter: "dc1", Service: "web"}
	keyPEM, csr, err := NewKeyAndCSR(id)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(csr)
	forged := bytes.Clone(block.Bytes)
	forged[len(forged)-1] ^= 1
	encode := func(typ string, headers map[string]string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: typ, Headers: headers, Bytes: der})
	}
	for name, tc := range map[string]struct {
		in   []byte
		want string
	}{
		"empty":     {nil, "not PEM"},
		"DER":       {block.Bytes, "not PEM"},
		"prefix":    {append([]byte("hello\n"), csr...), "not PEM"},
		"key":       {keyPEM, `PEM block "PRIVATE KEY"`},
		"twice":     {append(bytes.Clone(csr), csr...), "more than one"},
		"headers":   {encode(typeCSR, map[string]string{"A": "b"}, block.Bytes), "headers"},
		"trailing":  {encode(typeCSR, nil, append(bytes.Clone(block.Bytes), 0)), "trailing"},
		"truncated": {encode(typeCSR, nil, block.Bytes[:100]), "CSR"},
		"signature": {encode(typeCSR, nil, forged), "signature"},
		"big":       {bytes.Repeat([]byte("x"), maxCSR+1), "limit"},
	} {
		if _, err := CheckCSR(tc.in, testDomain, "dc1"); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want %q in it", name, err, tc.want)
		}
	}
	if _, err := CheckCSR(append([]byte("\r\n  "), append(csr, "\n\n"...)...), testDomain, "dc1"); err != nil {
		t.Errorf("space around the block: %v", err)
	}
}

// Whatever is signed is one URI of our own trust domain and datacenter.
func FuzzSign(f *testing.F) {
	c, err := Open(Options{Datacenter: "dc1"})
	if err != nil {
		f.Fatal(err)
	}
	_, good, err := NewKeyAndCSR(c.Identity("web"))
	if err != nil {
		f.Fatal(err)
	}
	block, _ := pem.Decode(good)
	f.Add(block.Bytes)
	f.Add([]byte{})
	other, _ := pem.Decode(encodeCSR(f, x509.CertificateRequest{DNSNames: []string{"web"}}, ecKey(f, elliptic.P256())))
	f.Add(other.Bytes)
	now := time.Now()
	f.Fuzz(func(t *testing.T, der []byte) {
		leafPEM, err := c.Sign(t.Context(), pem.EncodeToMemory(&pem.Block{Type: typeCSR, Bytes: der}), now)
		if err != nil {
			return
		}
		leaf, err := parseCertificate(string(leafPEM))
		if err != nil {
			t.Fatal(err)
		}
		if len(leaf.URIs) != 1 || leaf.IsCA || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0 {
			t.Fatalf("signed %v, CA %v, DNS %v", leaf.URIs, leaf.IsCA, leaf.DNSNames)
		}
		id, err := identity.ParseURI(leaf.URIs[0].String())
		if err != nil || id.TrustDomain != c.TrustDomain() || id.Datacenter != "dc1" {
			t.Fatalf("signed %q: %v", leaf.URIs[0], err)
		}
	})
}
