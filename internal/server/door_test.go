package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/crossfade-mesh/crossfade/internal/ca"
	"github.com/crossfade-mesh/crossfade/internal/identity"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// secured is a server with TLS at which web and catalog are registered.
func secured(t *testing.T) (*servertest.Server, string) {
	dir := t.TempDir()
	s := servertest.Start(t, server.Options{DataDir: dir, DefaultAllow: true})
	s.Register("web.yaml", web)
	s.Register("catalog.yaml", catalog)
	return s, dir
}

// first is the first thing that a stream of the caller's brings.
func first(t *testing.T, s *servertest.Server, c servertest.Caller, id string) (xds.Response, error) {
	t.Helper()
	st := s.StreamAs(c, id)
	if err := st.Send(xds.Request{Type: xds.ClusterType}); err != nil {
		t.Logf("send: %v", err) // Recv has the reason
	}
	return st.Recv()
}

func TestWhoMayOpenAStream(t *testing.T) {
	s, dir := secured(t)
	_, join := s.Token(`{"role":"join","services":["web"]}`)
	_, foreign := s.Token(`{"role":"join","services":["catalog"]}`)
	_, expired := s.Token(`{"role":"join","services":["web"],"ttl":"1ns"}`)
	accessor, revoked := s.Token(`{"role":"join","services":["web"]}`)
	_, reader := s.Token(`{"role":"reader"}`)
	revokedLeaf := s.Leaf("web", revoked)
	s.Call(http.MethodDelete, "/v1/crossfade/tokens/"+accessor, nil)
	leaf := s.Leaf("web", join)
	for name, c := range map[string]struct {
		caller servertest.Caller
		want   string // in the refusal; empty: taken
	}{
		"nothing":                 {servertest.Caller{}, "show a join token or this service's own certificate"},
		"wrong token":             {servertest.Caller{Token: "cf-join-wrong"}, "token: unknown to this server"},
		"wrong token, right leaf": {servertest.Caller{Token: "cf-join-wrong", Leaf: leaf}, "token: unknown to this server"},
		"expired token":           {servertest.Caller{Token: expired}, "expired at"},
		"revoked token":           {servertest.Caller{Token: revoked}, "revoked at"},
		"another's token":         {servertest.Caller{Token: foreign}, `stands for service "web", and the caller is an instance of "catalog"`},
		"another's leaf":          {servertest.Caller{Leaf: s.Leaf("catalog", foreign)}, `stands for service "web", and the caller is an instance of "catalog"`},
		"revoked leaf":            {servertest.Caller{Leaf: revokedLeaf}, "that it comes through was revoked at"},
		"another CA's leaf":       {servertest.Caller{Leaf: signed(t, s, nil, "", time.Hour)}, "signed by unknown authority"},
		"leaf through no token":   {servertest.Caller{Leaf: forged(t, dir, s, "", time.Hour)}, "comes through no join token of this server"},
		"expired leaf":            {servertest.Caller{Leaf: forged(t, dir, s, accessor, -time.Minute)}, "it has expired at"},
		"own token":               {servertest.Caller{Token: join}, ""},
		"own leaf":                {servertest.Caller{Leaf: leaf}, ""},
		"a reader":                {servertest.Caller{Token: reader}, ""},
	} {
		r, err := first(t, s, c.caller, "web-sidecar-proxy")
		switch {
		case c.want == "" && (err != nil || len(r.Resources) == 0):
			t.Errorf("%s: %v, %d resources", name, err, len(r.Resources))
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, %d resources; want refused with %q", name, err, len(r.Resources), c.want)
		case err != nil && strings.Contains(err.Error(), c.caller.Token) && c.caller.Token != "":
			t.Errorf("%s: the refusal repeats the token", name)
		}
	}
	if _, err := first(t, s, servertest.Caller{Leaf: leaf}, "nobody-sidecar-proxy"); err == nil || !strings.Contains(err.Error(), "not registered") {
		t.Errorf("a proxy that nobody registered: %v", err)
	}
}

