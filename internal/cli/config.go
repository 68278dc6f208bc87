package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

func newConfig(s streams) *cobra.Command {
	return group("config", "Write and read configuration entries",
		newConfigWrite(s), newConfigRead(s), newConfigList(s), newConfigDelete(s))
}

func newConfigWrite(s streams) *cobra.Command {
	var cas bool
	var index uint64
	cmd := &cobra.Command{
		Use:   "write FILE",
		Short: "Create or update a configuration entry",
		Long:  `Create or update the configuration entry in a file of HCL, JSON or YAML. "-" reads standard input.`,
		Example: `  crossfade config write catalog.hcl
  echo '{"Kind": "service-defaults", "Name": "catalog", "Protocol": "http"}' | crossfade config write -`,
		Args:              exactly("FILE"),
		ValidArgsFunction: first(written()),
	}
	t := addTarget(cmd, s)
	cmd.Flags().BoolVar(&cas, "cas", false, "write only if the entry's ModifyIndex is that of -modify-index")
	cmd.Flags().Uint64Var(&index, "modify-index", 0, "with -cas: the expected index; 0 means that there must be no entry")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		b, err := readFile(s, args[0])
		if err != nil {
			return err
		}
		e, err := config.DecodeEntry(args[0], b)
		if err != nil {
			return err
		}
		body, err := config.EncodeEntry(e)
		if err != nil {
			return err
		}
		path := "/v1/config"
		if cas {
			path += "?cas=" + strconv.FormatUint(index, 10)
		}
		var written bool
		if err := t.call(cmd.Context(), http.MethodPut, path, body, &written); err != nil {
			return fmt.Errorf("%s: %w", config.KeyOf(e), err)
		}
		if !written {
			return fmt.Errorf("%s: not written: its ModifyIndex is not %d; read it again with crossfade config read", config.KeyOf(e), index)
		}
		fmt.Fprintf(s.out, "Config entry written: %s\n", config.KeyOf(e))
		return nil
	}
	return cmd
}

// addKey gives a verb Consul's -kind and -name flags.
func addKey(cmd *cobra.Command, t *target) (path func() (string, error)) {
	var kind, name string
	cmd.Flags().StringVar(&kind, "kind", "", "kind of the entry")
	cmd.Flags().StringVar(&name, "name", "", "name of the entry")
	complete(cmd, "kind", kinds())
	complete(cmd, "name", t.entryNames(&kind))
	return func() (string, error) {
		if kind == "" || name == "" {
			return "", usageError{errors.New(verb(cmd) + ": -kind and -name are required"), cmd.CommandPath() + " --help"}
		}
		return "/v1/config/" + url.PathEscape(kind) + "/" + url.PathEscape(name), nil
	}
}

func newConfigRead(s streams) *cobra.Command {
	cmd := &cobra.Command{
		Use: "read", Short: "Show one configuration entry, as JSON", Args: exactly(),
		Example: "  crossfade config read -kind service-defaults -name catalog",
	}
	t, o := addTarget(cmd, s), addOutput(cmd)
	path := addKey(cmd, t)
	o.format = "json"
	cmd.Flags().Lookup("output").DefValue = o.format
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		p, err := path()
		if err != nil {
			return err
		}
		var entry json.RawMessage
		if err := t.call(cmd.Context(), http.MethodGet, p, nil, &entry); err != nil {
			return err
		}
		return o.print(s.out, entry, nil)
	}
	return cmd
}

func newConfigList(s streams) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use: "list", Short: "List configuration entries of a kind", Args: exactly(),
		Example: "  crossfade config list -kind service-defaults",
	}
	t, o := addTarget(cmd, s), addOutput(cmd)
	cmd.Flags().StringVar(&kind, "kind", "", "kind of the entries")
	complete(cmd, "kind", kinds())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if kind == "" {
			return usageError{errors.New("config list: -kind is required"), "crossfade config list --help"}
		}
		var entries []map[string]any
		if err := t.call(cmd.Context(), http.MethodGet, "/v1/config/"+url.PathEscape(kind), nil, &entries); err != nil {
			return err
		}
		return o.print(s.out, entries, func(w io.Writer) {
			for _, e := range entries {
				name, ok := e["Name"].(string)
				if !ok {
					name = config.MeshName
				}
				fmt.Fprintln(w, name)
			}
		})
	}
	return cmd
}

func newConfigDelete(s streams) *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete", Short: "Delete a configuration entry", Args: exactly(),
		Example: "  crossfade config delete -kind service-defaults -name catalog",
	}
	t := addTarget(cmd, s)
	path := addKey(cmd, t)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		p, err := path()
		if err != nil {
			return err
		}
		if err := t.call(cmd.Context(), http.MethodDelete, p, nil, nil); err != nil {
			return err
		}
		fmt.Fprintf(s.out, "Config entry deleted: %s\n", p[len("/v1/config/"):])
		return nil
	}
	return cmd
}
