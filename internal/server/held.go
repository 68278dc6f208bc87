package server

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

// catalogHeld shows what the endpoint guard holds, and which instances are left out.
func (s *Server) catalogHeld(w http.ResponseWriter, _ *http.Request) {
	held, bad, _ := s.guard.held()
	out := api.CatalogHeld{Services: []api.HeldService{}, LeftOut: []api.LeftOut{}}
	if p := s.opts.Guard; !p.Off {
		p = p.Defaults()
		out.Guard = api.GuardPolicy{On: true, Most: p.Most, Window: p.Window.String(), Rate: p.Rate}
	}
	for _, h := range held {
		row := api.HeldService{Service: h.Service, Since: h.Since, Why: h.String(), Present: h.Present, Gone: heldInstances(h.Instances), Silent: heldInstances(h.Silent)}
		if !h.Kept.Time.IsZero() {
			row.KeptBy, row.KeptAt = h.Kept.Who, &h.Kept.Time
		}
		out.Services = append(out.Services, row)
	}
	for _, b := range bad {
		out.LeftOut = append(out.LeftOut, api.LeftOut(b))
	}
	out.LeftOut = append(out.LeftOut, unreachable(s.mesh.snapshot())...)
	s.answer(w, out)
}

func heldInstances(list []catalog.Instance) (out []api.HeldInstance) {
	for _, in := range list {
		out = append(out, api.HeldInstance{ID: in.Service.ID, Node: in.Node.Name, Address: in.Address(), Port: in.Service.Port})
	}
	return out
}

// unreachable lists instances that carry a service's traffic at an address or port that
// nobody can connect to: sidecars are not told of them.
func unreachable(snap *catalog.Snapshot) (out []api.LeftOut) {
	for _, name := range snap.Services() {
		for _, in := range snap.Set(name).Instances {
			if in.Service.Kind != catalog.ConnectProxy && !in.Service.Connect.Native {
				continue
			}
			reason := ""
			if _, err := netip.ParseAddr(in.Address()); err != nil {
				reason = fmt.Sprintf("address %q is no IP address", in.Address())
			} else if in.Service.Port < 1 || in.Service.Port > 65535 {
				reason = fmt.Sprintf("port %d is not between 1 and 65535", in.Service.Port)
			}
			if reason != "" {
				out = append(out, api.LeftOut{Service: name, Reason: fmt.Sprintf("instance %q on node %q: %s", in.Service.ID, in.Node.Name, reason)})
			}
		}
	}
	return out
}

// metrics are in the text format of Prometheus.
func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) {
	held, bad, alarms := s.guard.held()
	var b strings.Builder
	family := func(name, kind, help string) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
	}
	family("crossfade_catalog_held_instances", "gauge", "Instances that the endpoint guard holds though the registry no longer has them, or hears nothing of them.")
	for _, h := range held {
		fmt.Fprintf(&b, "crossfade_catalog_held_instances{service=%q} %d\n", h.Service, len(h.Instances)+len(h.Silent))
	}
	family("crossfade_catalog_held_services", "gauge", "Services of which the endpoint guard holds instances.")
	fmt.Fprintf(&b, "crossfade_catalog_held_services %d\n", len(held))
	family("crossfade_catalog_holds_total", "counter", "How often the endpoint guard began to hold instances of a service, and said so.")
	fmt.Fprintf(&b, "crossfade_catalog_holds_total %d\n", alarms)
	family("crossfade_catalog_left_out_instances", "gauge", "Instances that are left out alone for what they are registered with.")
	fmt.Fprintf(&b, "crossfade_catalog_left_out_instances %d\n", len(bad)+len(unreachable(s.mesh.snapshot())))
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	if _, err := w.Write([]byte(b.String())); err != nil {
		s.opts.Log.Debug("answer not written", "reason", err)
	}
}
