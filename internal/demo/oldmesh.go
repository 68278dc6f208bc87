package demo

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// oldDomain is what the old mesh calls services by: catalog.old.
const oldDomain = "old"

// oldMesh is the node proxy that all apps of the host share before they join.
type oldMesh struct {
	front, peer       int // HTTP, by Host
	tcpFront, tcpPeer int // payments
	child             *child
}

// addr is where the old mesh takes calls of a service.
func (o oldMesh) addr(service string) string {
	port := o.front
	if service == "payments" {
		port = o.tcpFront
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// startOldMesh starts the node proxy, which finds services in the registry.
func (m *mesh) startOldMesh() error {
	if err := m.api.readerToken(m.readerFile()); err != nil {
		return fmt.Errorf("a reader's token: %w", err)
	}
	var err error
	m.old.child, err = start("node proxy", filepath.Join(m.dir, "node-proxy.log"), m.env, m.o.Executable,
		"node-proxy", "--http-addr", m.api.base, "--ca-file", m.api.caFile(), "--token-file", m.readerFile(), "--node", nodeName, "--domain", oldDomain,
		"--front", m.old.addr("catalog"), "--peer", "127.0.0.1:"+strconv.Itoa(m.old.peer), "--tcp", fmt.Sprintf("payments=%d:%d", m.old.tcpFront, m.old.tcpPeer),
		"--envoy", m.o.Envoy, "--concurrency", "1", "--drain-time", "1s")
	return err
}

func (m *mesh) readerFile() string { return filepath.Join(m.dir, "reader.token") }

// stopOldMesh ends the node proxy and waits until it has ended.
func (m *mesh) stopOldMesh(ctx context.Context) error {
	m.old.child.Signal(syscall.SIGTERM)
	return m.old.child.waitEnd(ctx, stopLimit)
}

// startApp starts an instance's app alone, and registers it as it is.
func (m *mesh) startApp(ctx context.Context, in *instance) error {
	if err := os.MkdirAll(in.dir, 0o700); err != nil {
		return err
	}
	env := m.env
	for name, value := range m.appEnv(in) {
		env = append(slices.Clip(env), name+"="+value)
	}
	var err error
	if in.app, err = start("app of "+in.id, filepath.Join(in.dir, "app.log"), env, m.o.Executable, in.appArgs()...); err != nil {
		return err
	}
	return m.api.register(ctx, map[string]any{
		"Name": in.service, "ID": in.id, "Address": "127.0.0.1", "Port": in.appPort,
		"Check": map[string]any{"TCP": fmt.Sprintf("127.0.0.1:%d", in.appPort), "Interval": "1s", "Status": "passing"},
	})
}

// appEnv tells an app both addresses of each upstream, and where its percent is.
func (m *mesh) appEnv(in *instance) map[string]string {
	env := map[string]string{
		"CONSUL_HTTP_ADDR": m.api.base, "CONSUL_CACERT": m.api.caFile(), "CONSUL_HTTP_TOKEN_FILE": m.readerFile(),
	}
	for _, u := range in.upstreams {
		env["CROSSFADE_LEGACY_ADDR_"+u.service] = m.old.addr(u.service)
		env["NOMAD_UPSTREAM_ADDR_"+u.service] = in.upstreamAddr(u.service)
	}
	return env
}

// crossfade runs a verb as an operator does, and is what it prints.
func (m *mesh) crossfade(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, m.o.Executable, args...)
	cmd.Env = append(slices.Clip(m.env),
		"CROSSFADE_HTTP_ADDR="+m.api.base, "CROSSFADE_CACERT="+m.api.caFile(), "CROSSFADE_HTTP_TOKEN_FILE="+m.api.operatorFile())
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	text := strings.TrimSpace(out.String())
	if err != nil {
		err = fmt.Errorf("crossfade %s: %w: %s", strings.Join(args, " "), err, text)
	}
	return text, err
}

// write writes an entry.
func (m *mesh) write(ctx context.Context, name, entry string) error {
	file := filepath.Join(m.dir, name)
	if err := os.WriteFile(file, []byte(entry), 0o600); err != nil {
		return err
	}
	_, err := m.crossfade(ctx, "config", "write", file)
	return err
}
