package drift

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/envoyadmin"
	"github.com/crossfade-mesh/crossfade/internal/identity"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
	"github.com/crossfade-mesh/crossfade/internal/sidecar/relay"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// quick is some thirty times faster than the default.
var quick = Timing{Every: 50 * time.Millisecond, Idle: 200 * time.Millisecond, Patience: time.Second, Again: 2 * time.Second, Share: 1}

// world is a server, a relay and a real Envoy, with a thief between the last two.
type world struct {
	t      *testing.T
	server *servertest.Server
	relay  *relay.Relay
	envoy  *meshtest.Envoy
	thief  *meshtest.Thief
	ca     *meshtest.Authority
	admin  *envoyadmin.Client

	mu      sync.Mutex
	reports []api.Drift
	seen    []string // faults of any report
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, server: servertest.Start(t, server.Options{}), ca: meshtest.NewAuthority(t)}
	ports := meshtest.FreePorts(t, 5)
	for service, protocol := range map[string]string{"callee": "http", "raw": "tcp", "caller": "http"} {
		w.server.Write(&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: service, Protocol: protocol})
	}
	w.instance("callee", "callee", ports[0], "")
	w.instance("raw", "raw", ports[1], "")
	w.instance("caller", "caller", ports[2], fmt.Sprintf(`proxy {
		upstreams = [{ destination_name = "callee", local_bind_port = %d }, { destination_name = "raw", local_bind_port = %d }]
	}`, ports[3], ports[4]))

	dir := meshtest.RunDir(t)
	var err error
	w.relay, err = relay.New(relay.Options{
		Conn: w.server.Conn(), Socket: filepath.Join(dir, "xds.sock"), StateFile: filepath.Join(dir, "lastgood.pb"),
		NodeID: "caller-sidecar-proxy", NodeName: "test", Cluster: "caller",
	})
	if err != nil {
		t.Fatal(err)
	}
	w.rotate()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.relay.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	socket := filepath.Join(dir, "thief.sock")
	w.thief = meshtest.StartThief(t, socket, filepath.Join(dir, "xds.sock"))
	adminSocket := filepath.Join(dir, "admin.sock")
	b, err := envoy.Bootstrap(envoy.BootstrapOptions{NodeID: "caller-sidecar-proxy", Service: "caller", Datacenter: "dc1", XDSSocket: socket, AdminSocket: adminSocket})
	if err != nil {
		t.Fatal(err)
	}
	w.admin = envoyadmin.New(adminSocket, AskWithin)
	t.Cleanup(w.admin.Close)
	w.envoy = meshtest.StartEnvoy(t, b)
	w.envoy.WaitReady()
	meshtest.Eventually(t, "Envoy runs what it was told", w.agree)
	return w
}

// instance registers one with its sidecar's port.
func (w *world) instance(service, id string, port int, proxy string) {
	w.t.Helper()
	w.server.Register("service.hcl", fmt.Sprintf("service {\n name = %q\n id = %q\n port = 9\n connect {\n sidecar_service {\n port = %d\n %s\n }\n }\n}\n", service, id, port, proxy))
}

// rotate gives Envoy another leaf.
func (w *world) rotate() {
	w.t.Helper()
	cert, key := w.ca.Leaf(identity.SPIFFE{TrustDomain: w.server.TrustDomain(), Datacenter: "dc1", Service: "caller"})
	var secrets []*xds.Resource
	for name, m := range map[string]proto.Message{"leaf": envoy.LeafSecret(cert, key), "roots": envoy.RootsSecret(w.ca.PEM)} {
		res, err := xds.NewResource(xds.SecretType, name, m)
		if err != nil {
			w.t.Fatal(err)
		}
		secrets = append(secrets, res)
	}
	w.relay.SetSecrets(secrets...)
}

// faults are those of a look of the test's own.
func (w *world) faults() ([]Fault, error) {
	runs, err := look(w.t.Context(), w.admin)
	if err != nil {
		return nil, err
	}
	return sift(w.t.Context(), w.admin, compareAll(w.relay.Told(), runs, w.relay.Resource), w.relay.Resource)
}

