package cli

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/internal/appport"
)

func newProtect(s streams) *cobra.Command {
	var remove, show bool
	cmd := &cobra.Command{
		Use:   "protect [PORT...]",
		Short: "Keep other hosts from an app's own port, past its sidecar",
		Long: `Keep other hosts from TCP ports of apps on this host, so that nobody gets past their
sidecars: connections that don't come over loopback are reset. It loads rules into the
kernel's nf_tables, in table "inet crossfade" of this network namespace, and takes root. What
is established stays open. The rules last until they are removed or the host restarts: run
it from the unit that starts the sidecar.

Without a port it lists those that are protected. --print writes the rules for nft in place of
loading them, for those who have a firewall of their own.

A sidecar that may look at them tells the servers that the rules are there; an app that
listens on 127.0.0.1 alone needs none.`,
		Example: `  crossfade protect 8080
  crossfade protect
  crossfade protect --remove 8080
  crossfade protect --print 8080 > /etc/nftables.d/crossfade.nft`,
	}
	f := cmd.Flags()
	f.BoolVar(&remove, "remove", false, "take the rules for the ports away")
	f.BoolVar(&show, "print", false, "write the rules for nft, and load nothing")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ports := make([]int, len(args))
		for i, text := range args {
			n, err := strconv.Atoi(text)
			if err != nil || n < 1 || n > 65535 {
				return usageError{fmt.Errorf("protect: %q: want a port, 1 to 65535", clip(text, 40)), cmd.CommandPath() + " --help"}
			}
			ports[i] = n
		}
		switch {
		case (remove || show) && len(ports) == 0:
			return usageError{fmt.Errorf("protect: want a port"), cmd.CommandPath() + " --help"}
		case show:
			fmt.Fprint(s.out, appport.Rules(ports...))
			return nil
		case remove:
			return appport.Unprotect(ports...)
		case len(ports) > 0:
			return appport.Protect(ports...)
		}
		have, err := appport.Protected()
		for _, p := range have {
			fmt.Fprintln(s.out, p)
		}
		return err
	}
	return cmd
}
