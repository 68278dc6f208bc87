package envoy_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

func TestBootstrapRefuses(t *testing.T) {
	for want, o := range map[string]envoy.BootstrapOptions{
		"node ID is empty":                    {XDSSocket: "/x"},
		"exactly one of an xDS":               {NodeID: "p"},
		"exactly one of an xDS socket and":    {NodeID: "p", XDSSocket: "/x", XDSAddress: "a:1"},
		"both an admin socket and an admin":   {NodeID: "p", XDSSocket: "/x", AdminSocket: "/a", AdminAddress: "127.0.0.1:1"},
		`address "a": want host:port`:         {NodeID: "p", XDSAddress: "a"},
		`address "a:0": want a port`:          {NodeID: "p", XDSAddress: "a:0"},
		`address "a:70000": want a port`:      {NodeID: "p", XDSAddress: "a:70000"},
		`address "::1:80": write an IPv6`:     {NodeID: "p", XDSAddress: "::1:80"},
		`admin: address ":80": want host:por`: {NodeID: "p", XDSSocket: "/x", AdminAddress: ":80"},
	} {
		if _, err := envoy.Bootstrap(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", o, err, want)
		}
	}
}

func TestBootstrapIsStable(t *testing.T) {
	o := envoy.BootstrapOptions{NodeID: "p", NodeName: "n1", Service: "web", Datacenter: "dc1", XDSAddress: "[::1]:8502", AdminAddress: "127.0.0.1:19000"}
	first, err := envoy.Bootstrap(o)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if again, _ := envoy.Bootstrap(o); !bytes.Equal(first, again) {
			t.Fatal("the same options give another bootstrap")
		}
	}
	var doc struct {
		Node struct {
			ID, Cluster string
			Metadata    map[string]string
		}
	}
	if err := json.Unmarshal(first, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Node.ID != "p" || doc.Node.Cluster != "web" || doc.Node.Metadata["node_name"] != "n1" {
		t.Errorf("node %+v", doc.Node)
	}
	if !bytes.Contains(first, []byte(`"::1"`)) {
		t.Error("the IPv6 address is not among the endpoints")
	}
}

func TestBootstrapLabelsStats(t *testing.T) {
	boot, err := envoy.Bootstrap(envoy.BootstrapOptions{NodeID: "p", Service: "web", Datacenter: "dc1", XDSSocket: "/x", StatsTags: []string{"nomad.group=api", "query=a=b"}})
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		StatsConfig struct {
			StatsTags []struct {
				Name  string `json:"tag_name"`
				Value string `json:"fixed_value"`
			} `json:"stats_tags"`
		} `json:"stats_config"`
	}
	if err := json.Unmarshal(boot, &doc); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, tag := range doc.StatsConfig.StatsTags {
		if tag.Value != "" {
			got[tag.Name] = tag.Value
		}
	}
	want := map[string]string{"consul.source.service": "web", "consul.source.datacenter": "dc1", "nomad.group": "api", "query": "a=b"}
	if !maps.Equal(got, want) {
		t.Errorf("every stat is labelled %v, want %v", got, want)
	}
}

func TestStaticBootstrapNeedsAllParts(t *testing.T) {
	for _, tc := range []struct {
		file, want string
		drop       func(*envoy.Resources)
	}{
		{"http_caller.txtar", `routes "catalog" are not among`, func(r *envoy.Resources) { r.Routes = nil }},
		{"tcp_callee.txtar", `extension "admission" is not among`, func(r *envoy.Resources) { r.Extensions = nil }},
	} {
		in := input(parse(t, tc.file))
		p, _ := proxy.Build(in)
		r := resources(t, p)
		tc.drop(&r)
		if _, err := envoy.StaticBootstrap(envoy.BootstrapOptions{NodeID: "p"}, r, nil); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.file, err, tc.want)
		}
	}
}

func TestBuildRefusesWhatProtobufCannotHold(t *testing.T) {
	p, _ := proxy.Build(input(parse(t, "http_caller.txtar")))
	p.Clusters[0].PeerURI = "bad\xff"
	if _, err := envoy.Build(p); err == nil || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("%v, want an error about UTF-8", err)
	}
}
