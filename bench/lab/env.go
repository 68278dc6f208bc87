package lab

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/envoybin"
)

// Env reads a benchmark's settings from environment variables. The first one that is wrong is
// its error, with which everything that was read is of no use.
type Env struct {
	get func(string) string
	err error
}

// Settings are what read makes of the environment.
func Settings[S any](getenv func(string) string, read func(*Env) S) (S, error) {
	env := &Env{get: getenv}
	s := read(env)
	return s, env.err
}

// Get is a variable as it is; "" when it is not set.
func (e *Env) Get(name string) string { return e.get(name) }

// Wrong says what was wanted of a variable.
func (e *Env) Wrong(name, want string) { e.fail(fmt.Errorf("%s %q: want %s", name, e.get(name), want)) }

func (e *Env) fail(err error) {
	if e.err == nil {
		e.err = err
	}
}

// Positive is a number above 0, or unset when there is none.
func (e *Env) Positive(name string, unset float64) float64 {
	text := e.get(name)
	if text == "" {
		return unset
	}
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || !(v > 0 && v < 1e6) {
		e.Wrong(name, "a number above 0")
	}
	return v
}

// Seconds is [Env.Positive] as a duration.
func (e *Env) Seconds(name string, unset float64) time.Duration {
	return time.Duration(e.Positive(name, unset) * float64(time.Second))
}

// Count is a whole number above 0, or unset when there is none.
func (e *Env) Count(name string, unset int) int {
	text := e.get(name)
	if text == "" {
		return unset
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		e.Wrong(name, "a whole number above 0")
	}
	return n
}

// Names are those of known that a list, with commas or spaces, names; all where there is none.
func (e *Env) Names(name, what string, known []string) []string {
	names := strings.FieldsFunc(e.get(name), func(r rune) bool { return r == ',' || r == ' ' })
	if len(names) == 0 {
		return known
	}
	if slices.ContainsFunc(names, func(n string) bool { return !slices.Contains(known, n) }) {
		e.Wrong(name, "names of "+what)
	}
	return slices.DeleteFunc(slices.Clone(known), func(n string) bool { return !slices.Contains(names, n) })
}

// Binaries are Envoy, as [envoybin.Find] finds it; CROSSFADE, else bin/crossfade of the
// repository; and CONSUL, else bin/consul if it is there.
func (e *Env) Binaries() Binaries {
	root, err := repositoryRoot()
	if err != nil {
		e.fail(err)
		return Binaries{}
	}
	b := Binaries{Crossfade: cmp.Or(e.get("CROSSFADE"), filepath.Join(root, "bin", "crossfade")), Consul: e.get("CONSUL")}
	if b.Consul != "" {
		if _, err := os.Stat(b.Consul); err != nil {
			e.fail(fmt.Errorf("CONSUL %q: %w", b.Consul, err))
		}
	} else if built := filepath.Join(root, "bin", "consul"); exists(built) {
		b.Consul = built
	}
	if b.Envoy, err = envoybin.Find(); err != nil {
		e.fail(err)
	}
	return b
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// repositoryRoot is the nearest directory upwards with a go.mod.
func repositoryRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for !exists(filepath.Join(dir, "go.mod")) {
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("no go.mod here or above: run it inside the repository")
		}
		dir = up
	}
	return dir, nil
}
