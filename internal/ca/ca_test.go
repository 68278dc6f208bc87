package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func open(t *testing.T, opts Options) *BuiltIn {
	t.Helper()
	if opts.Datacenter == "" {
		opts.Datacenter = "dc1"
	}
	c, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func sign(t *testing.T, c *BuiltIn, service string, now time.Time) *x509.Certificate {
	t.Helper()
	_, csr, err := NewKeyAndCSR(c.Identity(service))
	if err != nil {
		t.Fatal(err)
	}
	leafPEM, err := c.Sign(t.Context(), csr, now)
	if err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode(leafPEM)
	if block == nil || len(rest) != 0 {
		t.Fatalf("Sign returned %q, want one PEM block", leafPEM)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// The list of what a leaf must be is the SPIFFE X509-SVID standard's, sections 2 to 5.
func TestLeafIsAnSVID(t *testing.T) {
	now := time.Now()
	c := open(t, Options{})
	leaf := sign(t, c, "web", now)
	sanCritical, extensions := false, map[string]bool{}
	for _, e := range leaf.Extensions {
		extensions[e.Id.String()] = e.Critical
		if e.Id.String() == "2.5.29.17" {
			sanCritical = e.Critical
		}
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(c.Roots().PEM())
	verify := func(usage x509.ExtKeyUsage, at time.Time) error {
		_, err := leaf.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage}})
		return err
	}
	for what, ok := range map[string]bool{
		"exactly one URI":             len(leaf.URIs) == 1 && leaf.URIs[0].String() == "spiffe://"+c.TrustDomain()+"/ns/default/dc/dc1/svc/web",
		"no other name":               len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) == 0,
		"SAN critical, empty subject": sanCritical && leaf.Subject.String() == "",
		"not a CA":                    leaf.BasicConstraintsValid && !leaf.IsCA,
		"key usage":                   leaf.KeyUsage == x509.KeyUsageDigitalSignature && extensions["2.5.29.15"],
		"server":                      verify(x509.ExtKeyUsageServerAuth, now) == nil,
		"client":                      verify(x509.ExtKeyUsageClientAuth, now) == nil,
		"no other usage":              len(leaf.ExtKeyUsage) == 2 && len(leaf.UnknownExtKeyUsage) == 0,
		"clock an hour behind":        verify(x509.ExtKeyUsageServerAuth, now.Add(-time.Hour+time.Second)) == nil,
		"valid for the TTL":           verify(x509.ExtKeyUsageServerAuth, now.Add(DefaultLeafTTL-time.Second)) == nil,
		"expires":                     verify(x509.ExtKeyUsageServerAuth, now.Add(DefaultLeafTTL+time.Second)) != nil,
		"P-256":                       leaf.PublicKey.(*ecdsa.PublicKey).Curve == elliptic.P256(),
		"authority key":               len(leaf.AuthorityKeyId) > 0 && string(leaf.AuthorityKeyId) == string(c.root.SubjectKeyId),
		"serial":                      leaf.SerialNumber.Sign() > 0 && leaf.SerialNumber.BitLen() > 64 && leaf.SerialNumber.BitLen() <= 128,
		"serials differ":              leaf.SerialNumber.Cmp(sign(t, c, "web", now).SerialNumber) != 0,
	} {
		if !ok {
			t.Errorf("leaf: %s does not hold", what)
		}
	}
}

func TestRoot(t *testing.T) {
	c := open(t, Options{})
	roots := c.Roots()
	if len(roots.Roots) != 1 {
		t.Fatalf("%d roots, want 1", len(roots.Roots))
	}
	r, cert := roots.Roots[0], c.root
	for what, ok := range map[string]bool{
		"trust domain":       roots.TrustDomain == c.TrustDomain() && roots.TrustDomain == r.ExternalTrustDomain+".consul",
		"name has the URI":   len(cert.URIs) == 1 && cert.URIs[0].String() == "spiffe://"+c.TrustDomain(),
		"CA, path length 0":  cert.IsCA && cert.MaxPathLen == 0 && cert.MaxPathLenZero,
		"key usage":          cert.KeyUsage == x509.KeyUsageCertSign|x509.KeyUsageCRLSign,
		"active":             r.Active && roots.ActiveRootID == r.ID,
		"ids are colon hex":  len(r.ID) == 59 && len(r.SigningKeyID) == 3*len(cert.SubjectKeyId)-1,
		"serial fits JSON":   cert.SerialNumber.BitLen() <= 52 && r.SerialNumber == cert.SerialNumber.Uint64(),
		"ten years":          r.NotAfter.Sub(r.NotBefore) > 10*364*24*time.Hour,
		"key type":           r.PrivateKeyType == "ec" && r.PrivateKeyBits == 256,
		"no key in the PEM":  !strings.Contains(r.RootCert, "PRIVATE"),
		"another each time":  open(t, Options{}).TrustDomain() != c.TrustDomain(),
		"short id in a name": r.Name == "crossfade CA "+c.TrustDomain()[:8],
	} {
		if !ok {
			t.Errorf("root: %s does not hold", what)
		}
	}
}

