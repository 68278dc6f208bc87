// Package access decides who may do what with a control plane.
//
// In: a [Principal], which is who a caller has proved to be, and a [Need], which is
// what a request takes. Out: nil, or a [Refusal] that says what would have been needed.
//
// It leaves proving who callers are and keeping tokens to package tokens and the
// server, and knowing what a request takes to those who serve it. Pure: no I/O, no clock.
package access

import (
	"fmt"
	"slices"
	"strings"
)

// Role is what a token makes of its bearer.
type Role string

const (
	// Anonymous has shown nothing.
	Anonymous Role = ""
	// Reader sees everything but tokens and the audit trail.
	Reader Role = "reader"
	// Owner is a reader who may also write what concerns the services it owns.
	Owner Role = "owner"
	// Auditor is a reader who may also see tokens, without their secrets, and the audit trail.
	Auditor Role = "auditor"
	// Operator may do everything.
	Operator Role = "operator"
	// Join gets a service's instance its first certificate.
	Join Role = "join"
	// Service is an instance that has shown its own certificate. No token has this role.
	Service Role = "service"
)

// Principal is who a caller has proved to be.
type Principal struct {
	Role Role
	// Accessor names the token shown, or that the shown certificate comes through.
	Accessor string
	// Services are those an owner owns; the one of a join token or an instance.
	Services []string
}

// IsInstance reports whether the caller is an instance of the service, by its own
// certificate or, before it has one, by a join token.
func (p Principal) IsInstance(service string) bool {
	return p.instance() && service != "" && p.owns([]string{service})
}

func (p Principal) instance() bool { return p.Role == Service || p.Role == Join }

// owns reports whether all the services, of which there is at least one, are the principal's.
func (p Principal) owns(services []string) bool {
	return len(services) > 0 && !slices.ContainsFunc(services, func(s string) bool { return !slices.Contains(p.Services, s) })
}

// String names the principal in logs and refusals. It holds no secret.
func (p Principal) String() string {
	switch {
	case p.Role == Anonymous:
		return "anonymous"
	case p.Accessor == "":
		return string(p.Role)
	case p.Role == Service:
		return "service " + strings.Join(p.Services, ",") + " (through token " + p.Accessor + ")"
	case len(p.Services) > 0:
		return string(p.Role) + " of " + strings.Join(p.Services, ",") + " (token " + p.Accessor + ")"
	default:
		return string(p.Role) + " (token " + p.Accessor + ")"
	}
}

// Kind is what sort of thing a request does.
type Kind int

// Kinds of requests. The zero value takes the most.
const (
	// Operate is what belongs to no service: nodes, the mesh, tokens.
	Operate Kind = iota
	// Public is for everybody: the CA's roots, whether there is a leader.
	Public
	// Known is for everybody who has proved to be somebody.
	Known
	// Read is for people; an instance may read what is about its own service alone.
	Read
	// Register is what an instance's sidecar writes about itself.
	Register
	// Write changes what concerns the named services.
	Write
	// Audit reads tokens and the audit trail.
	Audit
)

// String is the right that the kind takes.
func (k Kind) String() string {
	switch k {
	case Public:
		return "that everybody has"
	case Known:
		return "to ask"
	case Read:
		return "to read"
	case Register:
		return "to register"
	case Write:
		return "to write"
	case Audit:
		return "to audit"
	default:
		return "to operate the mesh"
	}
}

// Need is what a request takes.
type Need struct {
	Kind Kind
	// Services are all that the request concerns; of Read, Register and Write.
	Services []string
	// Target names what is written, for the audit trail, where the path does not say it.
	Target string
	// Pulse marks a write that repeats what is known already, which the audit trail
	// does not keep: heartbeats.
	Pulse bool
}

// Refusal is why a request is not allowed.
type Refusal struct {
	Principal Principal
	Need      Need
}

// Error implements error.
func (r *Refusal) Error() string {
	of := ""
	if len(r.Need.Services) > 0 {
		of = fmt.Sprintf(" service %s", quoted(r.Need.Services))
	}
	if r.Principal.Role == Anonymous {
		return fmt.Sprintf("Permission denied: anonymous lacks the right %s%s: show a token (CROSSFADE_HTTP_TOKEN or --token-file)", r.Need.Kind, of)
	}
	return fmt.Sprintf("Permission denied: %s lacks the right %s%s", r.Principal, r.Need.Kind, of)
}

func quoted(names []string) string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = fmt.Sprintf("%q", n)
	}
	return strings.Join(out, ", ")
}

// Decide is the one place where rights are decided. Its error is a [*Refusal].
func Decide(p Principal, n Need) error {
	allowed := n.Kind == Public || p.Role == Operator
	person := p.Role == Reader || p.Role == Owner || p.Role == Auditor
	switch n.Kind {
	case Known:
		allowed = allowed || person || p.instance()
	case Read:
		allowed = allowed || person || p.instance() && p.owns(n.Services)
	case Register:
		allowed = allowed || (p.Role == Owner || p.instance()) && p.owns(n.Services)
	case Write:
		allowed = allowed || p.Role == Owner && p.owns(n.Services)
	case Audit:
		allowed = allowed || p.Role == Auditor
	}
	if allowed {
		return nil
	}
	return &Refusal{Principal: p, Need: n}
}
