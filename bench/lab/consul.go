package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Consul is a real Consul agent in development mode and the Envoys that `consul connect envoy` runs for it.
type Consul struct {
	HTTPAddr string // as a URL

	binaries Binaries
	dir      string
	grpcAddr string
	agent    *Process
	envoys   []*Process
	files    int // written so far
}

// ConnectEnvoy is a running one.
type ConnectEnvoy struct {
	Process *Process
	Admin   string // ip:port
}

// StartConsul starts an agent that denies what no intention allows, unless its further
// configuration, HCL, says otherwise. Stop ends it, with all its Envoys.
func StartConsul(ctx context.Context, b Binaries, dir string, more ...string) (*Consul, error) {
	ports, err := FreePorts(5)
	if err != nil {
		return nil, err
	}
	c := &Consul{
		HTTPAddr: fmt.Sprintf("http://127.0.0.1:%d", ports[0]),
		grpcAddr: fmt.Sprintf("127.0.0.1:%d", ports[1]),
		binaries: b, dir: dir,
	}
	args := []string{
		"agent", "-dev", "-log-level", "warn",
		"-bind", "127.0.0.1", "-client", "127.0.0.1", "-node", "bench",
		"-http-port", fmt.Sprint(ports[0]), "-grpc-port", fmt.Sprint(ports[1]), "-grpc-tls-port", "-1", "-dns-port", "-1",
		"-server-port", fmt.Sprint(ports[2]), "-serf-lan-port", fmt.Sprint(ports[3]), "-serf-wan-port", fmt.Sprint(ports[4]),
		"-hcl", `default_intention_policy = "deny"`, "-hcl", `disable_update_check = true`,
	}
	for _, text := range more {
		args = append(args, "-hcl", text)
	}
	c.agent, err = Start("consul agent", filepath.Join(dir, "agent.log"), b.Consul, args...)
	if err != nil {
		return nil, err
	}
	err = c.Await(ctx, "leading, and its agent known", func() (bool, error) {
		// Roots are there once there is a leader and its certificate authority.
		if _, err := get(ctx, c.HTTPAddr+"/v1/connect/ca/roots"); err != nil {
			return false, err
		}
		// An agent that something is registered with as it first tells of itself is late with its checks.
		node, err := get(ctx, c.HTTPAddr+"/v1/catalog/node/bench")
		if err == nil && !bytes.Contains(node, []byte(`"lan_ipv4"`)) {
			err = fmt.Errorf("the catalog has no addresses of it: %.300s", node)
		}
		return err == nil, err
	})
	if err != nil {
		c.Stop()
		return nil, err
	}
	return c, nil
}

// Write writes configuration entries in HCL.
func (c *Consul) Write(ctx context.Context, entries ...string) error {
	return c.each(ctx, entries, "config", "write")
}

// Register registers service definitions in HCL.
func (c *Consul) Register(ctx context.Context, definitions ...string) error {
	return c.each(ctx, definitions, "services", "register")
}

func (c *Consul) each(ctx context.Context, texts []string, verb ...string) error {
	for _, text := range texts {
		c.files++
		file := filepath.Join(c.dir, fmt.Sprintf("file%d.hcl", c.files))
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return err
		}
		args := append(append([]string{}, verb...), "-http-addr="+c.HTTPAddr, file)
		if out, err := exec.CommandContext(ctx, c.binaries.Consul, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("consul %v: %w: %.500s", verb, err, out)
		}
	}
	return nil
}

// StartEnvoy runs the Envoy of a registered service's sidecar until it is ready.
func (c *Consul) StartEnvoy(ctx context.Context, service string) (ConnectEnvoy, error) {
	ports, err := FreePorts(1)
	if err != nil {
		return ConnectEnvoy{}, err
	}
	e := ConnectEnvoy{Admin: fmt.Sprintf("127.0.0.1:%d", ports[0])}
	e.Process, err = Start("consul connect envoy "+service, filepath.Join(c.dir, service+".log"), c.binaries.Consul,
		"connect", "envoy", "-sidecar-for", service, "-http-addr="+c.HTTPAddr, "-grpc-addr="+c.grpcAddr, "-admin-bind="+e.Admin,
		"-envoy-binary="+c.binaries.Envoy, "-ignore-envoy-compatibility", "--", "--concurrency", "1", "--log-level", "warning")
	if err != nil {
		return e, err
	}
	c.envoys = append(c.envoys, e.Process)
	return e, e.Process.Await(ctx, "ready", startLimit, func() (bool, error) {
		_, err := AdminGet(ctx, e.Admin, "/ready")
		return err == nil, err
	})
}

// PID is the agent's process.
func (c *Consul) PID() int { return c.agent.PID() }

// Await waits until the mesh does what ready looks for.
func (c *Consul) Await(ctx context.Context, what string, ready func() (bool, error)) error {
	return c.agent.Await(ctx, what, startLimit, ready)
}

// StopEnvoys ends the Envoys.
func (c *Consul) StopEnvoys() {
	for _, e := range c.envoys {
		e.Stop(Patience)
	}
	c.envoys = nil
}

// Stop ends the Envoys, then the agent.
func (c *Consul) Stop() {
	c.StopEnvoys()
	c.agent.Stop(Patience)
}
