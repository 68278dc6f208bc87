package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/crossfade-mesh/crossfade/bench/lab"
	"github.com/crossfade-mesh/crossfade/bench/lab/load"
)

// manySources is how many more callers the path "intentions" allows.
const manySources = 5000

// meshEntries name the protocol and allow the one caller and further ones, which do
// not exist. All else is denied by default, so that the callee has to look the
// caller up. Both meshes take them.
func meshEntries(protocol string, further int) []string {
	var sources strings.Builder
	sources.WriteString("  { Name = \"caller\", Action = \"allow\" },\n")
	for i := range further {
		fmt.Fprintf(&sources, "  { Name = \"source-%04d\", Action = \"allow\" },\n", i)
	}
	return []string{
		fmt.Sprintf("Kind     = \"service-defaults\"\nName     = \"app\"\nProtocol = %q\n", protocol),
		fmt.Sprintf("Kind = \"service-intentions\"\nName = \"app\"\nSources = [\n%s]\n", sources.String()),
	}
}

// startMesh starts a server and a sidecar on both sides, as a user would.
func startMesh(ctx context.Context, t *trial, path string) (_ *running, err error) {
	dir, err := t.subdir(path)
	if err != nil {
		return nil, err
	}
	m, err := lab.StartMesh(ctx, t.settings.Binaries, dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.Stop()
		}
	}()
	further := 0
	if path == pathIntentions {
		further = manySources
	}
	if err := m.Write(ctx, meshEntries(t.protocol, further)...); err != nil {
		return nil, err
	}
	ports, err := lab.FreePorts(2)
	if err != nil {
		return nil, err
	}
	callerPort, upstreamPort := ports[0], ports[1]
	callee, err := m.StartSidecar(ctx, "app", fmt.Sprintf("service: app\nport: %d\nprotocol: %s\n", t.appPort, t.protocol))
	if err != nil {
		return nil, err
	}
	caller, err := m.StartSidecar(ctx, "caller", fmt.Sprintf(
		"service: caller\nport: %d\nprotocol: %s\nupstreams:\n  - app:%d\n", callerPort, t.protocol, upstreamPort))
	if err != nil {
		return nil, err
	}
	r := &running{
		addr:    fmt.Sprintf("127.0.0.1:%d", upstreamPort),
		envoys:  []int{caller.EnvoyPID, callee.EnvoyPID},
		stop:    m.Stop,
		witness: func(ctx context.Context) error { return lab.Enforced(ctx, callee.Admin) },
	}
	return r, m.Await(ctx, "carrying requests", load.Answers(ctx, t.protocol, r.addr, load.Small))
}

// startConsul starts a Consul agent and its Envoys on both sides, as its guide does.
func startConsul(ctx context.Context, t *trial) (_ *running, err error) {
	dir, err := t.subdir(pathConsul)
	if err != nil {
		return nil, err
	}
	c, err := lab.StartConsul(ctx, t.settings.Binaries, dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.Stop()
		}
	}()
	if err := c.Write(ctx, meshEntries(t.protocol, 0)...); err != nil {
		return nil, err
	}
	ports, err := lab.FreePorts(4)
	if err != nil {
		return nil, err
	}
	err = c.Register(ctx,
		fmt.Sprintf("service {\n  name = \"app\"\n  port = %d\n  connect { sidecar_service { port = %d } }\n}\n", t.appPort, ports[0]),
		fmt.Sprintf("service {\n  name = \"caller\"\n  port = %d\n  connect { sidecar_service {\n    port = %d\n"+
			"    proxy { upstreams = [{ destination_name = \"app\", local_bind_port = %d }] }\n  } }\n}\n", ports[1], ports[2], ports[3]))
	if err != nil {
		return nil, err
	}
	callee, err := c.StartEnvoy(ctx, "app")
	if err != nil {
		return nil, err
	}
	caller, err := c.StartEnvoy(ctx, "caller")
	if err != nil {
		return nil, err
	}
	r := &running{
		addr:    fmt.Sprintf("127.0.0.1:%d", ports[3]),
		envoys:  []int{caller.Process.PID(), callee.Process.PID()},
		stop:    c.Stop,
		witness: func(ctx context.Context) error { return lab.Enforced(ctx, callee.Admin) },
	}
	return r, c.Await(ctx, "carrying requests", load.Answers(ctx, t.protocol, r.addr, load.Small))
}
