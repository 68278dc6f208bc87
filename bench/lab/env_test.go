package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestEnv(t *testing.T) {
	type settings struct {
		rate  float64
		turn  time.Duration
		count int
	}
	for name, tc := range map[string]struct {
		env  map[string]string
		want settings
		err  string
	}{
		"nothing set":       {nil, settings{0.5, 2 * time.Second, 3}, ""},
		"all set":           {map[string]string{"RATE": "1e3", "TURN": "0.25", "COUNT": "7"}, settings{1000, 250 * time.Millisecond, 7}, ""},
		"no number":         {map[string]string{"RATE": "fast"}, settings{}, `RATE "fast": want a number above 0`},
		"not above 0":       {map[string]string{"RATE": "0"}, settings{}, `RATE "0"`},
		"beyond all":        {map[string]string{"RATE": "1e9"}, settings{}, `RATE "1e9"`},
		"NaN":               {map[string]string{"RATE": "nan"}, settings{}, `RATE "nan"`},
		"no seconds":        {map[string]string{"TURN": "-1"}, settings{}, `TURN "-1": want a number above 0`},
		"no count":          {map[string]string{"COUNT": "0"}, settings{}, `COUNT "0": want a whole number above 0`},
		"no whole count":    {map[string]string{"COUNT": "1.5"}, settings{}, `COUNT "1.5"`},
		"the first is said": {map[string]string{"TURN": "x", "COUNT": "y"}, settings{}, `TURN "x": want a number above 0`},
	} {
		got, err := Settings(func(name string) string { return tc.env[name] }, func(e *Env) settings {
			return settings{e.Positive("RATE", 0.5), e.Seconds("TURN", 2), e.Count("COUNT", 3)}
		})
		if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) || err == nil && got != tc.want {
			t.Errorf("%s: %+v, %v, want %+v, %q", name, got, err, tc.want, tc.err)
		}
	}
}

func TestBinaries(t *testing.T) {
	dir := t.TempDir()
	sub := filepath.Join(dir, "bench", "lab")
	consul := filepath.Join(dir, "bin", "consul")
	for _, folder := range []string{sub, filepath.Dir(consul)} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(sub)
	envoy := filepath.Join(dir, "envoy")
	if err := os.WriteFile(envoy, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ENVOY", envoy)
	find := func(env map[string]string) (Binaries, error) {
		return Settings(func(name string) string { return env[name] }, (*Env).Binaries)
	}
	own := filepath.Join(dir, "bin", "crossfade")
	if b, err := find(nil); err != nil || b != (Binaries{Envoy: envoy, Crossfade: own}) {
		t.Errorf("%+v, %v", b, err)
	}
	if err := os.WriteFile(consul, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := find(nil); err != nil || b != (Binaries{Envoy: envoy, Crossfade: own, Consul: consul}) {
		t.Errorf("with a Consul: %+v, %v", b, err)
	}
	if b, err := find(map[string]string{"CROSSFADE": "/x", "CONSUL": envoy}); err != nil || b != (Binaries{Envoy: envoy, Crossfade: "/x", Consul: envoy}) {
		t.Errorf("named: %+v, %v", b, err)
	}
	if _, err := find(map[string]string{"CONSUL": "/no/consul"}); err == nil || !strings.Contains(err.Error(), `CONSUL "/no/consul"`) {
		t.Errorf("a Consul that is not there: %v", err)
	}
	t.Setenv("ENVOY", filepath.Join(dir, "none"))
	if _, err := find(nil); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("an Envoy that is not there: %v", err)
	}
}
