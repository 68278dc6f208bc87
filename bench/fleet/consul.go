package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/consul"
)

// engine is a real Consul, which keeps its state in memory.
type engine struct {
	*lab.Consul
	client *consul.Client
	took   []time.Duration // until it answered, of each change that was made alone
}

// startConsul starts one, and registers everything there.
func (w *world) startConsul(ctx context.Context) error {
	c, err := lab.StartConsul(ctx, w.Binaries, w.dir, `default_intention_policy = "allow"`, `limits { http_max_conns_per_client = 10000 }`)
	if err != nil {
		return err
	}
	w.stops = append(w.stops, c.Stop)
	client, err := consul.NewClient(consul.Options{Address: c.HTTPAddr})
	if err != nil {
		return err
	}
	w.stops = append(w.stops, client.Close)
	w.consul = &engine{Consul: c, client: client}
	if err := c.Write(ctx, "Kind = \"proxy-defaults\"\nName = \"global\"\nConfig { protocol = \"http\" }\n"); err != nil {
		return err
	}
	rows := make([]instance, 0, w.Instances)
	w.all(func(in instance) { rows = append(rows, in) })
	return parallel(len(rows), func(i int) error { return w.registerAtConsul(ctx, rows[i]) })
}

// registerAtConsul registers an instance. Its transactions would drop the upstreams.
func (w *world) registerAtConsul(ctx context.Context, in instance) error {
	put := func(row map[string]any) error {
		row["Node"], row["Address"] = w.nodeOf(in), w.address(w.host(in))
		return w.consul.put(ctx, "/v1/catalog/register", row)
	}
	if !w.alone(in) {
		if err := put(map[string]any{"Service": w.app(in)}); err != nil {
			return err
		}
	}
	return put(map[string]any{"Service": w.sidecarOf(in), "Check": w.setCheck(in, catalog.Passing)["Check"]["Check"]})
}

// put has it take a body.
func (e *engine) put(ctx context.Context, path string, in any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	a, err := e.client.Do(ctx, http.MethodPut, path, nil, body, 0, 0)
	if err == nil && a.Status != http.StatusOK {
		err = fmt.Errorf("consul: PUT %s: status %d: %.500s", path, a.Status, a.Body)
	}
	return err
}

// index is that of a path, once it exceeds another.
func (e *engine) index(ctx context.Context, path string, after uint64) (uint64, error) {
	a, err := e.client.Do(ctx, http.MethodGet, path, nil, nil, after, time.Minute)
	if err != nil {
		return 0, err
	}
	index, err := a.Index()
	if err == nil && (a.Status != http.StatusOK || index <= after) {
		err = fmt.Errorf("consul: %s: status %d, index %d after %d", path, a.Status, index, after)
	}
	return index, err
}

// consulShare is what a scenario cost Consul.
func (m *meter) consulShare() (*share, error) {
	if m.w.consul == nil {
		return nil, nil
	}
	pid := m.w.consul.PID()
	cpu, err := lab.CPUTime(pid)
	if err != nil {
		return nil, err
	}
	out := &share{CPU: (cpu - m.consul).Seconds()}
	if out.RSS, _, _, err = memory(pid); err != nil {
		return nil, err
	}
	if times := slices.Sorted(slices.Values(m.w.consul.took)); len(times) > 0 {
		out.P50, out.P99 = quantile(times, 0.5), quantile(times, 0.99)
	}
	return out, nil
}

// changeAlone is [world.change], beside which nothing else goes on. Where Consul is the engine, a client of
// its own waits for the change as well.
func (w *world) changeAlone(ctx context.Context, service int, critical bool) ([]time.Duration, error) {
	if w.consul == nil {
		return w.change(ctx, service, critical)
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	path := "/v1/health/connect/" + w.service(service)
	before, err := w.consul.index(ctx, path, 0)
	if err != nil {
		return nil, err
	}
	answered := make(chan error, 1)
	began := time.Now()
	var took time.Duration
	go func() {
		_, err := w.consul.index(ctx, path, before)
		took = time.Since(began)
		answered <- err
	}()
	times, err := w.change(ctx, service, critical)
	if err == nil {
		err = <-answered
		w.consul.took = append(w.consul.took, took)
	}
	return times, err
}
