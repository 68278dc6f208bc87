package server

import (
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// Who comes back within a minute finds what was made for it, as it is to be by now, and nothing is made again; nobody waits
// for what becomes of changes at a sidecar that is away. After that minute it is forgotten.
func TestWhoIsAwayComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh("dc1", "test.consul", true, nil, slog.New(slog.DiscardHandler))
		built := 0
		m.decide = func(in proxy.Input) (*proxy.Proxy, []proxy.Problem) {
			built++
			return proxy.Build(in)
		}
		const key = "n/web-1"
		side := &catalog.Service{ID: "web-1", Name: "web-proxy", Kind: catalog.ConnectProxy, Port: 21000,
			Proxy: &catalog.Proxy{DestinationServiceName: "web", LocalServiceAddress: "127.0.0.1", LocalServicePort: 80}}
		in := []catalog.Instance{{Node: &catalog.Node{Name: "n", Address: "10.0.0.1"}, Service: side}}
		m.setCatalog(catalog.NewSnapshot("dc1", 1, map[string]*catalog.Set{side.Name: catalog.NewSet(side.Name, in)}))
		come := func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.enterLocked(key, node{id: side.ID, name: "n", relayed: true, streams: m.connected[key].streams + 1})
		}
		index := uint64(0)
		protocol := func(p string) {
			t.Helper()
			e, err := config.DecodeEntryJSON(fmt.Appendf(nil, `{"Kind":"proxy-defaults","Name":"global","Config":{"protocol":%q}}`, p))
			if err != nil {
				t.Fatal(err)
			}
			index++
			m.setEntries(config.NewSet(e), index)
			m.step(time.Now(), false)
		}
		// is compares how often something was built, and whether there is something to be told.
		is := func(when string, times int, there bool) {
			t.Helper()
			if built != times || (m.xds.View(key) != nil) != there || (m.sidecars[key] != nil) != there {
				t.Errorf("%s: built %d times, want %d; there is %v, want one: %v", when, built, times, m.xds.View(key), there)
			}
		}
		concerns := func() bool {
			list := m.changes.list
			_, is := list[len(list)-1].sidecars[key]
			return is
		}

		come()
		protocol("tcp")
		is("connected", 1, true)
		protocol("http")
		is("changed", 2, true)
		if !concerns() {
			t.Error("a change does not wait for who is connected")
		}

		m.closed(key)
		m.step(time.Now(), false)
		is("away", 2, true)
		protocol("grpc")
		is("changed while away", 3, true)
		if concerns() {
			t.Error("a change waits for who is away")
		}
		<-time.After(awayFor / 2)
		come()
		m.step(time.Now(), false)
		is("back", 3, true)
		protocol("http")
		if is("changed when back", 4, true); !concerns() {
			t.Error("a change does not wait for who is back")
		}

		<-time.After(awayFor)
		m.step(time.Now(), false)
		is("back for long", 4, true)
		m.closed(key)
		m.step(time.Now(), false)
		<-time.After(awayFor)
		synctest.Wait()
		m.step(time.Now(), false)
		is("away for long", 4, false)
		if len(m.away)+len(m.crowd.nodes)+len(m.problems) != 0 {
			t.Errorf("%v, %v are left", m.away, m.crowd.nodes)
		}
		come()
		m.step(time.Now(), false)
		is("back after long", 5, true)

		// For whom nothing could be made there is nothing to keep.
		m.decide = func(proxy.Input) (*proxy.Proxy, []proxy.Problem) { panic("boom") }
		m.closed(key)
		<-time.After(awayFor)
		synctest.Wait()
		m.step(time.Now(), false)
		come()
		m.step(time.Now(), false)
		if len(m.problemsOf(key)) == 0 {
			t.Error("nobody is told that nothing can be made")
		}
		m.closed(key)
		m.step(time.Now(), false)
		if len(m.problems)+len(m.crowd.nodes) != 0 {
			t.Errorf("%v, %v are left", m.problems, m.crowd.nodes)
		}
		<-time.After(awayFor)
	})
}
