package server_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// A traffic-shift is sent to the sidecars of its source, and not a byte to others that
// call the same service. Its direct way follows the instances themselves.
func TestShiftReachesItsSource(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	s.Register("web.yaml", web)
	s.Register("other.yaml", "service: other\nport: 8090\nprotocol: http\nupstreams: [catalog:7200]\n")
	s.Register("catalog.yaml", catalog)
	source := follow(t, s, "web-sidecar-proxy", true, endpoints(s, "catalog"), route("public_listener"), route("catalog"))
	other := follow(t, s, "other-sidecar-proxy", true, endpoints(s, "catalog"), route("public_listener"), route("catalog"))
	for _, p := range []*peer{source, other} {
		p.until("it is in sync", func() bool { return len(p.held) == 7 }) // 2 clusters, 2 listeners, 2 routes, endpoints
	}
	before := other.responses

	direct := endpoints(s, "catalog")
	direct.Name = "direct~" + direct.Name
	source.ask(xds.Request{Type: direct.Type, Subscribe: []string{direct.Name}})
	legacy := &config.LegacyWay{Address: "127.0.0.1:4140"}
	for _, step := range []struct {
		source, destination string
		shares              config.Shares
		shows               string // in the source's routes
	}{
		{"web", "*", config.Shares{Direct: 100}, `"direct~catalog`},
		{"web", "catalog", config.Shares{Legacy: 70, Direct: 10, MTLS: 20}, `group~legacy~catalog`},
		{"web", "catalog", config.Shares{Direct: 10, MTLS: 90}, `group~direct~catalog`},
	} {
		held := source.held[route("catalog")]
		e := &config.TrafficShift{Source: step.source, Destination: step.destination, Legacy: legacy, Shares: step.shares}
		e.Normalize()
		s.Write(e)
		source.until("the shift reaches its source", func() bool {
			return source.held[route("catalog")] != held && strings.Contains(source.body(route("catalog")), step.shows)
		})
	}
	source.until("the direct way is the instance", func() bool { return strings.Contains(source.body(direct), "8081") })
	s.Call(http.MethodPut, "/v1/agent/service/register", []byte(`{"Name":"catalog","ID":"catalog-2","Address":"127.0.0.1","Port":8082}`))
	source.until("an instance without a sidecar is added", func() bool { return strings.Contains(source.body(direct), "8082") })
	s.Call(http.MethodPut, "/v1/agent/service/deregister/catalog-2", nil)
	source.until("and taken away", func() bool { return !strings.Contains(source.body(direct), "8082") })

	s.Write(&config.ServiceIntentions{Kind: config.KindServiceIntentions, Name: "other",
		Sources: []*config.SourceIntention{{Name: "nobody", Action: config.Deny, Type: "consul"}}})
	other.until("the other caller's own intentions reach it", func() bool { return strings.Contains(other.body(route("public_listener")), "svc/nobody") })
	if n := other.responses - before; n != 1 {
		t.Errorf("the other caller was sent %d responses, want that one route alone", n)
	}
}
