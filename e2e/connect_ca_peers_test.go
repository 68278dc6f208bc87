//go:build peers

package e2e

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// status is a sidecar's status.json.
func (m *member) status() (st struct {
	Certificate struct{ Serial string }
	Envoy       struct {
		AdminSocket string `json:"admin_socket"`
	}
}) {
	m.f.t.Helper()
	text, err := os.ReadFile(filepath.Join(m.state, "status.json"))
	if err := errors.Join(err, json.Unmarshal(text, &st)); err != nil {
		m.f.t.Fatal(err)
	}
	return st
}

// counters are stats of our Envoy.
func (m *member) counters(filter string) map[string]string {
	m.f.t.Helper()
	socket := m.status().Envoy.AdminSocket
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("http://envoy/stats?filter=" + url.QueryEscape(filter))
	if err != nil {
		m.f.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		m.f.t.Fatal(err)
	}
	out := map[string]string{}
	for line := range strings.Lines(string(body)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok {
			out[name] = value
		}
	}
	return out
}

// connections are what a rotation must leave alone: connections between sidecars, and of apps, that
// have ended. Each worker of an Envoy makes one of its own when it needs it.
const connections = `^(http\.public_listener\.downstream_cx_destroy|http\.upstream\..*\.downstream_cx_destroy_local|cluster\..*internal.*\.upstream_cx_destroy|listener_manager\.(listener_modified|listener_added|listener_removed)|.*ssl\.connection_error)$`

