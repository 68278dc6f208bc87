// Package routing decides what becomes of a request for a service: its protocol,
// and which instances may answer it.
//
// In: the configuration entries, a service's name and a datacenter. Out: a
// [Chain] of routes, each with weighted legs, each leg at a [Target] with its
// failover; and what could not be honoured, as [Problem] values beside it. Entries
// mean what Consul's documentation of service-router, service-splitter and
// service-resolver says; a chain is what Consul calls a compiled discovery chain. It
// says nothing of who calls: what depends on the caller is added by package proxy.
//
// It leaves endpoints to proxy and Envoy's words to envoy. Pure: no I/O, no
// clock, no log.
package routing

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/identity"
)

// Chain is what becomes of requests, or connections, for one service. Immutable.
type Chain struct {
	Service    string
	Datacenter string // in which Service is looked for, never empty
	Protocol   string // config.TCP, HTTP, HTTP2 or GRPC

	// Routed says that a service-router starts the chain.
	Routed bool
	// Routes are tried in order; the last matches everything. A chain of protocol
	// tcp has exactly one.
	Routes []Route

	// Broken is why the entries make no chain: a cycle, a subset that does not exist,
	// protocols that don't fit. The chain is then the one without entries.
	Broken string

	// Reads lists the entries that the chain was made from, also those that were
	// looked for and not there. Sorted, no duplicates.
	Reads []config.Key
}

// Route sends what it matches to its legs.
type Route struct {
	// Rule says what it matches and what else is done to it. Nil: everything, nothing.
	Rule *config.ServiceRoute
	// Splitter is the service whose service-splitter divides; empty when none does.
	Splitter string
	// Policy is the traffic-policy of the service that the route leads to, or nil.
	Policy *config.TrafficPolicy
	// Legs are never empty. Their weights add up to [TotalWeight].
	Legs []Leg
}

// TotalWeight is the sum of the weights of one route's legs.
const TotalWeight = 10_000

// Leg is one weighted target.
type Leg struct {
	Weight uint32 // of TotalWeight; 0: nothing is sent there
	Resolver
	// Split is the entry's leg that this one came from, with the headers of the legs
	// above it, or nil.
	Split *config.ServiceSplit
}

// Resolver is a target and how it is called.
type Resolver struct {
	Target Target
	// Default says that no service-resolver had a word in it.
	Default        bool
	ConnectTimeout time.Duration // 0: not said
	RequestTimeout time.Duration // 0: not said
	// Failover is who answers when nobody of Target can, in order.
	Failover     []Target
	LoadBalancer *config.LoadBalancer
}

// Target is a set of instances: those of one service in one datacenter, or a subset.
type Target struct {
	Service    string
	Subset     string
	Datacenter string

	// Of the subset, so that two targets are equal only when they mean the same.
	Filter      string
	OnlyPassing bool
}

// Identity is the SPIFFE ID that every instance of the target holds.
func (t Target) Identity(trustDomain string) identity.SPIFFE {
	return identity.SPIFFE{TrustDomain: trustDomain, Datacenter: t.Datacenter, Service: t.Service}
}

// SNI is the target's server name, and the name of its cluster and endpoints, as
// Consul writes it: the service's, with the subset in front.
func (t Target) SNI(trustDomain string) string {
	sni := t.Identity(trustDomain).SNI()
	if t.Subset != "" {
		sni = t.Subset + "." + sni
	}
	return sni
}

// ID is Consul's name of a target: "v1.catalog.default.default.dc1".
func (t Target) ID() string {
	id := t.Service + "." + identity.Namespace + "." + identity.Namespace + "." + t.Datacenter
	if t.Subset != "" {
		id = t.Subset + "." + id
	}
	return id
}

// Compare orders targets by service, datacenter, subset and what defines it.
func (t Target) Compare(o Target) int {
	return cmp.Or(cmp.Compare(t.Service, o.Service), cmp.Compare(t.Datacenter, o.Datacenter), cmp.Compare(t.Subset, o.Subset),
		cmp.Compare(t.Filter, o.Filter), compareBools(t.OnlyPassing, o.OnlyPassing))
}

func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}

// String is "service.dc", with "subset." in front.
func (t Target) String() string {
	if t.Subset != "" {
		return t.Subset + "." + t.Service + "." + t.Datacenter
	}
	return t.Service + "." + t.Datacenter
}

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

// Targets lists the targets of all legs and their failovers, sorted, without duplicates.
func (c Chain) Targets() []Target {
	var out []Target
	for _, r := range c.Routes {
		for _, l := range r.Legs {
			out = append(out, l.Target)
			out = append(out, l.Failover...)
		}
	}
	slices.SortFunc(out, Target.Compare)
	return slices.Compact(out)
}

// IsDefault reports whether no entry changes where requests go.
func (c Chain) IsDefault() bool {
	return !c.Routed && len(c.Routes) == 1 && c.Routes[0].Splitter == "" && len(c.Routes[0].Legs) == 1 && c.Routes[0].Legs[0].Default &&
		c.Routes[0].Legs[0].Target == Target{Service: c.Service, Datacenter: c.Datacenter}
}
