package sidecar

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// What Nomad 1.10 registers of an allocation's services with a Consul 1.22 whose proxy-defaults name a protocol.
// bind_port is the port that the allocation's network has of the host.
const (
	catalogID = "_nomad-task-5fc65665-8bf4-1864-a408-0d082afda5e4-group-api-catalog-9090"
	webID     = "_nomad-task-d72824ca-f3dd-01f5-4462-fa74b4b25784-group-web-web-8080"

	catalogService = `{"ID":"` + catalogID + `","Service":"catalog","Tags":[],"Meta":{"external-source":"nomad"},"Port":9090,"Address":"",
		"Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false,"Datacenter":"dc1"}`
	catalogProxy = `{"Kind":"connect-proxy","ID":"` + catalogID + `-sidecar-proxy","Service":"catalog-sidecar-proxy","Tags":[],"Meta":{"external-source":"nomad"},
		"Port":31556,"Address":"10.99.0.1","TaggedAddresses":{"lan_ipv4":{"Address":"10.99.0.1","Port":31556},"wan_ipv4":{"Address":"10.99.0.1","Port":31556}},
		"Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false,"Datacenter":"dc1",
		"Proxy":{"DestinationServiceName":"catalog","DestinationServiceID":"` + catalogID + `","LocalServiceAddress":"127.0.0.1","LocalServicePort":9090,
			"Config":{"bind_address":"0.0.0.0","bind_port":%d,"protocol":"http","envoy_stats_tags":["nomad.alloc_id=5fc65665-8bf4-1864-a408-0d082afda5e4",
				"nomad.group=api","nomad.job=catalog","nomad.namespace=default"]},
			"MeshGateway":{},"Expose":{"Paths":[{"ListenerPort":24624,"Path":"/","LocalPathPort":9090,"ParsedFromCheck":false}]}}}`
	webService = `{"ID":"` + webID + `","Service":"web","Tags":[],"Meta":{"external-source":"nomad"},"Port":8080,"Address":"",
		"Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false,"Datacenter":"dc1"}`
	webProxy = `{"Kind":"connect-proxy","ID":"` + webID + `-sidecar-proxy","Service":"web-sidecar-proxy","Tags":[],"Meta":{"external-source":"nomad"},
		"Port":21151,"Address":"10.99.0.1","TaggedAddresses":{"lan_ipv4":{"Address":"10.99.0.1","Port":21151},"wan_ipv4":{"Address":"10.99.0.1","Port":21151}},
		"Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false,"Datacenter":"dc1",
		"Proxy":{"DestinationServiceName":"web","DestinationServiceID":"` + webID + `","LocalServiceAddress":"127.0.0.1","LocalServicePort":8080,
			"Config":{"bind_address":"0.0.0.0","bind_port":%d,"protocol":"http","envoy_stats_tags":["nomad.alloc_id=d72824ca-f3dd-01f5-4462-fa74b4b25784",
				"nomad.group=web","nomad.job=web","nomad.namespace=default"]},
			"Upstreams":[{"DestinationType":"service","DestinationName":"catalog","LocalBindPort":%u,"Config":{"protocol":"http"},"MeshGateway":{}}],
			"MeshGateway":{},"Expose":{}}}`
)

// registrations are what a Consul agent says of a service and its sidecar, as Nomad's connect stanza or
// a definition registers them, and what is to be made of it. %d is the port to listen at, %u that of an upstream.
var registrations = []struct {
	name, id       string
	service, proxy string
	wantListen     string
	wantPublic     string
	wantUpstreams  []string
	wantTags       []string
}{
	{
		name: "a Nomad group", id: catalogID, service: catalogService, proxy: catalogProxy,
		wantListen: "0.0.0.0:%d", wantPublic: "10.99.0.1:31556",
		wantTags: []string{"nomad.alloc_id=5fc65665-8bf4-1864-a408-0d082afda5e4", "nomad.group=api", "nomad.job=catalog", "nomad.namespace=default"},
	},
	{
		name: "a Nomad group that calls another", id: webID, service: webService, proxy: webProxy,
		wantListen: "0.0.0.0:%d", wantPublic: "10.99.0.1:21151", wantUpstreams: []string{"127.0.0.1:%u"},
		wantTags: []string{"nomad.alloc_id=d72824ca-f3dd-01f5-4462-fa74b4b25784", "nomad.group=web", "nomad.job=web", "nomad.namespace=default"},
	},
	{
		name: "a definition in HCL", id: "web-1",
		service: `{"ID":"web-1","Service":"web","Port":8080}`,
		proxy: `{"Kind":"connect-proxy","ID":"web-1-sidecar-proxy","Service":"web-sidecar-proxy","Port":%d,
			"Proxy":{"DestinationServiceName":"web","DestinationServiceID":"web-1","LocalServiceAddress":"127.0.0.1","LocalServicePort":8080}}`,
		wantListen: "0.0.0.0:%d", wantPublic: "10.0.0.7:%d",
	},
}

