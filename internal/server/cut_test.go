package server_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	runtimev3 "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	"google.golang.org/protobuf/proto"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// Each connected sidecar of a reverted pair gets the order to close what is open, with its part
// of the time, and what they tell of it can be asked for; so can who cannot, and why.
func TestCutIsOrdered(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	for _, id := range []string{"web-1", "web-2", "web-3", "web-4"} {
		s.Register(id+".yaml", fmt.Sprintf("service: web\nid: %s\nport: 8080\nprotocol: http\nupstreams: [\"catalog:7100\"]\n", id))
	}
	s.Register("catalog.yaml", catalog)
	s.Write(shiftEntry(config.Shares{MTLS: 100}))
	layer := xds.Key{Type: xds.RuntimeType, Name: envoy.RuntimeName}
	first := follow(t, s, "web-1-sidecar-proxy", true, layer)
	second := follow(t, s, "web-3-sidecar-proxy", true, layer)
	follow(t, s, "web-4-sidecar-proxy", false, layer)
	c := apiOf(t, s, "")
	meshtest.Eventually(t, "the sidecars are known", func() error {
		p, err := c.Pair(t.Context(), "web", "catalog")
		if err != nil || p.Sidecars.Connected != 3 {
			return fmt.Errorf("%+v, %w", p, err)
		}
		return nil
	})
	ordered := func(p *peer) proxy.Cut {
		var out []proxy.Cut
		p.until("an order", func() bool {
			if p.held[layer] == nil {
				return false
			}
			body, err := p.held[layer].Body()
			if err != nil {
				t.Fatal(err)
			}
			var r runtimev3.Runtime
			if err := proto.Unmarshal(body, &r); err != nil {
				t.Fatal(err)
			}
			out = envoy.Cuts(&r)
			return len(out) == 1
		})
		return out[0]
	}
	done, err := c.Revert(t.Context(), api.RevertRequest{Service: "catalog", Cut: true, Over: "20s", Force: true})
	if err != nil || done.Cut == "" {
		t.Fatalf("%+v, %v", done, err)
	}
	for part, p := range map[int]*peer{0: first, 2: second} {
		if got, want := ordered(p), (proxy.Cut{Destination: "catalog", ID: done.Cut, Keep: "direct", Over: 20 * time.Second, Part: part, Parts: 4}); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	is := func(what string, closed uint64, finished bool, rows ...string) {
		t.Helper()
		now, err := c.Cut(t.Context(), done.Cut)
		if err != nil || now.Closed != closed || now.Done != finished || now.Over != "20s" || len(now.Sidecars) != len(rows) {
			t.Fatalf("%s: %+v, %v", what, now, err)
		}
		for i, row := range now.Sidecars {
			if got := fmt.Sprintf("%s %s %d on %d: %s", row.Sidecar, row.State, row.Closed, row.Connections, row.Why); !strings.HasPrefix(got, rows[i]) {
				t.Errorf("%s: %s, want %s", what, got, rows[i])
			}
		}
	}
	is("nobody has told", 0, false, "web-1-sidecar-proxy waiting 0 on 0: ", "web-2-sidecar-proxy disconnected 0 on 0: no connection", "web-3-sidecar-proxy waiting", "web-4-sidecar-proxy failed 0 on 0: a bare Envoy")
	told := telemetry.Report{Session: 1, Seq: 1, At: time.Now(), Cuts: []telemetry.Cut{
		{Destination: "catalog", Order: done.Cut, State: telemetry.CutDone, Closed: 40, Connections: 4}, {Destination: "other", Order: done.Cut, State: telemetry.CutDone, Closed: 1000},
	}}
	if err := reported(t, s.Conn(), "web-1-sidecar-proxy", told); err != nil {
		t.Fatal(err)
	}
	is("one is done", 40, false, "web-1-sidecar-proxy done 40 on 4: ", "web-2-", "web-3-sidecar-proxy waiting", "web-4-")
	told.Cuts = []telemetry.Cut{{Destination: "catalog", Order: done.Cut, State: telemetry.CutFailed, Why: "not lent"}}
	if err := reported(t, s.Conn(), "web-3-sidecar-proxy", told); err != nil {
		t.Fatal(err)
	}
	is("all have told", 40, true, "web-1-sidecar-proxy done 40 on 4: ", "web-2-", "web-3-sidecar-proxy failed 0 on 0: not lent", "web-4-")

	// What was told of an order is not of the next, and a newer one stands in its place.
	again, err := c.Revert(t.Context(), api.RevertRequest{All: true, Cut: true, Force: true})
	if err != nil || again.Cut == "" || again.Index != 0 {
		t.Fatalf("%+v, %v", again, err)
	}
	first.until("the next order", func() bool { return ordered(first).ID == again.Cut })
	if got := ordered(first); got.Over != 30*time.Second {
		t.Errorf("%+v", got)
	}
	if now, err := c.Cut(t.Context(), again.Cut); err != nil || now.Closed != 0 || now.Done {
		t.Errorf("%+v, %v", now, err)
	}
}

// Nothing is ordered that cannot be meant, nor of a pair that does not go back.
func TestCutIsRefused(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	s.Register("web.yaml", web)
	s.Register("catalog.yaml", catalog)
	c := apiOf(t, s, "")
	for what, r := range map[string]api.RevertRequest{
		"without cut": {All: true, Over: "3s"}, "no time": {All: true, Cut: true, Over: "soon"}, "a negative time": {All: true, Cut: true, Over: "-1s"}, "too long": {All: true, Cut: true, Over: "2h"},
	} {
		_, err := c.Revert(t.Context(), r)
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Status != http.StatusBadRequest || !strings.Contains(e.Text, "over") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := c.Cut(t.Context(), "nobody's"); err == nil || !strings.Contains(err.Error(), "this server has given no such order") {
		t.Errorf("%v", err)
	}
	done, err := c.Revert(t.Context(), api.RevertRequest{Pairs: []api.PairName{pairOf("web", "catalog")}, Cut: true})
	if err != nil || done.Pairs[0].Refused == "" {
		t.Fatalf("%+v, %v", done, err)
	}
	if now, err := c.Cut(t.Context(), done.Cut); err != nil || !now.Done || len(now.Sidecars) != 0 {
		t.Errorf("%+v, %v", now, err)
	}
}
