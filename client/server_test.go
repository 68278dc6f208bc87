package client_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/client"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
)

const mine = "/v1/kv/crossfade/web/catalog/mesh_percent"

// answering returns a server that says who it is and which Host it was asked for.
func answering(t *testing.T, name string) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s%s %s", name, r.Method, r.Host, r.URL.RequestURI(), body)
	}))
	t.Cleanup(s.Close)
	return s
}

// A percent written to a server's KV rules calls within a second, both ways, by HTTP.
func TestHotChangeOverServersKV(t *testing.T) {
	s := servertest.Start(t, server.Options{})
	old, new := answering(t, "old"), answering(t, "new")
	p, err := client.Open(client.Options{Source: "web", Destination: "catalog", Getenv: getenv(map[string]string{
		"CONSUL_HTTP_ADDR":              s.HTTPAddr(),
		"CROSSFADE_LEGACY_ADDR_catalog": old.Listener.Addr().String(),
		"NOMAD_UPSTREAM_ADDR_catalog":   new.Listener.Addr().String(),
	})})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	c := &http.Client{Transport: &client.Transport{Pair: p}}
	defer c.CloseIdleConnections()
	call := func() string {
		resp, err := c.Get("http://catalog.example/items")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		who, _, _ := strings.Cut(string(body), " ")
		return who
	}
	if got := call(); got != "old" {
		t.Fatalf("%s before anything is set", got)
	}
	var slowest time.Duration
	for _, change := range []struct{ method, value, want string }{
		{"PUT", "100", "new"}, {"PUT", "0", "old"}, {"PUT", "100\n", "new"}, {"DELETE", "", "old"}, {"PUT", "100", "new"},
	} {
		s.Call(change.method, mine, []byte(change.value))
		written := time.Now()
		for call() != change.want {
			if time.Since(written) > 10*time.Second {
				t.Fatalf("%s %q: no call is %s", change.method, change.value, change.want)
			}
		}
		slowest = max(slowest, time.Since(written))
		for range 100 {
			if got := call(); got != change.want {
				t.Errorf("%s %q: a call is %s after one was %s", change.method, change.value, got, change.want)
			}
		}
	}
	t.Logf("slowest change: %v", slowest)
	if slowest > time.Second {
		t.Errorf("a change took %v, want less than 1s", slowest)
	}
	if got := p.Problems(); len(got) != 0 {
		t.Errorf("problems %v", got)
	}
}

// A server with TLS and tokens: its CA and a token file are all it takes.
func TestTLSAndTokenFile(t *testing.T) {
	dir := t.TempDir()
	s := servertest.Start(t, server.Options{DataDir: dir})
	s.Call("PUT", mine, []byte("40"))
	token, err := os.ReadFile(filepath.Join(dir, "operator.token"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, append(token, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{
		"CONSUL_HTTP_ADDR": s.HTTPAddr(), "CONSUL_HTTP_SSL": "true", "CONSUL_CACERT": s.CAFile(), "CONSUL_HTTP_TOKEN_FILE": file,
		"CROSSFADE_LEGACY_ADDR_catalog": "10.0.0.1:80", "NOMAD_UPSTREAM_ADDR_catalog": "127.0.0.1:7100",
	}
	p, err := client.Open(client.Options{Source: "web", Destination: "catalog", Getenv: getenv(env), FirstRead: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	wantPercent(t, p, 40)
	env["CONSUL_CACERT"] = ""
	stranger, err := client.Open(client.Options{Source: "web", Destination: "catalog", Getenv: getenv(env), FirstRead: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	if got := stranger.Problems(); len(got) != 1 || got[0].Kind != client.KVUnreachable {
		t.Errorf("without the CA: problems %v", got)
	}
}

func TestUnixSocket(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Consul-Index", "7")
		if r.URL.Query().Has("index") {
			<-r.Context().Done()
		}
		io.WriteString(w, "30")
	})}
	go s.Serve(l)
	defer s.Close()
	p, err := client.Open(client.Options{
		Source: "web", Destination: "catalog", FirstRead: time.Minute,
		Getenv: getenv(map[string]string{"CONSUL_HTTP_ADDR": "unix://" + l.Addr().String()}),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	wantPercent(t, p, 30)
}

// The token is Consul's, not that of whoever answers in its place.
func TestRedirectsAreNotFollowed(t *testing.T) {
	thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("asked by a redirect") }))
	defer thief.Close()
	s := httptest.NewServer(http.RedirectHandler(thief.URL, http.StatusTemporaryRedirect))
	defer s.Close()
	p, err := client.Open(client.Options{
		Source: "web", Destination: "catalog", FirstRead: time.Minute,
		Getenv: getenv(map[string]string{"CONSUL_HTTP_ADDR": s.URL, "CONSUL_HTTP_TOKEN": "secret", "NOMAD_UPSTREAM_ADDR_catalog": "127.0.0.1:1", "CROSSFADE_PERCENT_catalog": "100"}),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if got := p.Problems(); len(got) != 1 || got[0].Kind != client.KVUnreachable || strings.Contains(got[0].Error(), "secret") {
		t.Errorf("problems %v", got)
	}
}

// Over real connections too nothing is left after Close.
func TestNothingRunsAfterClose(t *testing.T) {
	s := servertest.Start(t, server.Options{})
	for range 10 {
		p, err := client.Open(client.Options{Source: "web", Destination: "catalog", Getenv: getenv(map[string]string{"CONSUL_HTTP_ADDR": s.HTTPAddr()})})
		if err != nil {
			t.Fatal(err)
		}
		p.Close()
	}
	buf := make([]byte, 1<<20)
	if stacks := string(buf[:runtime.Stack(buf, true)]); strings.Contains(stacks, "(*Pair).watch") {
		t.Errorf("left over:\n%s", stacks)
	}
}
