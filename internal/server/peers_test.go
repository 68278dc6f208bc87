//go:build peers

package server_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/catalog/consulstore"
	"github.com/crossfade-mesh/crossfade/internal/catalog/consulstore/consultest"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
)

func TestSameFilesOnARealConsul(t *testing.T) { testSameFiles(t, consultest.NewReal(t, "").URL()) }

// jwks is a key set in base64, with one public key.
const jwks = "eyJrZXlzIjpbeyJrdHkiOiJFQyIsImNydiI6IlAtMjU2Iiwia2lkIjoiMSIsIngiOiJNS0JDVE5JY0tVU0RpaTExeVNzMzUyNmlEWjhBaVRvN1R1NktQQXF2N0Q0IiwieSI6IjRFdGw2U1JXMllpTFVyTjV2ZnZWSHVocDd4OFB4bHRtV1dsYmJNNElGeU0ifV19"

// root is the token that may do all.
const root = "b7ee5f6a-0c4b-4c53-9f39-0a1d7c0ab1cd"

// tokenWith makes a token of a Consul with ACLs that has these rules alone.
func tokenWith(t *testing.T, url, name string, rules []string) string {
	t.Helper()
	ask := func(path string, in any, out any) {
		body, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, url+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Consul-Token", root)
		meshtest.Eventually(t, "Consul makes "+path, func() error {
			req.Body = http.NoBody
			again := req.Clone(t.Context())
			again.Body = readCloser(body)
			resp, err := http.DefaultClient.Do(again)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%s", resp.Status)
			}
			return json.NewDecoder(resp.Body).Decode(out)
		})
	}
	var policy struct{ ID string }
	ask("/v1/acl/policy", map[string]any{"Name": name, "Rules": strings.Join(rules, "\n")}, &policy)
	var token struct{ SecretID string }
	ask("/v1/acl/token", map[string]any{"Policies": []map[string]string{{"ID": policy.ID}}}, &token)
	return token.SecretID
}

func TestTokensOfARealConsul(t *testing.T) {
	url := consultest.NewReal(t, `{"acl":{"enabled":true,"default_policy":"deny","tokens":{"initial_management":"`+root+`","agent":"`+root+`"}}}`).URL()
	var rules, less []string
	for _, r := range consulstore.Rules() {
		rules = append(rules, r.Text)
		less = append(less, strings.ReplaceAll(r.Text, `"write"`, `"read"`))
	}

	_, err := server.New(server.Options{Dev: true, NodeName: "s", Consul: url, ConsulAccess: server.ConsulAccess{Token: "c0ffee00-0000-0000-0000-000000000000"}})
	if err == nil || !strings.Contains(err.Error(), "does not know the token") {
		t.Errorf("with a wrong token: %v", err)
	}

	// One that may only read cannot make the CA, and says what is missing.
	var log bytes.Buffer
	_, err = server.New(server.Options{Dev: true, NodeName: "s", Consul: url, ConsulAccess: server.ConsulAccess{Token: tokenWith(t, url, "reader", less)}, Log: slog.New(slog.NewTextHandler(&log, nil))})
	const want = `key_prefix "crossfade-store/" { policy = "write" }`
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("with a token that may only read: %v; want %s", err, want)
	}
	if said := strings.ReplaceAll(log.String(), `\"`, `"`); !strings.Contains(said, want) || !strings.Contains(said, `session_prefix "" { policy = "write" }`) || !strings.Contains(said, `mesh = "write"`) {
		t.Errorf("the log does not say what is missing:\n%s", said)
	}

	// The rules in the docs are enough for all kinds of entries, KV and locks.
	s := servertest.Start(t, server.Options{Consul: url, DefaultAllow: true, ConsulAccess: server.ConsulAccess{Token: tokenWith(t, url, "server", rules)}})
	for _, text := range []string{
		`{"Kind":"proxy-defaults","Name":"global","Config":{"protocol":"http"}}`, `{"Kind":"mesh","Meta":{"of":"shop"}}`,
		`{"Kind":"jwt-provider","Name":"shop","Issuer":"shop","JSONWebKeySet":{"Local":{"JWKS":"` + jwks + `"}}}`,
		`{"Kind":"service-defaults","Name":"web","Protocol":"http"}`, `{"Kind":"service-intentions","Name":"web","Sources":[{"Name":"api","Action":"allow"}]}`,
	} {
		e, err := config.DecodeEntryJSON([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		s.Write(e)
	}
	s.Write(shiftEntry(config.Shares{Direct: 50, MTLS: 50}))
}

func readCloser(b []byte) *closing { return &closing{bytes.NewReader(b)} }

type closing struct{ *bytes.Reader }

func (*closing) Close() error { return nil }
