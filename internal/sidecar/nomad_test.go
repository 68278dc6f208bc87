package sidecar

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// alloc is where Nomad's services of one allocation and group get their IDs from.
const alloc = "_nomad-task-5a2d6d6d-7f1d-4c1d-9f0e-0c1f3b1c9a11-group-"

// registrations are what a Consul agent says of a service and its sidecar, as Nomad's connect stanza or
// a definition registers them, and what is to be made of it. %d is the port to listen at, %u that of an upstream.
var registrations = []struct {
	name, id       string
	service, proxy string
	wantListen     string
	wantPublic     string
	wantUpstreams  []string
}{
	{
		name: "a Nomad group in a bridge network", id: alloc + "api-count-api-9001",
		service: `{"ID":"` + alloc + `api-count-api-9001","Service":"count-api","Tags":[],"Meta":{"external-source":"nomad"},"Port":9001,"Address":"10.0.0.7"}`,
		proxy: `{"Kind":"connect-proxy","ID":"` + alloc + `api-count-api-9001-sidecar-proxy","Service":"count-api-sidecar-proxy","Tags":[],"Meta":{"external-source":"nomad"},
			"Port":29154,"Address":"10.0.0.7","Weights":{"Passing":1,"Warning":1},
			"Proxy":{"DestinationServiceName":"count-api","DestinationServiceID":"` + alloc + `api-count-api-9001","LocalServiceAddress":"127.0.0.1","LocalServicePort":9001,
			"Config":{"bind_address":"127.0.0.1","bind_port":%d,"envoy_stats_tags":["nomad.group=api","nomad.job=countdash","nomad.namespace=default"]},"MeshGateway":{},"Expose":{}}}`,
		wantListen: "127.0.0.1:%d", wantPublic: "10.0.0.7:29154",
	},
	{
		name: "a Nomad group that calls another", id: alloc + "dashboard-count-dashboard-9002",
		service: `{"ID":"` + alloc + `dashboard-count-dashboard-9002","Service":"count-dashboard","Meta":{"external-source":"nomad"},"Port":9002,"Address":""}`,
		proxy: `{"Kind":"connect-proxy","ID":"` + alloc + `dashboard-count-dashboard-9002-sidecar-proxy","Service":"count-dashboard-sidecar-proxy","Meta":{"external-source":"nomad"},"Port":27001,"Address":"",
			"Proxy":{"DestinationServiceName":"count-dashboard","DestinationServiceID":"` + alloc + `dashboard-count-dashboard-9002","LocalServiceAddress":"127.0.0.1","LocalServicePort":9002,
			"Config":{"bind_address":"0.0.0.0","bind_port":%d},
			"Upstreams":[{"DestinationType":"service","DestinationNamespace":"default","DestinationName":"count-api","Datacenter":"","LocalBindPort":%u,"Config":{},"MeshGateway":{}}]}}`,
		wantListen: "0.0.0.0:%d", wantPublic: "10.0.0.7:27001", wantUpstreams: []string{"127.0.0.1:%u"},
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
