package proxy

import (
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// Route is what requests to an HTTP upstream follow.
type Route struct {
	Name  string // [Upstream.Name]
	Chain routing.Chain
	// Rules are tried in order; the last matches everything.
	Rules []Rule
}

// Rule is what becomes of the requests that it matches.
type Rule struct {
	Match *config.HTTPMatch // nil: all
	// Idempotent restricts the rule to methods that may be repeated (RFC 9110,
	// section 9.2.2).
	Idempotent bool
	// PrefixRewrite takes the place of the path or prefix that was matched.
	PrefixRewrite   string
	RequestHeaders  *config.HeaderModifiers
	ResponseHeaders *config.HeaderModifiers
	Timeout         time.Duration // of the whole request; 0: none
	IdleTimeout     time.Duration // 0: as docs/envoy.md says
	Retry           Retry
	// Hash is what of a request chooses the instance, and the leg when Sticky is set.
	Hash []config.HashPolicy
	// Sticky divides by Hash rather than by chance.
	Sticky bool
	// Cookie, when set, restricts a sticky rule to requests that have this cookie;
	// the rule that follows makes one for the others.
	Cookie *config.StickyCookie
	// NewCookie gives the caller the cookie by which it is known from then on.
	NewCookie *config.StickyCookie

	// RewriteHost gives a request the Host of the instance that it goes to, where that
	// has one of its own.
	RewriteHost bool

	// Legs divide; several may lead to one cluster. Empty when Unreachable is set.
	Legs []RouteLeg
	// Unreachable is why nobody can answer.
	Unreachable string
}

// RouteLeg is a share of a rule's requests.
type RouteLeg struct {
	Cluster         string // or group
	Weight          uint32 // of routing.TotalWeight
	RequestHeaders  *config.HeaderModifiers
	ResponseHeaders *config.HeaderModifiers
}

// Retry says which failures are tried again, besides those after which the callee
// cannot have seen the request.
type Retry struct {
	On     []string // Envoy's words, sorted
	Codes  []uint32 // of answers, sorted
	Number uint32   // of retries at most
}

// afterSending reports whether a request is repeated that the callee may have seen.
func (r Retry) afterSending() bool { return len(r.Codes) > 0 || len(r.On) > 0 }