func TestWhoMayHaveALeaf(t *testing.T) {
	s, _ := secured(t)
	_, join := s.Token(`{"role":"join","services":["web"]}`)
	_, owner := s.Token(`{"role":"owner","services":["web"]}`)
	_, operator := s.Token(`{"role":"operator"}`)
	leaf := s.Leaf("web", join)
	for name, c := range map[string]struct {
		caller  servertest.Caller
		service string
		want    string
	}{
		"join token, own":     {servertest.Caller{Token: join}, "web", ""},
		"leaf, own":           {servertest.Caller{Leaf: leaf}, "web", ""},
		"join token, another": {servertest.Caller{Token: join}, "catalog", `want a join token for service "catalog"`},
		"leaf, another":       {servertest.Caller{Leaf: leaf}, "catalog", `want a join token for service "catalog"`},
		"owner":               {servertest.Caller{Token: owner}, "web", `want a join token for service "web"`},
		"operator":            {servertest.Caller{Token: operator}, "web", `want a join token for service "web"`},
		"stranger":            {servertest.Caller{}, "web", "caller unknown"},
	} {
		_, csr, err := ca.NewKeyAndCSR(identity.SPIFFE{TrustDomain: s.TrustDomain(), Datacenter: "dc1", Service: c.service})
		if err != nil {
			t.Fatal(err)
		}
		_, err = ca.NewClient(s.ConnAs(c.caller)).Sign(t.Context(), csr)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestRevocationEndsStreams(t *testing.T) {
	s, _ := secured(t)
	accessor, join := s.Token(`{"role":"join","services":["web"]}`)
	_, other := s.Token(`{"role":"join","services":["web"]}`)
	leaf := s.Leaf("web", join)
	ended := make(chan error, 3)
	for _, c := range []servertest.Caller{{Token: join}, {Leaf: leaf}, {Leaf: s.Leaf("web", other)}} {
		st := s.StreamAs(c, "web-sidecar-proxy")
		if err := st.Send(xds.Request{Type: xds.ClusterType}); err != nil {
			t.Fatal(err)
		}
		if _, err := st.Recv(); err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				if _, err := st.Recv(); err != nil {
					ended <- err
					return
				}
			}
		}()
	}
	began := time.Now()
	s.Call(http.MethodDelete, "/v1/crossfade/tokens/"+accessor, nil)
	for range 2 {
		select {
		case err := <-ended:
			if !strings.Contains(err.Error(), "token "+accessor+": revoked at") {
				t.Errorf("stream ended by %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("a stream outlives the revocation by 5 s")
		}
	}
	t.Logf("streams ended after %s", time.Since(began).Round(time.Millisecond))
	if resp, err := s.HTTPClient(servertest.Caller{Leaf: leaf}).Get(s.URL() + "/v1/agent/self"); err != nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("HTTP by a revoked identity: %v, %v", resp, err)
	}
	select {
	case err := <-ended:
		t.Errorf("another token's stream ended, too: %v", err)
	default:
	}
}

// A stream lasts no longer than the certificate that it was opened with, and nor does
// the connection, so that a sidecar comes back with its new one.
func TestExpiryEndsStreams(t *testing.T) {
	s, dir := secured(t)
	accessor, _ := s.Token(`{"role":"join","services":["web"]}`)
	st := s.StreamAs(servertest.Caller{Leaf: forged(t, dir, s, accessor, 2*time.Second)}, "web-sidecar-proxy")
	if err := st.Send(xds.Request{Type: xds.ClusterType}); err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		if _, err := st.Recv(); err != nil {
			if n == 0 {
				t.Errorf("ended before anything came: %v", err)
			}
			return
		}
	}
}

