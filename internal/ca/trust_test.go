package ca

import (
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/identity"
)

// leafFor is a service's leaf that came through the given token.
func leafFor(t *testing.T, c *BuiltIn, service, through string, now time.Time) *tls.Certificate {
	t.Helper()
	key, csr, err := NewKeyAndCSR(c.Identity(service))
	if err != nil {
		t.Fatal(err)
	}
	req, err := CheckCSR(csr, c.trustDomain, "dc1")
	if err != nil {
		t.Fatal(err)
	}
	chain, err := c.sign(t.Context(), csr, req, through, now)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	return &pair
}

func serverLeaf(t *testing.T, c *BuiltIn) *tls.Certificate {
	t.Helper()
	s, err := c.ServerLeaf([]string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := s.Get(nil)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// shown is what a client sees of a server with that certificate.
func shown(t *testing.T, cert *tls.Certificate) tls.ConnectionState {
	t.Helper()
	cs := tls.ConnectionState{ServerName: "localhost"}
	for _, der := range cert.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		cs.PeerCertificates = append(cs.PeerCertificates, c)
	}
	return cs
}

func TestTrust(t *testing.T) {
	now := time.Now()
	c, other := open(t, Options{}), open(t, Options{})
	own, strange := serverLeaf(t, c), serverLeaf(t, other)
	// A service's leaf with the root behind it, as an impostor would show it.
	impostor := leafFor(t, c, "server", "", now)
	impostor.Certificate = append(impostor.Certificate, c.root.Raw)
	// Another CA's leaf with the right root behind it.
	dressed := &tls.Certificate{Certificate: [][]byte{strange.Certificate[0], c.root.Raw}}
	trust := func(roots []byte, pin string) *Trust {
		out, err := NewTrust(roots, pin)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	colons := strings.ToUpper(strings.TrimPrefix(c.Fingerprint(), "sha256:"))
	for name, tc := range map[string]struct {
		trust *Trust
		cert  *tls.Certificate
		at    time.Time
		want  string // part of the error; empty: trusted
	}{
		"root":                         {trust(c.RootPEM(), ""), own, now, ""},
		"fingerprint":                  {trust(nil, c.Fingerprint()), own, now, ""},
		"fingerprint in capitals":      {trust(nil, colons), own, now, ""},
		"new CA, old root, new pin":    {trust(other.RootPEM(), c.Fingerprint()), own, now, ""},
		"another CA":                   {trust(c.RootPEM(), ""), strange, now, "unknown authority"},
		"another CA, by fingerprint":   {trust(nil, c.Fingerprint()), strange, now, "no CA with the given fingerprint"},
		"the right root behind it":     {trust(nil, c.Fingerprint()), dressed, now, "unknown authority"},
		"a service's leaf":             {trust(c.RootPEM(), ""), impostor, now, "not a control-plane server"},
		"a service's, by fingerprint":  {trust(nil, c.Fingerprint()), impostor, now, "not a control-plane server"},
		"expired":                      {trust(c.RootPEM(), ""), own, now.Add(2 * serverTTL), "expired"},
		"not the fingerprint's server": {trust(nil, other.Fingerprint()), own, now, "no CA with the given fingerprint"},
	} {
		err := tc.trust.verify(shown(t, tc.cert), tc.at)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}

	pinned := trust(nil, c.Fingerprint())
	if err := pinned.verify(shown(t, own), now); err != nil || string(pinned.Roots()) != string(c.RootPEM()) {
		t.Errorf("after the first server: %v", err)
	}
	for _, tc := range []struct{ roots, pin string }{{"", ""}, {"", "abc"}, {"", "sha256:" + strings.Repeat("x", 64)}, {"hello", ""}, {"hello", c.Fingerprint()}} {
		if _, err := NewTrust([]byte(tc.roots), tc.pin); err == nil {
			t.Errorf("NewTrust(%q, %q) takes it", tc.roots, tc.pin)
		}
	}
}

func TestServerLeafIsRenewedAtHalf(t *testing.T) {
	now := time.Now()
	c := open(t, Options{Now: func() time.Time { return now }})
	s, err := c.ServerLeaf([]string{"localhost"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	serial := func() string {
		cert, err := s.Get(nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := cert.Leaf.URIs[0].String(); len(cert.Leaf.URIs) != 1 || got != identity.ServerURI(c.TrustDomain(), "dc1") {
			t.Errorf("URIs %v", cert.Leaf.URIs)
		}
		return cert.Leaf.SerialNumber.String()
	}
	first := serial()
	if now = now.Add(serverTTL/2 - time.Second); serial() != first {
		t.Error("renewed before half of its life")
	}
	if now = now.Add(2 * time.Second); serial() == first {
		t.Error("not renewed after half of its life")
	}
	// With the root's end there is nothing to renew it with.
	now = c.root.NotAfter.Add(-time.Hour)
	serial()
	now = c.root.NotAfter.Add(time.Second)
	if _, err := s.Get(nil); err == nil {
		t.Error("an expired certificate is served")
	}
}

func TestVerifyPeers(t *testing.T) {
	now := time.Now()
	c, other := open(t, Options{}), open(t, Options{})
	chain := func(cert *tls.Certificate) []*x509.Certificate { return shown(t, cert).PeerCertificates }
	leaf := leafFor(t, c, "web", "token-1", now)
	p, err := c.Verify(chain(leaf), now)
	if err != nil || p.ID != c.Identity("web") || p.Through != "token-1" || p.Serial != leaf.Leaf.SerialNumber.Text(16) || !p.NotAfter.Equal(leaf.Leaf.NotAfter) {
		t.Errorf("Verify = %+v, %v", p, err)
	}
	elsewhere := open(t, Options{Datacenter: "dc2"})
	elsewhere.root, elsewhere.key, elsewhere.trustDomain = c.root, c.key, c.trustDomain
	far := func() *tls.Certificate {
		key, csr, err := NewKeyAndCSR(identity.SPIFFE{TrustDomain: c.trustDomain, Datacenter: "dc2", Service: "web"})
		if err != nil {
			t.Fatal(err)
		}
		text, err := elsewhere.Sign(t.Context(), csr, now)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(text, key)
		if err != nil {
			t.Fatal(err)
		}
		return &pair
	}
	for name, tc := range map[string]struct {
		chain []*x509.Certificate
		at    time.Time
		want  string
	}{
		"nothing":            {nil, now, "none was shown"},
		"another CA's":       {chain(leafFor(t, other, "web", "", now)), now, "unknown authority"},
		"expired":            {chain(leaf), now.Add(DefaultLeafTTL + time.Minute), "has expired at"},
		"not yet":            {chain(leaf), now.Add(-2 * time.Hour), "not yet valid"},
		"a server's":         {chain(serverLeaf(t, c)), now, "incompatible key usage"},
		"the root itself":    {[]*x509.Certificate{c.root}, now, "want one URI|want path|key usage"},
		"another datacenter": {chain(far()), now, "another trust domain or datacenter"},
	} {
		p, err := c.Verify(tc.chain, tc.at)
		ok := false
		for want := range strings.SplitSeq(tc.want, "|") {
			ok = ok || err != nil && strings.Contains(err.Error(), want)
		}
		if !ok {
			t.Errorf("%s: %+v, %v, want %q", name, p, err, tc.want)
		}
	}
}

// A leaf that names its token has a subject and is otherwise as any other.
func TestLeafNamesItsToken(t *testing.T) {
	c := open(t, Options{})
	const token = "6f1c2d3e-4b5a-4978-8695-a4b3c2d1e0f9"
	leaf := leafFor(t, c, "web", token, time.Now()).Leaf
	if leaf.Subject.String() != "SERIALNUMBER="+token {
		t.Errorf("subject %s", leaf.Subject)
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != c.Identity("web").URI() || len(leaf.DNSNames) != 0 || leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("not an SVID: %v, %v, CA %v, usage %v", leaf.URIs, leaf.DNSNames, leaf.IsCA, leaf.KeyUsage)
	}
}

// Who asks for a leaf cannot say through which token it comes.
func TestRequestNamesNoToken(t *testing.T) {
	c := open(t, Options{})
	uri := mustURL(t, c.Identity("web").URI())
	named := pkix.Name{SerialNumber: "6f1c2d3e-4b5a-4978-8695-a4b3c2d1e0f9"}
	csr := encodeCSR(t, x509.CertificateRequest{URIs: []*url.URL{uri}, Subject: named}, ecKey(t, elliptic.P256()))
	text, err := c.Sign(t.Context(), csr, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := parseCertificate(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := c.Verify([]*x509.Certificate{leaf}, time.Now()); err != nil || p.Through != "" {
		t.Errorf("the leaf comes through %q, as its request said; %v", p.Through, err)
	}
}

// Who was verified before is so again, until the leaf expires or its root is trusted no more.
func TestVerifyAgain(t *testing.T) {
	now := time.Now()
	c, other := open(t, Options{}), open(t, Options{})
	certs := shown(t, leafFor(t, c, "web", "token-1", now)).PeerCertificates
	p, err := c.Verify(certs, now)
	if err != nil {
		t.Fatal(err)
	}
	der := func(certs []*x509.Certificate) (chain [][]byte) {
		for _, cert := range certs {
			chain = append(chain, cert.Raw)
		}
		return chain
	}
	chain, foreign := der(certs), der(shown(t, leafFor(t, other, "web", "token-1", now)).PeerCertificates)
	if again, err := c.VerifyAgain(p, chain, now); err != nil || again != p {
		t.Errorf("VerifyAgain = %+v, %v, want %+v", again, err, p)
	}
	if again, err := c.VerifyAgain(Peer{}, chain, now); err != nil || again != p {
		t.Errorf("of one never seen: %+v, %v, want %+v", again, err, p)
	}
	if again, err := c.VerifyAgain(Peer{}, foreign, now); err == nil {
		t.Errorf("of another authority's: %+v", again)
	}
	if again, err := c.VerifyAgain(Peer{}, nil, now); err == nil {
		t.Errorf("without a chain: %+v", again)
	}
	if again, err := c.VerifyAgain(Peer{}, [][]byte{chain[0][1:]}, now); err == nil || !strings.HasPrefix(err.Error(), "client certificate: ") {
		t.Errorf("of what is no certificate: %+v, %v", again, err)
	}
	tokenless := p
	tokenless.Through = ""
	if again, err := c.VerifyAgain(tokenless, chain, now); err != nil || again != p {
		t.Errorf("of one whose token was not known: %+v, %v, want %+v", again, err, p)
	}
	if again, err := c.VerifyAgain(p, chain, p.NotAfter.Add(time.Second)); err == nil {
		t.Errorf("of one that has expired: %+v", again)
	}
	c.publish(other.Roots())
	if again, err := c.VerifyAgain(p, chain, now); err == nil {
		t.Errorf("of one whose root is trusted no more: %+v", again)
	}
}
