package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/docs"
	"github.com/crossfade-mesh/crossfade/internal/access"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// Headers that Consul doesn't have.
const (
	// versionHeader is on every answer and tells a crossfade server from a Consul agent.
	versionHeader = "X-Crossfade-Version"
	// waitedHeader is "3/3": callers that have taken a deregistration in, of all connected ones.
	waitedHeader = "X-Crossfade-Waited"
)

// maxWait bounds how long a deregistration waits for callers.
const maxWait = time.Minute

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", s.api)
	mux.HandleFunc("PUT /v1/agent/service/deregister/{id}", s.deregister)
	if s.opts.Consul != "" {
		for _, below := range askedOfConsul() {
			mux.HandleFunc(below, s.askConsul)
		}
	}
	for pattern, h := range s.direct() {
		mux.HandleFunc(pattern, h)
	}
	// A page in somebody's browser must not write to a server on the same machine.
	same := http.NewCrossOriginProtection().Handler(s.door.entrance(mux))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(versionHeader, s.opts.Version)
		same.ServeHTTP(w, r)
	})
}

// direct are the endpoints that see to rights themselves.
func (s *Server) direct() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"GET /v1/crossfade/openapi.yaml":         s.readable(openAPI),
		"GET /v1/crossfade/sidecars":             s.readable(s.sidecars),
		"GET /v1/crossfade/proxies":              s.readable(s.proxies),
		"GET /v1/crossfade/health":               s.readable(s.health),
		"PUT /v1/crossfade/tokens":               s.createToken,
		"GET /v1/crossfade/tokens":               s.listTokens,
		"DELETE /v1/crossfade/tokens/{accessor}": s.revokeToken,
		"GET /v1/crossfade/audit":                s.audit,
	}
}

// openAPI describes all of them, and the others of crossfade's own.
func openAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/yaml")
	w.Write(docs.OpenAPI)
}

// own answers what takes the mesh to know. [consulapi] decides who may ask.
func (s *Server) own() http.Handler {
	mux := http.NewServeMux()
	for pattern, h := range s.asked() {
		mux.HandleFunc(pattern, h)
	}
	return mux
}

func (s *Server) asked() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"GET /v1/crossfade/applied":                          s.applied,
		"POST /v1/crossfade/config/plan":                     s.plan,
		"GET /v1/crossfade/config/check":                     s.check,
		"GET /v1/crossfade/chain/{service}":                  s.chain,
		"PUT /v1/crossfade/sidecars/{id}/connections":        s.connections,
		"GET /v1/crossfade/pairs":                            s.pairs,
		"GET /v1/crossfade/pairs/{source}/{destination}":     s.pair,
		"GET /v1/crossfade/telemetry/{source}/{destination}": s.telemetry,
		"POST /v1/crossfade/shift":                           s.shift,
		"GET /v1/crossfade/shift/log":                        s.shiftLog,
		"POST /v1/crossfade/revert":                          s.revert,
		"GET /v1/crossfade/catalog/held":                     s.catalogHeld,
		"PUT /v1/crossfade/catalog/release/{service}":        s.decideHeld(catalog.Release),
		"PUT /v1/crossfade/catalog/keep/{service}":           s.decideHeld(catalog.Keep),
		"GET /v1/crossfade/metrics":                          s.metrics,
		"GET /v1/crossfade/cuts/{id}":                        s.cutState,
	}
}

// readable is an endpoint for everybody who may read.
func (s *Server) readable(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if s.allowed(w, r, access.Need{Kind: access.Read}) {
			h(w, r)
		}
	}
}

// deregister is Consul's, and with ?wait=10s answers only when every connected
// caller has acknowledged endpoints without the instance, or the time is over.
func (s *Server) deregister(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if s.opts.Consul != "" {
		s.askConsul(w, r)
		return
	}
	if q.Get("wait") == "" {
		s.api.ServeHTTP(w, r)
		return
	}
	wait, err := time.ParseDuration(q.Get("wait"))
	if err != nil || wait < 0 {
		http.Error(w, fmt.Sprintf("Invalid wait %q: want a duration such as 10s", q.Get("wait")), http.StatusBadRequest)
		return
	}
	services := s.mesh.servicesOf(r.PathValue("id"), q.Get("node"))
	held := &heldResponse{header: http.Header{}, code: http.StatusOK}
	s.api.ServeHTTP(held, r)
	if held.code == http.StatusOK {
		ctx, cancel := context.WithTimeout(r.Context(), min(wait, maxWait))
		defer cancel()
		settled, total := s.settled(ctx, services)
		if len(s.mesh.servicesOf(r.PathValue("id"), q.Get("node"))) > 0 {
			settled = 0 // the endpoint guard was told to keep it, or has others leave first
		}
		w.Header().Set(waitedHeader, fmt.Sprintf("%d/%d", settled, total))
	}
	maps.Copy(w.Header(), held.header)
	w.WriteHeader(held.code)
	w.Write(held.body.Bytes())
}