// Who registered a service, and how its ID looks, makes no difference: the sidecar is served as it
// is registered.
func TestAdoptsAsRegistered(t *testing.T) {
	for _, tt := range registrations {
		t.Run(tt.name, func(t *testing.T) {
			ports := meshtest.FreePorts(t, 2)
			in := strings.NewReplacer("%d", fmt.Sprint(ports[0]), "%u", fmt.Sprint(ports[1])).Replace
			var proxy catalog.Service
			if err := json.Unmarshal([]byte(in(tt.proxy)), &proxy); err != nil {
				t.Fatal(err)
			}
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.URL.Path == "/v1/agent/self":
					fmt.Fprint(w, `{"Config":{"NodeName":"n7","Datacenter":"dc1"},"Member":{"Addr":"10.0.0.7"}}`)
				case r.URL.Path == "/v1/agent/services" && strings.Contains(r.URL.Query().Get("filter"), fmt.Sprintf("%q", tt.id)):
					fmt.Fprintf(w, `{%q:%s}`, proxy.ID, in(tt.proxy))
				case r.URL.Path == "/v1/agent/service/"+tt.id:
					fmt.Fprint(w, tt.service)
				default:
					http.NotFound(w, r)
				}
			}))
			defer srv.Close()
			o, err := Options{Consul: srv.URL, SidecarFor: tt.id, StateDir: filepath.Join(t.TempDir(), "state"), Log: slog.New(slog.DiscardHandler)}.adopt(t.Context())
			if err == nil {
				o, err = o.withDefaults()
			}
			if err != nil {
				t.Fatal(err)
			}
			s := &sidecar{opts: o, log: o.Log}
			if s.dir, err = openStateDir(o.StateDir); err != nil {
				t.Fatal(err)
			}
			defer s.dir.close()
			if err := s.openPort(t.Context()); err != nil {
				t.Fatal(err)
			}
			defer s.port.release()
			if address, p := listensAt(s.proxy); fmt.Sprintf("%s:%d", address, p) != in(tt.wantListen) || s.publicAddress != in(tt.wantPublic) {
				t.Errorf("listens at %s:%d, public %s; want %s, %s", address, p, s.publicAddress, in(tt.wantListen), in(tt.wantPublic))
			}
			if s.proxy.ID != proxy.ID || s.opts.Definition.Service.ID != tt.id || s.opts.Definition.Service.Name != proxy.Proxy.DestinationServiceName {
				t.Errorf("serves %q for %q (%q)", s.proxy.ID, s.opts.Definition.Service.ID, s.opts.Definition.Service.Name)
			}
			if got := s.opts.Definition.StatsTags(); !slices.Equal(got, tt.wantTags) {
				t.Errorf("stats are labelled %q, want %q", got, tt.wantTags)
			}
			var ups []string
			for _, u := range s.upstreams {
				ups = append(ups, u.bind())
			}
			if got, want := strings.Join(ups, " "), in(strings.Join(tt.wantUpstreams, " ")); got != want {
				t.Errorf("upstreams at %s, want %s", got, want)
			}
		})
	}
}

// Nomad takes its services out of Consul before it stops their tasks. A sidecar whose registration is gone when it is
// told to stop has nobody left to tell, and nothing to complain of.
func TestLeavesAfterNomadDeregistered(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w, "Unknown service ID %q. Ensure that the service ID is passed, not the service name.", catalogID+"-sidecar-proxy")
	}))
	defer srv.Close()
	var log bytes.Buffer
	o := Options{Consul: srv.URL}
	agent := newConsulAgent(o)
	defer agent.close()
	d := &drain{service: catalogID, log: slog.New(slog.NewTextHandler(&log, nil)), goodbye: func(ctx context.Context, _ time.Duration) (string, error) {
		return "", agent.maintenance(ctx, catalogID+"-sidecar-proxy", true)
	}}
	if accept := d.sayGoodbye(t.Context()); accept != acceptTold || strings.Contains(log.String(), "WARN") {
		t.Errorf("new connections are taken for %s, and the log says\n%s", accept, &log)
	}
	hurried, cancel := context.WithCancel(t.Context())
	cancel()
	if d.sayGoodbye(hurried); strings.Contains(log.String(), "WARN") {
		t.Errorf("in a hurry the log says\n%s", &log)
	}
}
