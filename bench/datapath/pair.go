package main

import (
	"context"
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
	"github.com/crossfade-mesh/crossfade/bench/lab/load"
)

//go:embed bootstraps
var bootstraps embed.FS

// bootstrap is what a static bootstrap leaves open.
type bootstrap struct {
	AdminSocket  string
	UpstreamPort int
	AppHTTP2     bool
	lab.Certificates
}

// startPair starts two Envoys from bootstraps/<kind>-{caller,callee}.yaml.
func startPair(ctx context.Context, t *trial, kind string) (*running, error) {
	dir, err := t.subdir(kind)
	if err != nil {
		return nil, err
	}
	callee, err := startStatic(ctx, t, kind+"-callee", dir, bootstrap{UpstreamPort: t.appPort, AppHTTP2: t.protocol == load.GRPC})
	if err != nil {
		return nil, err
	}
	caller, err := startStatic(ctx, t, kind+"-caller", dir, bootstrap{UpstreamPort: callee.port})
	if err != nil {
		callee.process.Stop(lab.Patience)
		return nil, err
	}
	return &running{
		addr:   fmt.Sprintf("127.0.0.1:%d", caller.port),
		envoys: []int{caller.process.PID(), callee.process.PID()},
		stop: func() {
			caller.process.Stop(lab.Patience)
			callee.process.Stop(lab.Patience)
		},
		// The callee's word that what came was mutual TLS 1.3 (and that the bench measures what it says).
		witness: func(ctx context.Context) error {
			stats, err := lab.AdminGet(ctx, callee.admin, "/stats?filter=ssl&usedonly")
			if err == nil && !strings.Contains(stats, "ssl.versions.TLSv1.3") {
				err = fmt.Errorf("%s: no TLS 1.3 connection came", kind)
			}
			return err
		},
	}, nil
}

type staticEnvoy struct {
	process *lab.Process
	admin   string // socket
	port    int    // of its only listener
}

func startStatic(ctx context.Context, t *trial, name, dir string, b bootstrap) (*staticEnvoy, error) {
	b.AdminSocket = filepath.Join(dir, name+".sock")
	var err error
	if b.Certificates, err = lab.WriteCertificates(t.authority, filepath.Join(dir, name)); err != nil {
		return nil, err
	}
	tmpl, err := template.ParseFS(bootstraps, "bootstraps/"+name+".yaml")
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	if err := tmpl.Execute(&text, b); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, name+".yaml")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		return nil, err
	}
	p, err := lab.StartEnvoy(t.settings.Binaries.Envoy, name, file)
	if err != nil {
		return nil, err
	}
	e := &staticEnvoy{process: p, admin: b.AdminSocket}
	err = p.Await(ctx, "ready", 30*time.Second, func() (bool, error) {
		if _, err := lab.AdminGet(ctx, e.admin, "/ready"); err != nil {
			return false, err
		}
		var err error
		e.port, err = lab.ListenerPort(ctx, e.admin)
		return e.port != 0, err
	})
	if err != nil {
		p.Stop(lab.Patience)
		return nil, err
	}
	return e, nil
}