// agree fails unless Envoy runs all that it was told.
func (w *world) agree() error {
	found, err := w.faults()
	if err == nil && len(found) > 0 {
		err = fmt.Errorf("%v", found)
	}
	for _, typ := range xds.Types {
		some := false
		for k := range w.relay.Told().Acked {
			some = some || k.Type == typ
		}
		if err == nil && !some {
			err = errors.New("no " + typ.Short() + " is acknowledged")
		}
	}
	return err
}

// watch watches until the test, or the returned function, ends it.
func (w *world) watch(t *testing.T) (stop func()) {
	w.mu.Lock()
	w.reports, w.seen = nil, nil
	w.mu.Unlock()
	watch := &Watch{
		Relay: w.relay, Admin: w.admin, Envoy: func() int64 { return int64(w.envoy.PID) }, Timing: quick, Log: slog.New(slog.DiscardHandler),
		Changed: func(r api.Drift) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.reports, w.seen = append(w.reports, r), append(w.seen, r.Faults...)
		},
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); watch.Run(ctx) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

func (w *world) last() api.Drift {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.reports) == 0 {
		return api.Drift{}
	}
	return w.reports[len(w.reports)-1]
}

// change is something of each type that a server, or the sidecar, may change at any time.
type change struct {
	typ  xds.Type
	name string // part of the resource's
	make func(w *world, n int)
}

func changes() []change {
	resolver := func(w *world, n int) {
		w.server.Write(&config.ServiceResolver{Kind: config.KindServiceResolver, Name: "callee", ConnectTimeout: config.Duration(time.Duration(n) * time.Second)})
	}
	return []change{
		{xds.ClusterType, "callee", resolver},
		{xds.EndpointType, "callee", func(w *world, n int) {
			w.instance("callee", fmt.Sprint("callee-", n), 20_000+n, "")
		}},
		{xds.RouteType, "callee", func(w *world, n int) {
			w.server.Write(&config.ServiceResolver{Kind: config.KindServiceResolver, Name: "callee", RequestTimeout: config.Duration(time.Duration(n) * time.Second)})
		}},
		{xds.ListenerType, "raw", func(w *world, n int) {
			w.server.Write(&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "raw", Protocol: []string{"http", "tcp"}[n%2]})
		}},
		{xds.RuntimeType, "crossfade", func(w *world, n int) {
			w.server.Write(&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "caller", Protocol: "http", MaxInboundConnections: n})
		}},
		{xds.SecretType, "leaf", func(w *world, _ int) { w.rotate() }},
	}
}

// An Envoy that acknowledged an update and does not run it, that never answered, or that
// missed it twice, is found out, and has it in the end. Without a watch it stays so.
func TestMissedUpdate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := 1
	for _, c := range changes() {
		for _, how := range []struct {
			name    string
			verdict meshtest.Verdict
			times   int
			done    Verb
		}{{"acknowledged", meshtest.Lie, 1, Resend}, {"not answered", meshtest.Silent, 1, Resend}, {"twice", meshtest.Lie, 2, Restart}} {
			if how.times > 1 && c.typ != xds.ClusterType && c.typ != xds.EndpointType {
				continue
			}
			t.Run(c.typ.Short()+" "+how.name, func(t *testing.T) {
				n++
				left := w.thief.Steal(c.typ, how.times, how.verdict)
				c.make(w, n)
				meshtest.Eventually(t, "the response is stolen", func() error {
					if left() == how.times {
						return errors.New("nothing was sent")
					}
					return nil
				})
				if how.verdict == meshtest.Lie && how.times == 1 {
					w.stays(t, c)
				}
				stop := w.watch(t)
				meshtest.Eventually(t, "healed", func() error {
					if last := w.last(); last.Drifts == 0 || !last.Since.IsZero() {
						w.mu.Lock()
						defer w.mu.Unlock()
						return fmt.Errorf("last report %+v, faults so far:\n%s", last, strings.Join(w.seen, "\n"))
					}
					return w.agree()
				})
				stop()
				w.mu.Lock()
				defer w.mu.Unlock()
				said := strings.Join(w.seen, "\n")
				if !strings.Contains(said, c.typ.Short()) || how.verdict == meshtest.Lie && !strings.Contains(said, c.name) {
					t.Errorf("faults were\n%s\nwant a %s %q", said, c.typ.Short(), c.name)
				}
				acts := map[Verb]uint64{Resend: w.reports[len(w.reports)-1].Resends, Restart: w.reports[len(w.reports)-1].Restarts}
				if acts[how.done] == 0 || how.done == Resend && acts[Restart] > 0 {
					t.Errorf("done: %v, want it %s", acts, how.done)
				}
			})
		}
	}
}

