package cli

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/internal/server"
)

func newServer(s streams) *cobra.Command {
	var o server.Options
	var policy, guard, authority, consulGRPC, tokenFile string
	var most, rate int
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run a control-plane server",
		Long: `Run a control-plane server: the embedded registry with Consul's HTTP API, the
certificate authority, and xDS for sidecars.

With --dev everything is kept in memory, in plaintext, and every client is served.
Otherwise --data-dir keeps it, and both ports speak TLS to callers that show a token,
or, as sidecars do, their own certificate. The first start makes an operator's token
and the CA, and prints where they are and the CA's fingerprint.

With --consul the state is in a Consul: any number of servers share it and need no other
coordination, and --data-dir keeps the last of it that was seen. TLS to it is set as
for Consul's own tools (CONSUL_CACERT, CONSUL_CLIENT_CERT, ...).

The endpoint guard holds instances that a registry loses at once and unexplained:
see crossfade catalog held. --endpoint-guard off takes whatever the registry says.

With --config-dir the configuration entries in the files of a folder are written at the
start and whenever a file changes. A file that is wrong is named in the log, and leaves
its entry as it was.

With --ca consul that Consul's Connect CA
also signs the sidecars' certificates, so that Consul's own sidecars and these know each
other. Consul's servers are asked for that over gRPC: $CONSUL_GRPC_CACERT (or
$CONSUL_CACERT) and $CONSUL_TLS_SERVER_NAME say how they are known, as for consul itself.`,
		Example: `  crossfade server --dev
  crossfade server --data-dir /var/lib/crossfade --bind 0.0.0.0 --default-intention-policy deny
  crossfade server --dev --config-dir entries --config-prune
  crossfade server --data-dir /var/lib/crossfade --consul http://127.0.0.1:8500
  crossfade server --data-dir /var/lib/crossfade --consul http://127.0.0.1:8500 --ca consul`,
		Args: exactly(),
	}
	f := cmd.Flags()
	f.BoolVar(&o.Dev, "dev", false, "keep everything in memory, serve every client; loopback only")
	f.StringVar(&o.DataDir, "data-dir", "", "folder for the registry and the certificate authority")
	f.StringVar(&o.Datacenter, "datacenter", "dc1", "name of the datacenter")
	f.StringVar(&o.NodeName, "node", "", "name of this node (default the host's name)")
	f.StringVar(&o.BindAddr, "bind", "127.0.0.1", "address to listen on; with --dev a loopback one")
	f.StringVar(&o.Advertise, "advertise", "", "address at which others find this server (default that of --bind, or the host's first)")
	f.IntVar(&o.HTTPPort, "http-port", 0, "port of the HTTP API, 0 for a free one (default 8500, with --consul 8510)")
	f.IntVar(&o.GRPCPort, "grpc-port", 0, "port of xDS and the certificate authority, 0 for a free one (default 8502, with --consul 8512)")
	f.IntVar(&o.DNSPort, "dns-port", 8600, "port of the DNS interface, 0 for a free one, -1 for none; with --consul there is none")
	f.StringVar(&o.DNSBind, "dns-bind", "", "address of the DNS interface, which asks nobody for a token (default 127.0.0.1)")
	addChoice(cmd, &policy, "default-intention-policy", "", "allow", "allow or deny callers that no intention mentions", "allow", "deny")
	f.BoolVar(&o.AllowEscapeHatches, "allow-escape-hatches", false, "honour listeners and clusters that definitions hold in Envoy's own words (envoy_public_listener_json, ...)")
	f.StringVar(&o.ConfigDir, "config-dir", "", "folder of .hcl, .json and .yaml files with one configuration entry each, which are written whenever a file changes")
	f.BoolVar(&o.ConfigPrune, "config-prune", false, "delete entries that came from a file of --config-dir which is gone")
	f.StringVar(&o.Consul, "consul", "", "address of a Consul agent: catalog and health are read from it, and all servers of it share their state there")
	f.StringVar(&tokenFile, "consul-token-file", "", "file with the token for --consul (default $CONSUL_HTTP_TOKEN_FILE, then $CONSUL_HTTP_TOKEN)")
	complete(cmd, "consul-token-file", files())
	addChoice(cmd, &guard, "endpoint-guard", "", "on", "whether instances that vanish together unexplained are held", "on", "off")
	f.IntVar(&most, "endpoint-guard-most", 50, "percent of a service's instances that may leave within the window with nothing to explain it; the others of 100 are the floor of health")
	f.DurationVar(&o.Guard.Window, "endpoint-guard-window", 10*time.Minute, "how long an unexplained departure counts")
	f.IntVar(&rate, "endpoint-guard-rate", 0, "percent of a service's instances that may leave in a second, explained or not, and at least one; 0 for no limit")
	addChoice(cmd, &authority, "ca", "", "built-in", "who signs the sidecars' certificates: this server, or the Connect CA of --consul", "built-in", "consul")
	f.StringVar(&consulGRPC, "consul-grpc-addr", "", "gRPC address of a Consul server, for --ca consul (default $CONSUL_GRPC_ADDR, else as Consul's catalog says)")
	f.BoolVar(&o.NewOperatorToken, "new-operator-token", false, "make another operator's token, when the first is lost")
	f.DurationVar(&o.LeafTTL, "leaf-cert-ttl", 0, "how long a sidecar's certificate is valid (default 72h)")
	complete(cmd, "data-dir", folders())
	complete(cmd, "config-dir", folders())
	logger := addLog(cmd, s)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		o.DefaultAllow = policy == "allow"
		if err := errors.Join(checkPort("http-port", o.HTTPPort, 0), checkPort("grpc-port", o.GRPCPort, 0), checkPort("dns-port", o.DNSPort, -1),
			checkIP("dns-bind", o.DNSBind), checkDatacenter(o.Datacenter)); err != nil {
			return usageError{err, "crossfade server --help"}
		}
		if most < 1 || most > 100 || rate < 0 || rate > 100 || o.Guard.Window <= 0 {
			return usageError{errors.New("--endpoint-guard-most: want 1 to 100; --endpoint-guard-rate: 0 to 100; --endpoint-guard-window: more than 0"), "crossfade server --help"}
		}
		o.Guard.Off, o.Guard.Most, o.Guard.Rate = guard == "off", float64(most)/100, float64(rate)/100
		if o.ConfigPrune && o.ConfigDir == "" {
			return usageError{errors.New("--config-prune: deletes what came from --config-dir: give that too"), "crossfade server --help"}
		}
		if authority == "consul" {
			if o.Consul == "" {
				return usageError{errors.New("--ca consul: there is no Consul: give --consul too"), "crossfade server --help"}
			}
			o.ConsulCA = &server.ConsulCA{
				GRPCAddr:   firstSet(consulGRPC, s.env("CONSUL_GRPC_ADDR")),
				CAFile:     firstSet(s.env("CONSUL_GRPC_CACERT"), s.env("CONSUL_CACERT")),
				ServerName: s.env("CONSUL_TLS_SERVER_NAME"),
			}
		}
		offset := 0
		if o.Consul != "" {
			offset = 10 // a Consul agent has the others on every such host
			if o.ConsulAccess, err = consulAccess(s, &o.Consul, tokenFile); err != nil {
				return err
			}
		}
		if !f.Changed("http-port") {
			o.HTTPPort = 8500 + offset
		}
		if !f.Changed("grpc-port") {
			o.GRPCPort = 8502 + offset
		}
		if o.Consul != "" && (f.Changed("dns-port") && o.DNSPort >= 0 || f.Changed("dns-bind")) {
			return usageError{errors.New("--dns-port: with --consul names are answered by that Consul: leave out --dns-port and --dns-bind"), "crossfade server --help"}
		}
		o.DNSOptional = !f.Changed("dns-port") // the default may be in use, by a Consul agent or another server
		if o.Log, err = logger(); err != nil {
			return err
		}
		o.Version = Version
		srv, err := startServer(cmd.Context(), o)
		if err != nil || srv == nil {
			return err
		}
		mode := "data in " + o.DataDir
		if o.Dev {
			mode = "development mode, nothing is kept"
		}
		source := "embedded registry"
		if o.Consul != "" {
			source = "Consul at " + o.Consul
		}
		signer := ""
		if o.ConsulCA != nil {
			signer = ", of that Consul's CA"
		}
		security := "TLS, CA " + srv.Fingerprint()
		if o.Dev {
			security = "none: plaintext, open to everybody on this host"
		}
		fmt.Fprintf(s.err, `crossfade %s server, %s
  HTTP API         %s
  xDS and CA       %s (gRPC)
  DNS              %s
  security         %s
  catalog          %s
  datacenter       %s
  trust domain     %s%s
  intentions       %s by default
`, Version, mode, srv.URL(), srv.GRPCAddr(), cmp.Or(srv.DNSAddr(), "none"), security, source, o.Datacenter, srv.TrustDomain(), signer, policy)
		if file := srv.CAFile(); file != "" {
			fmt.Fprintf(s.err, "  CA certificate   %s\n", file)
		}
		if file := srv.OperatorFile(); file != "" {
			fmt.Fprintf(s.err, "  operator token   in %s: keep it safe, it may do everything\n", file)
		}
		if os.Getenv("GOGC") == "" {
			go mindGarbage(cmd.Context(), srv)
		}
		return srv.Run(cmd.Context())
	}
	return cmd
}
