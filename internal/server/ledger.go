package server

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/shift"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

// measure adds to rows, sorted by pair, what was counted, and what follows from it.
func (s *Server) measure(b *books, rows []api.Pair, now time.Time) {
	entries := s.mesh.config()
	in := shift.Books{Now: now, Shifts: s.steps.shifts()}
	senders := map[string]map[netip.Addr]telemetry.Sender{}
	wanted := map[shift.Pair]*api.Pair{}
	for i := range rows {
		row := &rows[i]
		pair := shift.Pair{Source: row.Source, Destination: row.Destination}
		wanted[pair] = row
		if row.Declared {
			in.Declared = append(in.Declared, pair)
		}
		if b.outside(row, &in) {
			continue
		}
		e, _ := b.deciding(row.PairName)
		since := time.Time{}
		if row.Changed != nil {
			since = row.Changed.Time
		}
		w := shift.Wanted{Pair: pair, Shares: sharesOfEntry(config.Shares(row.Shares)), Since: since}
		if e != nil {
			w.OldWay, w.Generation = shift.Way(oldWay(e)), e.Generation
		}
		in.Wanted = append(in.Wanted, w)
		in.Stages = append(in.Stages, shift.PairStage{
			Pair: pair, Stage: stageOf(entries, row.Destination, e), Since: since, Ready: row.Callee.Sidecars, Total: row.Callee.Instances,
		})
		if w.OldWay != "" {
			in.Proofs = append(in.Proofs, shift.Proof{Pair: pair, Way: w.OldWay, Works: row.Revertible.State == api.Yes, Why: row.Revertible.Why})
		}
		if senders[row.Destination] == nil {
			senders[row.Destination] = s.sendersTo(row.Destination)
		}
		if last := lastFrom(senders[row.Destination], b.addressesOf(row.Source)); !last.IsZero() {
			in.Telemetry = append(in.Telemetry, shift.PairTelemetry{Pair: pair, LastPlaintext: last})
		}
	}
	for _, p := range s.mesh.book.Pairs(now) {
		if wanted[p.Pair] == nil {
			continue
		}
		if !p.Seen.IsZero() {
			in.Seen = append(in.Seen, shift.Seen{Pair: p.Pair, First: p.First, Last: p.Seen})
		}
		for _, w := range p.Ways {
			in.Telemetry = append(in.Telemetry, shift.PairTelemetry{Pair: p.Pair, Way: w.Way, Telemetry: w.Telemetry})
		}
		for _, f := range p.Failing {
			wanted[p.Pair].Failing = append(wanted[p.Pair].Failing, api.Failing{Way: string(f.Way), What: f.What, Count: f.Count})
		}
	}
	for _, r := range shift.Ledger(in) {
		if row := wanted[r.Pair]; row != nil {
			fill(row, r)
		}
	}
	wrong, known := s.steps.wrongKV(), map[string][]string{}
	for i := range rows {
		rows[i].Notes = s.notes(b, &rows[i], entries, known, now)
		if why := wrong[shift.Pair{Source: rows[i].Source, Destination: rows[i].Destination}]; why != "" {
			rows[i].Blockers = append(rows[i].Blockers, why)
		}
		if l := rows[i].Legacy; l != nil {
			if why := s.names.lost(l.Address); why != "" {
				rows[i].Blockers = append(rows[i].Blockers, why)
			}
		}
		if held := b.heldLocally(s.mesh, rows[i].Source, rows[i].Destination); len(held) > 0 {
			rows[i].HeldLocally = held
			rows[i].Blockers = append(rows[i].Blockers, fmt.Sprintf("held on its old way by revert --local on %d sidecars: %s", len(held), clipped(strings.Join(held, ", "))))
		}
	}
	for _, at := range in.Shifts {
		if row := wanted[at.Pair]; row != nil {
			row.Shift = shiftStatus(at)
		}
	}
}

// fill takes over what the ledger has worked out.
func fill(row *api.Pair, r shift.Row) {
	row.Stage, row.Blockers = string(r.Stage), r.Blockers
	row.LastSeen, row.LastPlaintext = r.LastSeen, r.LastPlaintext
	if r.Measured != (shift.Shares{}) {
		measured := api.Shares(entryShares(r.Measured))
		row.Measured = &measured
	}
	for _, w := range r.Ways {
		row.Ways = append(row.Ways, api.PairWay{Way: string(w.Way), Attempts: w.Attempts, Success: w.Success, P99: w.P99})
	}
}

func shiftStatus(at shift.Shift) *api.ShiftStatus {
	out := &api.ShiftStatus{
		Status: string(at.Status), From: string(at.Plan.From), To: string(at.Plan.To), Held: at.Plan.Hold, GuardOff: at.Plan.Off, Wait: string(at.Wait), Reason: at.Reason,
		By: at.By, Started: at.Started, Changed: at.Changed, Dwelt: at.Dwelt.Truncate(time.Second).String(),
	}
	for _, s := range at.Plan.Steps {
		out.Steps = append(out.Steps, float64(s)/100)
	}
	if b := at.Breach; b != nil {
		out.Breach = b.String()
	}
	return out
}

// sendersTo are the addresses that sent plaintext to a service.
func (s *Server) sendersTo(service string) map[netip.Addr]telemetry.Sender {
	out := map[netip.Addr]telemetry.Sender{}
	for _, from := range s.mesh.book.Plaintext(service) {
		if at, err := netip.ParseAddr(from.Address); err == nil {
			out[at.Unmap()] = from
		}
	}
	return out
}

func lastFrom(senders map[netip.Addr]telemetry.Sender, addresses []netip.Addr) (last time.Time) {
	if len(senders) == 0 {
		return last
	}
	for _, at := range addresses {
		if from, ok := senders[at]; ok && from.Last.After(last) {
			last = from.Last
		}
	}
	return last
}

// addressesOf are a service's addresses, worked out once.
func (b *books) addressesOf(service string) []netip.Addr {
	if b.hosts == nil {
		b.hosts = map[string][]netip.Addr{}
	}
	list, ok := b.hosts[service]
	if !ok {
		list = b.snap.Addresses(service)
		b.hosts[service] = list
	}
	return list
}

// servicesAt are those with an instance at an address, sorted.
func servicesAt(snap *catalog.Snapshot, address string) (out []string) {
	at, err := netip.ParseAddr(address)
	if err != nil {
		return nil
	}
	for _, name := range snap.Services() {
		set := snap.Set(name)
		if slices.ContainsFunc(set.Instances, func(in catalog.Instance) bool { return in.Service.Kind == catalog.Typical }) && slices.Contains(snap.Addresses(name), at.Unmap()) {
			out = append(out, name)
		}
	}
	return out
}
