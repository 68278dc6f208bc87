package sidecar

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Options say which instance to run a sidecar for, and how. Zero values take the
// defaults named beside the fields.
type Options struct {
	// Definition is the instance. Without a Sidecar of its own it gets an empty one.
	Definition config.Definition
	// Reread reads the definition again, for the sizes in it. May be nil.
	Reread func() (config.Definition, error)

	// Consul is the HTTP address of the Consul agent that holds the registration; empty:
	// the servers do. With SidecarFor, the ID of a service instance, or ProxyID, that of
	// its sidecar, the registration is there already and is left alone, and there is no
	// Definition; otherwise the sidecar registers itself there.
	Consul, SidecarFor, ProxyID string
	// ConsulToken, or what ConsulTokenFile holds, goes to that agent alone. ConsulTLS may be nil.
	ConsulToken, ConsulTokenFile string
	ConsulTLS                    *tls.Config
	consul                       *adoption // nil without Consul

	// HTTPAddrs are the servers' HTTP APIs ("http://10.0.0.1:8500" or "10.0.0.1:8500"),
	// tried in order from the last one that answered. Default 127.0.0.1:8500.
	HTTPAddrs []string
	// GRPCAddrs are the servers' gRPC addresses (host:port). Default: what each server's
	// /v1/agent/self says, remembered for starts at which none answers.
	GRPCAddrs []string

	// CARoots, in PEM, or CAFingerprint say which servers to trust. With either, an
	// address without a scheme is one of https; without, servers are spoken to in plaintext.
	CARoots       []byte
	CAFingerprint string
	// JoinTokenFile holds a join token, mode 0600. It is read only while there is no
	// valid certificate.
	JoinTokenFile string

	Node        string // default: the host's name
	NodeAddress string // default 127.0.0.1

	// StateDir keeps what must outlive the sidecar. One sidecar per directory. Required.
	StateDir string
	// RuntimeDir holds sockets; short, since a socket's path ends at 107 bytes.
	// Default: cf-<hash of StateDir> in $XDG_RUNTIME_DIR or /tmp.
	RuntimeDir string

	EnvoyPath     string // default: envoybin.Find
	EnvoyLogLevel string // default "warning"
	Concurrency   int    // Envoy's worker threads; default: the definition's, else no more than cores, 2 or its CPU

	// CallerWait is how long a drain waits for callers to confirm that they no longer
	// use this instance. Default 10 s.
	CallerWait time.Duration
	// DrainTime is how long a drain waits for requests and connections to end by
	// themselves, before and again after the public port is closed. Default 30 s.
	DrainTime time.Duration
	// AppStopTime is how long the app may take to end after SIGTERM before SIGKILL.
	// Default 30 s.
	AppStopTime time.Duration

	// App is the command to run beside Envoy, or empty.
	App            []string
	Stdout, Stderr io.Writer // of App and Envoy; default: discarded

	// Signals are acted on as by a process: the first SIGTERM or SIGINT drains, as
	// the end of Run's context does; a second one hurries; SIGHUP renews the
	// certificate and rereads the sizes. May be nil.
	Signals <-chan os.Signal

	Log *slog.Logger // default: discarded
}

// withDefaults checks all that can be checked without touching anything.
func (o Options) withDefaults() (Options, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Stdout == nil {
		o.Stdout = io.Discard
	}
	if o.Stderr == nil {
		o.Stderr = io.Discard
	}
	if o.StateDir == "" {
		return o, errors.New("sidecar: a state directory is required: set --state-dir")
	}
	dir, err := filepath.Abs(o.StateDir)
	if err != nil {
		return o, fmt.Errorf("state directory %q: %w", o.StateDir, err)
	}
	o.StateDir = dir
	if o.Node == "" {
		if o.Node, err = os.Hostname(); err != nil {
			return o, fmt.Errorf("node name: cannot read the host's name, set --node: %w", err)
		}
	}
	if o.NodeAddress == "" {
		o.NodeAddress = "127.0.0.1"
	}
	if o.EnvoyLogLevel == "" {
		o.EnvoyLogLevel = "warning"
	}
	if o.Concurrency <= 0 {
		size := o.Definition.Sizing()
		o.Concurrency = cmp.Or(size.Concurrency, defaultConcurrency(size.CPU, runtime.NumCPU()))
	}
	setDefault(&o.CallerWait, 10*time.Second)
	setDefault(&o.DrainTime, 30*time.Second)
	setDefault(&o.AppStopTime, 30*time.Second)
	if len(o.HTTPAddrs) == 0 {
		o.HTTPAddrs = []string{"127.0.0.1:8500"}
	}
	addrs := make([]string, len(o.HTTPAddrs))
	for i, a := range o.HTTPAddrs {
		if addrs[i], err = baseURL(a, o.CARoots != nil || o.CAFingerprint != ""); err != nil {
			return o, err
		}
		if addrs[i][:5] != addrs[0][:5] {
			return o, fmt.Errorf("HTTP addresses %s and %s: want all with https, or none", addrs[0], addrs[i])
		}
	}
	o.HTTPAddrs = addrs
	for _, a := range o.GRPCAddrs {
		if _, _, err := net.SplitHostPort(a); err != nil {
			return o, fmt.Errorf("gRPC address %q: want host:port: %w", a, err)
		}
	}
	if len(o.App) > 0 {
		if _, err := exec.LookPath(o.App[0]); err != nil {
			return o, fmt.Errorf("app %q: cannot be started: %w", o.App[0], err)
		}
	}
	if o.Definition, err = instance(o.Definition); err != nil {
		return o, err
	}
	return o, nil
}

// instance is a definition in which everything a sidecar needs is present.
func instance(d config.Definition) (config.Definition, error) {
	if d.Service.Kind != catalog.Typical {
		return d, fmt.Errorf("service %q: kind %q has no sidecar: name the service that it stands for", d.Service.Name, d.Service.Kind)
	}
	if d.Service.Name == "" {
		return d, errors.New("service definition: the service has no name")
	}
	if d.Service.Connect.Native {
		return d, fmt.Errorf("service %q: connect.native speaks mTLS itself and takes no sidecar", d.Service.Name)
	}
	if d.Service.ID == "" {
		d.Service.ID = d.Service.Name
	}
	side := config.Definition{}
	if d.Sidecar != nil {
		side = *d.Sidecar
	}
	d.Sidecar = &side
	return d, nil
}

// baseURL is an address as a user writes it, as "http://host:port" or, with secure
// or when it says so, with https.
func baseURL(addr string, secure bool) (string, error) {
	raw := addr
	if !strings.Contains(raw, "://") {
		if raw = "http://" + addr; secure {
			raw = "https://" + addr
		}
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return "", fmt.Errorf("HTTP address %q: want host:port, http://host:port or https://host:port", addr)
	}
	return u.Scheme + "://" + u.Host, nil
}

func setDefault(d *time.Duration, v time.Duration) {
	if *d <= 0 {
		*d = v
	}
}