// Consul's own client, told the CA's file and a token, needs nothing else.
func TestConsulsClient(t *testing.T) {
	s, dir := secured(t)
	for token, want := range map[string]string{"operator.token": "", "": "Permission denied: anonymous"} {
		conf := &api.Config{Address: s.HTTPAddr(), Scheme: "https", TLSConfig: api.TLSConfig{CAFile: s.CAFile()}}
		if token != "" {
			conf.TokenFile = filepath.Join(dir, token)
		}
		c, err := api.NewClient(conf)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.KV().Put(&api.KVPair{Key: "a", Value: []byte("b")}, nil)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("with token %q: %v, want %q", token, err, want)
		}
	}
}

// An id that becomes another's puts out whoever had it.
func TestAnIDThatBecomesAnothers(t *testing.T) {
	s, _ := secured(t)
	_, join := s.Token(`{"role":"join","services":["web"]}`)
	st := s.StreamAs(servertest.Caller{Token: join}, "web-sidecar-proxy")
	if err := st.Send(xds.Request{Type: xds.ClusterType}); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); err != nil {
		t.Fatal(err)
	}
	s.Call(http.MethodPut, "/v1/agent/service/register", []byte(`{"Name":"catalog-sidecar-proxy","ID":"web-sidecar-proxy","Kind":"connect-proxy","Port":9,
		"Proxy":{"DestinationServiceName":"catalog","DestinationServiceID":"catalog"}}`))
	for {
		r, err := st.Recv()
		if err == nil {
			if slices.ContainsFunc(r.Resources, func(r *xds.Resource) bool { return strings.HasPrefix(r.Name, "catalog") && r.Type == xds.ListenerType }) {
				t.Fatal("told of another's listeners")
			}
			continue
		}
		if !strings.Contains(err.Error(), `stands for service "catalog"`) {
			t.Errorf("ended by %v", err)
		}
		break
	}
}

