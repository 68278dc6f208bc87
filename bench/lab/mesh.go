package lab

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
	"slices"
	"syscall"
)

// meshPatience is for a sidecar on SIGTERM: it deregisters, waits for its callers and drains.
const meshPatience = 4 * Patience

// Mesh is a crossfade server and its sidecars, as a user would start them.
type Mesh struct {
	HTTPAddr string // of the server, as a URL
	GRPCAddr string // of the server that [StartMesh] has started

	// SidecarArgs are further arguments of each sidecar.
	SidecarArgs []string

	binaries Binaries
	dir      string
	server   *Process
	sidecars []*Process
	envoys   []int
	entries  int // written so far
}

// Beside is the sidecars of a server that somebody else has started, and stops.
func Beside(server *Process, httpAddr string, b Binaries, dir string) *Mesh {
	return &Mesh{HTTPAddr: httpAddr, binaries: b, dir: dir, server: server}
}

// ServerPID is the server's process.
func (m *Mesh) ServerPID() int { return m.server.PID() }

// Sidecar is a running one, and its Envoy.
type Sidecar struct {
	Process  *Process
	EnvoyPID int
	Admin    string // socket of its Envoy
	// Cgroup holds its Envoy to the sizes of the definition; CgroupProblem is why there is none although sizes were given.
	Cgroup, CgroupProblem string
}

// StartMesh starts a server that denies what no intention allows. Stop ends it, with all sidecars.
func StartMesh(ctx context.Context, b Binaries, dir string) (*Mesh, error) {
	if _, err := os.Stat(b.Crossfade); err != nil {
		return nil, fmt.Errorf("%w: build it, or set CROSSFADE to the binary", err)
	}
	ports, err := FreePorts(2)
	if err != nil {
		return nil, err
	}
	m := &Mesh{HTTPAddr: fmt.Sprintf("http://127.0.0.1:%d", ports[0]), GRPCAddr: fmt.Sprintf("127.0.0.1:%d", ports[1]), binaries: b, dir: dir}
	m.server, err = Start("crossfade server", filepath.Join(dir, "server.log"), b.Crossfade, "server", "--dev",
		"--http-port", fmt.Sprint(ports[0]), "--grpc-port", fmt.Sprint(ports[1]), "--node", "bench", "--default-intention-policy", "deny")
	if err != nil {
		return nil, err
	}
	err = m.server.Await(ctx, "listening", startLimit, func() (bool, error) {
		for _, port := range ports {
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				return false, err
			}
			c.Close()
		}
		return true, nil
	})
	if err != nil {
		m.Stop()
		return nil, err
	}
	return m, nil
}

// Write writes configuration entries in HCL.
func (m *Mesh) Write(ctx context.Context, entries ...string) error {
	for _, entry := range entries {
		m.entries++
		file := filepath.Join(m.dir, fmt.Sprintf("entry%d.hcl", m.entries))
		if err := os.WriteFile(file, []byte(entry), 0o600); err != nil {
			return err
		}
		out, err := exec.CommandContext(ctx, m.binaries.Crossfade, "config", "write", "--http-addr", m.HTTPAddr, file).CombinedOutput()
		if err != nil {
			return fmt.Errorf("crossfade config write: %w: %.500s", err, out)
		}
	}
	return nil
}

// StartSidecar runs a sidecar for a definition in YAML until it says that it is ready.
func (m *Mesh) StartSidecar(ctx context.Context, service, definition string) (Sidecar, error) {
	file, state := filepath.Join(m.dir, service+".yaml"), filepath.Join(m.dir, service)
	if err := os.WriteFile(file, []byte(definition), 0o600); err != nil {
		return Sidecar{}, err
	}
	args := append([]string{
		"sidecar", "--service", file, "--http-addr", m.HTTPAddr, "--state-dir", state, "--envoy", m.binaries.Envoy, "--concurrency", "1",
	}, m.SidecarArgs...)
	p, err := Start("crossfade sidecar "+service, filepath.Join(m.dir, service+".log"), m.binaries.Crossfade, args...)
	if err != nil {
		return Sidecar{}, err
	}
	m.sidecars = append(m.sidecars, p)
	var status struct {
		State string `json:"state"`
		Envoy struct {
			PID         int    `json:"pid"`
			AdminSocket string `json:"admin_socket"`
		} `json:"envoy"`
		Sizing struct {
			Cgroup        string `json:"cgroup"`
			CgroupProblem string `json:"cgroup_problem"`
		} `json:"sizing"`
	}
	err = p.Await(ctx, "ready", startLimit, func() (bool, error) {
		b, err := os.ReadFile(filepath.Join(state, "status.json"))
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		} else if err != nil {
			return false, err
		}
		err = json.Unmarshal(b, &status)
		return status.State == "ready" && status.Envoy.PID > 0, err
	})
	if status.Envoy.PID > 0 {
		m.envoys = append(m.envoys, status.Envoy.PID)
	}
	return Sidecar{
		Process: p, EnvoyPID: status.Envoy.PID, Admin: status.Envoy.AdminSocket,
		Cgroup: status.Sizing.Cgroup, CgroupProblem: status.Sizing.CgroupProblem,
	}, err
}

// Await waits until the mesh does what ready looks for.
func (m *Mesh) Await(ctx context.Context, what string, ready func() (bool, error)) error {
	return m.server.Await(ctx, what, startLimit, ready)
}

// StopSidecars ends the sidecars, the last first. An Envoy that outlived its sidecar is killed.
func (m *Mesh) StopSidecars() {
	for _, sidecar := range slices.Backward(m.sidecars) {
		sidecar.Stop(meshPatience)
	}
	for _, pid := range m.envoys {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && exe == m.binaries.Envoy {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	m.sidecars, m.envoys = nil, nil
}

// Stop ends the sidecars, then the server.
func (m *Mesh) Stop() {
	m.StopSidecars()
	m.server.Stop(meshPatience)
}