// TestPeersConsulCA: the certificates of our sidecars are of Consul's CA. A new root under
// load, and the CA's absence, close no connection and fail no request.
func TestPeersConsulCA(t *testing.T) {
	f := newConnectFleet(t)
	f.entry("Kind = \"proxy-defaults\"\nName = \"global\"\nConfig { protocol = \"http\" }\n")
	shop, stock := f.register("shop", "stock"), f.register("stock", "shop")
	members := []*member{shop, stock}
	for _, m := range members {
		m.sidecar = m.oursNow()
		f.signedBy(m, f.activeRoot())
		if keys := f.command(nil, "sh", "-c", `grep -rl "PRIVATE KEY" "$0" || test $? = 1`, f.data); strings.Contains(keys, m.name) {
			t.Errorf("a sidecar's key is with the server: %s", keys)
		}
	}
	answers(t, "http://"+shop.upstream+"/", "hello from stock")
	answers(t, "http://"+stock.upstream+"/", "hello from shop")
	there, back := shop.call(100, "stock"), stock.call(100, "shop")
	there.more(t, 300)
	back.more(t, 300)

	before, old := map[*member]map[string]string{}, f.activeRoot()
	serial := map[*member]string{}
	for _, m := range members {
		before[m], serial[m] = m.counters(connections), m.status().Certificate.Serial
	}
	f.consulDo("connect", "ca", "set-config", "-config-file", write(t, f.dir, "ca.json", `{"Provider": "consul", "Config": {"PrivateKeyType": "ec", "PrivateKeyBits": 384}}`))
	meshtest.Eventually(t, "Consul has another root", func() error {
		if f.activeRoot() == old {
			return errors.New("the old one is active still")
		}
		return nil
	})
	for _, m := range members {
		meshtest.Eventually(t, m.name+" has a certificate of the new root", func() error {
			if got := m.status().Certificate.Serial; got == serial[m] {
				return errors.New("it has the old one, " + got)
			}
			return nil
		})
		f.signedBy(m, f.activeRoot())
	}
	there.more(t, 300)
	back.more(t, 300)
	for _, m := range members {
		if diff := cmp.Diff(before[m], m.counters(connections)); diff != "" {
			t.Errorf("connections of %s (-before +after the new root):\n%s", m.name, diff)
		}
	}
	// Connections that are made now are under the new root.
	for _, m := range members {
		other := map[*member]string{shop: "stock", stock: "shop"}[m]
		answers(t, "http://"+m.upstream+"/", "hello from "+other)
	}

	// Consul is away: what there is stays in use, and it is said.
	f.agent.signal(syscall.SIGSTOP)
	defer f.agent.signal(syscall.SIGCONT)
	held := stock.status().Certificate.Serial
	if err := stock.sidecar.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	says := func(p *process, text string) {
		t.Helper()
		meshtest.Eventually(t, text, func() error {
			if log := p.log.String(); !strings.Contains(log, text) {
				return errors.New(log)
			}
			return nil
		})
	}
	says(stock.sidecar, "the certificate could not be renewed, the present one stays in use")
	says(f.server, "Consul's CA does not sign")
	operator, err := os.ReadFile(filepath.Join(f.data, "operator.token"))
	if err != nil {
		t.Fatal(err)
	}
	meshtest.Eventually(t, "the server says what is stale", func() error {
		_, text, err := ask("https://"+f.ours+"/v1/crossfade/health", strings.TrimSpace(string(operator)))
		if err == nil && !strings.Contains(text, "CA of consul") {
			err = errors.New(text)
		}
		return err
	})
	there.more(t, 300)
	f.agent.signal(syscall.SIGCONT)
	says(f.server, "Consul's CA signs again")
	meshtest.Eventually(t, "the certificate is renewed by itself", func() error {
		if got := stock.status().Certificate.Serial; got == held {
			return errors.New(got)
		}
		return nil
	})
	there.unharmed(t, "shop to stock")
	back.unharmed(t, "stock to shop")

	// Whose leaf is whose survives a restart of the server, and so does a revocation.
	if err := f.server.stop(); err != nil {
		t.Error(err)
	}
	f.server = spawn(t, nil, f.bin, f.serverArgs...)
	meshtest.Eventually(t, "both are back", func() error {
		_, list, err := ask("https://"+f.ours+"/v1/crossfade/sidecars", strings.TrimSpace(string(operator)))
		if err != nil {
			return err
		}
		if !strings.Contains(list, "shop-1-sidecar-proxy") || !strings.Contains(list, "stock-1-sidecar-proxy") {
			return errors.New(list)
		}
		return nil
	})
	if log := shop.sidecar.log.String(); strings.Contains(log, "joining again") {
		t.Errorf("its leaf was not known after the restart:\n%s", log)
	}
	var tokens []struct {
		Accessor string
		Services []string
	}
	if err := json.Unmarshal([]byte(f.command(f.env(), f.bin, "token", "list", "-o", "json")), &tokens); err != nil {
		t.Fatal(err)
	}
	for _, tok := range tokens {
		if len(tok.Services) == 1 && tok.Services[0] == "shop" {
			f.command(f.env(), f.bin, "token", "revoke", tok.Accessor)
		}
	}
	says(f.server, "that it comes through was revoked at")
}

// activeRoot is the certificate with which Consul signs.
func (f *connectFleet) activeRoot() string {
	f.t.Helper()
	_, body, err := ask("http://"+f.http+"/v1/connect/ca/roots", "")
	var list struct {
		Roots []struct {
			RootCert string
			Active   bool
		}
	}
	if err := errors.Join(err, json.Unmarshal([]byte(body), &list)); err != nil {
		f.t.Fatal(err)
	}
	for _, r := range list.Roots {
		if r.Active {
			return r.RootCert
		}
	}
	f.t.Fatalf("no root is active: %s", body)
	return ""
}

// signedBy fails the test unless the member's certificate is under the root.
func (f *connectFleet) signedBy(m *member, root string) {
	f.t.Helper()
	text, err := os.ReadFile(filepath.Join(m.state, "leaf.pem"))
	if err != nil {
		f.t.Fatal(err)
	}
	block, rest := pem.Decode(text)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		f.t.Fatal(err)
	}
	pool, between := x509.NewCertPool(), x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(root))
	between.AppendCertsFromPEM(rest)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		f.t.Errorf("certificate of %s: %v", m.name, err)
	}
}
