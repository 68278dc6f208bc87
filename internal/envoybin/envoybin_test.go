package envoybin

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// script writes an executable that stands for Envoy.
func script(t *testing.T, dir, prints string) string {
	t.Helper()
	path := filepath.Join(dir, "envoy")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho '"+prints+"'\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFindOrder(t *testing.T) {
	fromEnv, onPath, module := t.TempDir(), t.TempDir(), t.TempDir()
	want := script(t, fromEnv, "")
	t.Setenv(EnvVar, want)
	if got, err := Find(); err != nil || got != want {
		t.Errorf("with $ENVOY: %q, %v; want %q", got, err, want)
	}

	t.Setenv(EnvVar, "")
	want = script(t, onPath, "")
	t.Setenv("PATH", onPath)
	if got, err := Find(); err != nil || got != want {
		t.Errorf("on PATH: %q, %v; want %q", got, err, want)
	}

	t.Setenv("PATH", t.TempDir())
	if err := os.WriteFile(filepath.Join(module, "go.mod"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(module, ".tools/venv/lib/python3.13/site-packages/envoy/_bin")
	sub := filepath.Join(module, "a", "b")
	for _, dir := range []string{bin, sub} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(sub)
	if got, err := Find(); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "install Envoy 1.40") {
		t.Errorf("nowhere: %q, %v; want ErrNotFound with what to do", got, err)
	}
	want = script(t, bin, "")
	if got, err := Find(); err != nil || filepath.Base(filepath.Dir(got)) != "_bin" {
		t.Errorf("in the module: %q, %v; want %q", got, err, want)
	}
}

func TestFindRefusesEnv(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		plain:                "is not executable",
		filepath.Dir(plain):  "is a directory",
		plain + "-not-there": "no such file",
	} {
		t.Setenv(EnvVar, path)
		if _, err := Find(); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "$ENVOY") {
			t.Errorf("$ENVOY=%s: %v; want %q and $ENVOY named", path, err, want)
		}
	}
}

func TestCheckVersion(t *testing.T) {
	for _, tc := range []struct{ prints, version, err string }{
		{"envoy  version: 9e5580933739775e8bce696a57a2e1bc99368f23/1.40.0/Clean/RELEASE/BoringSSL", "1.40.0", ""},
		{"envoy  version: 9e558093/1.40.7-dev/Clean/RELEASE/BoringSSL", "1.40.7", ""},
		{"envoy  version: 9e558093/1.39.9/Clean/RELEASE/BoringSSL", "1.39.9", "version 1.39.9 is not served: want at least 1.40.0 and less than 1.41.0"},
		{"envoy  version: 9e558093/1.41.0/Clean/RELEASE/BoringSSL", "1.41.0", "version 1.41.0 is not served"},
		{"envoy  version: 9e558093/1.100.0/Clean/RELEASE/BoringSSL", "1.100.0", "version 1.100.0 is not served"},
		{"hello", "", `says "hello", which is no Envoy version`},
	} {
		got, err := CheckVersion(context.Background(), script(t, t.TempDir(), tc.prints))
		if got != tc.version || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%q: %q, %v; want %q, %q", tc.prints, got, err, tc.version, tc.err)
		}
	}
	if _, err := CheckVersion(context.Background(), "/nowhere/envoy"); err == nil || !strings.Contains(err.Error(), "/nowhere/envoy") {
		t.Errorf("missing binary: %v", err)
	}
}

func TestServedVersion(t *testing.T) {
	path, err := Find()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := CheckVersion(t.Context(), path); err != nil {
		t.Fatal(err)
	}
}
