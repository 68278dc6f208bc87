package main

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
	"github.com/crossfade-mesh/crossfade/internal/ca"
)

//go:embed caller.yaml
var callerBootstrap string

// upstream is one of a sidecar's, as the bootstrap's template reads it.
type upstream struct {
	Name      string
	Port      int // where the app calls it
	Addresses []string
}

func name(i int) string { return fmt.Sprintf("s%04d", i) }

// address of an instance's sidecar; nothing listens there.
func address(instance int) string { return fmt.Sprintf("127.9.0.%d", instance+1) }

func port(i int) int { return 20000 + i }

// upstreams are n of them on free ports.
func upstreams(n int) ([]upstream, error) {
	ports, err := lab.FreePorts(n)
	if err != nil {
		return nil, err
	}
	out := make([]upstream, n)
	for i := range out {
		out[i] = upstream{Name: name(i), Port: ports[i]}
		for j := range endpointsEach {
			out[i].Addresses = append(out[i].Addresses, address(j))
		}
	}
	return out, nil
}

// pair is a bootstrap as one writes it by hand: the caller's of the bench datapath, many times.
type pair struct {
	settings  settings
	dir       string
	authority *ca.CA
	process   *lab.Process
}

func openPair(s settings, dir string) (*pair, error) {
	authority, err := ca.Open(ca.Options{Datacenter: "dc1"})
	return &pair{settings: s, dir: dir, authority: authority.CA}, err
}

func (p *pair) start(_ context.Context, n int) (started, error) {
	stem := filepath.Join(p.dir, fmt.Sprint(n))
	certificates, err := lab.WriteCertificates(p.authority, stem)
	if err != nil {
		return started{}, err
	}
	ups, err := upstreams(n)
	if err != nil {
		return started{}, err
	}
	tmpl, err := template.New("caller").Parse(callerBootstrap)
	if err != nil {
		return started{}, err
	}
	var text strings.Builder
	err = tmpl.Execute(&text, struct {
		AdminSocket string
		Upstreams   []upstream
		lab.Certificates
	}{stem + ".sock", ups, certificates})
	if err != nil {
		return started{}, err
	}
	if err := os.WriteFile(stem+".yaml", []byte(text.String()), 0o600); err != nil {
		return started{}, err
	}
	began := time.Now()
	p.process, err = lab.StartEnvoy(p.settings.Binaries.Envoy, "pair", stem+".yaml")
	if err != nil {
		return started{}, err
	}
	return started{envoy: p.process.PID(), admin: stem + ".sock", began: began}, nil
}

func (p *pair) stop() {
	if p.process != nil {
		p.process.Stop(lab.Patience)
		p.process = nil
	}
}

func (p *pair) close() {}

// mesh is crossfade, started as a user does.
type mesh struct{ *lab.Mesh }

func openMesh(ctx context.Context, s settings, dir string) (*mesh, error) {
	m, err := lab.StartMesh(ctx, s.Binaries, dir)
	if err != nil {
		return nil, err
	}
	if err = m.Write(ctx, defaults); err == nil {
		err = register(ctx, m.HTTPAddr, slices.Max(s.Upstreams))
	}
	if err != nil {
		m.Stop()
		return nil, err
	}
	return &mesh{m}, nil
}

func (m *mesh) start(ctx context.Context, n int) (started, error) {
	ups, err := upstreams(n)
	if err != nil {
		return started{}, err
	}
	var text strings.Builder
	fmt.Fprintf(&text, "service: caller-%d\nport: 9\nprotocol: http\nupstreams:\n", n)
	for _, u := range ups {
		fmt.Fprintf(&text, "  - %s:%d\n", u.Name, u.Port)
	}
	began := time.Now()
	s, err := m.StartSidecar(ctx, fmt.Sprintf("caller-%d", n), text.String())
	if err != nil {
		return started{}, err
	}
	return started{envoy: s.EnvoyPID, admin: s.Admin, process: s.Process.PID(), began: began}, nil
}

func (m *mesh) stop()  { m.StopSidecars() }
func (m *mesh) close() { m.Stop() }

// consul is a real one.
type consul struct{ *lab.Consul }

func openConsul(ctx context.Context, s settings, dir string) (*consul, error) {
	c, err := lab.StartConsul(ctx, s.Binaries, dir)
	if err != nil {
		return nil, err
	}
	if err = c.Write(ctx, defaults); err == nil {
		err = register(ctx, c.HTTPAddr, slices.Max(s.Upstreams))
	}
	if err != nil {
		c.Stop()
		return nil, err
	}
	return &consul{c}, nil
}

// start registers the caller first, which a sidecar of crossfade does itself: it is in both times.
func (c *consul) start(ctx context.Context, n int) (started, error) {
	ups, err := upstreams(n)
	if err != nil {
		return started{}, err
	}
	ports, err := lab.FreePorts(1)
	if err != nil {
		return started{}, err
	}
	var text strings.Builder
	fmt.Fprintf(&text, "service {\n  name = \"caller-%d\"\n  port = 9\n  connect { sidecar_service {\n    port = %d\n    proxy { upstreams = [\n", n, ports[0])
	for _, u := range ups {
		fmt.Fprintf(&text, "      { destination_name = %q, local_bind_port = %d },\n", u.Name, u.Port)
	}
	text.WriteString("    ] }\n  } }\n}\n")
	began := time.Now()
	if err := c.Register(ctx, text.String()); err != nil {
		return started{}, err
	}
	e, err := c.StartEnvoy(ctx, fmt.Sprintf("caller-%d", n))
	if err != nil {
		return started{}, err
	}
	return started{envoy: e.Process.PID(), admin: e.Admin, began: began}, nil
}

func (c *consul) stop()  { c.StopEnvoys() }
func (c *consul) close() { c.Stop() }

const defaults = "Kind = \"proxy-defaults\"\nName = \"global\"\nConfig { protocol = \"http\" }\n"

// register puts n services with their instances' sidecars into a catalog, through
// Consul's transactions, of which one takes 64 operations.
func register(ctx context.Context, httpAddr string, n int) error {
	type object = map[string]any
	var ops []object
	for j := range endpointsEach {
		ops = append(ops, object{"Node": object{"Verb": "set", "Node": object{"Node": fmt.Sprintf("host%d", j), "Address": address(j)}}})
	}
	for i := range n {
		for j := range endpointsEach {
			for _, service := range []object{
				{"ID": name(i), "Service": name(i), "Address": address(j), "Port": 9},
				{"ID": name(i) + "-proxy", "Service": name(i) + "-proxy", "Kind": "connect-proxy", "Address": address(j), "Port": port(i),
					"Proxy": object{"DestinationServiceName": name(i), "DestinationServiceID": name(i)}},
			} {
				ops = append(ops, object{"Service": object{"Verb": "set", "Node": fmt.Sprintf("host%d", j), "Service": service}})
			}
		}
	}
	for batch := range slices.Chunk(ops, 64) {
		if err := lab.Put(ctx, httpAddr+"/v1/txn", batch); err != nil {
			return err
		}
	}
	return nil
}
