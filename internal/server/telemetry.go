package server

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/crossfade-mesh/crossfade/internal/access"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/shift"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

// reporters is who may report, and what becomes of reports.
func (s *Server) reporters() *telemetry.Server {
	return &telemetry.Server{Admit: s.mesh.reporter, Take: s.mesh.report}
}

// reporter admits a sidecar's reports: outside development mode, of an instance of the
// caller's own service.
func (m *mesh) reporter(ctx context.Context, nodeName, sidecar string) (telemetry.Key, error) {
	in := node{id: sidecar, name: nodeName}
	if caller := callerOf(ctx); m.minter == nil {
		if caller.Role != access.Service && caller.Role != access.Join {
			return telemetry.Key{}, status.Errorf(codes.PermissionDenied, "telemetry of sidecar %q: only the instance itself reports", sidecar)
		}
		in.service = caller.Services[0]
	}
	if err := m.awaitOwn(ctx, in); err != nil {
		return telemetry.Key{}, err
	}
	found, ok := m.snapshot().Proxy(sidecar, nodeName)
	if !ok {
		return telemetry.Key{}, status.Errorf(codes.Unavailable, "telemetry of sidecar %q on node %q: not registered any more", sidecar, nodeName)
	}
	return keyOf(found), nil
}

func keyOf(in catalog.Instance) telemetry.Key {
	return telemetry.Key{Node: in.Node.Name, Sidecar: in.Service.ID, Service: in.Service.Proxy.DestinationServiceName}
}

// report takes one in. It may tell of the destinations that its sidecar declares alone.
func (m *mesh) report(key telemetry.Key, r telemetry.Report, now time.Time) {
	in, ok := m.snapshot().Proxy(key.Sidecar, key.Node)
	if !ok {
		return
	}
	declares := func(name string) bool {
		return slices.ContainsFunc(in.Service.Proxy.Upstreams, func(u catalog.Upstream) bool { return u.DestinationName == name })
	}
	r.Outbound = slices.DeleteFunc(r.Outbound, func(o telemetry.Outbound) bool { return !declares(o.Destination) })
	r.Open = slices.DeleteFunc(r.Open, func(o telemetry.Open) bool { return !declares(o.Destination) })
	r.Probes = slices.DeleteFunc(r.Probes, func(p telemetry.Probe) bool { return !declares(p.Destination) })
	m.book.Put(key, r, now)
}

// keepBook forgets what is not registered any more.
func (m *mesh) keepBook(now time.Time) {
	snap := m.snapshot()
	declared := sourcesOf(snap, m.datacenter)
	m.book.Keep(now, func(k telemetry.Key) bool {
		in, ok := snap.Proxy(k.Sidecar, k.Node)
		return ok && keyOf(in) == k
	}, func(p shift.Pair) bool {
		of := declared[p.Source]
		return of != nil && len(of.calls[p.Destination]) > 0
	})
}