// stays is the control: nobody else mends it.
func (w *world) stays(t *testing.T, c change) {
	t.Helper()
	for began := time.Now(); time.Since(began) < quick.Patience; {
		found, err := w.faults()
		if err != nil {
			t.Fatal(err)
		}
		if len(found) == 0 && time.Since(began) > quick.Patience/2 {
			t.Fatalf("a %s that was stolen is not missed", c.typ.Short())
		}
	}
}

// What Envoy runs and nobody told it goes.
func TestForeignCluster(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.server.Write(&config.ServiceResolver{Kind: config.KindServiceResolver, Name: "callee", DefaultSubset: "v1", Subsets: map[string]config.ResolverSubset{"v1": {}}})
	has := func() bool { return strings.Contains(w.envoy.Admin("/clusters"), "v1.callee.") }
	meshtest.Eventually(t, "Envoy has the subset's cluster", func() error {
		if !has() {
			return errors.New("it has not")
		}
		return w.agree()
	})
	stolen := w.stealRemoval(xds.ClusterType)
	w.server.Call(http.MethodDelete, "/v1/config/service-resolver/callee", nil)
	meshtest.Eventually(t, "the removal is stolen", func() error {
		if !stolen() {
			return errors.New("nothing was removed")
		}
		return nil
	})
	if !has() {
		t.Fatal("the cluster is gone although Envoy was not told")
	}
	w.watch(t)
	meshtest.Eventually(t, "the cluster goes", func() error {
		if has() {
			return fmt.Errorf("it is still there: %+v", w.last())
		}
		return w.agree()
	})
}

func (w *world) stealRemoval(typ xds.Type) (stolen func() bool) {
	var done atomic.Bool
	w.thief.Take(func(r *discoveryv3.DeltaDiscoveryResponse) meshtest.Verdict {
		if r.GetTypeUrl() != string(typ) || len(r.GetRemovedResources()) == 0 || done.Swap(true) {
			return meshtest.Pass
		}
		return meshtest.Lie
	})
	return done.Load
}

// What Envoy refuses, and changes without a pause, are no drift.
func TestNoFalseAlarm(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.watch(t)
	spoiled := make(chan struct{})
	var once sync.Once
	w.thief.Take(func(r *discoveryv3.DeltaDiscoveryResponse) meshtest.Verdict {
		if r.GetTypeUrl() == string(xds.RouteType) {
			once.Do(func() {
				for _, res := range r.GetResources() {
					res.GetResource().Value = []byte("no route configuration")
				}
				close(spoiled)
			})
		}
		return meshtest.Pass
	})
	changes()[2].make(w, 7)
	select {
	case <-spoiled:
	case <-time.After(20 * time.Second):
		t.Fatal("no route was sent")
	}
	n := 10
	for began := time.Now(); time.Since(began) < 3*quick.Patience; n++ {
		for _, c := range changes() {
			if c.typ != xds.RouteType {
				c.make(w, n)
			}
		}
	}
	meshtest.Eventually(t, "Envoy runs what it was told", w.agree)
	if r := w.last(); r.Drifts > 0 {
		t.Errorf("named %v", w.seen)
	}
	if n < 13 {
		t.Errorf("only %d rounds of changes were made", n-10)
	}
	t.Logf("%d rounds of changes", n-10)
	if rejected := regexp.MustCompile(`\.rds\.callee\.update_rejected: [1-9]`); !rejected.MatchString(w.envoy.Admin("/stats")) {
		t.Error("Envoy has refused nothing")
	}
}
