package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// instance is one instance of a service: an app and, once it has joined, its sidecar and
// that sidecar's Envoy.
type instance struct {
	service, id, protocol string
	appPort               int
	upstreams             []upstream
	weight                int // above 0: the share it asks for

	dir   string // <demo>/<id>; outlives the processes
	child *child // the sidecar; nil before the first start
	// app ran before there was a sidecar, and is no child of it; nil where the sidecar runs it.
	app *child
}

type upstream struct {
	service string
	port    int
}

// status is what the demo reads of a sidecar's status.json.
type status struct {
	State         string `json:"state"`
	PublicAddress string `json:"public_address"`
	Envoy         struct {
		PID         int    `json:"pid"`
		Restarts    int    `json:"restarts"`
		AdminSocket string `json:"admin_socket"`
	} `json:"envoy"`
	Certificate struct {
		Serial string `json:"serial"`
		URI    string `json:"uri"`
	} `json:"certificate"`
	XDS struct {
		Connected    bool `json:"connected"`
		FromLastGood bool `json:"from_last_good"`
	} `json:"xds"`
	App struct {
		PID int `json:"pid"`
	} `json:"app"`
}

// upstreamAddr is where the app calls the named service.
func (in *instance) upstreamAddr(service string) string {
	for _, u := range in.upstreams {
		if u.service == service {
			return fmt.Sprintf("127.0.0.1:%d", u.port)
		}
	}
	return ""
}

func (in *instance) stateDir() string { return filepath.Join(in.dir, "state") }

// definition is the instance as a team writes it down.
func (in *instance) definition() string {
	var b strings.Builder
	fmt.Fprintf(&b, "service: %s\nid: %s\naddress: 127.0.0.1\nport: %d\nprotocol: %s\n", in.service, in.id, in.appPort, in.protocol)
	if len(in.upstreams) > 0 {
		b.WriteString("upstreams:\n")
	}
	for _, u := range in.upstreams {
		fmt.Fprintf(&b, "  - %s:%d\n", u.service, u.port)
	}
	b.WriteString("checks:\n")
	addr := fmt.Sprintf("127.0.0.1:%d", in.appPort)
	switch in.protocol {
	case "http":
		b.WriteString("  - http: /healthz\n")
	case "grpc":
		b.WriteString("  - grpc: " + addr + "\n")
	default:
		b.WriteString("  - tcp: " + addr + "\n")
	}
	b.WriteString("    interval: 1s\n")
	return b.String()
}

// weightedDefinition is the same in Consul's own form, which has weights.
func (in *instance) weightedDefinition() (string, error) {
	weights := map[string]any{"passing": in.weight, "warning": 1}
	var ups []any
	for _, u := range in.upstreams {
		ups = append(ups, map[string]any{"destination_name": u.service, "local_bind_port": u.port})
	}
	b, err := json.MarshalIndent(map[string]any{"service": map[string]any{
		"name": in.service, "id": in.id, "address": "127.0.0.1", "port": in.appPort, "weights": weights,
		"check":   map[string]any{"http": fmt.Sprintf("http://127.0.0.1:%d/healthz", in.appPort), "interval": "1s"},
		"connect": map[string]any{"sidecar_service": map[string]any{"weights": weights, "proxy": map[string]any{"upstreams": ups}}},
	}}, "", "  ")
	return string(b), err
}

// start starts the sidecar, which starts the rest. The previous one must have ended.
func (m *mesh) startInstance(in *instance) error {
	file, text := filepath.Join(in.dir, "service.yaml"), in.definition()
	if in.weight > 0 {
		var err error
		file = filepath.Join(in.dir, "service.json")
		if text, err = in.weightedDefinition(); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(in.stateDir(), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	token := filepath.Join(in.dir, "join.token")
	_, err := os.Stat(token)
	if os.IsNotExist(err) {
		err = m.api.joinToken(in.service, token)
	}
	if err != nil {
		return fmt.Errorf("%s: join token: %w", in.id, err)
	}
	args := []string{"sidecar", "--service", file, "--http-addr", m.api.base, "--ca-file", m.api.caFile(), "--join-token-file", token, "--node", nodeName,
		"--state-dir", in.stateDir(), "--envoy", m.o.Envoy, "--concurrency", "1", "--drain-time", drainTime.String()}
	if in.app == nil {
		args = append(append(args, "--", m.o.Executable), in.appArgs()...)
	}
	in.child, err = start("sidecar of "+in.id, filepath.Join(in.dir, "log"), m.env, m.o.Executable, args...)
	return err
}

func (in *instance) appArgs() []string {
	return []string{"demo-app", in.service, "--instance", in.id, "--listen", fmt.Sprintf("127.0.0.1:%d", in.appPort)}
}

// status reads the sidecar's status file.
func (in *instance) status() (status, error) {
	var s status
	b, err := os.ReadFile(filepath.Join(in.stateDir(), "status.json"))
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("%s: status.json: %w", in.id, err)
	}
	return s, nil
}

// ready fails until the sidecar that runs now says that it serves.
func (in *instance) ready() error {
	if !in.child.Alive() {
		return final(fmt.Errorf("%s has ended: %v", in.child.name, in.child.State()))
	}
	s, err := in.status()
	if err != nil {
		return err
	}
	if s.State != "ready" || processGone(s.Envoy.PID) {
		return fmt.Errorf("%s says %q", in.child.name, s.State)
	}
	return nil
}

// leave tells the sidecar to end and waits until it has. An app that it has not started
// stays.
func (in *instance) leave(ctx context.Context) error {
	in.child.Signal(syscall.SIGTERM)
	return in.child.waitEnd(ctx, stopLimit)
}

// stop ends the sidecar, and then the app.
func (in *instance) stop(ctx context.Context) error {
	err := in.leave(ctx)
	if err == nil && in.app != nil {
		in.app.Signal(syscall.SIGTERM)
		err = in.app.waitEnd(ctx, stopLimit)
	}
	return err
}

// appPID is the app's process.
func (in *instance) appPID(s status) int {
	if in.app != nil {
		return in.app.PID
	}
	return s.App.PID
}
