package routing_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

func defaults(name, protocol string) config.Entry {
	return &config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: name, Protocol: protocol}
}

func global(c map[string]any) config.Entry {
	return &config.ProxyDefaults{Kind: config.KindProxyDefaults, Name: config.Global, Config: c}
}

func TestProtocol(t *testing.T) {
	for _, tc := range []struct {
		name    string
		entries []config.Entry
		want    string
		problem string
	}{
		{"nothing said", nil, "tcp", ""},
		{"by the service", []config.Entry{defaults("web", "grpc")}, "grpc", ""},
		{"by another service", []config.Entry{defaults("db", "grpc")}, "tcp", ""},
		{"for all", []config.Entry{global(map[string]any{"protocol": "http2"})}, "http2", ""},
		{"by both", []config.Entry{defaults("web", "http"), global(map[string]any{"protocol": "http2"})}, "http", ""},
		{"service without", []config.Entry{defaults("web", ""), global(map[string]any{"protocol": "http2"})}, "http2", ""},
		{"unknown", []config.Entry{defaults("web", "gopher"), global(map[string]any{"protocol": "http"})}, "http",
			`service "web": service-defaults/web: protocol "gopher" is unknown: want tcp, http, http2 or grpc`},
		{"unknown for all", []config.Entry{global(map[string]any{"protocol": "gopher"})}, "tcp",
			`service "web": proxy-defaults/global: protocol "gopher" is unknown: want tcp, http, http2 or grpc`},
		{"no string", []config.Entry{global(map[string]any{"protocol": 7})}, "tcp", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, problems := routing.Compile(routing.Request{Config: config.NewSet(tc.entries...), Service: "web", Datacenter: "dc1"})
			var got string
			if len(problems) > 0 {
				got = problems[0].String()
			}
			if c.Protocol != tc.want || got != tc.problem || len(problems) > 1 {
				t.Errorf("%s, %v; want %s, %q", c.Protocol, problems, tc.want, tc.problem)
			}
		})
	}
}

func TestCompile(t *testing.T) {
	c, _ := routing.Compile(routing.Request{Service: "web", Datacenter: "dc2"})
	if got, want := c.Describe(), "web.dc2 tcp\n  all\n    100.00% web.dc2\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if got := c.Targets(); !slices.Equal(got, []routing.Target{{Service: "web", Datacenter: "dc2"}}) {
		t.Errorf("targets %v", got)
	}
	if !slices.IsSortedFunc(c.Reads, config.Key.Compare) || len(c.Reads) != 7 {
		t.Errorf("reads %v", c.Reads)
	}
	if sni := c.Targets()[0].Identity("td.consul").SNI(); !strings.HasPrefix(sni, "web.default.dc2.") {
		t.Errorf("SNI %q", sni)
	}
}

func leg(weight uint32, t routing.Target) routing.Leg {
	return routing.Leg{Weight: weight, Resolver: routing.Resolver{Target: t}}
}

func TestTargetsOfManyLegs(t *testing.T) {
	a, b := routing.Target{Service: "a", Datacenter: "dc1"}, routing.Target{Service: "b", Datacenter: "dc1"}
	c := routing.Chain{Service: "a", Datacenter: "dc1", Protocol: "http", Routes: []routing.Route{
		{Legs: []routing.Leg{leg(2500, b), leg(7500, a)}},
		{Legs: []routing.Leg{leg(10_000, b)}},
	}}
	if got := c.Targets(); !slices.Equal(got, []routing.Target{a, b}) {
		t.Errorf("targets %v", got)
	}
	if want := "a.dc1 http\n  all\n     25.00% b.dc1\n     75.00% a.dc1\n  all\n    100.00% b.dc1\n"; c.Describe() != want {
		t.Errorf("got\n%s", c.Describe())
	}
}
