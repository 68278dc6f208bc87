// Package consulapi is Consul's HTTP API over the embedded registry: the same
// paths, parameters, shapes, headers and status codes, so that Consul's clients
// and CLI work unchanged.
//
// In: HTTP requests. Out: reads and writes of a [store.Store], and, through
// [Agent], checks to run. One server is the agent of its own node and, as an
// extension, of any node a caller names: the agent endpoints take node=NAME and,
// to register it, address=IP.
//
// What Consul has and this registry has not (events, prepared queries, …) answers 501 with a reason; other unknown paths answer 404.
//
// It leaves keeping rows to catalog/store, decoding of definitions and entries to
// config, running checks to package check, and roots to package ca.
package consulapi

import (
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/access"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// ConsulVersion is the version of Consul whose API is answered.
const ConsulVersion = "1.22.0"

// Roots gives the certificate authority's roots as /v1/connect/ca/roots shows them,
// and a channel that is closed once they are outdated.
type Roots func() (roots any, outdated <-chan struct{})

// Options are what the API needs from its server.
type Options struct {
	Store *store.Store // opened with a node name
	// Agent runs checks; nil: one without a runner, so that checks keep the status
	// they are given.
	Agent *Agent
	// Roots may be nil: then there is no certificate authority.
	Roots Roots
	// TrustDomain is the certificate authority's.
	TrustDomain string
	// DefaultIntention decides between services that no intention names; "" is allow.
	DefaultIntention config.Action
	// Authorize decides whether the caller of a request may do what it takes. An
	// [access.Refusal] is answered 403. Nil: everybody may do everything.
	Authorize func(*http.Request, access.Need) error
	// Who names the caller of a request in the history of entries. Nil: "dev", which
	// everybody is where nobody is asked who they are.
	Who func(*http.Request) string
	// Now is when a write happens. Nil: the system's clock.
	Now func() time.Time
	// Server answers, under /v1/crossfade/, what takes more than the registry to know;
	// whether the caller may ask is decided here. Nil: those paths answer 501.
	Server http.Handler
	// GRPCAddr and GRPCTLSAddr are where xDS is served, as host:port; "" for not at all.
	GRPCAddr, GRPCTLSAddr string
	// HTTPAddr and HTTPSAddr are where this API is served, as host:port; "" for not at all.
	HTTPAddr, HTTPSAddr string
	// Version is crossfade's own.
	Version string
	// EnvoyVersions are those that sidecars may run.
	EnvoyVersions []string
	Log           *slog.Logger // nil: discard
}

type api struct {
	Options
	store *store.Store
	agent *Agent
	log   *slog.Logger
	needs map[string]need // by method and path

	roots rootsHistory
}

// New is the handler for everything under /v1/.
func New(o Options) http.Handler {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Agent == nil {
		o.Agent = NewAgent(o.Store, o.Log)
	}
	if o.DefaultIntention == "" {
		o.DefaultIntention = config.Allow
	}
	if o.Who == nil {
		o.Who = func(*http.Request) string { return "dev" }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	a := &api{Options: o, store: o.Store, agent: o.Agent, log: o.Log, needs: needs()}
	mux := http.NewServeMux()
	for _, rt := range routes() {
		mux.HandleFunc(rt.path, func(w http.ResponseWriter, r *http.Request) { a.serve(rt, w, r) })
	}
	for _, path := range NotServed() {
		answer := func(c *call) (any, error) {
			return nil, notServed("%s %s: not served by crossfade's registry; run a Consul and point --consul at it", c.r.Method, c.r.URL.Path)
		}
		rt := route{path: path, get: answer, put: answer, post: answer, del: answer}
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) { a.serve(rt, w, r) })
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		c := &call{api: a, w: w, r: r}
		if strings.HasPrefix(r.URL.Path, "/v1/") {
			c.fail(notFound("Invalid URL path: not a recognized HTTP API endpoint\n"))
		} else {
			c.fail(notFound("Invalid URL path: if attempting to use the HTTP API, ensure the path starts with '/v1/'\n"))
		}
	})
	return mux
}

