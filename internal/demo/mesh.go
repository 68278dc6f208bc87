package demo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	nodeName = "shop"
	// drainTime bounds how long a sidecar that stops waits for connections to end.
	drainTime = 3 * time.Second
	// stopLimit is when a sidecar that was told to stop has failed to.
	stopLimit = 25 * time.Second
	// startLimit is when a server or a sidecar has failed to start.
	startLimit = 40 * time.Second
)

// mesh is everything that the demo started, and where.
type mesh struct {
	o       Options
	dir     string
	env     []string
	envMark string // an entry of env that no other process has
	api     *api

	httpPort, grpcPort int
	storefrontPort     int // the storefront's own, where visitors come in
	old                oldMesh
	server             *child
	instances          []*instance // that run or ran, in the order they were started
}

// newMesh lays out directories and ports, and starts nothing.
func newMesh(o Options) (*mesh, error) {
	p, err := freePorts(24)
	if err != nil {
		return nil, err
	}
	dir := o.Dir
	if dir == "" {
		// Not os.TempDir: sockets are made in it, and a socket's path is short.
		dir, err = os.MkdirTemp("/tmp", "crossfade-demo-")
	} else if dir, err = filepath.Abs(dir); err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("directory for the demo: %w", err)
	}
	if inside, err := os.ReadDir(dir); err != nil || len(inside) > 0 {
		return nil, errors.Join(fmt.Errorf("directory %q: want an empty or a new one, since what an earlier run left in it would be taken up", dir), err)
	}
	m := &mesh{o: o, dir: dir, envMark: "XDG_RUNTIME_DIR=" + filepath.Join(dir, "run")}
	if err := os.MkdirAll(filepath.Join(dir, "run"), 0o700); err != nil {
		return nil, err
	}
	m.env = append(slices.DeleteFunc(os.Environ(), func(e string) bool {
		return strings.HasPrefix(e, "XDG_RUNTIME_DIR=") || strings.HasPrefix(e, "CONSUL_") || strings.HasPrefix(e, "CROSSFADE_") || strings.HasPrefix(e, "NOMAD_")
	}), m.envMark)
	take := func() int {
		port := p[0]
		p = p[1:]
		return port
	}
	m.httpPort, m.grpcPort = take(), take()
	m.api = &api{base: "https://127.0.0.1:" + strconv.Itoa(m.httpPort), server: filepath.Join(dir, "server")}
	m.storefrontPort = take()
	m.old = oldMesh{front: take(), peer: take(), tcpFront: take(), tcpPeer: take()}
	m.add(&instance{service: "storefront", id: "storefront-1", protocol: "http", appPort: m.storefrontPort,
		upstreams: []upstream{{"catalog", take()}, {"payments", take()}}})
	for n := 1; n <= 5; n++ {
		m.add(&instance{service: "catalog", id: "catalog-" + strconv.Itoa(n), protocol: "http", appPort: take(),
			upstreams: []upstream{{"assignments", take()}}})
	}
	m.add(&instance{service: "assignments", id: "assignments-1", protocol: "grpc", appPort: take()})
	m.add(&instance{service: "payments", id: "payments-1", protocol: "tcp", appPort: take()})
	return m, nil
}

func (m *mesh) add(in *instance) {
	in.dir = filepath.Join(m.dir, in.id)
	m.instances = append(m.instances, in)
}

// instance is the one with that id.
func (m *mesh) instance(id string) *instance {
	for _, in := range m.instances {
		if in.id == id {
			return in
		}
	}
	panic("demo: no instance " + id)
}

// running lists the instances whose sidecar runs.
func (m *mesh) running() []*instance {
	return slices.DeleteFunc(slices.Clone(m.instances), func(in *instance) bool { return in.child == nil || !in.child.Alive() })
}

// startServer starts the server on its data directory and waits until it answers.
func (m *mesh) startServer(ctx context.Context) error {
	var err error
	m.server, err = start("server", filepath.Join(m.dir, "server.log"), m.env, m.o.Executable,
		"server", "--data-dir", m.api.server, "--http-port", strconv.Itoa(m.httpPort), "--grpc-port", strconv.Itoa(m.grpcPort), "--dns-port", "-1")
	if err != nil {
		return err
	}
	return await(ctx, startLimit, "the server answers", func() error {
		if !m.server.Alive() {
			return final(fmt.Errorf("it has ended: %v", m.server.State()))
		}
		return m.api.leader(ctx)
	})
}

// killServer kills the server with SIGKILL and waits until it is gone.
func (m *mesh) killServer() {
	m.server.Signal(syscall.SIGKILL)
	<-m.server.Done()
}

// children lists all that was started and may still run.
func (m *mesh) children() []*child {
	var out []*child
	for _, in := range m.running() {
		out = append(out, in.child)
	}
	for _, in := range m.instances {
		if in.app != nil && in.app.Alive() {
			out = append(out, in.app)
		}
	}
	for _, c := range []*child{m.old.child, m.server} {
		if c != nil && c.Alive() {
			out = append(out, c)
		}
	}
	return out
}

// abandon kills what still runs, each process by its id, and removes the
// directory unless the user named it.
func (m *mesh) abandon() error {
	for _, c := range m.children() {
		c.Signal(syscall.SIGKILL)
		<-c.Done()
	}
	// A sidecar's Envoy and app die with it; this is for one that does not.
	err := await(context.Background(), 5*time.Second, "all processes are gone", func() error {
		left := m.left()
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if len(left) > 0 {
			return fmt.Errorf("still there: %v", left)
		}
		return nil
	})
	if m.o.Dir == "" {
		err = errors.Join(err, os.RemoveAll(m.dir))
	}
	return err
}

// left lists processes of this demo that still run, whoever started them.
func (m *mesh) left() []int { return processesWith(m.envMark) }

// lastWords is the end of the output of every child that failed, or else of all.
func (m *mesh) lastWords() map[string][]string {
	out := map[string][]string{}
	var all []*child
	all = append(all, m.server, m.old.child)
	for _, in := range m.instances {
		all = append(all, in.app, in.child)
	}
	for _, c := range all {
		if c != nil && !c.Alive() && !c.State().Success() {
			out[c.name] = c.tail(8)
		}
	}
	return out
}

// freePorts finds n ports of 127.0.0.1 that nobody listens on, below those the
// kernel hands out to connections by itself, so that they stay free until used.
// Ports of Consul's range for sidecars are left to the sidecars.
func freePorts(n int) ([]int, error) {
	const first, past = 22_000, 32_000
	var out []int
	for port := first + rand.IntN((past-first)/2); len(out) < n; port++ {
		if port >= past {
			return nil, fmt.Errorf("fewer than %d free ports between %d and %d on 127.0.0.1", n, first, past)
		}
		ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		ln.Close()
		out = append(out, port)
	}
	return out, nil
}
