package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/sidecar"
)

func newSidecar(s streams) *cobra.Command {
	var o sidecar.Options
	var file, httpAddrs, grpcAddrs string
	cmd := &cobra.Command{
		Use:   "sidecar (--service FILE | --consul ADDR --sidecar-for ID) [-- APP [ARG...]]",
		Short: "Run Envoy, and an app, as one instance of a service in the mesh",
		Long: `Run the sidecar of one service instance: it registers the instance and runs its
checks, makes its own key and gets a certificate for it, runs Envoy, and starts the
app when Envoy is ready, with the addresses of its upstreams in its environment as
Nomad sets them (NOMAD_UPSTREAM_ADDR_NAME).

SIGTERM stops it without losing a request: it deregisters, waits until callers have
learnt of it, drains, stops the app and then Envoy; a second SIGTERM hurries.
SIGHUP renews the certificate and reads the sizes (sidecar: {cpu, memory, …}) again;
those that need a restart are named in status.json.

A server outside development mode is trusted by its CA (--ca-file or --ca-fingerprint),
and wants a join token for the first certificate. From then on the sidecar shows its own.

With --consul the registration is a Consul agent's, of the datacenter whose catalog the
servers read: --service registers the instance there, --sidecar-for takes over the sidecar
of an instance that is registered already, with its ports, and writes nothing but
maintenance mode. Another Envoy may serve the same ports at the time, as "consul connect
envoy" runs it: whoever is stopped then hands over to the other without losing a request.

With no server to be reached it starts from the last configuration that worked.`,
		Example: `  crossfade sidecar --service web.yaml -- ./web --listen 127.0.0.1:8080
  crossfade sidecar --service web.yaml --http-addr 10.0.0.1:8500 --ca-file ca.pem --join-token-file web.token
  crossfade sidecar --consul http://127.0.0.1:8500 --sidecar-for web-1 --http-addr http://127.0.0.1:8510`,
		ValidArgsFunction: files(), // of the app's command
	}
	f := cmd.Flags()
	f.StringVar(&file, "service", "", "file that defines the service (required, unless a Consul agent knows it)")
	f.StringVar(&o.Consul, "consul", "", "HTTP address of this host's Consul agent, which holds the registration (token: $CONSUL_HTTP_TOKEN or $CONSUL_HTTP_TOKEN_FILE, its CA: $CONSUL_CACERT)")
	f.StringVar(&o.SidecarFor, "sidecar-for", "", "ID of the service instance whose registered sidecar to take over, with --consul")
	f.StringVar(&o.ProxyID, "proxy-id", "", "ID of the registered sidecar to take over, where the instance has several")
	f.StringVar(&httpAddrs, "http-addr", "", "servers' HTTP addresses, separated by commas (default $CROSSFADE_HTTP_ADDR, then $CONSUL_HTTP_ADDR, then "+defaultHTTPAddr+"; with --consul $CROSSFADE_HTTP_ADDR, then 127.0.0.1:8510)")
	f.StringVar(&grpcAddrs, "grpc-addr", "", "servers' gRPC addresses, separated by commas (default: as the servers say)")
	trust := addAnchors(cmd, s)
	f.StringVar(&o.JoinTokenFile, "join-token-file", "", "file of mode 0600 that holds a join token for the service (crossfade token create); used while there is no valid certificate")
	f.StringVar(&o.Node, "node", "", "name of this node (default the host's name)")
	f.StringVar(&o.NodeAddress, "node-address", "", "address of this node (default 127.0.0.1)")
	f.StringVar(&o.StateDir, "state-dir", "", "folder for the key, the certificate and the last good configuration (default $XDG_STATE_HOME/crossfade/SERVICE-ID)")
	f.StringVar(&o.RuntimeDir, "runtime-dir", "", "short path of a folder for sockets (default under $XDG_RUNTIME_DIR or /tmp)")
	f.StringVar(&o.EnvoyPath, "envoy", "", "Envoy's binary (default $ENVOY, then envoy on PATH, then the installed Python package)")
	addChoice(cmd, &o.EnvoyLogLevel, "envoy-log-level", "", "warning", "Envoy's log level", "trace", "debug", "info", "warning", "error", "critical", "off")
	f.IntVar(&o.Concurrency, "concurrency", 0, "Envoy's worker threads (default: sidecar.concurrency of the definition, else 2, or the number of cores if that is less)")
	f.DurationVar(&o.DrainTime, "drain-time", 0, "how long requests and connections may take to end after SIGTERM (default 30s)")
	f.DurationVar(&o.AppStopTime, "app-stop-time", 0, "how long the app may take to end after SIGTERM (default 30s)")
	complete(cmd, "service", written())
	complete(cmd, "join-token-file", files())
	complete(cmd, "state-dir", folders())
	complete(cmd, "runtime-dir", folders())
	complete(cmd, "envoy", files())
	logger := addLog(cmd, s)
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		switch given := len(slices.DeleteFunc([]string{file, o.SidecarFor, o.ProxyID}, func(v string) bool { return v == "" })); {
		case given == 0:
			return usageError{errors.New("sidecar: --service FILE is required"), "crossfade sidecar --help"}
		case given > 1:
			return usageError{errors.New("sidecar: give one of --service, --sidecar-for and --proxy-id"), "crossfade sidecar --help"}
		case file == "" && o.Consul == "":
			return usageError{errors.New("sidecar: --sidecar-for and --proxy-id take over what a Consul agent holds: name it with --consul"), "crossfade sidecar --help"}
		}
		if at := cmd.ArgsLenAtDash(); len(args) > 0 && at != 0 {
			return usageError{fmt.Errorf("sidecar: unexpected argument %q: the app's command goes after --", args[0]), "crossfade sidecar --help"}
		}
		if o.Concurrency < 0 {
			return usageError{fmt.Errorf("--concurrency %d: want 1 or more, or 0 for the default", o.Concurrency), "crossfade sidecar --help"}
		}
		if err := checkEnvoy(o.EnvoyPath); err != nil {
			return err
		}
		if file != "" {
			if o.Definition, err = onlyDefinition(s, file); err != nil {
				return err
			}
			o.Reread = func() (config.Definition, error) { return onlyDefinition(s, file) }
		}
		if err := consulAgent(s, &o); err != nil {
			return err
		}
		o.App = args
		servers := []string{httpAddrs, s.env("CROSSFADE_HTTP_ADDR"), s.env("CONSUL_HTTP_ADDR"), defaultHTTPAddr}
		if o.Consul != "" {
			servers[2], servers[3] = "", besideConsul
		}
		o.HTTPAddrs = list(firstSet(servers...))
		o.GRPCAddrs = list(grpcAddrs)
		trust.beside = o.Consul != ""
		if o.CARoots, err = trust.roots(); err != nil {
			return err
		}
		o.CAFingerprint = trust.pin()
		if o.StateDir == "" {
			if o.StateDir, err = stateDir(s, firstSet(o.Definition.Service.ID, o.SidecarFor, o.ProxyID)); err != nil {
				return err
			}
		}
		if o.Log, err = logger(); err != nil {
			return err
		}
		o.Stdout, o.Stderr = s.out, s.err
		signals := make(chan os.Signal, 4)
		signal.Notify(signals, syscall.SIGTERM, os.Interrupt, syscall.SIGHUP, syscall.SIGUSR1)
		defer signal.Stop(signals)
		o.Signals = signals
		if s.env("GOGC") == "" {
			debug.SetGCPercent(sidecarGarbage)
		}
		err = sidecar.Run(context.WithoutCancel(cmd.Context()), o)
		if exit, ok := errors.AsType[*sidecar.ExitError](err); ok {
			return exitCode(exit.Code)
		}
		return err
	}
	return cmd
}