func routes() []route {
	return []route{
		{path: "/v1/status/leader", get: statusLeader},
		{path: "/v1/status/peers", get: statusPeers},

		{path: "/v1/agent/self", get: agentSelf},
		{path: "/v1/agent/version", get: agentVersion},
		{path: "/v1/agent/members", get: agentMembers},
		{path: "/v1/agent/maintenance", put: nodeMaintenance},
		{path: "/v1/agent/services", get: agentServices},
		{path: "/v1/agent/service/", get: agentService},
		{path: "/v1/agent/service/register", put: registerService},
		{path: "/v1/agent/service/deregister/", put: deregisterService},
		{path: "/v1/agent/service/maintenance/", put: serviceMaintenance},
		{path: "/v1/agent/checks", get: agentChecks},
		{path: "/v1/agent/check/register", put: registerCheck},
		{path: "/v1/agent/check/deregister/", put: deregisterCheck},
		{path: "/v1/agent/check/pass/", put: passCheck},
		{path: "/v1/agent/check/warn/", put: warnCheck},
		{path: "/v1/agent/check/fail/", put: failCheck},
		{path: "/v1/agent/check/update/", put: updateCheck},
		{path: "/v1/agent/health/service/id/", get: serviceHealthByID},
		{path: "/v1/agent/health/service/name/", get: serviceHealthByName},
		{path: "/v1/agent/connect/ca/roots", get: caRoots},

		{path: "/v1/catalog/register", put: catalogRegister},
		{path: "/v1/catalog/deregister", put: catalogDeregister},
		{path: "/v1/catalog/datacenters", get: catalogDatacenters},
		{path: "/v1/catalog/nodes", get: catalogNodes},
		{path: "/v1/catalog/services", get: catalogServices},
		{path: "/v1/catalog/service/", get: catalogService},
		{path: "/v1/catalog/connect/", get: catalogConnect},
		{path: "/v1/catalog/node/", get: catalogNode},
		{path: "/v1/catalog/node-services/", get: catalogNodeServices},

		{path: "/v1/health/node/", get: healthNode},
		{path: "/v1/health/checks/", get: healthChecks},
		{path: "/v1/health/service/", get: healthService},
		{path: "/v1/health/connect/", get: healthConnect},
		{path: "/v1/health/state/", get: healthState},

		{path: "/v1/txn", put: applyTxn},

		{path: "/v1/session/create", put: createSession},
		{path: "/v1/session/destroy/", put: destroySession},
		{path: "/v1/session/renew/", put: renewSession},
		{path: "/v1/session/info/", get: sessionInfo},
		{path: "/v1/session/node/", get: nodeSessions},
		{path: "/v1/session/list", get: listSessions},

		{path: "/v1/kv/", get: getKV, put: putKV, del: deleteKV},

		{path: "/v1/config", put: putEntry},
		{path: "/v1/config/", get: getEntry, del: deleteEntry},

		{path: "/v1/discovery-chain/", get: getChain, post: postChain},

		{path: "/v1/connect/ca/roots", get: caRoots},
		{path: "/v1/connect/intentions", get: listIntentions, post: createIntention},
		{path: "/v1/connect/intentions/", get: getIntentionByID, put: putIntentionByID, del: deleteIntentionByID},
		{path: "/v1/connect/intentions/exact", get: getIntention, put: putIntention, del: deleteIntention},
		{path: "/v1/connect/intentions/match", get: matchIntentions},
		{path: "/v1/connect/intentions/check", get: checkIntention},

		{path: "/v1/crossfade/applied", get: askServer},
		{path: "/v1/crossfade/config/plan", post: askServer},
		{path: "/v1/crossfade/config/check", get: askServer},
		{path: "/v1/crossfade/chain/", get: askServer},
		{path: "/v1/crossfade/sidecars/", put: askServer},
		{path: "/v1/crossfade/pairs", get: askServer},
		{path: "/v1/crossfade/pairs/", get: askServer},
		{path: "/v1/crossfade/telemetry/", get: askServer},
		{path: "/v1/crossfade/shift", post: askServer},
		{path: "/v1/crossfade/shift/log", get: askServer},
		{path: "/v1/crossfade/revert", post: askServer},
		{path: "/v1/crossfade/catalog/held", get: askServer},
		{path: "/v1/crossfade/catalog/release/", put: askServer},
		{path: "/v1/crossfade/catalog/keep/", put: askServer},
		{path: "/v1/crossfade/metrics", get: askServer},
		{path: "/v1/crossfade/cuts/", get: askServer},
		{path: "/v1/crossfade/config/history/", get: entryHistory},
		{path: "/v1/crossfade/config/rollback/", put: rollBackEntry},

		{path: "/v1/acl/", get: aclDisabled, put: aclDisabled, del: aclDisabled},
	}
}

// Patterns lists what is served, as "METHOD path"; a path that ends in a slash stands for
// all below it.
func Patterns() (out []string) {
	for _, rt := range routes() {
		for method := range rt.methods() {
			out = append(out, method+" "+rt.path)
		}
	}
	slices.Sort(out)
	return out
}

// NotServed lists Consul's paths that have no meaning here; one that ends in a slash stands for
// all below it.
func NotServed() []string {
	return []string{
		"/v1/agent/connect/authorize", "/v1/agent/connect/ca/leaf/", "/v1/agent/force-leave/", "/v1/agent/host",
		"/v1/agent/join/", "/v1/agent/leave", "/v1/agent/metrics", "/v1/agent/metrics/stream", "/v1/agent/monitor",
		"/v1/agent/reload", "/v1/agent/token/", "/v1/catalog/gateway-services/", "/v1/config-entries/",
		"/v1/connect/ca/configuration", "/v1/coordinate/",
		"/v1/event/", "/v1/exported-services", "/v1/health/ingress/", "/v1/imported-services", "/v1/internal/",
		"/v1/operator/", "/v1/peering", "/v1/peering/", "/v1/peerings", "/v1/query", "/v1/query/",
		"/v1/snapshot",
	}
}

// askServer passes a call on that may be made.
func askServer(c *call) (any, error) {
	if c.api.Server == nil {
		return nil, notServed("%s %s: not served here", c.r.Method, c.r.URL.Path)
	}
	c.api.Server.ServeHTTP(c.w, c.r)
	return done{}, nil
}

func aclDisabled(*call) (any, error) {
	return nil, &httpError{http.StatusUnauthorized, "ACL support disabled"}
}

// rootsHistory gives each version of the roots an index.
type rootsHistory struct {
	mu    sync.Mutex
	last  <-chan struct{} // identifies the version; guarded by mu
	index uint64          // of that version; guarded by mu
}

// at is the index of the version that outdated belongs to; floor is a lower bound
// for that of a new one.
func (h *rootsHistory) at(outdated <-chan struct{}, floor uint64) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.last != outdated {
		h.last, h.index = outdated, max(h.index+1, floor)
	}
	return h.index
}

// port is the port of a host:port, or -1 when there is none.
func port(addr string) int {
	_, p, err := net.SplitHostPort(addr)
	n, bad := strconv.Atoi(p)
	if err != nil || bad != nil {
		return -1
	}
	return n
}
