package sidecar

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

// localUpstream is where the app finds an upstream on this host.
type localUpstream struct {
	name    string
	address string // bound by Envoy; an IP
	port    int
}

// bind is the address Envoy listens on.
func (u localUpstream) bind() string { return net.JoinHostPort(u.address, strconv.Itoa(u.port)) }

// ip is the address the app connects to: bind's, or loopback when that is "any".
func (u localUpstream) ip() string {
	a, err := netip.ParseAddr(u.address)
	switch {
	case err != nil || !a.IsUnspecified():
		return u.address
	case a.Is4():
		return "127.0.0.1"
	default:
		return "::1"
	}
}

// localUpstreams are the declared upstreams that have a port. Those on a Unix
// socket have nothing to be told by environment.
func localUpstreams(p *catalog.Proxy) []localUpstream {
	var out []localUpstream
	if p == nil {
		return nil
	}
	for _, u := range p.Upstreams {
		if u.LocalBindPort != 0 {
			out = append(out, localUpstream{u.DestinationName, cmp.Or(u.LocalBindAddress, "127.0.0.1"), u.LocalBindPort})
		}
	}
	return out
}

// upstreamEnv is what Nomad gives a task with these upstreams:
// NOMAD_UPSTREAM_{ADDR,IP,PORT}_<name>, under the name as it is and as cleaned by
// [cleanName]. Of two upstreams with one name the later wins, as there.
//
// Nomad always says 127.0.0.1; here a local bind address that was set is told.
func upstreamEnv(upstreams []localUpstream) []string {
	var env []string
	at := map[string]int{}
	set := func(key, value string) {
		if i, ok := at[key]; ok {
			env[i] = key + "=" + value
			return
		}
		at[key] = len(env)
		env = append(env, key+"="+value)
	}
	for _, u := range upstreams {
		port := strconv.Itoa(u.port)
		for _, name := range []string{u.name, cleanName(u.name)} {
			set("NOMAD_UPSTREAM_ADDR_"+name, net.JoinHostPort(u.ip(), port))
			set("NOMAD_UPSTREAM_IP_"+name, u.ip())
			set("NOMAD_UPSTREAM_PORT_"+name, port)
		}
	}
	return env
}

// appEnv leaves out the tokens of those who started the sidecar: they are not the app's.
func appEnv(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		ours := strings.HasPrefix(name, "CONSUL_") || strings.HasPrefix(name, "CROSSFADE_")
		return ours && (strings.Contains(name, "TOKEN") || name == "CONSUL_HTTP_AUTH")
	})
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
