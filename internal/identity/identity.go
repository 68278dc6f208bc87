// Package identity names workloads and the places they can be reached at.
//
// In: service, datacenter and trust domain. Out: the SPIFFE ID in a leaf
// certificate, the SNI a caller sends, and the Envoy cluster name (which is the
// same string). The shapes are Consul Connect's, so that certificates, stats and
// dashboards carry over and both kinds of sidecar can call each other.
//
// It leaves signing and verifying to package ca. Pure: no I/O, no clock.
package identity

import (
	"fmt"
	"net/url"
	"strings"
)

// Namespace and partition are Consul Enterprise's; the community edition, and
// crossfade, know only this one.
const Namespace = "default"

// SPIFFE is the identity of a service in one datacenter of one trust domain.
//
// See https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md and
// Consul's "Service mesh certificate authority" page for the path.
type SPIFFE struct {
	TrustDomain string // "11111111-2222-3333-4444-555555555555.consul", lower case
	Datacenter  string
	Service     string
}

// URI is the SPIFFE ID: spiffe://<trust-domain>/ns/default/dc/<dc>/svc/<service>.
func (s SPIFFE) URI() string {
	u := url.URL{Scheme: "spiffe", Host: s.TrustDomain, Path: "/ns/" + Namespace + "/dc/" + s.Datacenter + "/svc/" + s.Service}
	return u.String()
}

// String is [SPIFFE.URI].
func (s SPIFFE) String() string { return s.URI() }

// ParseURI is the inverse of [SPIFFE.URI]. It accepts exactly that shape: no
// query, fragment, port, user, empty segment or other namespace.
func ParseURI(raw string) (SPIFFE, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return SPIFFE{}, fmt.Errorf("SPIFFE ID %q: %w", raw, err)
	}
	if u.Scheme != "spiffe" || u.Host == "" || u.Port() != "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return SPIFFE{}, fmt.Errorf("SPIFFE ID %q: want spiffe://<trust-domain>/ns/%s/dc/<datacenter>/svc/<service>", raw, Namespace)
	}
	p := strings.Split(u.Path, "/")
	if len(p) != 7 || p[0] != "" || p[1] != "ns" || p[2] != Namespace || p[3] != "dc" || p[4] == "" || p[5] != "svc" || p[6] == "" {
		return SPIFFE{}, fmt.Errorf("SPIFFE ID %q: want path /ns/%s/dc/<datacenter>/svc/<service>", raw, Namespace)
	}
	s := SPIFFE{TrustDomain: u.Host, Datacenter: p[4], Service: p[6]}
	if s.URI() != raw {
		return SPIFFE{}, fmt.Errorf("SPIFFE ID %q: not in canonical form, want %q", raw, s.URI())
	}
	return s, nil
}

// SNI is the server name that a caller's sidecar sends, and the name of the
// Envoy cluster for the target: <service>.default.<dc>.internal.<trust-domain>.
func (s SPIFFE) SNI() string {
	return s.Service + "." + Namespace + "." + s.Datacenter + ".internal." + s.TrustDomain
}

// ServerURI names a control-plane server: spiffe://<trust-domain>/agent/server/dc/<dc>.
func ServerURI(trustDomain, datacenter string) string {
	u := url.URL{Scheme: "spiffe", Host: trustDomain, Path: serverPath + datacenter}
	return u.String()
}

// IsServer reports whether a URI names a server of the trust domain, in any datacenter.
func IsServer(raw, trustDomain string) bool {
	dc, ok := strings.CutPrefix(raw, "spiffe://"+trustDomain+serverPath)
	return ok && trustDomain != "" && dc != "" && ServerURI(trustDomain, dc) == raw && !strings.ContainsAny(dc, "/?#")
}

const serverPath = "/agent/server/dc/"
