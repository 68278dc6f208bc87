package server

import (
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/catalog/consul"
)

// answerWithin is how long an Envoy may owe an answer before it is behind. It may wait for
// endpoints half that long.
const answerWithin = 30 * time.Second

// health says what is stale, and since when.
func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	s.answer(w, api.Health{Findings: s.unhealthy(time.Now())})
}

// unhealthy collects from all who know of something.
func (s *Server) unhealthy(now time.Time) []api.Finding {
	out := []api.Finding{}
	for _, list := range [][]api.Finding{s.staleSource(), s.staleEngine(), s.heldServices(), s.streamsBehind(now), s.sidecarsAdrift(), s.notSavedYet(), s.expiring(now), s.caAway()} {
		out = append(out, list...)
	}
	slices.SortFunc(out, api.Finding.Compare)
	return out
}

// staleSource is what of the registry cannot be read.
func (s *Server) staleSource() (out []api.Finding) {
	source, ok := s.guard.source.(*consul.Source)
	if !ok {
		return nil // it is in this process
	}
	for _, q := range source.Stale() {
		what := "it cannot be reached"
		if q.Path != "" {
			what = q.Path + " cannot be read"
		}
		out = append(out, api.Finding{
			Severity: api.Critical, Subject: "consul " + s.opts.Consul, Since: q.Since.UTC(),
			Text: fmt.Sprintf("%s, what was read last stays in force: %s", what, q.Reason),
		})
	}
	return out
}

// heldServices are those of which the endpoint guard holds instances.
func (s *Server) heldServices() (out []api.Finding) {
	held, _, _ := s.guard.held()
	for _, h := range held {
		out = append(out, api.Finding{
			Severity: api.Critical, Subject: "service " + h.Service, Since: h.Since.UTC(),
			Text: h.String() + ": crossfade catalog held shows which, release and keep decide",
		})
	}
	return out
}

// caAway is what of Consul's CA does not work, where that is the mesh's.
func (s *Server) caAway() (out []api.Finding) {
	if s.consul == nil {
		return nil
	}
	for _, o := range s.consul.ca.Outages() {
		out = append(out, api.Finding{Severity: api.Critical, Subject: "CA of consul " + s.opts.Consul, Since: o.Since.UTC(), Text: fmt.Sprintf("%s: %v", o.What, o.Reason)})
	}
	return out
}

// streamsBehind are Envoys that owe an answer for too long.
func (s *Server) streamsBehind(now time.Time) (out []api.Finding) {
	for _, st := range s.mesh.xds.Status() {
		for kind, of := range st.Types {
			if of.Pending && now.Sub(of.PendingSince) >= answerWithin {
				out = append(out, api.Finding{
					Severity: api.Warning, Subject: "sidecar " + st.Node, Since: of.PendingSince.UTC(),
					Text: "it has not answered a change of type " + kind + ", and runs what was before",
				})
			}
		}
	}
	return out
}

// sidecarsAdrift are those that say of themselves that their Envoy does not run what it was told.
func (s *Server) sidecarsAdrift() (out []api.Finding) {
	for _, node := range s.mesh.xds.Connected() {
		if d := s.mesh.driftOn(node); d != nil && !d.Since.IsZero() {
			out = append(out, api.Finding{Severity: api.Warning, Subject: "sidecar " + node, Since: d.Since, Text: d.Text()})
		}
	}
	return out
}

// notSavedYet are entries in force that are lost with the process.
func (s *Server) notSavedYet() (out []api.Finding) {
	for name, u := range s.mesh.notSaved() {
		out = append(out, api.Finding{Severity: api.Critical, Subject: "entry " + name, Text: "it is in force and not saved: " + u.why})
	}
	return out
}

// expiring are the server's own certificates that should have been renewed.
func (s *Server) expiring(now time.Time) (out []api.Finding) {
	for _, root := range s.ca.Roots().Roots {
		out = append(out, api.Expiry("CA root "+root.Name, root.NotBefore, root.NotAfter, now)...)
	}
	if s.leaf != nil {
		if cert, err := s.leaf.Get(nil); err != nil {
			out = append(out, api.Finding{Severity: api.Critical, Subject: "server certificate", Text: err.Error()})
		} else {
			out = append(out, api.Expiry("server certificate", cert.Leaf.NotBefore, cert.Leaf.NotAfter, now)...)
		}
	}
	return out
}
