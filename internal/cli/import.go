package cli

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/internal/catalog/consul"
	"github.com/crossfade-mesh/crossfade/internal/connectfleet"
)

func newImport(s streams) *cobra.Command {
	return group("import", "Bring what another mesh has", newImportConnect(s))
}

func newImportConnect(s streams) *cobra.Command {
	var address, datacenter, policy string
	var check bool
	var opts connectfleet.Options
	cmd := &cobra.Command{
		Use:   "consul-connect --check",
		Short: "Say what would differ if Consul Connect's sidecars were served by crossfade",
		Long: `Read a Consul's configuration entries and registrations, and say in a line each what
would differ if its sidecars were served by a server with --consul: what "breaks", since
it is asked for and would not happen, and what "differs" but works. Nothing is written:
there is nothing to bring over, a server with --consul serves the registrations as they
are. The exit code is 1 when something would break.

The token, $CONSUL_HTTP_TOKEN, needs agent:read, node:read, service:read, intentions:read
and operator:read.`,
		Example: `  crossfade import consul-connect --check
  crossfade import consul-connect --check --consul http://10.0.0.1:8500 --default-intention-policy deny -o json`,
		Args: exactly(),
	}
	f := cmd.Flags()
	f.BoolVar(&check, "check", false, "only look (required)")
	f.StringVar(&address, "consul", "", "HTTP address of the Consul (default $CONSUL_HTTP_ADDR, then http://127.0.0.1:8500)")
	f.StringVar(&datacenter, "datacenter", "", "datacenter to look at (default the agent's own)")
	addChoice(cmd, &policy, "default-intention-policy", "", "allow", "that of the server that is to be", "allow", "deny")
	f.BoolVar(&opts.AllowEscapeHatches, "allow-escape-hatches", false, "the server is to have that")
	o := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !check {
			return usageError{errors.New("import consul-connect: there is nothing to bring over, a server with --consul serves what Consul holds: give --check to see what would differ"), "crossfade import consul-connect --help"}
		}
		opts.DefaultAllow = policy == "allow"
		source, err := consul.New(consul.Options{
			Address: firstSet(address, s.env("CONSUL_HTTP_ADDR"), "http://127.0.0.1:8500"), Token: s.env("CONSUL_HTTP_TOKEN"), Datacenter: datacenter,
		})
		if err != nil {
			return err
		}
		fleet, err := source.Fleet(cmd.Context())
		if err != nil {
			return fmt.Errorf("the Consul cannot be read: %w", err)
		}
		report := connectfleet.Check(connectfleet.Fleet(fleet), opts)
		if err := o.print(s.out, report, func(w io.Writer) { printReport(w, report) }); err != nil {
			return err
		}
		if report.Broken() {
			return exitCode(1)
		}
		return nil
	}
	return cmd
}

func printReport(w io.Writer, r connectfleet.Report) {
	if len(r.Findings) == 0 {
		fmt.Fprintf(w, "nothing differs: %d entries, %d sidecars\n", r.Entries, r.Sidecars)
		return
	}
	fmt.Fprintln(w, "Severity\tSubject\tProblem")
	for _, f := range r.Findings {
		fmt.Fprintf(w, "%s\t%s\t%s\n", f.Severity, f.Subject, f.Problem)
	}
}
