package server_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

// staged is a server with one pair, web -> catalog, on direct.
func staged(t *testing.T) (*servertest.Server, *api.Client) {
	t.Helper()
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	s.Register("catalog.yaml", "service: catalog\nport: 8081\nprotocol: http\n")
	s.Register("web.yaml", "service: web\nport: 8080\nprotocol: http\nupstreams: [\"catalog:7100\"]\n")
	s.SetChecks("catalog", "pass")
	c := apiOf(t, s, "")
	declared(t, c, 1)
	if _, err := c.Shift(t.Context(), api.ShiftRequest{Pairs: only(pairOf("web", "catalog")), Via: map[string]float64{"direct": 100}}); err != nil {
		t.Fatal(err)
	}
	return s, c
}

// modeOf is the MutualTLSMode that the catalog's own entry has.
func modeOf(t *testing.T, s *servertest.Server) string {
	t.Helper()
	_, b := s.Call(http.MethodGet, "/v1/config/service-defaults/catalog", nil)
	var e struct{ MutualTLSMode string }
	if err := json.Unmarshal(b, &e); err != nil {
		t.Fatal(err)
	}
	return e.MutualTLSMode
}

func stageTo(t *testing.T, c *api.Client, stage string, edit ...func(*api.ShiftRequest)) (string, error) {
	t.Helper()
	r := api.ShiftRequest{Stage: stage}
	if stage == "strict" {
		r.Service = "catalog"
	} else {
		r.Pairs = only(pairOf("web", "catalog"))
	}
	for _, e := range edit {
		e(&r)
	}
	out, err := c.Shift(t.Context(), r)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s: %s", out.Pairs[0].Stage, out.Pairs[0].After), nil
}

func forced(r *api.ShiftRequest) { r.Force = true }

// Each step says what the catalog takes then, or why it is refused. What speaks against strict
// has names; going back to client asks for nothing.
func TestStagesOverHTTP(t *testing.T) {
	s, c := staged(t)
	window := func(d string) func(*api.ShiftRequest) { return func(r *api.ShiftRequest) { r.Window = d } }
	for i, tc := range []struct {
		stage   string
		edit    []func(*api.ShiftRequest)
		want    string // stage and shares
		mode    string
		refused string
	}{
		{stage: "plain", refused: "AllowEnablingPermissiveMutualTLS = true first"},
		{stage: "client", want: "client: direct 100%"},
		{stage: "outside", refused: `stage "outside": want one of client, plain, permissive, strict`},
		{stage: "strict", edit: []func(*api.ShiftRequest){window("0s")}, refused: `window "0s": want a duration above 0`},
		{stage: "strict", refused: `web -> catalog goes by direct 100%; instance "catalog": its sidecar does not say how the app's own port can be reached`},
		{stage: "strict", edit: []func(*api.ShiftRequest){forced}, refused: "Shares.direct"},
		{stage: "mtls"},
		{stage: "strict", edit: []func(*api.ShiftRequest){forced}, want: "strict: mtls 100%", mode: "strict"},
		{stage: "plain", refused: "AllowEnablingPermissiveMutualTLS = true first", mode: "strict"},
		{stage: "client", want: "client: direct 100%"},
		{stage: "allow"},
		{stage: "permissive", want: "permissive: direct 100%", mode: "permissive"},
		{stage: "mtls", mode: "permissive"},
		{stage: "strict", refused: "no plaintext was seen so far, in 0s of time in which all its instances were watched: it takes 24h0m0s", mode: "permissive"},
		{stage: "client", want: "client: direct 100%", mode: "permissive"},
		{stage: "defaults strict", mode: ""},
		{stage: "client", want: "client: direct 100%", mode: "permissive"},
	} {
		var got string
		var err error
		switch tc.stage {
		case "mtls":
			entry := map[string]any{"Kind": "traffic-shift", "Source": "web", "Destination": "catalog", "Shares": map[string]int{"mtls": 100}}
			b, _ := json.Marshal(entry)
			s.Call(http.MethodPut, "/v1/config", b)
		case "allow":
			s.Write(&config.Mesh{Kind: config.KindMesh, AllowEnablingPermissiveMutualTLS: true})
		case "defaults strict":
			s.Call(http.MethodDelete, "/v1/config/traffic-shift/web~catalog", nil)
			for _, service := range []string{"catalog", "web"} { // strict by their own entries, so that the one for all makes none strict
				if _, err := c.Shift(t.Context(), api.ShiftRequest{Service: service, Stage: "strict", Force: true}); err != nil {
					t.Fatal(err)
				}
			}
			s.Write(&config.ProxyDefaults{Kind: config.KindProxyDefaults, Name: config.Global, MutualTLSMode: "strict"})
			s.Write(&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "catalog", Protocol: "http"})
		default:
			meshtest.Eventually(t, "settled", func() error { // what the server knows of entries follows their writes
				if got, err = stageTo(t, c, tc.stage, tc.edit...); (err == nil) != (tc.refused == "") || tc.refused != "" && !strings.Contains(err.Error(), tc.refused) {
					return fmt.Errorf("step %d, %s: %q, %v", i, tc.stage, got, err)
				}
				return nil
			})
		}
		if got != tc.want {
			t.Errorf("step %d, %s: %q, want %q", i, tc.stage, got, tc.want)
		}
		if mode := modeOf(t, s); mode != tc.mode {
			t.Errorf("step %d, %s: the catalog is %q, want %q", i, tc.stage, mode, tc.mode)
		}
	}
	_, b := s.Call(http.MethodGet, "/v1/crossfade/config/history/service-defaults/catalog", nil)
	if !strings.Contains(string(b), "forced strict in spite of: instance \\\"catalog\\\": its sidecar does not say") {
		t.Errorf("%s", b)
	}
}

