// Package routing decides what becomes of a request for a service: its protocol,
// and which instances may answer it.
//
// In: the configuration entries, a service's name and a datacenter. Out: a
// [Chain] of routes, each with weighted legs, each leg at a [Target]; and what
// could not be honoured, as [Problem] values beside it. A chain says nothing of
// who calls: what depends on the caller is added by package proxy.
//
// It leaves endpoints to proxy and Envoy's words to envoy. Pure: no I/O, no
// clock, no log.
package routing

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/identity"
)

// Chain is what becomes of requests, or connections, for one service. Immutable.
type Chain struct {
	Service    string
	Datacenter string // in which Service is looked for, never empty
	Protocol   string // config.TCP, HTTP, HTTP2 or GRPC

	// Routes are tried in order; the last matches everything. A chain of protocol
	// tcp has exactly one.
	Routes []Route

	// Reads lists the entries that the chain was made from, also those that were
	// looked for and not there. Sorted, no duplicates.
	Reads []config.Key
}

// Route sends what it matches to its legs.
type Route struct {
	// Legs are never empty. Their weights add up to [TotalWeight].
	Legs []Leg
}

// TotalWeight is the sum of the weights of one route's legs.
const TotalWeight = 10_000

// Leg is one weighted target.
type Leg struct {
	Weight uint32 // of TotalWeight
	Target Target
}

// Target is a set of instances: those of one service in one datacenter.
type Target struct {
	Service    string
	Datacenter string
}

// Identity is the SPIFFE ID that every instance of the target holds.
func (t Target) Identity(trustDomain string) identity.SPIFFE {
	return identity.SPIFFE{TrustDomain: trustDomain, Datacenter: t.Datacenter, Service: t.Service}
}

// Compare orders targets by service, then datacenter.
func (t Target) Compare(o Target) int {
	return cmp.Or(cmp.Compare(t.Service, o.Service), cmp.Compare(t.Datacenter, o.Datacenter))
}

// String is "service" followed by ".dc".
func (t Target) String() string { return t.Service + "." + t.Datacenter }

// Problem is something that was asked for and cannot be had. All else goes on.
type Problem struct {
	Service string // whom it harms
	// Subject is the entry or the part of a registration at fault, as in
	// "service-defaults/catalog" or `upstream "catalog" port 7100`.
	Subject string
	Reason  string
}

// String is one line for a log or a terminal.
func (p Problem) String() string {
	return fmt.Sprintf("service %q: %s: %s", p.Service, p.Subject, p.Reason)
}

// Compare orders problems by service, subject, reason.
func (p Problem) Compare(o Problem) int {
	return cmp.Or(cmp.Compare(p.Service, o.Service), cmp.Compare(p.Subject, o.Subject), cmp.Compare(p.Reason, o.Reason))
}

// Compile makes the chain of service in datacenter.
func Compile(set *config.Set, service, datacenter string) (Chain, []Problem) {
	protocol, reads, problems := Protocol(set, service)
	return Chain{
		Service:    service,
		Datacenter: datacenter,
		Protocol:   protocol,
		Routes:     []Route{{Legs: []Leg{{Weight: TotalWeight, Target: Target{Service: service, Datacenter: datacenter}}}}},
		Reads:      reads,
	}, problems
}

// Protocol is what service speaks: what its service-defaults say, else what
// proxy-defaults say, else tcp. It also lists the entries it read, sorted.
func Protocol(set *config.Set, service string) (string, []config.Key, []Problem) {
	global := config.Key{Kind: config.KindProxyDefaults, Name: config.Global}
	own := config.Key{Kind: config.KindServiceDefaults, Name: service}
	reads := []config.Key{global, own}

	var problems []Problem
	accept := func(protocol string, from config.Key) bool {
		if protocol == "" {
			return false
		}
		if !KnownProtocol(protocol) {
			problems = append(problems, Problem{Service: service, Subject: from.String(), Reason: UnknownProtocol(protocol)})
			return false
		}
		return true
	}
	if e := set.ServiceDefaults(service); e != nil && accept(e.Protocol, own) {
		return e.Protocol, reads, problems
	}
	if e := set.ProxyDefaults(); e != nil {
		// A value that is no string is reported by who decodes the rest of Config.
		if p, _ := e.Config["protocol"].(string); accept(p, global) {
			return p, reads, problems
		}
	}
	return config.TCP, reads, problems
}

// KnownProtocol reports whether a service may speak protocol.
func KnownProtocol(protocol string) bool { return protocol == config.TCP || config.IsHTTP(protocol) }

// UnknownProtocol is the reason given for one that is not known.
func UnknownProtocol(protocol string) string {
	return fmt.Sprintf("protocol %q is unknown: want tcp, http, http2 or grpc", protocol)
}

// Targets lists the targets of all legs, sorted, without duplicates.
func (c Chain) Targets() []Target {
	var out []Target
	for _, r := range c.Routes {
		for _, l := range r.Legs {
			out = append(out, l.Target)
		}
	}
	slices.SortFunc(out, Target.Compare)
	return slices.Compact(out)
}

// Describe prints the chain for people and for tests, one line per leg.
func (c Chain) Describe() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s.%s %s\n", c.Service, c.Datacenter, c.Protocol)
	for _, r := range c.Routes {
		b.WriteString("  all\n")
		for _, l := range r.Legs {
			fmt.Fprintf(&b, "    %6.2f%% %s\n", float64(l.Weight)*100/TotalWeight, l.Target)
		}
	}
	return b.String()
}
