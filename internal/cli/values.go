package cli

import (
	"errors"
	"fmt"
	"net"
	"os/exec"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/internal/envoybin"
)

// choice is a flag that takes one of some words, or stays as it is.
type choice struct {
	to *string
	of []string
}

// addChoice adds such a flag, which also completes them. A value is right when the
// command begins.
func addChoice(cmd *cobra.Command, to *string, name, short, value, usage string, of ...string) {
	*to = value
	cmd.Flags().VarP(choice{to, of}, name, short, usage)
	complete(cmd, name, words(of...))
}

// Set implements pflag.Value.
func (c choice) Set(v string) error {
	if !slices.Contains(c.of, v) {
		return fmt.Errorf("want %s", or(c.of))
	}
	*c.to = v
	return nil
}

// String implements pflag.Value.
func (c choice) String() string {
	if c.to == nil {
		return ""
	}
	return *c.to
}

// Type implements pflag.Value.
func (c choice) Type() string { return "string" }

// or lists words as people do.
func or(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// checkPort refuses what is no port; least is 0 where that means a free one, -1 where that means none.
func checkPort(flag string, port, least int) error {
	if port < least || port > 65535 {
		return fmt.Errorf("--%s %d: want %d to 65535", flag, port, least)
	}
	return nil
}

func checkIP(flag, addr string) error {
	if addr != "" && net.ParseIP(addr) == nil {
		return fmt.Errorf("--%s %q: want an IP address", flag, addr)
	}
	return nil
}

// label is what becomes part of certificates, clusters and DNS names, as one label.
var label = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_-]{0,62}$`)

func checkDatacenter(dc string) error {
	if !label.MatchString(dc) {
		return fmt.Errorf("--datacenter %q: want at most 63 letters, digits, - and _, not beginning with -", dc)
	}
	return nil
}

// checkEnvoy refuses an --envoy that cannot be run. Its version is for others to ask.
func checkEnvoy(path string) error {
	if path == "" {
		return nil
	}
	if _, err := exec.LookPath(path); err != nil {
		if inner := errors.Unwrap(err); inner != nil {
			err = inner
		}
		return fmt.Errorf("envoy %q, from --envoy: %w: set it to the path of an Envoy binary, at least %s and less than %s", path, err, envoybin.Floor, envoybin.Ceiling)
	}
	return nil
}