// sidecarGarbage is how much garbage a sidecar keeps, in percent of what it holds: it makes little,
// and there is one beside every instance.
const sidecarGarbage = 50

// besideConsul is where a server listens on a host that has a Consul agent.
const besideConsul = "127.0.0.1:8510"

// onlyDefinition is the one service that a file defines.
func onlyDefinition(s streams, file string) (config.Definition, error) {
	defs, err := readDefinitions(s, []string{file})
	if err != nil {
		return config.Definition{}, err
	}
	if len(defs) != 1 {
		return config.Definition{}, fmt.Errorf("%s: defines %d services, a sidecar runs one: give each a file of its own", file, len(defs))
	}
	return defs[0], nil
}

// consulAgent completes how to speak to the Consul agent, by Consul's own environment.
func consulAgent(s streams, o *sidecar.Options) error {
	if o.Consul == "" {
		return nil
	}
	o.ConsulToken, o.ConsulTokenFile = s.env("CONSUL_HTTP_TOKEN"), s.env("CONSUL_HTTP_TOKEN_FILE")
	if file := s.env("CONSUL_CACERT"); file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("CA of the Consul agent: %w", err)
		}
		o.ConsulTLS = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool(), ServerName: s.env("CONSUL_TLS_SERVER_NAME")}
		if !o.ConsulTLS.RootCAs.AppendCertsFromPEM(text) {
			return fmt.Errorf("CA of the Consul agent: %s has no certificate in PEM", file)
		}
	}
	return nil
}

func firstSet(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// list splits a comma-separated value.
func list(v string) []string {
	return strings.FieldsFunc(v, func(r rune) bool { return r == ',' || r == ' ' })
}

// stateDir is where an instance's state is kept unless told otherwise.
func stateDir(s streams, id string) (string, error) {
	if id == "" || id != filepath.Base(id) {
		return "", fmt.Errorf("service ID %q can't name a folder: set --state-dir", id)
	}
	base := s.env("XDG_STATE_HOME")
	switch {
	case base != "":
	case os.Geteuid() == 0:
		base = "/var/lib"
	default:
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("state directory: %w: set --state-dir", err)
		}
		base = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(base, "crossfade", id), nil
}
