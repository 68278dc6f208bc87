package server

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/access"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/shift"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

// reporters is who may report, and what becomes of reports. Checks that a Consul has are pulsed
// there.
func (s *Server) reporters() *telemetry.Server {
	out := &telemetry.Server{Admit: s.mesh.reporter, Take: s.mesh.report, Pulse: s.pulse, Connections: s.mesh.takeConnections}
	if s.engine != nil {
		out.Pulse = nil
		out.Take = func(key telemetry.Key, r telemetry.Report, now time.Time) {
			s.others.keep(key, r, now)
			s.mesh.report(key, r, now)
		}
	}
	return out
}

// pulse sets the checks of a sidecar and its service. An error says why the registration is not
// what the sidecar takes it for.
func (s *Server) pulse(key telemetry.Key, alive telemetry.Alive) error {
	in, ok := s.mesh.snapshot().Proxy(key.Sidecar, key.Node)
	if !ok || keyOf(in) != key {
		return status.Errorf(codes.NotFound, "sidecar %q on node %q: not registered any more", key.Sidecar, key.Node)
	}
	if in.Service.Port != alive.Port {
		return status.Errorf(codes.FailedPrecondition, "sidecar %q on node %q: registered at port %d, not %d: two instances use one id", key.Sidecar, key.Node, in.Service.Port, alive.Port)
	}
	for _, c := range alive.Checks {
		owner := ""
		s.store.Read(context.Background(), 0, func(r *store.Reader) {
			if check, _ := r.Check(key.Node, c.ID); check != nil {
				owner = check.ServiceID
			}
		})
		if owner == "" || owner != key.Sidecar && owner != in.Service.Proxy.DestinationServiceID {
			return status.Errorf(codes.NotFound, "check %q on node %q: none of sidecar %q or its service", c.ID, key.Node, key.Sidecar)
		}
		if err := s.agent.Pulse(key.Node, c.ID, c.Status, c.Output); err != nil {
			return status.Errorf(codes.NotFound, "check %q on node %q: %v", c.ID, key.Node, err)
		}
	}
	return nil
}

// takeConnections takes in how many connections the listeners of a reporting sidecar have open.
func (m *mesh) takeConnections(key telemetry.Key, c telemetry.Connections) error {
	in, ok := m.snapshot().Proxy(key.Sidecar, key.Node)
	if !ok {
		return nil
	}
	return m.open.take(in, c, time.Now())
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
	r.Cuts = slices.DeleteFunc(r.Cuts, func(c telemetry.Cut) bool { return !declares(c.Destination) })
	m.book.Put(key, r, now)
}

// keepBook forgets what is not registered any more.
func (m *mesh) keepBook(now time.Time) {
	snap := m.snapshot()
	declared := map[string]*source{}
	m.book.Keep(now, func(k telemetry.Key) bool {
		in, ok := snap.Proxy(k.Sidecar, k.Node)
		return ok && keyOf(in) == k
	}, func(p shift.Pair) bool {
		of, known := declared[p.Source]
		if !known {
			of = sourceOf(snap, m.datacenter, p.Source)
			declared[p.Source] = of
		}
		return of != nil && len(of.calls[p.Destination]) > 0
	})
}

// telemetry is what a pair did in about the last minute.
func (s *Server) telemetry(w http.ResponseWriter, r *http.Request) {
	name := api.PairName{Source: r.PathValue("source"), Destination: r.PathValue("destination")}
	of := s.mesh.book.Pair(shift.Pair{Source: name.Source, Destination: name.Destination}, time.Now())
	declared := sourceOf(s.mesh.snapshot(), s.mesh.datacenter, name.Source)
	if of.Seen.IsZero() && len(of.Open) == 0 && (declared == nil || len(declared.calls[name.Destination]) == 0) {
		http.Error(w, fmt.Sprintf("pair %q: there is none: no registered sidecar declares it", clipped(name.String())), http.StatusNotFound)
		return
	}
	s.answer(w, telemetryOf(name, of))
}

func telemetryOf(name api.PairName, of telemetry.Pair) api.Telemetry {
	out := api.Telemetry{PairName: name, First: known(of.First), Seen: known(of.Seen), Ways: []api.WayTelemetry{}}
	counted := map[shift.Way]shift.Telemetry{}
	for _, t := range of.Ways {
		counted[t.Way] = t.Telemetry
	}
	for _, way := range shift.Ways() {
		t, used := counted[way]
		if !used && of.Open[way] == 0 {
			continue
		}
		out.Ways = append(out.Ways, api.WayTelemetry{
			Way: string(way), Attempts: t.Attempts, First: t.First, Failed: t.Failed, ConnectFailed: t.ConnectFailed, Withheld: t.Withheld,
			Open: of.Open[way], P50: thousandths(t.Latency.Quantile(0.5)), P99: thousandths(t.Latency.Quantile(0.99)), Last: known(of.Last[way]),
		})
	}
	for _, f := range of.Failing {
		out.Failing = append(out.Failing, api.Failing{Way: string(f.Way), What: f.What, Count: f.Count})
	}
	return out
}

func thousandths(v float64) float64 { return math.Round(v*1000) / 1000 }

// known is a time that is not zero.
func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
