// Package e2e runs the real binary with real Envoy, as a user would.
package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/crossfade-mesh/crossfade/internal/cli"
	"github.com/crossfade-mesh/crossfade/internal/envoybin"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"crossfade": func() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
		"echo-app":  echoApp,
	})
}

// echoApp answers HTTP on $1 with its name $2, the headers it got, its environment at /env, and at
// /call/NAME what its upstream NAME answers to the same method.
func echoApp() {
	addr, name := os.Args[1], os.Args[2]
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello from %s\n", name)
		r.Header.Write(w)
	})
	http.HandleFunc("/env", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, strings.Join(os.Environ(), "\n"))
	})
	http.HandleFunc("/call/{name}", func(w http.ResponseWriter, r *http.Request) {
		req, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+os.Getenv("NOMAD_UPSTREAM_ADDR_"+r.PathValue("name"))+"/", r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	})
	fmt.Fprintln(os.Stderr, http.ListenAndServe(addr, nil))
	os.Exit(1)
}

func TestScripts(t *testing.T) {
	envoy, err := envoybin.Find()
	if err != nil {
		t.Fatal(err)
	}
	envoy, err = filepath.Abs(envoy)
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			names := []string{"HTTP_PORT", "GRPC_PORT", "PORT1", "PORT2", "PORT3", "PORT4", "PORT5", "PORT6", "PORT7"}
			for i, port := range meshtest.FreePorts(t, len(names)) {
				env.Setenv(names[i], strconv.Itoa(port))
			}
			env.Setenv("CROSSFADE_HTTP_ADDR", "127.0.0.1:"+env.Getenv("HTTP_PORT"))
			env.Setenv("ENVOY", envoy)
			env.Setenv("XDG_RUNTIME_DIR", env.WorkDir)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"await": await, "get": get, "expand": expand, "clear-env": clearEnv, "await-file": awaitFile, "no-leaks": noLeaks, "guide": guide,
		},
	})
}

// await URL [TEXT] waits until URL answers 200, with TEXT in it. "! await" waits
// until it does not.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: await URL [TEXT]")
	}
	want := append(args, "")[1]
	var last string
	deadline := time.Now().Add(20 * time.Second)
	for tick := time.NewTicker(20 * time.Millisecond); time.Now().Before(deadline); <-tick.C {
		code, body, err := fetch(ts, args[0])
		last = fmt.Sprintf("%d %v %.300s", code, err, body)
		if (err == nil && code == http.StatusOK && strings.Contains(body, want)) != neg {
			tick.Stop()
			return
		}
	}
	ts.Fatalf("await %v: never came true; last answer: %s", args, last)
}

// get URL prints status and body for stdout checks.
func get(ts *testscript.TestScript, neg bool, args []string) {
	code, body, err := fetch(ts, args[0])
	if (err == nil) == neg {
		ts.Fatalf("get %s: %v", args[0], err)
	}
	fmt.Fprintf(ts.Stdout(), "%d\n%s", code, body)
}

// fetch asks https URLs as the user of $CROSSFADE_HTTP_TOKEN_FILE does, if there is one.
func fetch(ts *testscript.TestScript, url string) (int, string, error) {
	var token string
	if file := ts.Getenv("CROSSFADE_HTTP_TOKEN_FILE"); file != "" && strings.HasPrefix(url, "https:") {
		b, err := os.ReadFile(ts.MkAbs(file))
		if err != nil {
			return 0, "", err
		}
		token = strings.TrimSpace(string(b))
	}
	return ask(url, token)
}

// ask asks for url once, on a connection of its own, with a token unless it is empty.
func ask(url, token string) (int, string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	// Whether the server is the right one is for crossfade's own verbs to check.
	tr := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	if token != "" {
		req.Header.Set("X-Consul-Token", token)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// expand FILE... replaces ${VAR} in files.
func expand(ts *testscript.TestScript, neg bool, args []string) {
	for _, f := range args {
		path := ts.MkAbs(f)
		b, err := os.ReadFile(path)
		ts.Check(err)
		ts.Check(os.WriteFile(path, []byte(os.Expand(string(b), ts.Getenv)), 0o600))
	}
}

// await-file FILE TEXT [DURATION] waits until the file has the text, by default for 20 s.
func awaitFile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: await-file FILE TEXT [DURATION]")
	}
	limit, err := time.ParseDuration(append(args, "20s")[2])
	ts.Check(err)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var b []byte
	for began := time.Now(); time.Since(began) < limit; <-tick.C {
		if b, err = os.ReadFile(ts.MkAbs(args[0])); err == nil && strings.Contains(string(b), args[1]) {
			ts.Logf("%s has %q after %s", args[0], args[1], time.Since(began).Round(time.Millisecond))
			return
		}
	}
	ts.Fatalf("await-file %v: not within %s: %v: %.2000s", args, limit, err, b)
}

// no-leaks TOKEN-FILE... looks for the secrets in every other file below the working
// folder, and in the arguments and the environment of every process.
func noLeaks(ts *testscript.TestScript, neg bool, args []string) {
	var places []string
	ts.Check(filepath.WalkDir(ts.MkAbs("."), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.HasSuffix(path, ".token") {
			places = append(places, path)
		}
		return nil
	}))
	for _, of := range []string{"cmdline", "environ"} {
		more, err := filepath.Glob("/proc/[0-9]*/" + of)
		ts.Check(err)
		places = append(places, more...)
	}
	found := false
	for _, file := range args {
		secret := strings.TrimSpace(ts.ReadFile(file))
		if len(secret) < 20 {
			ts.Fatalf("%s holds no secret", file)
		}
		for _, place := range places {
			if b, err := os.ReadFile(place); err == nil && strings.Contains(string(b), secret) {
				found = true
				ts.Logf("%s is in %s", file, place)
			}
		}
	}
	if found != neg {
		ts.Fatalf("no-leaks %v: looked into %d places, found: %v", args, len(places), found)
	}
}

// clearEnv NAME... empties variables.
func clearEnv(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args {
		ts.Setenv(name, "")
	}
}
