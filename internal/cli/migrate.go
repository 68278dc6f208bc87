package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/internal/catalog/consul"
	"github.com/crossfade-mesh/crossfade/internal/catalog/consulstore"
	"github.com/crossfade-mesh/crossfade/internal/migrate"
)

// migrateWithin bounds how long a move may take.
const migrateWithin = 5 * time.Minute

func newMigrate(s streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "migrate",
		Short:   "Move state between engines",
		Example: `  crossfade migrate store --from /var/lib/crossfade --consul http://127.0.0.1:8500`,
		Args:    exactly(),
	}
	cmd.AddCommand(newMigrateStore(s))
	return cmd
}

func newMigrateStore(s streams) *cobra.Command {
	var from, to, address, tokenFile string
	var replace bool
	cmd := &cobra.Command{
		Use:   "store",
		Short: "Move a server's state into a Consul, or back",
		Long: `Move configuration entries with their history, shifts under way, tokens and the CA from
the data directory of a server into a Consul, for servers with --consul, or from there
into a directory, for one server without. Stop the servers first.

Services are not moved: with a Consul its agents hold them. What is moved away from a
directory is renamed to NAME.moved, and what is in the Consul stays there.

What is in the Consul already, and differs, is named and nothing is moved, unless
--replace is given. The directory may also be the --data-dir of a server with --consul:
that puts back what a Consul has lost.`,
		Example: `  crossfade migrate store --from /var/lib/crossfade --consul http://127.0.0.1:8500
  crossfade migrate store --consul http://127.0.0.1:8500 --to /var/lib/crossfade`,
		Args: exactly(),
	}
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "data directory to move from")
	f.StringVar(&to, "to", "", "data directory to move to")
	f.StringVar(&address, "consul", "", "address of a Consul agent, on the other side")
	f.StringVar(&tokenFile, "consul-token-file", "", "file with the token for --consul (default $CONSUL_HTTP_TOKEN_FILE, then $CONSUL_HTTP_TOKEN)")
	f.BoolVar(&replace, "replace", false, "put what is in --from in the place of what is in the Consul")
	complete(cmd, "from", folders())
	complete(cmd, "to", folders())
	complete(cmd, "consul-token-file", files())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case address == "":
			return usageError{errors.New("--consul: not given: say which Consul is on the other side"), "crossfade migrate store --help"}
		case (from == "") == (to == ""):
			return usageError{errors.New("want one of --from and --to"), "crossfade migrate store --help"}
		case to != "" && replace:
			return usageError{errors.New("--replace: a directory that has state is never written over: leave it out"), "crossfade migrate store --help"}
		}
		how, err := consulAccess(s, &address, tokenFile)
		if err != nil {
			return err
		}
		client, err := consul.NewClient(consul.Options{Address: address, Token: how.Token, TLS: how.TLS})
		if err != nil {
			return err
		}
		defer client.Close()
		e := consulstore.New(consulstore.Options{Client: client, Address: address, Node: "migrate"})
		ctx, cancel := context.WithTimeout(cmd.Context(), migrateWithin)
		defer cancel()
		if _, _, err := e.Check(ctx); err != nil {
			return err
		}
		var done migrate.Report
		if from != "" {
			done, err = migrate.ToConsul(ctx, from, e, replace)
		} else {
			done, err = migrate.ToDir(ctx, e, to)
		}
		if err != nil {
			return err
		}
		authority := "no CA"
		if done.CA {
			authority = "the CA"
		}
		_, err = fmt.Fprintf(s.out, "moved: %d entries, %d versions of their history, %d keys, %d tokens, %s; index %d\n", done.Entries, done.Versions, done.Keys, done.Tokens, authority, done.Index)
		return err
	}
	return cmd
}
