package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/bench/lab"
	"github.com/crossfade-mesh/crossfade/internal/demo/load"
	"github.com/crossfade-mesh/crossfade/internal/demo/shop"
	"github.com/crossfade-mesh/crossfade/internal/shift"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

// caller is the service whose sidecar all requests go through.
const caller = "storefront"

// pairs are the destinations, one for each kind of traffic.
var pairs = []struct{ kind, service, protocol string }{
	{"http", "catalog", "http"},
	{"grpc", "assignments", "grpc"},
	{"websocket", "chat", "http"},
	{"tcp", "payments", "tcp"},
}

// world is everything that runs.
type world struct {
	mesh      *lab.Mesh
	nodeProxy *lab.Process
	caller    lab.Sidecar
	api       *api.Client
	upstreams map[string]string // host:port at the caller's sidecar, by service
	stops     []func()
}

// startLimit bounds each step of starting.
const startLimit = 60 * time.Second

func (w *world) stop() {
	for _, stop := range slices.Backward(w.stops) {
		stop()
	}
}

// start starts apps, the old mesh, the server and sidecars, with all pairs on the old mesh.
func start(ctx context.Context, s settings, dir string) (_ *world, err error) {
	w := &world{upstreams: map[string]string{}}
	defer func() {
		if err != nil {
			w.stop()
		}
	}()
	ports, err := lab.FreePorts(2*len(pairs) + 4)
	if err != nil {
		return nil, err
	}
	take := func() (port int) {
		port, ports = ports[0], ports[1:]
		return port
	}
	if w.mesh, err = lab.StartMesh(ctx, s.Binaries, dir); err != nil {
		return nil, err
	}
	w.stops = append(w.stops, w.mesh.Stop)
	if w.api, err = api.New(api.Options{Address: w.mesh.HTTPAddr}); err != nil {
		return nil, err
	}
	if err := w.mesh.Write(ctx, "Kind = \"mesh\"\nAllowEnablingPermissiveMutualTLS = true\n"); err != nil {
		return nil, err
	}
	front, peer, tcpFront, tcpPeer := take(), take(), take(), take()
	apps := map[string]int{}
	for _, p := range pairs {
		apps[p.service] = take()
	}
	if err := w.startApps(apps); err != nil {
		return nil, err
	}
	var definition strings.Builder
	fmt.Fprintf(&definition, "service: %s\nport: 9\nprotocol: http\nupstreams:\n", caller)
	for _, p := range pairs {
		port := take()
		w.upstreams[p.service] = fmt.Sprintf("127.0.0.1:%d", port)
		fmt.Fprintf(&definition, "  - %s:%d\n", p.service, port)
		legacy := fmt.Sprintf("Legacy { Address = \"127.0.0.1:%d\", Host = \"%s.old\" }", front, p.service)
		if p.protocol == "tcp" {
			legacy = fmt.Sprintf("Legacy { Address = \"127.0.0.1:%d\" }", tcpFront)
		}
		err := w.mesh.Write(ctx,
			fmt.Sprintf("Kind = \"service-defaults\"\nName = %q\nProtocol = %q\nMutualTLSMode = \"permissive\"\n", p.service, p.protocol),
			fmt.Sprintf("Kind = \"service-intentions\"\nName = %q\nSources = [{ Name = %q, Action = \"allow\" }]\n", p.service, caller),
			// Figures are of the ways alone: nobody but the plan moves shares.
			fmt.Sprintf("Kind = \"traffic-shift\"\nSource = %q\nDestination = %q\n%s\nShares { legacy = 100 }\nGuard { Off = true }\n", caller, p.service, legacy))
		if err != nil {
			return nil, err
		}
		if _, err := w.mesh.StartSidecar(ctx, p.service, fmt.Sprintf("service: %s\nport: %d\nprotocol: %s\n", p.service, apps[p.service], p.protocol)); err != nil {
			return nil, err
		}
	}
	if w.caller, err = w.mesh.StartSidecar(ctx, caller, definition.String()); err != nil {
		return nil, err
	}
	w.nodeProxy, err = lab.Start("crossfade node-proxy", filepath.Join(dir, "node-proxy.log"), s.Binaries.Crossfade, "node-proxy",
		"--http-addr", w.mesh.HTTPAddr, "--envoy", s.Binaries.Envoy, "--concurrency", "1", "--drain-time", "0s",
		"--front", fmt.Sprintf("127.0.0.1:%d", front), "--peer", fmt.Sprintf("127.0.0.1:%d", peer),
		"--tcp", fmt.Sprintf("payments=%d:%d", tcpFront, tcpPeer))
	if err != nil {
		return nil, err
	}
	w.stops = append(w.stops, func() { w.nodeProxy.Stop(lab.Patience) })
	return w, w.awaitAnswers(ctx)
}

