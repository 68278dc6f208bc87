package routing

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// stats are those of a sidecar's Envoy.
func (p process) stats(t *testing.T) string {
	t.Helper()
	return p.admin(t, "/stats")
}

// admin asks a sidecar's Envoy.
func (p process) admin(t *testing.T, path string) string {
	t.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(p.run, "admin.sock"))
	}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://admin"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// untouched fails when an Envoy refused something, or changed a listener.
func (p process) untouched(t *testing.T, id string) {
	t.Helper()
	for line := range strings.Lines(p.stats(t)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		refused := strings.HasSuffix(name, "update_rejected")
		listeners := name == "listener_manager.listener_modified" || name == "listener_manager.listener_in_place_updated"
		if (refused || listeners) && value != "0" {
			t.Errorf("Envoy of %s: %s is %s", id, name, value)
		}
	}
}

// everything is a mesh of HTTP, gRPC and TCP, with callees of both kinds: those that
// have a sidecar and those that speak mTLS themselves; some registered and not there.
func everything(t *testing.T) (*world, *caller, map[string]process, *model) {
	w := newWorld(t)
	m := &model{Rand: rand.New(rand.NewPCG(1, uint64(number(t, "SEED", 1)))), t: t, set: config.NewSet(), parts: map[string]part{
		"catalog":  {config.HTTP, []string{"catalog", "orders"}, map[string]state{"v1": alive, "v2": alive, "v3": dead, "v4": alive}},
		"orders":   {config.HTTP, []string{"catalog", "orders"}, map[string]state{"v1": alive, "v2": alive}},
		"chat":     {config.GRPC, []string{"chat", "talk"}, map[string]state{"v1": alive, "v2": alive, "v3": dead}},
		"talk":     {config.GRPC, []string{"chat", "talk"}, map[string]state{"v1": alive}},
		"payments": {config.TCP, []string{"payments", "ledger"}, map[string]state{"v1": alive, "v2": alive}},
		"ledger":   {config.TCP, []string{"payments", "ledger"}, map[string]state{"v1": alive}},
	}}
	for _, name := range append(m.services(), "web") {
		protocol := config.HTTP
		if p, ok := m.parts[name]; ok {
			protocol = p.protocol
		}
		e := &config.ServiceDefaults{Name: name, Protocol: protocol}
		e.Normalize()
		m.set = m.set.With([]config.Entry{e}, nil)
		w.server.Write(e)
	}
	sides := map[string]process{}
	add := func(service, id, version string) {
		sidecar := strings.HasPrefix(id, "side-")
		var port int
		var stop func()
		switch {
		case m.parts[service].versions[version] == dead:
			port, stop = meshtest.FreePorts(t, 1)[0], func() {}
		case m.parts[service].protocol == config.HTTP:
			port, stop = w.shopApp(service, id, !sidecar)
		case m.parts[service].protocol == config.GRPC:
			port, stop = w.grpcApp(service, !sidecar)
		case sidecar:
			port, stop = w.lineApp(id)
		default:
			w.tcp(service, id, map[string]string{"version": version})
			return
		}
		if !sidecar {
			w.native(service, id, version, port, stop)
			return
		}
		t.Cleanup(stop)
		sides[id] = w.beside(service, id, version, port)
	}
	add("catalog", "catalog-1", "v1")
	add("catalog", "catalog-2", "v2")
	add("catalog", "catalog-3", "v3")
	add("catalog", "side-catalog-4", "v4")
	add("orders", "orders-1", "v1")
	add("orders", "orders-2", "v2")
	add("chat", "chat-1", "v1")
	add("chat", "side-chat-2", "v2")
	add("chat", "chat-3", "v3")
	add("talk", "talk-1", "v1")
	add("payments", "payments-1", "v1")
	add("payments", "side-payments-2", "v2")
	add("ledger", "ledger-1", "v1")
	web := w.caller("web", "web-1", "catalog", "chat", "payments")
	sides["web-1"] = web.process
	return w, web, sides, m
}

// number is what the environment says, or what is so otherwise.
func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

func (w *world) change(c change) string {
	if c.put != nil {
		w.server.Write(c.put)
	} else {
		w.delete(string(c.drop.Kind), c.drop.Name)
	}
	return c.String()
}

// writesPerSecond is how often entries change under traffic.
const writesPerSecond = 18

// Whatever is written, as long as somebody can answer, nobody is refused, and nothing
// that lasts is cut. WRITES says how many writes (1000), SEED which.
func TestRandomWrites(t *testing.T) {
	t.Parallel()
	writes := number(t, "WRITES", 1000)
	w, web, sides, m := everything(t)
	ready(t, web)
	load := w.traffic(t, web.ports)

	type written struct {
		at   time.Time
		what string
	}
	var log []written
	tick := time.NewTicker(time.Second / writesPerSecond)
	defer tick.Stop()
	begin := time.Now()
	for range writes {
		<-tick.C
		at := time.Now()
		log = append(log, written{at, w.change(m.next())})
		if n := len(load.failures()); n > 100 {
			break
		}
	}
	took := time.Since(begin)
	meshtest.Eventually(t, "traffic goes on", func() error { // for the last writes
		if time.Since(begin) < took+time.Second {
			return fmt.Errorf("a moment")
		}
		return nil
	})
	load.stop()
	t.Logf("%d writes in %v, %d requests, %.0f/s%s", len(log), took, load.sent(), float64(load.sent())/time.Since(begin).Seconds(), load.report())
	for i, f := range load.failures() {
		if i == 10 {
			t.Errorf("and %d more", len(load.failures())-i)
			break
		}
		var around []string
		for _, l := range log {
			if l.at.After(f.Sent.Add(-400*time.Millisecond)) && l.at.Before(f.Sent.Add(400*time.Millisecond)) || l.at.Before(f.Ended) && l.at.After(f.Ended.Add(-400*time.Millisecond)) {
				around = append(around, fmt.Sprintf("%v after it was sent: %s", l.at.Sub(f.Sent).Round(time.Millisecond), l.what))
			}
		}
		t.Errorf("%s, after %v, at %v\n%s", f.Reason, f.Ended.Sub(f.Sent), f.Ended.Sub(begin), strings.Join(around, "\n"))
	}
	if n := load.closed.Load(); n > 0 {
		t.Errorf("%d kept-alive connections were closed", n)
	}
	for id, p := range sides {
		p.untouched(t, id)
	}
}
