package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/envoybin"
)

func newConnect(s streams) *cobra.Command {
	return group("connect", "Connect proxies to the mesh", newConnectEnvoy(s))
}

func newConnectEnvoy(s streams) *cobra.Command {
	var sidecarFor, proxyID, node, adminBind, grpcAddr, version string
	var bootstrapOnly bool
	cmd := &cobra.Command{
		Use:   "envoy (-sidecar-for ID | -proxy-id ID) [flags] [-- ENVOY-ARG...]",
		Short: "Run a bare Envoy for a registered sidecar, or print its bootstrap",
		Long: `Run Envoy as the sidecar of a registered service instance, connected straight to a
server, or with -bootstrap print what it would start with. What follows "--" goes to
Envoy. The server has to run with --dev: elsewhere keys stay on the host that made
them, which is what "crossfade sidecar" is for.`,
		Example: `  crossfade connect envoy -sidecar-for web -bootstrap > bootstrap.json
  crossfade connect envoy -sidecar-for web -admin-bind 127.0.0.1:19000 -- --log-level info`,
	}
	t := addTarget(cmd, s)
	f := cmd.Flags()
	f.StringVar(&sidecarFor, "sidecar-for", "", "ID of the service instance to run the sidecar of")
	f.StringVar(&proxyID, "proxy-id", "", "ID of the registered connect-proxy")
	f.StringVar(&node, "node-name", "", "catalog node of the proxy, where several have one with that ID")
	f.StringVar(&adminBind, "admin-bind", "127.0.0.1:19000", "address:port of Envoy's admin interface")
	f.StringVar(&grpcAddr, "grpc-addr", "", "server's gRPC address (default: as the server says)")
	f.StringVar(&version, "envoy-version", "", "version of Envoy that the bootstrap is for (default: that of the binary)")
	f.BoolVar(&bootstrapOnly, "bootstrap", false, "print the bootstrap, run nothing")
	complete(cmd, "sidecar-for", t.sidecars(ofService))
	complete(cmd, "proxy-id", t.sidecars(ofID))
	complete(cmd, "node-name", t.sidecars(ofNode))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if (proxyID == "") == (sidecarFor == "") {
			return usageError{errors.New("connect envoy: give one of -sidecar-for and -proxy-id"), "crossfade connect envoy --help"}
		}
		if at := cmd.ArgsLenAtDash(); len(args) > 0 && at != 0 {
			return usageError{fmt.Errorf("connect envoy: unexpected argument %q: Envoy's own go after --", args[0]), "crossfade connect envoy --help"}
		}
		if version != "" {
			if err := envoybin.Supported(version); err != nil {
				return err
			}
		}
		ctx := cmd.Context()
		reg, err := findProxy(ctx, t, proxyID, sidecarFor, node)
		if err != nil {
			return err
		}
		var self agentSelf
		if err := t.call(ctx, http.MethodGet, "/v1/agent/self", nil, &self); err != nil {
			return err
		}
		if self.XDS != nil && self.XDS.Ports.Plaintext <= 0 {
			return fmt.Errorf("server %s: serves bare Envoys only with --dev, since only there it makes keys: run crossfade sidecar, which makes its own", t.httpAddr())
		}
		addr, err := grpcAddress(ctx, t, grpcAddr)
		if err != nil {
			return err
		}
		boot, err := envoy.Bootstrap(envoy.BootstrapOptions{
			NodeID: reg.Service.ID, NodeName: reg.Node.Name, Service: reg.Service.Proxy.DestinationServiceName, Datacenter: self.Config.Datacenter,
			StatsTags: config.Definition{Service: reg.Service}.StatsTags(), XDSAddress: addr, AdminAddress: adminBind,
		})
		if err != nil {
			return err
		}
		if bootstrapOnly {
			_, err := s.out.Write(boot)
			return err
		}
		return execEnvoy(ctx, boot, args)
	}
	return cmd
}

// registeredProxy is a connect-proxy as the server knows it.
type registeredProxy struct {
	Node    catalog.Node
	Service catalog.Service
}

// findProxy finds the one registered connect-proxy with an ID of its own or by the
// instance that it stands for, on the given node or any.
func findProxy(ctx context.Context, t *target, proxyID, sidecarFor, node string) (*registeredProxy, error) {
	q := url.Values{"id": {proxyID}, "sidecar-for": {sidecarFor}, "node": {node}}
	var found []registeredProxy
	if err := t.call(ctx, http.MethodGet, "/v1/crossfade/proxies?"+q.Encode(), nil, &found); err != nil {
		return nil, err
	}
	switch {
	case len(found) == 1:
		return &found[0], nil
	case len(found) > 1:
		return nil, fmt.Errorf("%d sidecars are registered that fit: name one with -proxy-id and -node-name", len(found))
	case proxyID != "":
		return nil, fmt.Errorf("proxy %q: not registered with %s: register it first, with crossfade services register", proxyID, t.httpAddr())
	default:
		return nil, fmt.Errorf("service %q: no sidecar is registered for it with %s: its definition needs connect.sidecar_service", sidecarFor, t.httpAddr())
	}
}

// execEnvoy turns this process into Envoy. The bootstrap goes along as an argument:
// it holds no secret, and no file is left behind.
func execEnvoy(ctx context.Context, boot []byte, args []string) error {
	path, err := envoybin.Find()
	if err != nil {
		return err
	}
	if _, err := envoybin.CheckVersion(ctx, path); err != nil {
		return err
	}
	// As Consul does: without it two Envoys on one host would claim the same shared memory.
	argv := append([]string{path, "--config-yaml", string(boot), "--disable-hot-restart"}, args...)
	return fmt.Errorf("run %s: %w", path, unix.Exec(path, argv, os.Environ()))
}