// A stage whose old way takes nothing is not gone back to unless forced; one that moves no
// share is.
func TestStageBackToADeadWay(t *testing.T) {
	s, c := staged(t)
	s.Write(&config.Mesh{Kind: config.KindMesh, AllowEnablingPermissiveMutualTLS: true})
	b, _ := json.Marshal(map[string]any{"Kind": "traffic-shift", "Source": "web", "Destination": "catalog", "Legacy": map[string]string{"Address": "127.0.0.1:1"}, "Shares": map[string]int{"mtls": 100}})
	s.Call(http.MethodPut, "/v1/config", b)
	if got, err := stageTo(t, c, "permissive"); err != nil || got != "permissive: mtls 100%" {
		t.Fatalf("%q, %v", got, err)
	}
	if got, err := stageTo(t, c, "client"); status(err) != http.StatusConflict || !strings.Contains(err.Error(), "legacy address 127.0.0.1:1: cannot be connected to from the server") {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := stageTo(t, c, "client", forced); err != nil || got != "client: legacy 100%" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := stageTo(t, c, "client"); err != nil || got != "client: legacy 100%" {
		t.Errorf("%q, %v", got, err)
	}
}

// Entries that make a callee strict by any other means are held to the same evidence, and so
// are those for all callees, a rollback, and a folder's. One of nobody yet is not.
func TestStrictByEntriesTakesEvidence(t *testing.T) {
	s, c := staged(t)
	s.Write(&config.Mesh{Kind: config.KindMesh, AllowEnablingPermissiveMutualTLS: true})
	strict := func(kind, name string) string {
		return fmt.Sprintf(`{"Kind":%q,"Name":%q,"Protocol":"","MutualTLSMode":"strict"}`, kind, name)
	}
	all := `{"Kind":"proxy-defaults","Name":"global","MutualTLSMode":"strict"}`
	const unknown = `instance "catalog": its sidecar does not say how the app's own port can be reached`
	for _, tc := range []struct {
		method, path, body string
		status             int
		want               []string
	}{
		{"PUT", "/v1/config", strict("service-defaults", "catalog"), http.StatusBadRequest, []string{"Shares.direct"}},
		{"PUT", "/v1/config", `{"Kind":"traffic-shift","Source":"web","Destination":"catalog","Shares":{"mtls":100}}`, http.StatusOK, nil},
		{"PUT", "/v1/config", strict("service-defaults", "catalog"), http.StatusBadRequest, []string{`service "catalog" cannot be strict: `, unknown, "crossfade shift --service catalog --stage strict"}},
		{"POST", "/v1/crossfade/config/plan", `{"entries":[` + strict("service-defaults", "catalog") + `]}`, http.StatusOK, []string{`the write would be refused: service \"catalog\" cannot be strict: `}},
		{"PUT", "/v1/config", all, http.StatusBadRequest, []string{`service "catalog" cannot be strict: `, `service "web" cannot be strict: `}},
		{"PUT", "/v1/config", strict("service-defaults", "nobody"), http.StatusOK, nil},
		{"PUT", "/v1/config", `{"Kind":"service-defaults","Name":"catalog","MutualTLSMode":"permissive"}`, http.StatusOK, nil},
		{"PUT", "/v1/config", strict("service-defaults", "catalog"), http.StatusBadRequest, []string{"no plaintext was seen so far, in "}},
	} {
		r, err := http.NewRequestWithContext(t.Context(), tc.method, "http://"+s.HTTPAddr()+tc.path, strings.NewReader(tc.body))
		if err != nil {
			t.Fatal(err)
		}
		code, text := answerOf(t, r)
		if code != tc.status {
			t.Errorf("%s %s %s: %d %s, want %d", tc.method, tc.path, tc.body, code, text, tc.status)
		}
		for _, want := range tc.want {
			if !strings.Contains(text, want) {
				t.Errorf("%s %s %s: %s, want %q", tc.method, tc.path, tc.body, text, want)
			}
		}
	}
	if _, err := stageTo(t, c, "strict", forced); err != nil {
		t.Fatal(err)
	}
	s.Write(&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "catalog", MutualTLSMode: "strict", Protocol: "http"}) // it is so already
	s.Write(&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "catalog", MutualTLSMode: "permissive", Protocol: "http"})
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+s.HTTPAddr()+"/v1/crossfade/config/rollback/service-defaults/catalog", nil)
	if err != nil {
		t.Fatal(err)
	}
	if code, text := answerOf(t, r); code != http.StatusBadRequest || !strings.Contains(text, "cannot be strict") {
		t.Errorf("rolled back: %d %s", code, text)
	}
	if mode := modeOf(t, s); mode != "permissive" {
		t.Errorf("the catalog is %q", mode)
	}
}

