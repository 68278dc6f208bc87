package config

import (
	"cmp"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Bounds of what entries and definitions hold; those of Meta are Consul's.
const (
	maxName        = 128
	maxID          = 256
	maxSources     = 10_000
	maxUpstreams   = 1000
	maxExposed     = 100
	maxDescription = 512
	maxMeta        = 64
	maxMetaKey     = 128
	maxMetaValue   = 512
	maxPort        = 65535
)

var (
	nameShape = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)
	idShape   = regexp.MustCompile(`^[A-Za-z0-9_.:@~+=,-]+$`)
	hostShape = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?$`)
)

// name checks what a service, and so a cluster, an SNI and an identity, may be called.
func (r *report) name(path, name string) {
	switch {
	case name == "":
		r.addf(path, "missing")
	case len(name) > maxName:
		r.addf(path, "longer than %d characters", maxName)
	case !nameShape.MatchString(name):
		r.addf(path, "%q: want letters, digits, - _ and . only, beginning with a letter, a digit or _", cut(name))
	}
}

func (r *report) protocol(path, protocol string) {
	switch strings.ToLower(protocol) {
	case "", TCP, HTTP, HTTP2, GRPC:
	default:
		r.addf(path, "%q: want %s, %s, %s or %s", cut(protocol), TCP, HTTP, HTTP2, GRPC)
	}
}

// count checks a number that Envoy keeps in 32 bits.
func (r *report) count(path string, n int) {
	if n < 0 || n > math.MaxInt32 {
		r.addf(path, "%d: want 0 to %d", n, math.MaxInt32)
	}
}

func (r *report) percent(path string, n *uint32) {
	if n != nil && *n > 100 {
		r.addf(path, "%d: want a percentage, 0 to 100", *n)
	}
}

func (r *report) notNegative(path string, d Duration) {
	if d < 0 {
		r.addf(path, "%s: must not be negative", d)
	}
}

func (r *report) oneOf(path, got string, want ...string) {
	if !slices.Contains(want, got) {
		if want[0] == "" {
			want = want[1:]
		}
		last := len(want) - 1
		list := strings.Join(want[:last], ", ")
		r.addf(path, "%q: want %s", cut(got), strings.TrimPrefix(list+" or "+want[last], " or "))
	}
}

func (r *report) meta(path string, meta map[string]string) {
	if len(meta) > maxMeta {
		r.addf(path, "%d pairs are more than the limit of %d", len(meta), maxMeta)
		return
	}
	for _, key := range sortedKeys(meta) {
		switch {
		case key == "":
			r.addf(path, "a key is empty")
		case len(key) > maxMetaKey:
			r.addf(path, "key %q: longer than %d characters", cut(key), maxMetaKey)
		case len(meta[key]) > maxMetaValue:
			r.addf(path, "key %q: its value is longer than %d characters", cut(key), maxMetaValue)
		}
	}
}

// port checks a port; zero is for the caller to allow.
func (r *report) port(path string, port int, zero bool) {
	if (port == 0 && zero) || (port >= 1 && port <= maxPort) {
		return
	}
	r.addf(path, "%d: want a port, 1 to %d", port, maxPort)
}

// host checks an IP or a host name without a port.
func (r *report) host(path, host string) {
	if host == "" {
		return
	}
	if _, err := netip.ParseAddr(host); err != nil && (len(host) > 253 || !hostShape.MatchString(host)) {
		r.addf(path, "%q: want an IP or a host name, without a port", cut(host))
	}
}

// socket checks the path of a Unix socket: the kernel's limit is 107 bytes.
func (r *report) socket(path, socket string) {
	if len(socket) > 107 || !utf8.ValidString(socket) || strings.ContainsRune(socket, 0) {
		r.addf(path, "%q: want a path of at most 107 bytes", cut(socket))
	}
}

// hostPort checks "host:port".
func (r *report) hostPort(path, address string) {
	host, port, ok := splitHostPort(address)
	n, err := strconv.Atoi(port)
	if !ok || err != nil || n < 1 || n > maxPort || host == "" {
		r.addf(path, "%q: want host:port", cut(address))
		return
	}
	r.host(path, host)
}

func splitHostPort(address string) (host, port string, ok bool) {
	i := strings.LastIndexByte(address, ':')
	if i < 0 {
		return "", "", false
	}
	host, port = address[:i], address[i+1:]
	if inner, found := strings.CutPrefix(host, "["); found {
		return strings.TrimSuffix(inner, "]"), port, strings.HasSuffix(inner, "]")
	}
	return host, port, !strings.Contains(host, ":")
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
