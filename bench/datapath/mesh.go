package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// meshStart bounds each step of starting the mesh.
	meshStart = 60 * time.Second
	// meshPatience is for a sidecar on SIGTERM: it deregisters, waits for its callers and drains.
	meshPatience = 20 * time.Second
)

// meshEntries name the protocol and allow the one pair; all else is denied by default,
// so that the callee has to look the caller up.
const meshEntries = `
Kind     = "service-defaults"
Name     = "app"
Protocol = %q
---
Kind = "service-intentions"
Name = "app"
Sources = [
  { Name = "caller", Action = "allow" },
]
`

// startMesh starts a server and a sidecar on both sides, as a user would.
func startMesh(ctx context.Context, l *lab) (_ *running, err error) {
	if _, err := os.Stat(l.settings.Crossfade); err != nil {
		return nil, fmt.Errorf("%w: build it, or set CROSSFADE to the binary", err)
	}
	dir, err := l.subdir("mesh")
	if err != nil {
		return nil, err
	}
	m := &mesh{lab: l, dir: dir}
	defer func() {
		if err != nil {
			m.stop()
		}
	}()
	if err := m.startServer(ctx); err != nil {
		return nil, err
	}
	if err := m.writeEntries(ctx); err != nil {
		return nil, err
	}
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	callerPort, upstreamPort := ports[0], ports[1]
	callee, err := m.startSidecar(ctx, "app", fmt.Sprintf("service: app\nport: %d\nprotocol: %s\n", l.appPort, l.protocol))
	if err != nil {
		return nil, err
	}
	caller, err := m.startSidecar(ctx, "caller", fmt.Sprintf(
		"service: caller\nport: %d\nprotocol: %s\nupstreams:\n  - app:%d\n", callerPort, l.protocol, upstreamPort))
	if err != nil {
		return nil, err
	}
	r := &running{
		addr:   fmt.Sprintf("127.0.0.1:%d", upstreamPort),
		envoys: []int{caller.Envoy.PID, callee.Envoy.PID},
		stop:   m.stop,
		witness: func(ctx context.Context) error {
			return enforced(ctx, callee.Envoy.AdminSocket)
		},
	}
	return r, m.awaitAnswer(ctx, r.addr)
}

// mesh is the processes of the crossfade path.
type mesh struct {
	lab      *lab
	dir      string
	httpAddr string
	server   *process
	sidecars []*process
	envoys   []int
}

// sidecarStatus is what the bench needs of a sidecar's status.json.
type sidecarStatus struct {
	State string `json:"state"`
	Envoy struct {
		PID         int    `json:"pid"`
		AdminSocket string `json:"admin_socket"`
	} `json:"envoy"`
}

func (m *mesh) startServer(ctx context.Context) error {
	ports, err := freePorts(2)
	if err != nil {
		return err
	}
	m.httpAddr = fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	m.server, err = startProcess("crossfade server", filepath.Join(m.dir, "server.log"), m.lab.settings.Crossfade, "server", "--dev",
		"--http-port", fmt.Sprint(ports[0]), "--grpc-port", fmt.Sprint(ports[1]), "--node", "bench", "--default-intention-policy", "deny")
	if err != nil {
		return err
	}
	return m.server.await(ctx, "listening", meshStart, func() (bool, error) {
		for _, port := range ports {
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				return false, err
			}
			c.Close()
		}
		return true, nil
	})
}

func (m *mesh) writeEntries(ctx context.Context) error {
	for i, entry := range strings.Split(fmt.Sprintf(meshEntries, m.lab.protocol), "---\n") {
		file := filepath.Join(m.dir, fmt.Sprintf("entry%d.hcl", i))
		if err := os.WriteFile(file, []byte(entry), 0o600); err != nil {
			return err
		}
		out, err := exec.CommandContext(ctx, m.lab.settings.Crossfade, "config", "write", "--http-addr", m.httpAddr, file).CombinedOutput()
		if err != nil {
			return fmt.Errorf("crossfade config write: %w: %s", err, out)
		}
	}
	return nil
}

func (m *mesh) startSidecar(ctx context.Context, service, definition string) (sidecarStatus, error) {
	file, state := filepath.Join(m.dir, service+".yaml"), filepath.Join(m.dir, service)
	if err := os.WriteFile(file, []byte(definition), 0o600); err != nil {
		return sidecarStatus{}, err
	}
	p, err := startProcess("crossfade sidecar "+service, filepath.Join(m.dir, service+".log"), m.lab.settings.Crossfade, "sidecar",
		"--service", file, "--http-addr", m.httpAddr, "--state-dir", state, "--envoy", m.lab.settings.Envoy, "--concurrency", "1")
	if err != nil {
		return sidecarStatus{}, err
	}
	m.sidecars = append(m.sidecars, p)
	var status sidecarStatus
	err = p.await(ctx, "ready", meshStart, func() (bool, error) {
		b, err := os.ReadFile(filepath.Join(state, "status.json"))
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		} else if err != nil {
			return false, err
		}
		status = sidecarStatus{}
		err = json.Unmarshal(b, &status)
		return status.State == "ready" && status.Envoy.PID > 0, err
	})
	if status.Envoy.PID > 0 {
		m.envoys = append(m.envoys, status.Envoy.PID)
	}
	return status, err
}

// awaitAnswer waits until the first request gets through: the caller's listener is
// there before its first endpoint is.
func (m *mesh) awaitAnswer(ctx context.Context, addr string) error {
	return m.server.await(ctx, "carrying requests", meshStart, func() (bool, error) {
		c, err := dial(m.lab.protocol, addr)
		if err != nil {
			return false, err
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		err = c.Exchange(ctx)
		return err == nil, err
	})
}

// enforced takes the callee's word that what came was TLS and was let in by intentions.
func enforced(ctx context.Context, admin string) error {
	for _, stat := range []string{`ssl\.handshake`, `rbac\..*allowed`} {
		text, err := adminGet(ctx, admin, "/stats?usedonly&filter="+stat)
		if err != nil {
			return err
		}
		if strings.TrimSpace(text) == "" {
			return fmt.Errorf("the callee's Envoy counted nothing under %s", stat)
		}
	}
	return nil
}

// stop ends the sidecars, caller first, then the server. An Envoy that outlived its
// sidecar is killed.
func (m *mesh) stop() {
	for i := len(m.sidecars) - 1; i >= 0; i-- {
		m.sidecars[i].stop(meshPatience)
	}
	for _, pid := range m.envoys {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && exe == m.lab.settings.Envoy {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	if m.server != nil {
		m.server.stop(meshPatience)
	}
}

// freePorts finds ports that nothing listens on at the moment.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer lis.Close()
		ports = append(ports, lis.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
