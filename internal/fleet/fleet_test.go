package fleet_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/fleet"
	"github.com/crossfade-mesh/crossfade/internal/identity"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// side is a fleet of web's sidecars, who call catalog, and their server with TLS.
type side struct {
	t      *testing.T
	dir    string
	server *servertest.Server
	fleet  *fleet.Fleet
	issuer *fleet.Issuer
}

func newSide(t *testing.T, sidecars int, refuse float64) *side {
	t.Helper()
	s := &side{t: t, dir: t.TempDir()}
	s.server = servertest.Start(t, server.Options{DataDir: s.dir, DefaultAllow: true})
	s.server.Write(&config.ProxyDefaults{Kind: config.KindProxyDefaults, Name: config.Global, Config: map[string]any{"protocol": "http"}})
	s.server.Register("catalog.yaml", "service: catalog\nid: catalog-1\nport: 9001\n")
	var list []fleet.Sidecar
	for i := range sidecars {
		id := fmt.Sprint("web-", i)
		s.server.Register(id+".yaml", fmt.Sprintf("service: web\nid: %s\nport: %d\nupstreams:\n  - catalog:7100\n", id, 9100+i))
		list = append(list, fleet.Sidecar{Service: "web", ID: id + "-sidecar-proxy", Node: "test"})
	}
	pem, err := os.ReadFile(filepath.Join(s.dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots, err := fleet.Pool(pem)
	if err != nil {
		t.Fatal(err)
	}
	_, join := s.server.Token(`{"role":"join","services":["web"]}`)
	o := fleet.Options{Address: s.server.GRPCAddr(), Roots: roots, Names: "localhost", Refuse: refuse}
	s.fleet = fleet.New(o, list)
	if s.issuer, err = fleet.NewIssuer(o, identity.SPIFFE{TrustDomain: s.server.TrustDomain(), Datacenter: "dc1"}, map[string]string{"web": join}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.issuer.Close)
	if err := s.issuer.Certify(t.Context(), s.fleet); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.fleet.Stop(0, sidecars) })
	return s
}

// eventually waits until the fleet's counters are as wanted.
func (s *side) eventually(what string, ok func(fleet.Totals) bool) {
	s.t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(s.fleet.Totals()); {
		if time.Now().After(end) {
			s.t.Fatalf("not %s: %+v", what, s.fleet.Totals())
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-s.t.Context().Done():
			s.t.Fatal(s.t.Context().Err())
		}
	}
}

func (s *side) cluster() string {
	return identity.SPIFFE{TrustDomain: s.server.TrustDomain(), Datacenter: "dc1", Service: "catalog"}.SNI()
}

// register adds an instance of catalog.
func (s *side) register(i int) {
	s.server.Register(fmt.Sprint("catalog", i, ".yaml"), fmt.Sprintf("service: catalog\nid: catalog-%d\nport: %d\n", i, 9001+i))
}

// All sidecars have all they ask for, and learn of a change.
func TestLearn(t *testing.T) {
	const sidecars = 5
	s := newSide(t, sidecars, 0)
	s.fleet.Start(t.Context(), 0, sidecars)
	s.eventually("in sync", func(n fleet.Totals) bool { return n.Synced == sidecars })
	w := s.fleet.Watch(xds.EndpointType, s.cluster(), sidecars)
	before := s.fleet.Endpoints()[s.cluster()]
	s.register(2)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := w.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	times := w.End()
	if len(times) != sidecars {
		t.Errorf("%d times", len(times))
	}
	after := s.fleet.Endpoints()[s.cluster()]
	if len(before) != 1 || len(after) != 1 {
		t.Fatalf("versions before %v, after %v: want one each", before, after)
	}
	for v := range before {
		if after[v] != 0 {
			t.Errorf("sidecars hold version %x as before", v)
		}
	}
	if n := s.fleet.Totals(); n.Nacks != 0 || n.Broken != 0 || n.Connects != sidecars {
		t.Errorf("%+v", n)
	}

	// One that has nothing of it, as it is down, is missed.
	s.fleet.Stop(0, 1)
	w = s.fleet.Watch(xds.EndpointType, s.cluster(), sidecars)
	s.register(3)
	s.eventually("told but for one", func(fleet.Totals) bool { return w.CountBelow(sidecars) == sidecars-1 })
	ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := w.Wait(ctx); err == nil {
		t.Error("a watch of five is over with four")
	}
	w.End()
}

// A sidecar that refuses keeps what it has, and the server knows.
func TestRefuse(t *testing.T) {
	s := newSide(t, 1, 1)
	s.fleet.Start(t.Context(), 0, 1)
	s.eventually("in sync", func(n fleet.Totals) bool { return n.Synced == 1 })
	before := s.fleet.Endpoints()[s.cluster()]
	s.register(2)
	s.eventually("refused", func(n fleet.Totals) bool { return n.Nacks == 1 })
	if after := s.fleet.Endpoints()[s.cluster()]; fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("versions before %v, after %v", before, after)
	}
	s.eventually("known", func(fleet.Totals) bool {
		_, body := s.server.Call("GET", "/v1/crossfade/sidecars", nil)
		return bytes.Contains(body, []byte("refused, as one in so many is"))
	})
}

// A new leaf is shown by a new connection, on which nothing comes again that the sidecar has.
func TestRedial(t *testing.T) {
	s := newSide(t, 1, 0)
	s.fleet.Start(t.Context(), 0, 1)
	s.eventually("in sync", func(n fleet.Totals) bool { return n.Synced == 1 })
	first := s.fleet.Totals()
	leaf, err := s.issuer.Leaf(t.Context(), 0, "web")
	if err != nil {
		t.Fatal(err)
	}
	s.fleet.Certify(0, leaf)
	s.fleet.Redial(0)
	s.eventually("connected again", func(n fleet.Totals) bool { return n.Connects == 2 && n.Up == 1 })
	w := s.fleet.Watch(xds.EndpointType, s.cluster(), 1)
	s.register(2) // what comes of it comes last
	if err := w.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.End()
	if n := s.fleet.Totals(); n.Responses != first.Responses+1 || n.Broken != 0 {
		t.Errorf("before %+v, after %+v: want one response more", first, n)
	}

	// Without a leaf the server takes nobody.
	s.fleet.Certify(0, nil)
	s.fleet.Redial(0)
	s.eventually("refused", func(n fleet.Totals) bool { return n.Broken > 0 && n.Up == 0 })
}
