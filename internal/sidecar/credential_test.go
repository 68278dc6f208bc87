package sidecar

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestReadToken(t *testing.T) {
	dir := t.TempDir()
	for name, tc := range map[string]struct {
		text string
		mode os.FileMode
		want string // part of the error, or with no error the token
		fine bool
	}{
		"one line":        {"cf-join-abc\n", 0o600, "cf-join-abc", true},
		"read-only":       {"cf-join-abc", 0o400, "cf-join-abc", true},
		"group may read":  {"cf-join-abc", 0o640, "mode 0640 lets other users read it: run chmod 600", false},
		"others may read": {"cf-join-abc", 0o604, "mode 0604 lets other users read it", false},
		"empty":           {"\n", 0o600, "does not hold one token", false},
		"two lines":       {"cf-join-abc\ncf-join-def\n", 0o600, "does not hold one token", false},
		"much":            {strings.Repeat("x", maxToken+1), 0o600, "does not hold one token", false},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, tc.mode); err != nil {
			t.Fatal(err)
		}
		got, err := ReadToken(path)
		switch {
		case tc.fine && (err != nil || got != tc.want):
			t.Errorf("%s: %q, %v", name, got, err)
		case !tc.fine && (err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "cf-join")):
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	if _, err := ReadToken(filepath.Join(dir, "absent")); err == nil || strings.Count(err.Error(), dir) != 1 {
		t.Errorf("absent: %v", err)
	}
}

func TestTheAppGetsNoToken(t *testing.T) {
	got := appEnv([]string{
		"PATH=/bin", "CONSUL_HTTP_ADDR=127.0.0.1:8500", "CONSUL_HTTP_TOKEN=x", "CONSUL_HTTP_TOKEN_FILE=x", "CONSUL_HTTP_AUTH=u:p",
		"CONSUL_GRPC_TOKEN=x", "CROSSFADE_HTTP_TOKEN=x", "CROSSFADE_HTTP_TOKEN_FILE=x", "CROSSFADE_PERCENT_CATALOG=10", "MY_TOKEN=mine", "TOKEN=CROSSFADE_HTTP_TOKEN",
	})
	want := []string{"PATH=/bin", "CONSUL_HTTP_ADDR=127.0.0.1:8500", "CROSSFADE_PERCENT_CATALOG=10", "MY_TOKEN=mine", "TOKEN=CROSSFADE_HTTP_TOKEN"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestAddressesAndTrust(t *testing.T) {
	for _, tc := range []struct {
		addrs       []string
		fingerprint string
		want        string // the first address, or part of the error
	}{
		{[]string{"10.0.0.1:8500"}, "", "http://10.0.0.1:8500"},
		{[]string{"10.0.0.1:8500"}, strings.Repeat("0", 64), "https://10.0.0.1:8500"},
		{[]string{"http://10.0.0.1:8500"}, strings.Repeat("0", 64), "http://10.0.0.1:8500"},
		{[]string{"https://10.0.0.1:8500"}, "", "no CA is known to trust: set --ca-file"},
		{[]string{"https://10.0.0.1:8500", "http://10.0.0.2:8500"}, "", "want all with https, or none"},
	} {
		o := Options{StateDir: t.TempDir(), HTTPAddrs: tc.addrs, CAFingerprint: tc.fingerprint}
		o.Definition.Service.Name = "web"
		o, err := o.withDefaults()
		if err == nil {
			_, err = newCredential(o, nil)
		}
		got := ""
		if err == nil {
			got = o.HTTPAddrs[0]
		}
		if got != tc.want && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%v, fingerprint %.4q: %q, %v; want %q", tc.addrs, tc.fingerprint, got, err, tc.want)
		}
	}
}

// A leaf that has expired while its host was down is no reason to be trusted, and the
// token, if it still counts, is.
func TestExpiredWhileDown(t *testing.T) {
	t.Setenv(fakeEnv, "app")
	w := newWorld(t)
	state, port := filepath.Join(t.TempDir(), "state"), freePort(t)
	yaml, app := fmt.Sprintf("service: web\nport: %d\n", port), fmt.Sprintf("127.0.0.1:%d", port)
	r := w.run(state, yaml, app)
	first := r.untilReady()
	r.stop()
	expire(t, w.dir, state)

	token := w.tokens["web"]
	w.tokens["web"] = filepath.Join(t.TempDir(), "gone")
	r = w.run(state, yaml, app)
	if err := r.end(); err == nil || !strings.Contains(err.Error(), "token file") {
		t.Errorf("without the token: %v", err)
	}
	w.tokens["web"] = token
	r = w.run(state, yaml, app)
	again := r.until("ready", func(s Status) bool { return s.State == Ready && s.Certificate != nil })
	if again.Certificate.Serial == first.Certificate.Serial || !time.Now().Before(again.Certificate.NotAfter) {
		t.Errorf("certificate %+v after %+v", again.Certificate, first.Certificate)
	}
	// From then on without it.
	if err := os.Remove(token); err != nil {
		t.Fatal(err)
	}
	r.stop()
	r = w.run(state, yaml, app)
	if r.untilReady().Certificate.Serial != again.Certificate.Serial {
		t.Error("another certificate although there was a valid one")
	}
}

// expire puts a certificate that has ended in place of the sidecar's.
func expire(t *testing.T, serverDir, state string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(serverDir, "ca", "root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	root, err := tls.X509KeyPair(text, text)
	if err != nil {
		t.Fatal(err)
	}
	own, err := tls.LoadX509KeyPair(filepath.Join(state, leafFile), filepath.Join(state, keyFile))
	if err != nil {
		t.Fatal(err)
	}
	old := *own.Leaf
	old.NotBefore, old.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, &old, root.Leaf, own.Leaf.PublicKey, root.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(state, leafFile), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
