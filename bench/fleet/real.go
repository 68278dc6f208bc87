package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
	apps "github.com/crossfade-mesh/crossfade/bench/lab/load"
	"github.com/crossfade-mesh/crossfade/internal/demo/load"
)

// What real callers ask for, each.
const (
	realRate    = 10 // requests per second
	realTimeout = 10 * time.Second
)

// realEnvoys are pairs of sidecars with real Envoys among the simulated ones, and requests between
// them. The callers call everyone, too, as far as their configuration goes.
type realEnvoys struct {
	record *load.Recorder
	stops  []func()
}

func (r *realEnvoys) stop() {
	for _, stop := range slices.Backward(r.stops) {
		stop()
	}
	r.stops = nil
}

func startReal(ctx context.Context, w *world) (_ *realEnvoys, err error) {
	r := &realEnvoys{record: load.NewRecorder()}
	defer func() {
		if err != nil {
			r.stop()
		}
	}()
	pairs := w.Real / 2
	if pairs == 0 {
		return r, nil
	}
	mesh := lab.Beside(w.server, fmt.Sprintf("https://127.0.0.1:%d", w.ports[0]), w.Binaries, w.dir)
	common := []string{"--ca-file", filepath.Join(w.data(), "ca.pem")}
	if w.consul != nil {
		common = append(common, "--consul", w.consul.HTTPAddr)
	} else {
		common = append(common, "--node", "real")
	}
	r.stops = append(r.stops, mesh.StopSidecars)
	ports, err := lab.FreePorts(3 * pairs)
	if err != nil {
		return nil, err
	}
	loadCtx, cancel := context.WithCancel(context.Background())
	var generators sync.WaitGroup
	r.stops = append(r.stops, func() { cancel(); generators.Wait() })
	for i := range pairs {
		app, err := apps.StartApp(apps.HTTP, apps.Small)
		if err != nil {
			return nil, err
		}
		r.stops = append([]func(){app.Stop}, r.stops...)
		own, upstream, shared := ports[3*i], ports[3*i+1], ports[3*i+2]
		caller, callee := fmt.Sprintf("real-caller-%d", i), fmt.Sprintf("real-callee-%d", i)
		sidecar := func(service, definition string) error {
			secret, err := w.join(ctx, service)
			if err != nil {
				return err
			}
			token := filepath.Join(w.dir, service+".token")
			if err := os.WriteFile(token, []byte(secret), 0o600); err != nil {
				return err
			}
			mesh.SidecarArgs = append(slices.Clone(common), "--join-token-file", token)
			_, err = mesh.StartSidecar(ctx, service, definition)
			return err
		}
		if err := sidecar(callee, fmt.Sprintf("service: %s\nport: %d\n", callee, app.Port)); err != nil {
			return nil, err
		}
		if err := sidecar(caller, fmt.Sprintf("service: %s\nport: %d\nupstreams:\n  - %s:%d\n  - %s:%d\n", caller, own, callee, upstream, everyone, shared)); err != nil {
			return nil, err
		}
		call := callOf(fmt.Sprintf("http://127.0.0.1:%d/", upstream))
		if err := mesh.Await(ctx, caller+" reaching its callee", func() (bool, error) {
			_, err := call(0, time.Now().Add(time.Second))
			return err == nil, err
		}); err != nil {
			return nil, err
		}
		g := load.Generator{Rate: realRate, Timeout: realTimeout, Outstanding: 1000, Call: call, Record: r.record}
		generators.Go(func() { g.Run(loadCtx) })
	}
	w.say("%d real Envoys carry %d requests per second", 2*pairs, pairs*realRate)
	return r, nil
}

// callOf makes requests whose answers have to be whole.
func callOf(url string) load.Call {
	client := &http.Client{Transport: &http.Transport{
		DialContext: (&net.Dialer{Timeout: realTimeout}).DialContext, MaxIdleConnsPerHost: 8,
	}}
	return func(_ uint64, deadline time.Time) (load.Answer, error) {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return load.Answer{}, err
		}
		res, err := client.Do(req)
		if err != nil {
			return load.Answer{}, err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err == nil && (res.StatusCode != http.StatusOK || len(body) != apps.Small) {
			err = fmt.Errorf("%s: %.100s", res.Status, body)
		}
		return load.Answer{}, err
	}
}