func TestValidity(t *testing.T) {
	start := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for ttl, wantBack := range map[time.Duration]time.Duration{
		time.Minute: 5 * time.Minute, 10 * time.Minute: 10 * time.Minute, 72 * time.Hour: time.Hour,
	} {
		c := open(t, Options{LeafTTL: ttl, Now: func() time.Time { return start }})
		leaf := sign(t, c, "web", start)
		if back := start.Sub(leaf.NotBefore); back != wantBack {
			t.Errorf("TTL %s: backdated by %s, want %s", ttl, back, wantBack)
		}
		if !leaf.NotAfter.Equal(start.Add(ttl)) {
			t.Errorf("TTL %s: NotAfter %s", ttl, leaf.NotAfter)
		}
	}

	c := open(t, Options{Now: func() time.Time { return start }})
	end := c.root.NotAfter
	if leaf := sign(t, c, "web", end.Add(-time.Hour)); !leaf.NotAfter.Equal(end) {
		t.Errorf("leaf outlives its root: %s, root %s", leaf.NotAfter, end)
	}
	_, csr, _ := NewKeyAndCSR(c.Identity("web"))
	for _, at := range []time.Time{end, start.Add(-2 * time.Hour)} {
		if _, err := c.Sign(t.Context(), csr, at); err == nil || !strings.Contains(err.Error(), "valid from") {
			t.Errorf("Sign at %s: %v, want a refusal", at, err)
		}
	}
}

func TestOptions(t *testing.T) {
	for name, opts := range map[string]Options{
		"no datacenter": {},
		"short TTL":     {Datacenter: "dc1", LeafTTL: time.Second},
		"long TTL":      {Datacenter: "dc1", LeafTTL: 2 * MaxLeafTTL},
	} {
		if _, err := Open(opts); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestReopenKeepsRoot(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data", "ca")
	first := open(t, Options{Dir: dir})
	second := open(t, Options{Dir: dir})
	if first.Roots().ActiveRootID != second.Roots().ActiveRootID || first.TrustDomain() != second.TrustDomain() {
		t.Error("another root after the second Open")
	}
	leaf := sign(t, second, "web", time.Now())
	if err := leaf.CheckSignatureFrom(first.root); err != nil {
		t.Error(err)
	}
	for path, want := range map[string]fs.FileMode{dir: 0o700, filepath.Join(dir, fileName): 0o600} {
		fi, err := os.Stat(path)
		if err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want mode %o", path, fi.Mode(), err, want)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("%d files in the directory, want 1", len(left))
	}
}

func TestOpenRefusesAndLeaves(t *testing.T) {
	pemOf := func(f func(dir string)) func(*testing.T, string) {
		return func(_ *testing.T, dir string) { f(dir) }
	}
	edit := func(change func(string) string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			path := filepath.Join(dir, fileName)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(change(string(b))), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	half := func(which int) func(string) string {
		return func(s string) string { return strings.SplitAfter(s, "-----END CERTIFICATE-----\n")[which] }
	}
	leafKey := func(s string) string {
		key, _, err := NewKeyAndCSR((&CA{}).Identity("x"))
		if err != nil {
			t.Fatal(err)
		}
		return half(0)(s) + string(key)
	}
	tests := map[string]struct {
		spoil func(*testing.T, string)
		want  string
	}{
		"file readable by others": {pemOf(func(d string) { os.Chmod(filepath.Join(d, fileName), 0o640) }), "chmod 600"},
		"directory open":          {pemOf(func(d string) { os.Chmod(d, 0o755) }), "chmod 700"},
		"empty":                   {edit(func(string) string { return "" }), "no certificate in it"},
		"junk":                    {edit(func(string) string { return "hello" }), "not PEM"},
		"torn":                    {edit(func(s string) string { return s[:len(s)-40] }), "not PEM"},
		"no key":                  {edit(half(0)), "no key in it"},
		"no certificate":          {edit(half(1)), "no certificate in it"},
		"another key":             {edit(leafKey), "does not belong"},
		"two certificates":        {edit(func(s string) string { return half(0)(s) + s }), "too many"},
		"huge":                    {edit(func(s string) string { return s + strings.Repeat(" ", maxFile) }), "more than"},
		"a directory":             {pemOf(func(d string) { os.Remove(filepath.Join(d, fileName)); os.Mkdir(filepath.Join(d, fileName), 0o700) }), "is a directory"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "ca")
			open(t, Options{Dir: dir})
			tc.spoil(t, dir)
			before, _ := os.ReadFile(filepath.Join(dir, fileName))
			_, err := Open(Options{Dir: dir, Datacenter: "dc1"})
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), dir) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("error %v, want one line with %q and the path", err, tc.want)
			}
			if after, _ := os.ReadFile(filepath.Join(dir, fileName)); string(after) != string(before) {
				t.Error("the file changed")
			}
		})
	}
}

func TestStoreNeverReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), fileName)
	root, key, err := newRoot(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := store(path, root, key); err != nil {
		t.Fatal(err)
	}
	if err := store(path, root, key); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second store: %v, want fs.ErrExist", err)
	}
}

func TestCheckRootRefusesLeaf(t *testing.T) {
	c := open(t, Options{})
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkRoot(sign(t, c, "web", time.Now()), key); err == nil {
		t.Error("a leaf with a foreign key passes as a root")
	}
}
