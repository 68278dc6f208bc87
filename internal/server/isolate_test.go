package server

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// A panic while one sidecar is built must not reach the others, nor take from the
// sidecar what it has.
func TestPanicHarmsOneSidecar(t *testing.T) {
	var log bytes.Buffer
	m := newMesh("dc1", "test.consul", true, nil, slog.New(slog.NewTextHandler(&log, nil)))
	broken := ""
	m.decide = func(in proxy.Input) (*proxy.Proxy, []proxy.Problem) {
		if in.Instance.Service.Proxy.DestinationServiceName == broken {
			panic("boom")
		}
		return proxy.Build(in)
	}
	sets := map[string]*catalog.Set{}
	for _, name := range []string{"web", "api"} {
		side := &catalog.Service{ID: name + "-1", Name: name + "-proxy", Kind: catalog.ConnectProxy, Port: 21000,
			Proxy: &catalog.Proxy{DestinationServiceName: name, LocalServiceAddress: "127.0.0.1", LocalServicePort: 80}}
		sets[side.Name] = catalog.NewSet(side.Name, []catalog.Instance{{Node: &catalog.Node{Name: "n", Address: "10.0.0.1"}, Service: side}})
		m.enterLocked("n/"+name+"-1", node{id: side.ID, name: "n", relayed: true, streams: 1})
	}
	m.setCatalog(catalog.NewSnapshot("dc1", 1, sets))
	index := uint64(0)
	protocol := func(p string) {
		t.Helper()
		e, err := config.DecodeEntryJSON([]byte(`{"Kind":"proxy-defaults","Name":"global","Config":{"protocol":"` + p + `"}}`))
		if err != nil {
			t.Fatal(err)
		}
		index++
		m.setEntries(config.NewSet(e), index)
		m.step(time.Now(), false)
	}
	protocol("tcp")
	web, api := m.sidecars["n/web-1"], m.sidecars["n/api-1"]
	broken = "web"
	protocol("http")
	if m.sidecars["n/web-1"] != web || m.sidecars["n/api-1"] == api {
		t.Error("want web's sidecar to keep what it has, and api's to get what is new")
	}
	if p := m.problemsOf("n/web-1"); len(p) != 1 || !strings.Contains(p[0].String(), "cannot be built") || !strings.Contains(log.String(), "boom") {
		t.Errorf("problems %v, log:\n%s", p, log.String())
	}
	broken = ""
	protocol("grpc")
	if m.sidecars["n/web-1"] == web || len(m.problemsOf("n/web-1")) != 0 {
		t.Error("web's sidecar is not served again")
	}
}
