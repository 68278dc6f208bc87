package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

// startConsul starts a real Consul, which keeps its state in memory, and registers everything there.
func (w *world) startConsul(ctx context.Context) error {
	var err error
	if w.consul, err = lab.StartConsul(ctx, w.Binaries, w.dir, `default_intention_policy = "allow"`, `limits { http_max_conns_per_client = 10000 }`); err != nil {
		return err
	}
	w.stops = append(w.stops, w.consul.Stop)
	w.http = http.DefaultClient
	defer func() { w.http = nil }() // it does not know the server's CA
	if err := w.consul.Write(ctx, "Kind = \"proxy-defaults\"\nName = \"global\"\nConfig { protocol = \"http\" }\n"); err != nil {
		return err
	}
	rows := make([]instance, 0, w.Instances)
	w.all(func(in instance) { rows = append(rows, in) })
	return parallel(len(rows), func(i int) error { return w.registerAtConsul(ctx, rows[i]) })
}

// registerAtConsul registers an instance. Its transactions would drop the upstreams.
func (w *world) registerAtConsul(ctx context.Context, in instance) error {
	put := func(row map[string]any) error {
		row["Node"], row["Address"] = w.nodeOf(in), w.address((in.service+in.number)%w.nodes())
		return w.send(ctx, http.MethodPut, w.consul.HTTPAddr+"/v1/catalog/register", row, nil)
	}
	if !w.alone(in) {
		if err := put(map[string]any{"Service": consulService(w.app(in))}); err != nil {
			return err
		}
	}
	return put(map[string]any{"Service": consulService(w.sidecarOf(in)), "Check": w.setCheck(in, catalog.Passing)["Check"]["Check"]})
}

// consulService is a service as Consul's catalog takes it.
func consulService(s catalog.Service) map[string]any {
	out := map[string]any{"Kind": s.Kind, "ID": s.ID, "Service": s.Name, "Port": s.Port}
	if s.Proxy != nil {
		out["Proxy"] = s.Proxy
	}
	return out
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
	if times := slices.Sorted(slices.Values(m.w.consulTook)); len(times) > 0 {
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
	path := w.consul.HTTPAddr + "/v1/health/connect/" + w.service(service)
	index, err := w.consulIndex(ctx, path, 0)
	if err != nil {
		return nil, err
	}
	answered := make(chan error, 1)
	began := time.Now()
	var took time.Duration
	go func() {
		now, err := w.consulIndex(ctx, path, index)
		if took = time.Since(began); err == nil && now == index {
			err = fmt.Errorf("consul: %s: index %d stands still", path, index)
		}
		answered <- err
	}()
	times, err := w.change(ctx, service, critical)
	if err != nil {
		return nil, err
	}
	err = <-answered
	w.consulTook = append(w.consulTook, took)
	return times, err
}

// consulIndex asks Consul, and waits for what is newer than an index above 0.
func (w *world) consulIndex(ctx context.Context, url string, after uint64) (index uint64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s?index=%d&wait=60s", url, after), nil)
	if err != nil {
		return 0, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if _, err := fmt.Sscan(res.Header.Get("X-Consul-Index"), &index); err != nil || res.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("consul: %s: %s, index %q", url, res.Status, res.Header.Get("X-Consul-Index"))
	}
	return index, nil
}
