package main

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
	"github.com/crossfade-mesh/crossfade/bench/lab/load"
	"github.com/crossfade-mesh/crossfade/internal/ca"
)

//go:embed shared.yaml
var sharedBootstrap string

// The kinds, in the order they are printed in.
const (
	kindCrossfade = "crossfade"
	kindShared    = "shared"
)

// service is one of those on the host, with a caller of its own.
type service struct {
	Name         string
	Place        lab.Place // of its app, its load and, in the mesh, its sidecars
	AppPort      int
	OutboundPort int // where its caller calls it
	InboundPort  int // of a shared node proxy
}

func (s service) addr() string { return fmt.Sprintf("127.0.0.1:%d", s.OutboundPort) }

// running is a kind with all its processes up.
type running struct {
	kind     string
	services []service
	cgroup   bool // holds each Envoy to its cores
	stop     func()
	// witness reports, after load, that requests went the way the kind claims.
	witness func(context.Context) error
}

// withPorts are the services with ports of their own for one kind.
func withPorts(services []service) ([]service, error) {
	ports, err := lab.FreePorts(2 * len(services))
	if err != nil {
		return nil, err
	}
	out := make([]service, len(services))
	for i, s := range services {
		s.OutboundPort, s.InboundPort = ports[2*i], ports[2*i+1]
		out[i] = s
	}
	return out, nil
}

// startShared starts a shared node proxy in a place.
func startShared(ctx context.Context, b lab.Binaries, dir string, at lab.Place, services []service) (_ *running, err error) {
	services, err = withPorts(services)
	if err != nil {
		return nil, err
	}
	authority, err := ca.Open(ca.Options{Datacenter: "dc1"})
	if err != nil {
		return nil, err
	}
	certificates, err := lab.WriteCertificates(authority.CA, filepath.Join(dir, "proxy"))
	if err != nil {
		return nil, err
	}
	tmpl, err := template.New(kindShared).Parse(sharedBootstrap)
	if err != nil {
		return nil, err
	}
	admin, file := filepath.Join(dir, "proxy.sock"), filepath.Join(dir, "proxy.yaml")
	var text strings.Builder
	err = tmpl.Execute(&text, struct {
		AdminSocket string
		Services    []service
		lab.Certificates
	}{admin, services, certificates})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		return nil, err
	}
	var p *lab.Process
	err = at.Start(func() (err error) {
		p, err = lab.StartEnvoy(b.Envoy, "shared", file)
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, s := range services {
		if err := p.Await(ctx, "carrying requests to "+s.Name, 30*time.Second, load.Answers(ctx, load.HTTP, s.addr(), answerSize)); err != nil {
			p.Stop(lab.Patience)
			return nil, err
		}
	}
	return &running{
		kind: kindShared, services: services,
		stop: func() { p.Stop(lab.Patience) },
		witness: func(ctx context.Context) error {
			stats, err := lab.AdminGet(ctx, admin, "/stats?filter=ssl&usedonly")
			if n := strings.Count(stats, "ssl.versions.TLSv1.3"); err == nil && n < len(services) {
				err = fmt.Errorf("TLS 1.3 connections came to %d of %d services", n, len(services))
			}
			return err
		},
	}, nil
}

// sidecarCPU is what each sidecar's Envoy may use, in cores.
const sidecarCPU = 0.5

// startMesh starts a server, and a sidecar for each service and each caller, as a user would.
func startMesh(ctx context.Context, b lab.Binaries, dir string, services []service, stderr io.Writer) (_ *running, err error) {
	services, err = withPorts(services)
	if err != nil {
		return nil, err
	}
	m, err := lab.StartMesh(ctx, b, dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.Stop()
		}
	}()
	r := &running{kind: kindCrossfade, services: services, stop: m.Stop}
	problems := map[string]bool{}
	held, sidecars := 0, 2*len(services)
	start := func(at lab.Place, name, definition string) (sidecar lab.Sidecar, err error) {
		size := "sidecar: {concurrency: 1}\n"
		if at.RealTime {
			problems["a quota does not hold what is scheduled in real time"] = true
		} else {
			size = fmt.Sprintf("sidecar: {concurrency: 1, cpu: %v}\n", sidecarCPU)
		}
		err = at.Start(func() (err error) {
			sidecar, err = m.StartSidecar(ctx, name, definition+size)
			return err
		})
		if sidecar.Cgroup != "" {
			held++
		} else if sidecar.CgroupProblem != "" {
			problems[sidecar.CgroupProblem] = true
		}
		return sidecar, err
	}
	callees := make([]lab.Sidecar, len(services))
	for i, s := range services {
		err := m.Write(ctx,
			fmt.Sprintf("Kind     = \"service-defaults\"\nName     = %q\nProtocol = \"http\"\n", s.Name),
			fmt.Sprintf("Kind = \"service-intentions\"\nName = %q\nSources = [{ Name = \"%s-caller\", Action = \"allow\" }]\n", s.Name, s.Name))
		if err != nil {
			return nil, err
		}
		callees[i], err = start(s.Place, s.Name, fmt.Sprintf("service: %s\nport: %d\nprotocol: http\n", s.Name, s.AppPort))
		if err != nil {
			return nil, err
		}
		_, err = start(s.Place, s.Name+"-caller", fmt.Sprintf(
			"service: %s-caller\nport: 9\nprotocol: http\nupstreams: [\"%s:%d\"]\n", s.Name, s.Name, s.OutboundPort))
		if err != nil {
			return nil, err
		}
		if err := m.Await(ctx, "carrying requests to "+s.Name, load.Answers(ctx, load.HTTP, s.addr(), answerSize)); err != nil {
			return nil, err
		}
	}
	if r.cgroup = held == sidecars; !r.cgroup {
		fmt.Fprintf(stderr, "no cgroup holds the sidecars' Envoys to %v cores, their processor and their one worker do: %s\n",
			sidecarCPU, strings.Join(slices.Sorted(maps.Keys(problems)), "; "))
	}
	r.witness = func(ctx context.Context) error {
		for i, callee := range callees {
			if err := lab.Enforced(ctx, callee.Admin); err != nil {
				return fmt.Errorf("service %q: %w", services[i].Name, err)
			}
		}
		return nil
	}
	return r, nil
}
