package cli

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/internal/catalog/consul"
	"github.com/crossfade-mesh/crossfade/internal/nodeproxy"
)

func newNodeProxy(s streams) *cobra.Command {
	var o nodeproxy.Options
	var tcp []string
	cmd := &cobra.Command{
		Use:   "node-proxy",
		Short: "Run an old mesh: one Envoy that all apps of this host share, in plaintext",
		Long: `Run one Envoy that all apps of this host share: what pairs are moved away from in
tests, benchmarks and the demo. Nothing is encrypted, and nobody is asked who he is.

An app calls --front, and Host says which service it means: "catalog" or "catalog.old". The
request goes to the node proxy of a host that has the service, at its --peer, and from there
to the app. HTTP/1.1, HTTP/2, gRPC and WebSocket come to the one port; a TCP service has two of
its own (--tcp). Every host's node proxy has the same port for peers.

Where services are it reads from the server, or a Consul, and goes on without either with
what it read last.`,
		Example: `  crossfade node-proxy --front 127.0.0.1:4140 --peer 10.0.0.7:4141 --node web-7
  crossfade node-proxy --tcp payments=5140:5141`,
		Args: exactly(),
	}
	t := addTarget(cmd, s)
	f := cmd.Flags()
	f.StringVar(&o.Layout.Node, "node", "", "name of this node (default the host's name)")
	f.StringVar(&o.Layout.Front, "front", "127.0.0.1:4140", "IP:PORT at which apps of this host call services by Host")
	f.StringVar(&o.Layout.Peer, "peer", "127.0.0.1:4141", "IP:PORT at which other hosts' node proxies call services of this one; they use this port and the node's address")
	f.StringArrayVar(&tcp, "tcp", nil, "NAME=FRONT:PEER: a TCP service and its ports, at the addresses of --front and --peer; may be given several times")
	f.StringVar(&o.Layout.Domain, "domain", "old", "services are called NAME.DOMAIN, too; empty for none")
	f.StringVar(&o.Dir, "dir", "", "short path of a folder for Envoy's files; kept, it starts from them while the server cannot be read (default: a temporary one)")
	f.StringVar(&o.Envoy, "envoy", "", "Envoy's binary (default $ENVOY, then envoy on PATH, then the installed Python package)")
	f.IntVar(&o.Concurrency, "concurrency", 2, "Envoy's worker threads")
	f.DurationVar(&o.DrainTime, "drain-time", 10*time.Second, "how long connections may take to end after SIGTERM")
	complete(cmd, "dir", folders())
	complete(cmd, "envoy", files())
	logger := addLog(cmd, s)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		for _, text := range tcp {
			one, err := nodeproxy.ParseTCP(text)
			if err != nil {
				return usageError{err, "crossfade node-proxy --help"}
			}
			o.Layout.TCP = append(o.Layout.TCP, one)
		}
		if o.Layout.Node == "" {
			if o.Layout.Node, err = os.Hostname(); err != nil {
				return fmt.Errorf("name of this node: %w", err)
			}
		}
		if err := o.Layout.Validate(); err != nil {
			return usageError{err, "crossfade node-proxy --help"}
		}
		if err := checkEnvoy(o.Envoy); err != nil {
			return err
		}
		if o.Log, err = logger(); err != nil {
			return err
		}
		base, err := t.baseURL()
		if err != nil {
			return err
		}
		from := consul.Options{Address: base, Log: o.Log}
		if from.HTTPClient, from.Token, err = t.lasting(); err != nil {
			return err
		}
		if o.Source, err = consul.New(from); err != nil {
			return err
		}
		o.Output = s.err
		return nodeproxy.Run(cmd.Context(), o)
	}
	return cmd
}
