package server_test

import (
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
)

// Entries that say where requests go are sent to those that make such requests, and
// not a byte to others.
func TestRoutingReachesOnlyCallers(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	s.Register("web.yaml", web)
	s.Register("admin.yaml", admin)
	s.Register("catalog.yaml", catalog)
	s.Register("orders.yaml", "service: orders\nport: 8082\nprotocol: http\n")
	caller := follow(t, s, "web-sidecar-proxy", true, endpoints(s, "catalog"), route("public_listener"), route("catalog"))
	others := map[string]*peer{
		"another caller": follow(t, s, "admin-sidecar-proxy", true, endpoints(s, "payments"), route("public_listener")),
		"the callee":     follow(t, s, "catalog-sidecar-proxy", true, route("public_listener")),
	}
	caller.until("the caller is in sync", func() bool {
		return caller.held[route("catalog")] != nil && caller.held[endpoints(s, "catalog")] != nil
	})
	before := map[string]int{}
	for name, p := range others {
		p.until(name+" is in sync", func() bool {
			return len(p.held) == map[string]int{
				"another caller": 6, // 2 clusters, 2 listeners, endpoints, route
				"the callee":     3, // cluster, listener, route
			}[name]
		})
		before[name] = p.responses
	}

	off := false
	for _, step := range []struct {
		entry config.Entry
		shows string // in the caller's routes
	}{
		{&config.ServiceResolver{Kind: config.KindServiceResolver, Name: "catalog", Subsets: map[string]config.ResolverSubset{"v1": {}, "v2": {Filter: "Service.Meta.version == v2"}}, DefaultSubset: "v1"}, "v1.catalog."},
		{&config.ServiceSplitter{Kind: config.KindServiceSplitter, Name: "catalog", Splits: []config.ServiceSplit{{Weight: 90, ServiceSubset: "v1"}, {Weight: 10, ServiceSubset: "v2"}}}, "v2.catalog."},
		{&config.TrafficPolicy{Kind: config.KindTrafficPolicy, Name: "catalog", Crossing: &off, Sticky: &config.Sticky{Header: "x-user"}}, "x-user"},
		{&config.ServiceRouter{Kind: config.KindServiceRouter, Name: "catalog", Routes: []config.ServiceRoute{{
			Match:       &config.RouteMatch{HTTP: &config.HTTPMatch{PathPrefix: "/orders"}},
			Destination: &config.RouteDestination{Service: "orders"},
		}}}, "/orders"},
		{&config.ServiceResolver{Kind: config.KindServiceResolver, Name: "orders", Redirect: &config.ResolverRedirect{Service: "catalog", ServiceSubset: "v2"}}, "/orders"},
	} {
		held := caller.held[route("catalog")]
		s.Write(step.entry)
		caller.until(string(step.entry.EntryKind())+" reaches the caller", func() bool {
			return caller.held[route("catalog")] != held && strings.Contains(caller.body(route("catalog")), step.shows)
		})
	}

	// What comes next on those streams is what is meant for them.
	for name, service := range map[string]string{"another caller": "admin", "the callee": "catalog"} {
		s.Write(&config.ServiceIntentions{Kind: config.KindServiceIntentions, Name: service,
			Sources: []*config.SourceIntention{{Name: "nobody", Action: config.Deny, Type: "consul"}}})
		p := others[name]
		p.until("its own intentions reach "+name, func() bool { return strings.Contains(p.body(route("public_listener")), "svc/nobody") })
		if n := p.responses - before[name]; n != 1 {
			t.Errorf("%s was sent %d responses, want that one route alone", name, n)
		}
	}
}
