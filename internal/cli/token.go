package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/internal/access/tokens"
)

func newToken(s streams) *cobra.Command {
	return group("token", "Make, list and revoke tokens", newTokenCreate(s), newTokenList(s), newTokenRevoke(s))
}

func newTokenCreate(s streams) *cobra.Command {
	var role, services, description string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a token, and show its secret once",
		Long: `Make a token and print its secret, which is shown this once: only its hash is kept.

Without --role it is a join token: it gets instances of the one --service their first
certificate, and nothing else. The other roles are for people: a reader sees
everything but tokens and the audit trail, an auditor those too; an owner is a reader
who also writes what concerns the named services; an operator may do everything.`,
		Example: `  (umask 077; crossfade token create --service storefront > storefront.token)
  crossfade token create --role owner --service storefront,catalog --ttl 720h`,
		Args: exactly(),
	}
	t, o := addTarget(cmd, s), addOutput(cmd)
	f := cmd.Flags()
	addChoice(cmd, &role, "role", "", "join", "join, reader, owner, operator or auditor", roles()...)
	f.StringVar(&services, "service", "", "service to join, or services to own, separated by commas")
	complete(cmd, "service", t.serviceNames())
	f.StringVar(&description, "description", "", "what it is for")
	f.DurationVar(&ttl, "ttl", 0, "how long it can be used (default 24h for a join token, for ever for others)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		in := map[string]any{"role": role, "services": list(services), "description": description}
		if f.Changed("ttl") {
			in["ttl"] = ttl.String()
		}
		body, err := json.Marshal(in)
		if err != nil {
			return err
		}
		var made struct {
			tokens.Token
			Secret string `json:"secret"`
		}
		if err := t.call(cmd.Context(), http.MethodPut, "/v1/crossfade/tokens", body, &made); err != nil {
			return err
		}
		if o.format == "table" {
			// Standard output has the secret alone, so that it can go into a file.
			fmt.Fprintf(s.err, "Token made: %s\nrole %s%s, %s\nIts secret is shown this once:\n", made.Accessor, made.Role, of(made.Services), until(made.Token))
			fmt.Fprintln(s.out, made.Secret)
			return nil
		}
		return o.print(s.out, made, nil)
	}
	return cmd
}

func of(services []string) string {
	if len(services) == 0 {
		return ""
	}
	return " of " + strings.Join(services, ", ")
}

func until(t tokens.Token) string {
	if t.Expires.IsZero() {
		return "without an end"
	}
	return "until " + t.Expires.Format(time.RFC3339)
}

func newTokenList(s streams) *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List tokens, without their secrets", Args: exactly(),
		Example: "  crossfade token list -o json",
	}
	t, o := addTarget(cmd, s), addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		all := []tokens.Token{}
		if err := t.call(cmd.Context(), http.MethodGet, "/v1/crossfade/tokens", nil, &all); err != nil {
			return err
		}
		return o.print(s.out, all, func(w io.Writer) {
			fmt.Fprintln(w, "Accessor\tRole\tServices\tState\tEnd\tLast used\tDescription")
			for _, tok := range all {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", tok.Accessor, tok.Role, strings.Join(tok.Services, ","),
					tok.State(time.Now()), orDash(tok.Expires), orDash(tok.Used), tok.Description)
			}
		})
	}
	return cmd
}

func orDash(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Format(time.RFC3339)
}

func newTokenRevoke(s streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revoke ACCESSOR",
		Short: "End a token, and the identities of all who joined with it",
		Long: `End a token at once. Streams that were opened with it, or with a certificate that came
through it, end, and those certificates are not renewed; requests between instances go
on until the certificates expire.`,
		Example: "  crossfade token revoke 6f1c2d3e-4b5a-4978-8695-a4b3c2d1e0f9",
		Args:    exactly("ACCESSOR"),
	}
	t := addTarget(cmd, s)
	cmd.ValidArgsFunction = first(t.accessors())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if strings.HasPrefix(args[0], "cf-") {
			return errors.New("token revoke: that is a token's secret, which has no place among arguments: give its accessor, see crossfade token list")
		}
		var tok tokens.Token
		if err := t.call(cmd.Context(), http.MethodDelete, "/v1/crossfade/tokens/"+url.PathEscape(args[0]), nil, &tok); err != nil {
			return err
		}
		fmt.Fprintf(s.out, "Token revoked: %s\n", tok.Accessor)
		return nil
	}
	return cmd
}

func newAudit(s streams) *cobra.Command {
	var n int
	cmd := &cobra.Command{
		Use: "audit", Short: "Show who wrote what, the newest first", Args: exactly(),
		Example: "  crossfade audit -n 20",
	}
	t, o := addTarget(cmd, s), addOutput(cmd)
	cmd.Flags().IntVarP(&n, "number", "n", 100, "how many writes to show")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		entries := []tokens.Entry{}
		if err := t.call(cmd.Context(), http.MethodGet, "/v1/crossfade/audit?n="+strconv.Itoa(n), nil, &entries); err != nil {
			return err
		}
		return o.print(s.out, entries, func(w io.Writer) {
			fmt.Fprintln(w, "Time\tWho\tFrom\tAction\tTarget\tOutcome")
			for _, e := range entries {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", e.Time.Format(time.RFC3339), e.Who, e.From, e.Action, e.Target, e.Outcome)
			}
		})
	}
	return cmd
}