func TestRightsAndTrailOverHTTP(t *testing.T) {
	s, dir := secured(t)
	clients := map[string]*http.Client{}
	ask := func(token, method, path, body string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, s.URL()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if clients[token] == nil {
			clients[token] = s.HTTPClient(servertest.Caller{Token: token})
		}
		resp, err := clients[token].Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	by := map[string]string{"stranger": "", "wrong": "cf-operator-wrong"}
	for _, role := range []string{"reader", "auditor", "operator"} {
		_, by[role] = s.Token(`{"role":"` + role + `"}`)
	}
	accessor, owner := s.Token(`{"role":"owner","services":["web"],"description":"team web"}`)
	by["owner"] = owner
	_, by["web"] = s.Token(`{"role":"join","services":["web"]}`)
	const all = "stranger reader auditor operator owner web"
	victims := map[string]string{}
	for _, c := range []struct{ request, body, may string }{
		{"GET /v1/status/leader", "", all},
		{"GET /v1/agent/self", "", "reader auditor operator owner web"},
		{"GET /v1/crossfade/sidecars", "", "reader auditor operator owner"},
		{"GET /v1/crossfade/proxies", "", "reader auditor operator owner"},
		{"GET /v1/crossfade/tokens", "", "auditor operator"},
		{"GET /v1/crossfade/audit", "", "auditor operator"},
		{"PUT /v1/crossfade/tokens", `{"role":"join","services":["web"]}`, "operator owner"},
		{"PUT /v1/crossfade/tokens", `{"role":"join","services":["catalog"]}`, "operator"},
		{"PUT /v1/crossfade/tokens", `{"role":"owner","services":["web"]}`, "operator"},
		{"PUT /v1/crossfade/tokens", `{"role":"operator"}`, "operator"},
		{"DELETE /v1/crossfade/tokens/OWNED", "", "operator owner"},
		{"DELETE /v1/crossfade/tokens/ANOTHERS", "", "operator"},
		{"DELETE /v1/crossfade/tokens/nobody", "", "operator"},
		{"PUT /v1/agent/service/deregister/catalog?wait=1ms", "", "operator"},
		{"GET /v1/kv/x", "", "reader auditor operator owner"},
		{"PUT /v1/kv/x", "x", "operator"},
		{"PUT /v1/config", `{"Kind":"traffic-shift","Source":"web","Destination":"*","Shares":{"direct":100}}`, "operator owner"},
		{"GET /v1/config/traffic-shift/web~*", "", "reader auditor operator owner web"},
		{"DELETE /v1/config/traffic-shift/web~*", "", "operator owner"},
	} {
		for name, token := range by {
			s.Register("catalog.yaml", catalog)
			victims["OWNED"], _ = s.Token(`{"role":"join","services":["web"]}`)
			victims["ANOTHERS"], _ = s.Token(`{"role":"join","services":["catalog"]}`)
			method, path, _ := strings.Cut(c.request, " ")
			for what, accessor := range victims {
				path = strings.ReplaceAll(path, what, accessor)
			}
			code, text := ask(token, method, path, c.body)
			if want := slices.Contains(strings.Fields(c.may), name); (code != http.StatusForbidden) != want {
				t.Errorf("%s by %s: status %d, want allowed %v: %s", c.request, name, code, want, text)
			}
		}
	}

	code, _ := ask(owner, "PUT", "/v1/config", `{"Kind":"service-defaults","Name":"web","Protocol":"http"}`)
	if code != http.StatusOK {
		t.Fatalf("owner's own entry: status %d", code)
	}
	ask(owner, "PUT", "/v1/config", `{"Kind":"service-defaults","Name":"catalog","Protocol":"http"}`)
	var trail []struct{ Who, Role, Accessor, Action, Target, Outcome string }
	_, text := ask(by["auditor"], "GET", "/v1/crossfade/audit?n=2", "")
	if err := json.Unmarshal([]byte(text), &trail); err != nil || len(trail) != 2 {
		t.Fatalf("trail: %v: %s", err, text)
	}
	for i, want := range []struct{ target, outcome string }{{"service-defaults/catalog", "refused"}, {"service-defaults/web", "done"}} {
		if e := trail[i]; e.Accessor != accessor || e.Role != "owner" || e.Action != "PUT /v1/config" || e.Target != want.target || e.Outcome != want.outcome {
			t.Errorf("entry %d: %+v, want %+v by the owner", i, e, want)
		}
	}
	_, text = ask(by["auditor"], "GET", "/v1/crossfade/audit?n=10000", "")
	_, list := ask(by["auditor"], "GET", "/v1/crossfade/tokens", "")
	raw, err := os.ReadFile(filepath.Join(dir, "access.db"))
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range by {
		if token != "" && strings.Contains(text+list+string(raw), token) {
			t.Errorf("the %s's secret is in the trail, the list or the file", name)
		}
	}
}

func TestOperatorsToken(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "operator.token")
	token := func() string {
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Fatalf("%s: %v, %v", path, st, err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	s := servertest.Start(t, server.Options{DataDir: dir})
	was := token()
	if s.OperatorFile() != path {
		t.Errorf("operator's token in %q, want %q", s.OperatorFile(), path)
	}
	s.Stop()
	s = servertest.Start(t, server.Options{DataDir: dir})
	if s.OperatorFile() != "" || token() != was {
		t.Error("a second start makes another token")
	}
	s.Stop()
	s = servertest.Start(t, server.Options{DataDir: dir, NewOperatorToken: true})
	if s.OperatorFile() != path || token() == was {
		t.Error("no new token although asked for")
	}
}

// forged is a leaf for web signed by the server's own CA, as no server would.
func forged(t *testing.T, dir string, s *servertest.Server, through string, life time.Duration) *tls.Certificate {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "ca", "root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	root, err := tls.X509KeyPair(text, text)
	if err != nil {
		t.Fatal(err)
	}
	return signed(t, s, &root, through, life)
}

// signed is a leaf for web by a signer, or by itself.
func signed(t *testing.T, s *servertest.Server, signer *tls.Certificate, through string, life time.Duration) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uri, err := url.Parse(identity.SPIFFE{TrustDomain: s.TrustDomain(), Datacenter: "dc1", Service: "web"}.URI())
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{SerialNumber: through}, URIs: []*url.URL{uri},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	parent, by := template, any(key)
	if signer != nil {
		parent, by = signer.Leaf, signer.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
