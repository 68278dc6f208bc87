package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

func newConfig(s streams) *cobra.Command {
	return group("config", "Write and read configuration entries",
		newConfigWrite(s), newConfigRead(s), newConfigList(s), newConfigDelete(s),
		newConfigPlan(s), newConfigCheck(s), newConfigHistory(s), newConfigDiff(s), newConfigRollback(s))
}

func newConfigWrite(s streams) *cobra.Command {
	var cas bool
	var index uint64
	cmd := &cobra.Command{
		Use:   "write FILE",
		Short: "Create or update a configuration entry",
		Long: `Create or update the configuration entry in a file of HCL, JSON or YAML. "-" reads standard input.

It returns when every sidecar whose Envoy the entry changes has acknowledged that, and
says how many did. What an Envoy refuses is an error, in its own words; the entry stays
written then, and that Envoy keeps the version before. An entry that is there already,
just so, is not written again, and nobody is told anything.`,
		Example: `  crossfade config write catalog.hcl
  echo '{"Kind": "service-defaults", "Name": "catalog", "Protocol": "http"}' | crossfade config write -`,
		Args:              exactly("FILE"),
		ValidArgsFunction: first(written()),
	}
	t := addTarget(cmd, s)
	wait := addWaiting(cmd)
	cmd.Flags().BoolVar(&cas, "cas", false, "write only if the entry's ModifyIndex is that of -modify-index")
	cmd.Flags().Uint64Var(&index, "modify-index", 0, "with -cas: the expected index; 0 means that there must be no entry")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := wait.check(cmd); err != nil {
			return err
		}
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
		began := time.Now()
		h, err := t.exchange(cmd.Context(), http.MethodPut, path, body, &written)
		if err != nil {
			return fmt.Errorf("%s: %w", config.KeyOf(e), err)
		}
		if !written {
			return fmt.Errorf("%s: not written: its ModifyIndex is not %d; read it again with crossfade config read", config.KeyOf(e), index)
		}
		return wait.tell(cmd.Context(), t, taken{config.KeyOf(e), "written", h, began})
	}
	return cmd
}

// addKey gives a verb Consul's -kind and -name flags.
func addKey(cmd *cobra.Command, t *target) (key func() (config.Key, error)) {
	var kind, name string
	cmd.Flags().StringVar(&kind, "kind", "", "kind of the entry")
	cmd.Flags().StringVar(&name, "name", "", "name of the entry")
	complete(cmd, "kind", kinds())
	complete(cmd, "name", t.entryNames(&kind))
	return func() (config.Key, error) {
		if kind == "" || name == "" {
			return config.Key{}, usageError{errors.New(verb(cmd) + ": -kind and -name are required"), cmd.CommandPath() + " --help"}
		}
		return config.Key{Kind: config.Kind(kind), Name: name}, nil
	}
}

// pathOf is an entry's path below one that ends with a slash.
func pathOf(below string, k config.Key) string {
	return below + url.PathEscape(string(k.Kind)) + "/" + url.PathEscape(k.Name)
}

func newConfigRead(s streams) *cobra.Command {
	cmd := &cobra.Command{
		Use: "read", Short: "Show one configuration entry, as JSON", Args: exactly(),
		Example: "  crossfade config read -kind service-defaults -name catalog",
	}
	t, o := addTarget(cmd, s), addOutput(cmd)
	key := addKey(cmd, t)
	o.format = "json"
	cmd.Flags().Lookup("output").DefValue = o.format
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		k, err := key()
		if err != nil {
			return err
		}
		var entry json.RawMessage
		if err := t.call(cmd.Context(), http.MethodGet, pathOf("/v1/config/", k), nil, &entry); err != nil {
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
		Long: `Delete a configuration entry, and wait until every sidecar that this changes has
acknowledged it, as config write does.`,
		Example: "  crossfade config delete -kind service-defaults -name catalog",
	}
	t := addTarget(cmd, s)
	key, wait := addKey(cmd, t), addWaiting(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := wait.check(cmd); err != nil {
			return err
		}
		k, err := key()
		if err != nil {
			return err
		}
		began := time.Now()
		h, err := t.exchange(cmd.Context(), http.MethodDelete, pathOf("/v1/config/", k), nil, nil)
		if err != nil {
			return fmt.Errorf("%s: %w", k, err)
		}
		return wait.tell(cmd.Context(), t, taken{k, "deleted", h, began})
	}
	return cmd
}
