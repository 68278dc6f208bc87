package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
)

// stateRuling begins the names of decisions about what the endpoint guard holds; a service follows.
const stateRuling = "ruling/"

// releaseKept is for how long a release is there for servers that do not hear of it at once.
const releaseKept = 24 * time.Hour

// decideHeld decides about what is held of a service, on all servers that share the store.
func (s *Server) decideHeld(d catalog.Decision) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		service := r.PathValue("service")
		by := catalog.Decided{Who: s.door.author(r), Time: time.Now().UTC()}
		ruling, was, ok := s.guard.rule(service, d, by)
		if !ok {
			http.Error(w, fmt.Sprintf("catalog %s: service %q: nothing of it is held", d, clipped(service)), http.StatusNotFound)
			return
		}
		if err := s.saveRuling(service, ruling); err != nil {
			http.Error(w, fmt.Sprintf("catalog %s: service %q: not decided: %v", d, clipped(service), err), http.StatusInternalServerError)
			return
		}
		s.store.Read(r.Context(), 0, func(r *store.Reader) { s.guard.ruled(s.rulings(r)) })
		s.answer(w, api.HeldDecision{Service: service, Decision: string(d), Instances: len(was.Instances) + len(was.Silent), By: by.Who, Time: by.Time})
	}
}

// saveRuling puts a decision where all servers find it, and takes away those that are over.
func (s *Server) saveRuling(service string, r catalog.Ruling) error {
	value, err := json.Marshal(r)
	if err != nil {
		return err
	}
	over := s.guard.over(r.By.Time)
	return s.store.Update(func(w *store.Writer) error {
		for name, value := range w.States(stateRuling) {
			var was catalog.Ruling
			if name != service && (json.Unmarshal(value, &was) != nil || over(name, was)) {
				if err := w.DeleteState(stateRuling + name); err != nil {
					return err
				}
			}
		}
		return w.PutState(stateRuling+service, value)
	})
}

// followRulings lets the guard heed what is decided on any server, until ctx ends.
func (s *Server) followRulings(ctx context.Context) {
	s.store.ReadUntil(ctx, func(r *store.Reader) bool {
		s.guard.ruled(s.rulings(r))
		return ctx.Err() != nil
	})
}

// rulings are the decisions that are kept, by service.
func (s *Server) rulings(r *store.Reader) map[string]catalog.Ruling {
	out := map[string]catalog.Ruling{}
	for service, value := range r.States(stateRuling) {
		var ruling catalog.Ruling
		if err := json.Unmarshal(value, &ruling); err != nil {
			s.opts.Log.Error("a decision about what the endpoint guard holds can't be read", "service", service, "reason", err)
			continue
		}
		out[service] = ruling
	}
	return out
}

// rule is a decision about what is held of a service; false when nothing is.
func (g *endpointGuard) rule(service string, d catalog.Decision, by catalog.Decided) (r catalog.Ruling, was catalog.Held, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r, ok = g.guard.Rule(service, d, by); !ok {
		return r, was, false
	}
	for _, h := range g.guard.Held() {
		if h.Service == service {
			was = h
		}
	}
	return r, was, true
}

// ruled takes in all decisions there are, and carries them out on what is held now, or will be.
func (g *endpointGuard) ruled(all map[string]catalog.Ruling) {
	g.mu.Lock()
	defer g.mu.Unlock()
	news := false
	for service, r := range all {
		if was, ok := g.rulings[service]; ok && was.By == r.By {
			all[service] = was // some of it may be done
		} else {
			news = true
		}
	}
	g.rulings = all
	if news && g.raw != nil {
		g.step(time.Now())
		g.file.now()
	}
}

// heed carries out what is decided about services that are held. The caller holds mu.
func (g *endpointGuard) heed() {
	for _, h := range g.guard.Held() {
		r, ok := g.rulings[h.Service]
		if !ok {
			continue
		}
		guard, rest := g.guard.Heed(h.Service, r)
		g.guard, g.rulings[h.Service] = guard, rest
		if n := len(r.Of) - len(rest.Of); n > 0 {
			g.log.Warn("endpoint guard was told", "service", h.Service, "decision", string(r.Decision), "instances", n, "by", r.By.Who)
		}
	}
}

// over tells which decisions nobody needs any more.
func (g *endpointGuard) over(now time.Time) func(service string, r catalog.Ruling) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	kept := map[string]bool{}
	for _, h := range g.guard.Held() {
		kept[h.Service] = !h.Kept.Time.IsZero()
	}
	return func(service string, r catalog.Ruling) bool {
		return !kept[service] && now.Sub(r.By.Time) > releaseKept
	}
}