// startApps runs the callees in this process, on their ports.
func (w *world) startApps(ports map[string]int) error {
	ctx, cancel := context.WithCancel(context.Background())
	w.stops = append(w.stops, cancel)
	listen := func(service string) string { return fmt.Sprintf("127.0.0.1:%d", ports[service]) }
	for _, service := range []string{"catalog", "assignments", "payments"} {
		app := shop.App{Service: service, Instance: service + "-1", Listen: listen(service), Upstreams: map[string]shop.Road{"assignments": shop.At(listen("assignments"))}}
		go func() {
			if err := app.Serve(ctx); err != nil {
				fmt.Fprintln(os.Stderr, "impact:", err)
			}
		}()
	}
	ln, err := net.Listen("tcp", listen("chat"))
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: http.HandlerFunc(chat), ReadHeaderTimeout: startLimit}
	w.stops = append(w.stops, func() { srv.Close() })
	go func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintln(os.Stderr, "impact: chat:", err)
		}
	}()
	return nil
}

// awaitAnswers waits until every pair answers by the old mesh.
func (w *world) awaitAnswers(ctx context.Context) error {
	clients, err := w.clients()
	if err != nil {
		return err
	}
	defer clients.close()
	n := uint64(0)
	return w.nodeProxy.Await(ctx, "carrying requests of all pairs", startLimit, func() (bool, error) {
		n++
		for _, p := range pairs {
			if _, err := clients.calls[p.service](n, time.Now().Add(5*time.Second)); err != nil {
				return false, fmt.Errorf("%s: %w", p.service, err)
			}
		}
		return true, nil
	})
}

// clients call every destination at the caller's sidecar.
type clients struct {
	calls map[string]load.Call
	close func()
}

// newEvery is how many requests there are to one that opens a connection of its own.
const newEvery = 10

func (w *world) clients() (clients, error) {
	catalog, payments := shop.NewHTTP(w.upstreams["catalog"], newEvery), shop.NewPayments(w.upstreams["payments"], newEvery)
	assignments, err := shop.NewAssignments(w.upstreams["assignments"], newEvery)
	if err != nil {
		return clients{}, err
	}
	chat := &chatClient{addr: w.upstreams["chat"]}
	return clients{
		calls: map[string]load.Call{
			"catalog": catalog.Item, "payments": payments.PayNumbered, "assignments": assignments.AssignNumbered, "chat": chat.Message,
		},
		close: func() {
			catalog.Close()
			payments.Close()
			assignments.Close()
			chat.close()
		},
	}, nil
}

// ways is how many attempts, or connections, the caller's Envoy counted.
func (w *world) ways(ctx context.Context) (map[string]map[shift.Way]uint64, error) {
	text, err := lab.AdminGet(ctx, w.caller.Admin, telemetry.AttemptsPath)
	if err != nil {
		return nil, err
	}
	stats, err := telemetry.ParseStats([]byte(text))
	if err != nil {
		return nil, err
	}
	counted := stats.Attempts()
	if len(counted) == 0 {
		return nil, errors.New("the caller's Envoy counted nothing by way")
	}
	return counted, nil
}