// A callee that took plaintext is not made to refuse it by leaving its mode out, while somebody
// is known to have sent some; for want of proof alone nobody is held up.
func TestPermissionIsNotTakenFromUnderSenders(t *testing.T) {
	s, _ := staged(t)
	s.Write(&config.Mesh{Kind: config.KindMesh, AllowEnablingPermissiveMutualTLS: true})
	permissive := func() {
		t.Helper()
		s.Write(&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "catalog", Protocol: "http", MutualTLSMode: "permissive"})
	}
	request := func(method, path, body string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.HTTPAddr()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		return answerOf(t, r)
	}
	const without = `{"Kind":"service-defaults","Name":"catalog","Protocol":"http"}`
	permissive()
	if code, text := request("PUT", "/v1/config", without); code != http.StatusOK {
		t.Fatalf("nobody has sent any: %d %s", code, text)
	}
	permissive()
	at := time.Now().Add(-time.Hour)
	if err := reported(t, s.Conn(), "catalog-sidecar-proxy", telemetry.Report{Session: 1, Seq: 1, At: time.Now(), Plaintext: []telemetry.Plaintext{{Address: "192.0.2.7", Count: 1, Last: at}}}); err != nil {
		t.Fatal(err)
	}
	want := `service "catalog" cannot do without MutualTLSMode = "permissive", its sidecars would refuse plaintext: plaintext came from 192.0.2.7 at ` + at.UTC().Format(time.RFC3339)
	for _, try := range [][3]string{
		{"PUT", "/v1/config", without}, {"DELETE", "/v1/config/service-defaults/catalog", ""}, {"PUT", "/v1/crossfade/config/rollback/service-defaults/catalog", ""},
	} {
		if code, text := request(try[0], try[1], try[2]); code != http.StatusBadRequest || !strings.Contains(text, want) {
			t.Errorf("%v: %d %s", try, code, text)
		}
	}
	if mode := modeOf(t, s); mode != "permissive" {
		t.Errorf("the catalog is %q", mode)
	}
}

// A server that starts knows of no evidence: what a folder makes strict then was not permissive.
func TestStrictFromAFolderAtTheStart(t *testing.T) {
	dir, data := t.TempDir(), t.TempDir()
	file := func(mode string) {
		text := fmt.Sprintf("Kind: service-defaults\nName: catalog\nMutualTLSMode: %s\n", mode)
		if err := os.WriteFile(filepath.Join(dir, "catalog.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "a-mesh.yaml"), []byte("Kind: mesh\nAllowEnablingPermissiveMutualTLS: true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ file, want string }{{"strict", "strict"}, {"permissive", "permissive"}, {"strict", "permissive"}, {`""`, "permissive"}} {
		file(tc.file)
		t.Run(tc.file, func(t *testing.T) {
			s := servertest.Start(t, server.Options{DataDir: data, ConfigDir: dir, DefaultAllow: true})
			if got := modeOf(t, s); got != tc.want {
				t.Errorf("a file of %s: the catalog is %q, want %q", tc.file, got, tc.want)
			}
			s.Register("catalog.yaml", "service: catalog\nport: 8081\n")
		})
	}
}
