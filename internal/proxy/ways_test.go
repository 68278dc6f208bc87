package proxy_test

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// shifted is a caller of "shop" in each protocol, by an entry with the shares; none: without one.
func shifted(t *testing.T, protocol, shares, more string, entries ...string) *proxy.Proxy {
	t.Helper()
	texts := append([]string{fmt.Sprintf(`{"Kind":"service-defaults","Name":"shop","Protocol":%q,"MutualTLSMode":"permissive"}`, protocol)}, entries...)
	if shares != "" {
		texts = append(texts, fmt.Sprintf(`{"Kind":"traffic-shift","Source":"web","Destination":"shop","Legacy":{"Address":"10.0.0.9:80","Host":"shop.old"},"Shares":%s%s}`, shares, more))
	}
	in := sidecar(catalog.Service{Address: "127.0.0.1", Port: 21000, Proxy: &catalog.Proxy{DestinationServiceName: "web", Upstreams: []catalog.Upstream{{DestinationName: "shop", LocalBindPort: 7000}}}})
	for _, text := range texts {
		e, err := config.DecodeEntryJSON([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		in.Config = in.Config.With([]config.Entry{e}, nil)
	}
	p, _ := proxy.Build(in)
	return p
}

const (
	failover = `{"Kind":"service-resolver","Name":"shop","Failover":{"*":{"Service":"spare"}}}`
	splits   = `{"Kind":"service-splitter","Name":"shop","Splits":[{"Weight":50,"Service":"spare"},{"Weight":50,"Service":"shop"}]}`
	spare    = `{"Kind":"service-defaults","Name":"spare","Protocol":"http"}`
	router   = `{"Kind":"service-router","Name":"shop","Routes":[{"Match":{"HTTP":{"PathPrefix":"/a"}},"Destination":{"RequestTimeout":"9s","NumRetries":3,"RetryOnStatusCodes":[503]}}]}`
)

// Whatever the shares were, going back to one way changes routes or, for connections, what
// endpoints are made of: never a cluster that is needed.
func TestGoingBackTouchesNoCluster(t *testing.T) {
	for _, tc := range []struct {
		protocol, more string
		entries        []string
	}{
		{config.HTTP, "", nil}, {config.GRPC, "", nil}, {config.HTTP, `,"Sticky":{"Source":true}`, nil}, {config.HTTP, `,"Sticky":{"Header":"x-user"}`, []string{failover, spare, router}},
		{config.HTTP, "", []string{splits, spare}},
		{config.TCP, "", nil}, {config.TCP, `,"Sticky":{"Source":true}`, nil}, {config.TCP, "", []string{failover}},
	} {
		for _, from := range []string{`{"mtls":100}`, `{"plain":100}`, `{"legacy":10,"mtls":90}`, `{"legacy":10,"direct":20,"plain":30,"mtls":40}`} {
			before := shifted(t, tc.protocol, from, tc.more, tc.entries...)
			for _, to := range []string{`{"legacy":100}`, `{"direct":100}`, `{"plain":100}`} {
				after := shifted(t, tc.protocol, to, tc.more, tc.entries...)
				what := fmt.Sprintf("%s%s%v: %s to %s", tc.protocol, tc.more, tc.entries, from, to)
				if !reflect.DeepEqual(before.Upstreams, after.Upstreams) {
					t.Errorf("%s: a listener changes", what)
				}
				for _, c := range after.Clusters {
					was, ok := before.Cluster(c.Name)
					if !ok || was.EndpointsName() != c.EndpointsName() || !reflect.DeepEqual(weightless(was), weightless(c)) {
						t.Errorf("%s: cluster %s is %+v, was %+v", what, c.Name, c, was)
					}
				}
				for _, g := range after.Groups {
					if !slices.ContainsFunc(before.Groups, func(x proxy.Group) bool { return x.Name == g.Name }) {
						t.Errorf("%s: %s is new", what, g.Name)
					}
				}
			}
		}
	}
}

// weightless is a cluster but for what is in its endpoints alone.
func weightless(c proxy.Cluster) proxy.Cluster {
	c.Split = slices.Clone(c.Split)
	for i := range c.Split {
		c.Split[i].Weight = 0
	}
	return c
}

// With all on mtls, requests travel as if there was no entry, and connections go to the same.
func TestAllOnMTLSIsAsWithoutAnEntry(t *testing.T) {
	for _, protocol := range []string{config.HTTP, config.HTTP2, config.GRPC, config.TCP} {
		speaks := strings.ReplaceAll(spare, `"http"`, fmt.Sprintf("%q", protocol))
		cases := [][]string{nil, {failover, speaks}, {splits, speaks}}
		if protocol != config.TCP {
			cases = append(cases, []string{router})
		}
		for _, entries := range cases {
			with, without := shifted(t, protocol, `{"mtls":100}`, `,"Sticky":{"Header":"x-user"}`, entries...), shifted(t, protocol, "", "", entries...)
			if got, want := meant(with.Endpoints()), meant(without.Endpoints()); protocol == config.TCP && !slices.Equal(got, want) {
				t.Errorf("%v: connections go to %v, without an entry to %v", entries, got, want)
			}
			if !reflect.DeepEqual(with.Routes, without.Routes) || !reflect.DeepEqual(with.Groups, without.Groups) || !reflect.DeepEqual(with.Upstreams, without.Upstreams) {
				t.Errorf("%s %v: %s\nwithout an entry: %s", protocol, entries, with.Describe(), without.Describe())
			}
			for _, c := range without.Clusters {
				if same, _ := with.Cluster(c.Name); protocol != config.TCP && !reflect.DeepEqual(same, c) {
					t.Errorf("%s %v: %+v\nwithout an entry: %+v", protocol, entries, same, c)
				}
			}
		}
	}
}

// meant are the parts that get something.
func meant(refs []proxy.EndpointsRef) (out []string) {
	for _, ref := range refs {
		for _, p := range ref.Parts {
			if p.Weight > 0 || len(ref.Parts) == 1 {
				out = append(out, fmt.Sprintf("%s %s %d", p.Name(), p.PeerURI, p.Priority))
			}
		}
	}
	return out
}
