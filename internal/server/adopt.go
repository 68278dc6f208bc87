package server

import (
	"slices"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/envoy"
)

// adopt takes over shares that a sidecar has of a higher generation than the server: it has
// lost them, with its disk or since they were never saved. It happens before the sidecar is
// told anything, so that no older share is put in force again. A sidecar speaks for its own
// pairs, of destinations that it declares.
func (s *Server) adopt(n node, meta *corev3.Node) {
	held := meta.GetMetadata().GetFields()["crossfade_shifts"].GetStructValue().GetFields()
	if len(held) == 0 || len(held) > api.MaxPairs {
		return
	}
	in, ok := s.mesh.snapshot().Proxy(n.id, n.name)
	if !ok {
		return
	}
	source := in.Service.Proxy.DestinationServiceName
	for destination, value := range held {
		generation, shares, err := envoy.ParseShift(value.GetStringValue())
		declared := slices.ContainsFunc(in.Service.Proxy.Upstreams, func(u catalog.Upstream) bool { return u.DestinationName == destination })
		if err != nil || !declared {
			continue
		}
		s.adoptOne(api.PairName{Source: source, Destination: destination}, generation, shares, n.id)
	}
}

func (s *Server) adoptOne(p api.PairName, generation uint64, shares config.Shares, sidecar string) {
	newer := func(old *config.TrafficShift) bool {
		return old != nil && generation > old.Generation && generation-old.Generation < 1<<32 && shares != old.Shares
	}
	if !newer(s.mesh.config().TrafficShift(p.Source, p.Destination)) {
		return
	}
	by := store.Author{Who: "sidecar " + sidecar, Time: time.Now(), What: "adopted"}
	var written *config.TrafficShift
	_, err := s.change(func(w *store.Writer) error {
		old, _ := decidingOf(p, w.Entry)
		if written = nil; !newer(old) {
			return nil
		}
		e := next(p, old)
		e.Shares, e.Generation = shares, generation
		if err := checked(e); err != nil {
			return err
		}
		written = e
		return w.PutEntry(e, by)
	})
	if written != nil && diskFailed(err) {
		s.mesh.over([]unsaved{{written, by, oneLine(err)}})
		err = nil
	}
	switch {
	case err != nil:
		s.opts.Log.Error("newer shares that a sidecar has can't be adopted", "pair", p.String(), "sidecar", sidecar, "reason", err)
	case written != nil:
		s.opts.Log.Warn("newer shares than this server knew are adopted from a sidecar", "pair", p.String(), "sidecar", sidecar, "shares", api.Shares(shares).String(), "generation", generation)
	}
}
