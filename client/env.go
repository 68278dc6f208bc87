package client

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// Variables, less the name of the destination.
const (
	percentVar = "CROSSFADE_PERCENT_"
	oldVar     = "CROSSFADE_LEGACY_ADDR_"
	newVar     = "NOMAD_UPSTREAM_ADDR_"
)

// lookup returns a variable's value and name: under the name as it is, or as Nomad
// cleans it. Without a value it returns the cleaned name, for people to set.
func lookup(getenv func(string) string, prefix, name string) (value, variable string) {
	for _, n := range []string{name, cleanName(name)} {
		variable = prefix + n
		if value = getenv(variable); value != "" {
			break
		}
	}
	return value, variable
}

// cleanName replaces each byte that Nomad would replace in a variable's name by an
// underscore: all but letters, digits, underscores and dots, and a digit in front.
func cleanName(name string) string {
	b := []byte(name)
	for i, c := range b {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_' || c == '.'
		if digit := '0' <= c && c <= '9'; !letter && (!digit || i == 0) {
			b[i] = '_'
		}
	}
	return string(b)
}

// parseAddress splits [http://|https://]host:port. The host is not looked up: that is
// for whoever connects.
func parseAddress(s string) (scheme, addr string, err error) {
	addr = strings.Trim(s, " \t\r\n")
	for _, known := range []string{"http", "https"} {
		if rest, ok := strings.CutPrefix(addr, known+"://"); ok {
			scheme, addr = known, strings.TrimSuffix(rest, "/")
			break
		}
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", "", err
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", "", fmt.Errorf("port %q is not one of 1 to 65535", port)
	}
	odd := func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`/?#@\<>"`, r) }
	switch {
	case host == "":
		return "", "", errors.New("no host")
	case strings.ContainsFunc(host, odd):
		return "", "", fmt.Errorf("host %q has characters that no host has", host)
	}
	return scheme, addr, nil
}