// settled waits until callers of the services know what the registry knows now.
func (s *Server) settled(ctx context.Context, services []string) (settled, total int) {
	var index uint64
	s.store.Read(ctx, 0, func(r *store.Reader) { index = r.Index() })
	if err := s.mesh.waitIndex(ctx, index); err != nil {
		s.opts.Log.Warn("callers not told of a deregistration in time", "services", strings.Join(services, ","), "reason", err)
	}
	for _, service := range services {
		n, of, err := s.mesh.settle(ctx, service)
		settled, total = settled+n, total+of
		if err != nil {
			s.opts.Log.Warn("not every caller has acknowledged a deregistration", "service", service, "acknowledged", n, "callers", of)
		}
	}
	return settled, total
}

// servicesOf lists the services whose endpoints an instance, or a proxy, takes part in.
func (m *mesh) servicesOf(id, node string) []string {
	snap := m.snapshot()
	found := map[string]struct{}{}
	if in, ok := snap.Proxy(id, node); ok {
		found[in.Service.Proxy.DestinationServiceName] = struct{}{}
	}
	if in, ok := snap.ProxyFor(id, node); ok {
		found[in.Service.Proxy.DestinationServiceName] = struct{}{}
	}
	return slices.Sorted(maps.Keys(found))
}

// sidecarStatus is a stream with what could not be honoured for it.
type sidecarStatus struct {
	xds.StreamStatus
	Problems []string `json:"problems,omitempty"`
	// Connections are those open by listener, as the sidecar has reported lately.
	Connections map[string]int64 `json:"connections,omitempty"`
	// Drift is what the sidecar says of an Envoy that did not run what it was told.
	Drift *api.Drift `json:"drift,omitempty"`
}

// sidecars shows every connected sidecar: what it was told, holds and refused.
func (s *Server) sidecars(w http.ResponseWriter, _ *http.Request) {
	out := []sidecarStatus{}
	for _, st := range s.mesh.xds.Status() {
		row := sidecarStatus{StreamStatus: st, Connections: s.mesh.openOn(st.Node), Drift: s.mesh.driftOn(st.Node)}
		for _, p := range s.mesh.problemsOf(st.Node) {
			row.Problems = append(row.Problems, p.String())
		}
		out = append(out, row)
	}
	s.answer(w, out)
}

func (m *mesh) problemsOf(key string) []proxy.Problem {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.problems[key]
}

// registeredProxy is a connect-proxy in the catalog that sidecars are served from.
type registeredProxy struct {
	Node    *catalog.Node
	Service *catalog.Service
}

// proxies lists the registered connect-proxies with the given id, or that stand
// for the instance sidecar-for, on the given node or any.
func (s *Server) proxies(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	out := []registeredProxy{}
	for _, in := range s.mesh.snapshot().Proxies() {
		if (q.Get("id") == "" || q.Get("id") == in.Service.ID) &&
			(q.Get("sidecar-for") == "" || q.Get("sidecar-for") == in.Service.Proxy.DestinationServiceID) &&
			(q.Get("node") == "" || q.Get("node") == in.Node.Name) {
			out = append(out, registeredProxy{in.Node, in.Service})
		}
	}
	s.answer(w, out)
}

func (s *Server) answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.opts.Log.Debug("answer not written", "reason", err)
	}
}

// heldResponse keeps an answer until it may go out.
type heldResponse struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (h *heldResponse) Header() http.Header         { return h.header }
func (h *heldResponse) WriteHeader(code int)        { h.code = code }
func (h *heldResponse) Write(b []byte) (int, error) { return h.body.Write(b) }
