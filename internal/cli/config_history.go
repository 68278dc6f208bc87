package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// keyArgs reads KIND NAME.
func keyArgs(args []string) (config.Key, error) {
	k := config.Key{Kind: config.Kind(args[0]), Name: args[1]}
	return k, config.CheckKind(k.Kind)
}

// entryArgs completes KIND NAME.
func (t *target) entryArgs() cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		switch len(args) {
		case 0:
			return kinds()(cmd, args, typed)
		case 1:
			return t.entryNames(&args[0])(cmd, args, typed)
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

// history is what a server keeps of an entry, the newest first and never empty.
func (t *target) history(cmd *cobra.Command, k config.Key) ([]store.Version, error) {
	var past []store.Version
	if err := t.call(cmd.Context(), http.MethodGet, pathOf("/v1/crossfade/config/history/", k), nil, &past); err != nil {
		return nil, err
	}
	if len(past) == 0 {
		return nil, fmt.Errorf("%s: no history", k)
	}
	return past, nil
}

func newConfigHistory(s streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "history KIND NAME",
		Short: "Show who changed an entry, when and how, the newest first",
		Long: `Show who changed a configuration entry, when and how, the newest change first. Servers
keep at least the newest version of each entry, and as a rule the last 100, of those
that were deleted too. The index names a version to config diff and config rollback.
"-o json" has the entries themselves as well.`,
		Example: `  crossfade config history service-defaults catalog
  crossfade config history service-defaults catalog -o json`,
		Args: exactly("KIND", "NAME"),
	}
	t, o := addTarget(cmd, s), addOutput(cmd)
	cmd.ValidArgsFunction = t.entryArgs()
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		k, err := keyArgs(args)
		if err != nil {
			return err
		}
		past, err := t.history(cmd, k)
		if err != nil {
			return err
		}
		return o.print(s.out, past, func(w io.Writer) {
			fmt.Fprintln(w, "Index\tTime\tWho\tWhat")
			for _, v := range past {
				fmt.Fprintf(w, "%d\t%s\t%s\t%s\n", v.Index, orDash(v.Time), orNobody(v.Who), whatOf(v))
			}
		})
	}
	return cmd
}

func orNobody(who string) string {
	if who == "" {
		return "-"
	}
	return who
}

func whatOf(v store.Version) string {
	switch {
	case v.What != store.RolledBack:
		return v.What
	case v.To == 0:
		return v.What + " to before it was created"
	case v.Entry == nil:
		return fmt.Sprintf("%s to %d: deleted", v.What, v.To)
	}
	return fmt.Sprintf("%s to %d", v.What, v.To)
}

func newConfigDiff(s streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "diff KIND NAME [FROM [TO]]",
		Short: "Show what changed between two versions of an entry",
		Long: `Show what changed between two versions of a configuration entry, by their indexes in
config history. Without them it is the last change; with FROM alone, all since then.`,
		Example: `  crossfade config diff service-defaults catalog
  crossfade config diff service-defaults catalog 17
  crossfade config diff service-defaults catalog 17 23`,
		Args: between("KIND", "NAME", "FROM", "TO"),
	}
	t, o := addTarget(cmd, s), addOutput(cmd)
	cmd.ValidArgsFunction = t.entryArgs()
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		k, err := keyArgs(args)
		if err != nil {
			return err
		}
		past, err := t.history(cmd, k)
		if err != nil {
			return err
		}
		from, to, err := pickVersions(k, past, args[2:])
		if err != nil {
			return err
		}
		text := versionDiff(k, from, to)
		return o.print(s.out, map[string]any{"from": from, "to": to, "diff": text}, func(w io.Writer) {
			if text == "" {
				text = "no difference\n"
			}
			io.WriteString(w, text)
		})
	}
	return cmd
}

// between is a check for two arguments with one or two more.
func between(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < 2 || len(args) > len(names) {
			return usageError{fmt.Errorf("%s: got %d arguments, want KIND NAME [FROM [TO]]", verb(cmd), len(args)), cmd.CommandPath() + " --help"}
		}
		return nil
	}
}

