package server

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/shift"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

// findStrays looks for pairs that nobody declares: plaintext came to the destination from an
// address at which one service alone has instances. Of hosts that several share nothing is
// known.
func (b *books) findStrays() {
	b.strays = map[api.PairName]telemetry.Sender{}
	var at map[netip.Addr]string
	for _, destination := range b.snap.Services() {
		senders := b.book.Plaintext(destination)
		if len(senders) > 0 && at == nil {
			at = alone(b.snap)
		}
		for _, from := range senders { // the latest first
			address, err := netip.ParseAddr(from.Address)
			if err != nil {
				continue
			}
			p := api.PairName{Source: at[address.Unmap()], Destination: destination}
			if _, known := b.strays[p]; known || p.Source == "" || p.Source == destination {
				continue
			}
			if of := b.declared()[p.Source]; of != nil && len(of.calls[destination]) > 0 {
				continue
			}
			b.strays[p] = from
		}
	}
}

// alone are the addresses at which one service alone has instances.
func alone(snap *catalog.Snapshot) map[netip.Addr]string {
	out := map[netip.Addr]string{}
	for _, name := range snap.Services() {
		if !slices.ContainsFunc(snap.Set(name).Instances, func(in catalog.Instance) bool { return in.Service.Kind == catalog.Typical }) {
			continue
		}
		for _, at := range snap.Addresses(name) {
			if _, taken := out[at]; taken {
				out[at] = ""
				continue
			}
			out[at] = name
		}
	}
	maps.DeleteFunc(out, func(_ netip.Addr, name string) bool { return name == "" })
	return out
}

// withStrays adds the strays that are meant to a list of pairs.
func (b *books) withStrays(names []api.PairName, keep func(api.PairName) bool) []api.PairName {
	b.findStrays()
	var more []api.PairName
	for p := range b.strays {
		if _, listed := slices.BinarySearchFunc(names, p, comparePairs); !listed && keep(p) {
			more = append(more, p)
		}
	}
	if len(more) == 0 {
		return names
	}
	names = append(names, more...)
	slices.SortFunc(names, comparePairs)
	return names
}

// outside makes of a row that of a pair whose source does not call its sidecar.
func (b *books) outside(row *api.Pair, in *shift.Books) bool {
	from, stray := b.strays[row.PairName]
	if !stray || row.Entry != "" {
		return false
	}
	pair := shift.Pair{Source: row.Source, Destination: row.Destination}
	row.Shares = api.Shares{}
	in.Seen = append(in.Seen, shift.Seen{Pair: pair, First: from.First, Last: from.Last})
	in.Stages = append(in.Stages, shift.PairStage{Pair: pair, Stage: shift.Outside, Ready: row.Callee.Sidecars, Total: row.Callee.Instances})
	in.Telemetry = append(in.Telemetry, shift.PairTelemetry{Pair: pair, LastPlaintext: from.Last})
	return true
}
