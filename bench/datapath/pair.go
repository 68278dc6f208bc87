package main

import (
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/ca"
)

//go:embed bootstraps
var bootstraps embed.FS

// bootstrap is what a static bootstrap leaves open.
type bootstrap struct {
	AdminSocket                 string
	UpstreamPort                int
	AppHTTP2                    bool
	CertFile, KeyFile, RootFile string
}

// startPair starts two Envoys from bootstraps/<kind>-{caller,callee}.yaml.
func startPair(ctx context.Context, l *lab, kind string) (*running, error) {
	dir, err := l.subdir(kind)
	if err != nil {
		return nil, err
	}
	callee, err := startStatic(ctx, l, kind+"-callee", dir, bootstrap{UpstreamPort: l.appPort, AppHTTP2: l.protocol == protoGRPC})
	if err != nil {
		return nil, err
	}
	caller, err := startStatic(ctx, l, kind+"-caller", dir, bootstrap{UpstreamPort: callee.port})
	if err != nil {
		callee.process.stop(envoyPatience)
		return nil, err
	}
	return &running{
		addr:   fmt.Sprintf("127.0.0.1:%d", caller.port),
		envoys: []int{caller.process.cmd.Process.Pid, callee.process.cmd.Process.Pid},
		stop: func() {
			caller.process.stop(envoyPatience)
			callee.process.stop(envoyPatience)
		},
		// The callee's word that what came was mutual TLS 1.3 (and that the bench measures what it says).
		witness: func(ctx context.Context) error {
			stats, err := adminGet(ctx, callee.admin, "/stats?filter=ssl&usedonly")
			if err == nil && !strings.Contains(stats, "ssl.versions.TLSv1.3") {
				err = fmt.Errorf("%s: no TLS 1.3 connection came", kind)
			}
			return err
		},
	}, nil
}

// envoyPatience is for an Envoy on SIGTERM; it closes at once.
const envoyPatience = 5 * time.Second

type staticEnvoy struct {
	process *process
	admin   string // socket
	port    int    // of its only listener
}

func startStatic(ctx context.Context, l *lab, name, dir string, b bootstrap) (*staticEnvoy, error) {
	b.AdminSocket = filepath.Join(dir, name+".sock")
	if err := writeCertificates(l.authority, filepath.Join(dir, name), &b); err != nil {
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
	p, err := startProcess("envoy "+name, filepath.Join(dir, name+".log"), l.settings.Envoy,
		"-c", file, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning")
	if err != nil {
		return nil, err
	}
	e := &staticEnvoy{process: p, admin: b.AdminSocket}
	err = p.await(ctx, "ready", 30*time.Second, func() (bool, error) {
		if _, err := adminGet(ctx, e.admin, "/ready"); err != nil {
			return false, err
		}
		var err error
		e.port, err = listenerPort(ctx, e.admin)
		return e.port != 0, err
	})
	if err != nil {
		p.stop(envoyPatience)
		return nil, err
	}
	return e, nil
}

// writeCertificates makes a leaf beside stem and names the files in b.
func writeCertificates(authority *ca.CA, stem string, b *bootstrap) error {
	key, csr, err := ca.NewKeyAndCSR(authority.Identity("bench"))
	if err != nil {
		return err
	}
	leaf, err := authority.Sign(csr, time.Now())
	if err != nil {
		return err
	}
	b.CertFile, b.KeyFile, b.RootFile = stem+".crt", stem+".key", stem+".ca"
	for file, content := range map[string][]byte{b.CertFile: leaf, b.KeyFile: key, b.RootFile: authority.Roots().PEM()} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// listenerPort is where the first listener of an Envoy listens; 0 when there is none yet.
func listenerPort(ctx context.Context, admin string) (int, error) {
	text, err := adminGet(ctx, admin, "/listeners?format=json")
	if err != nil {
		return 0, err
	}
	var got struct {
		Statuses []struct {
			Address struct {
				Socket struct {
					Port int `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if err := json.Unmarshal([]byte(text), &got); err != nil || len(got.Statuses) == 0 {
		return 0, err
	}
	return got.Statuses[0].Address.Socket.Port, nil
}

// adminGet asks an Envoy's admin on its Unix socket; any answer but 200 is an error.
func adminGet(ctx context.Context, socket, path string) (string, error) {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://envoy"+path, nil)
	if err != nil {
		return "", err
	}
	res, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("envoy admin %s: %s", path, res.Status)
	}
	return string(body), err
}