// pickVersions finds the versions that indexes name: one before the other's default
// is the newest, and of none the newest two. The first may be nil: there was no entry.
func pickVersions(k config.Key, past []store.Version, indexes []string) (from, to *store.Version, err error) {
	to = &past[0]
	if len(indexes) == 0 {
		if len(past) > 1 {
			from = &past[1]
		}
		return from, to, nil
	}
	if from, err = findVersion(k, past, indexes[0]); err != nil {
		return nil, nil, err
	}
	if len(indexes) > 1 {
		to, err = findVersion(k, past, indexes[1])
	}
	return from, to, err
}

func findVersion(k config.Key, past []store.Version, raw string) (*store.Version, error) {
	index, err := strconv.ParseUint(raw, 10, 64)
	if err != nil {
		return nil, usageError{fmt.Errorf("version %q: want an index, as in crossfade config history %s %s", raw, k.Kind, k.Name), "crossfade config --help"}
	}
	i := slices.IndexFunc(past, func(v store.Version) bool { return v.Index == index })
	if i < 0 {
		return nil, fmt.Errorf("%s: no version %d is kept: see crossfade config history %s %s", k, index, k.Kind, k.Name)
	}
	return &past[i], nil
}

// versionDiff is a unified diff of the entries as indented JSON, empty for none.
func versionDiff(k config.Key, from, to *store.Version) string {
	named := func(v *store.Version) string {
		if v == nil {
			return k.String() + " (none)"
		}
		return fmt.Sprintf("%s %d", k, v.Index)
	}
	return unified(named(from), indented(from), named(to), indented(to))
}

func indented(v *store.Version) []byte {
	if v == nil || v.Entry == nil {
		return nil
	}
	var b bytes.Buffer
	if json.Indent(&b, v.Entry, "", "  ") != nil {
		return v.Entry
	}
	b.WriteByte('\n')
	return b.Bytes()
}

// unified is a unified diff without a line of its own for the tool that made it.
func unified(oldName string, old []byte, newName string, new []byte) string {
	_, text, _ := bytes.Cut(diff.Diff(oldName, old, newName, new), []byte("\n"))
	return string(text)
}

func newConfigRollback(s streams) *cobra.Command {
	var to uint64
	cmd := &cobra.Command{
		Use:   "rollback KIND NAME",
		Short: "Make an entry again what it was",
		Long: `Make a configuration entry again what it was before its last change, or at the index
given with --to, and wait for the sidecars that this changes as config write does. An
entry that was not there then is deleted. It is a change like any other: the history
goes on, and a second rollback takes back the first. When somebody has changed the
entry meanwhile nothing is done.`,
		Example: `  crossfade config rollback service-defaults catalog
  crossfade config rollback service-defaults catalog --to 17`,
		Args: exactly("KIND", "NAME"),
	}
	t := addTarget(cmd, s)
	wait := addWaiting(cmd)
	cmd.Flags().Uint64Var(&to, "to", 0, "index of the version to go back to (default that before the newest)")
	cmd.ValidArgsFunction = t.entryArgs()
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := wait.check(cmd); err != nil {
			return err
		}
		k, err := keyArgs(args)
		if err != nil {
			return err
		}
		if cmd.Flags().Changed("to") && to == 0 {
			return usageError{errors.New("config rollback: --to 0: want the index of a version"), cmd.CommandPath() + " --help"}
		}
		past, err := t.history(cmd, k)
		if err != nil {
			return err
		}
		q := url.Values{"cas": {strconv.FormatUint(past[0].Index, 10)}}
		if to > 0 {
			q.Set("to", strconv.FormatUint(to, 10))
		}
		var done rollback
		began := time.Now()
		h, err := t.exchange(cmd.Context(), http.MethodPut, pathOf("/v1/crossfade/config/rollback/", k)+"?"+q.Encode(), nil, &done)
		if err != nil {
			return err
		}
		return wait.tell(cmd.Context(), t, taken{k, done.what(), h, began})
	}
	return cmd
}

// rollback is what a server did.
type rollback struct {
	From, To uint64
	Deleted  bool
}

func (r rollback) what() string {
	text := "rolled back"
	if r.To > 0 {
		text += fmt.Sprintf(" to %d", r.To)
	}
	if r.Deleted {
		text += " and so deleted"
	}
	return text
}
