package control

import (
	"fmt"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// BenchmarkEntryWrite: a write of an entry among those of 1,000 services, each with
// defaults, a router, a splitter and a resolver, every one of them judged: of a leg's
// weight, of a service that all others may lead to, and of the protocol of all.
func BenchmarkEntryWrite(b *testing.B) {
	const services = 1000
	name := func(i int) string { return fmt.Sprintf("s%04d", i) }
	splits := func(i, weight int) config.Entry {
		return &config.ServiceSplitter{Kind: config.KindServiceSplitter, Name: name(i), Splits: []config.ServiceSplit{
			{Weight: float64(100 - weight), ServiceSubset: "v1"}, {Weight: float64(weight), ServiceSubset: "v2"}}}
	}
	resolver := func(name string, timeout int) config.Entry {
		return &config.ServiceResolver{Kind: config.KindServiceResolver, Name: name, ConnectTimeout: config.Duration(1 + timeout),
			Subsets: map[string]config.ResolverSubset{"v1": {Filter: "Service.Meta.v == 1"}, "v2": {Filter: "Service.Meta.v == 2"}}}
	}
	global := func(protocol string) config.Entry {
		return &config.ProxyDefaults{Kind: config.KindProxyDefaults, Name: config.Global, Config: map[string]any{"protocol": protocol}}
	}
	all := []config.Entry{global("http"), resolver("common", 0)}
	for i := range services {
		all = append(all, splits(i, 10), resolver(name(i), 0),
			&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: name(i), MaxInboundConnections: 100},
			&config.ServiceRouter{Kind: config.KindServiceRouter, Name: name(i), Routes: []config.ServiceRoute{
				{Match: &config.RouteMatch{HTTP: &config.HTTPMatch{PathPrefix: "/common"}}, Destination: &config.RouteDestination{Service: "common", ServiceSubset: "v1"}}}})
	}
	for _, bc := range []struct {
		what  string
		entry func(i int) config.Entry
	}{
		{"one", func(i int) config.Entry { return splits(i%services, 10+i%2) }},
		{"common", func(i int) config.Entry { return resolver("common", i) }},
		{"all", func(i int) config.Entry { return global([]string{"http", "http2"}[i%2]) }},
	} {
		b.Run(bc.what, func(b *testing.B) {
			s, err := store.Open(store.Options{Judge: func(before, after *config.Set) error { return routing.Check(before, after, "dc1") }})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			put := func(list ...config.Entry) {
				err := s.Update(func(w *store.Writer) error {
					for _, e := range list {
						e.Normalize()
						if err := w.PutEntry(e, store.Author{Who: "bench"}); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
			}
			put(all...)
			b.ReportAllocs()
			done := cpuTime(b)
			for i := 1; b.Loop(); i++ {
				put(bc.entry(i))
			}
			done()
		})
	}
}
