package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// planKey names an entry.
type planKey struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// planned is what a server says that writing entries would do.
type planned struct {
	Sidecars    int   `json:"sidecars"`
	Changing    int   `json:"changing"`
	Listeners   int   `json:"listeners"`
	Connections int64 `json:"connections"`
	Unknown     int   `json:"unknown"`
	Entries     []struct {
		planKey
		Action string `json:"action"`
	} `json:"entries"`
	Changes  []plannedChange `json:"changes"`
	Omitted  int             `json:"omitted,omitempty"`
	Problems []string        `json:"problems,omitempty"`
}

// plannedChange is a resource that becomes another, on the sidecars that have it so.
type plannedChange struct {
	Type     string   `json:"type"`
	Name     string   `json:"name"`
	Action   string   `json:"action"`
	Sidecars []string `json:"sidecars"`
	More     int      `json:"more,omitempty"`
	Drains   bool     `json:"drains,omitempty"`
	Chains   []string `json:"chains,omitempty"`
	Diff     string   `json:"diff"`
}

// maxAlike is how many resources are shown in full that differ in their address alone,
// as the public listeners of a service's instances do.
const maxAlike = 2

// alike is what the resource has in common with those of other instances.
func (c plannedChange) alike() string {
	name := c.Name
	if base, _, ok := strings.Cut(name, ":"); ok && c.Type == "Listener" {
		name = base + ":…"
	}
	return fmt.Sprintf("%s %q %s", plainType(c.Type), name, c.Action)
}

// drains says whose connections come to an end.
func (c plannedChange) drains() string {
	switch {
	case !c.Drains:
		return ""
	case len(c.Chains) == 0:
		return ", its connections drain"
	default:
		return fmt.Sprintf(", those of its connections drain that came by %s", strings.Join(c.Chains, " and "))
	}
}

func newConfigPlan(s streams) *cobra.Command {
	var drop []string
	cmd := &cobra.Command{
		Use:   "plan [FILE...]",
		Short: "Show what writing entries would change on sidecars, and write nothing",
		Long: `Show what writing configuration entries, or deleting some, would change: which sidecars
are told something new, each Envoy resource that becomes another as a difference, and
how many connections drain with listeners that change. Nothing is written. A file holds
one entry, as for config write; "-" is standard input.

Every registered sidecar counts, connected or not. Sidecars say how many connections are
open every few seconds; of those that have not said it yet the number is unknown.`,
		Example: `  crossfade config plan catalog.hcl web.hcl
  crossfade config plan --delete service-intentions/catalog`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: written(),
	}
	t, o := addTarget(cmd, s), addOutput(cmd)
	cmd.Flags().StringArrayVar(&drop, "delete", nil, "KIND/NAME of an entry to delete; may be given several times")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		body, err := planBody(s, args, drop)
		if err != nil {
			return err
		}
		var p planned
		if err := t.call(cmd.Context(), http.MethodPost, "/v1/crossfade/config/plan", body, &p); err != nil {
			return err
		}
		return o.print(s.out, p, func(w io.Writer) { p.print(w) })
	}
	return cmd
}

// planBody reads and checks the entries before a server sees them, so that what is
// wrong is named by file and line.
func planBody(s streams, files, drop []string) ([]byte, error) {
	if len(files)+len(drop) == 0 {
		return nil, usageError{errors.New("config plan: give at least one FILE or --delete KIND/NAME"), "crossfade config plan --help"}
	}
	body := struct {
		Entries []json.RawMessage `json:"entries"`
		Delete  []planKey         `json:"delete"`
	}{}
	from := map[string]string{}
	var errs []error
	once := func(k config.Key, where string) {
		if other, again := from[k.String()]; again {
			errs = append(errs, fmt.Errorf("%s: %s is given by %s already", where, k, other))
		}
		from[k.String()] = where
	}
	for _, file := range files {
		b, err := readFile(s, file)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		e, err := config.DecodeEntry(file, b)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		raw, err := config.EncodeEntry(e)
		errs = append(errs, err)
		once(config.KeyOf(e), file)
		body.Entries = append(body.Entries, raw)
	}
	for _, d := range drop {
		kind, name, ok := strings.Cut(d, "/")
		if !ok || name == "" {
			return nil, usageError{fmt.Errorf("--delete %q: want KIND/NAME", d), "crossfade config plan --help"}
		}
		if err := config.CheckKind(config.Kind(kind)); err != nil {
			errs = append(errs, fmt.Errorf("--delete %s: %w", d, err))
			continue
		}
		once(config.Key{Kind: config.Kind(kind), Name: name}, "--delete")
		body.Delete = append(body.Delete, planKey{kind, name})
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return json.Marshal(body)
}

// summary is the plan in one line.
func (p planned) summary() string {
	line := fmt.Sprintf("%d of %d sidecars %s; ", p.Changing, p.Sidecars, verbOf(p.Changing, "changes", "change"))
	if p.Listeners == 0 {
		if slices.ContainsFunc(p.Changes, func(c plannedChange) bool { return c.Type == "Listener" && c.Action == "changed" }) {
			return line + "no connection drains"
		}
		return line + "no listener changes, no connection drains"
	}
	line += fmt.Sprintf("%d %s and %s ", p.Listeners, verbOf(p.Listeners, "listener changes", "listeners change"), verbOf(p.Listeners, "drains", "drain"))
	switch p.Unknown {
	case 0:
		return line + fmt.Sprintf("%d open %s", p.Connections, verbOf(int(p.Connections), "connection", "connections"))
	case p.Listeners:
		return line + "an unknown number of open connections"
	}
	return line + fmt.Sprintf("%d open connections and an unknown number on %d of them", p.Connections, p.Unknown)
}

func verbOf(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

func (p planned) print(w io.Writer) {
	fmt.Fprintln(w, p.summary())
	for _, e := range p.Entries {
		fmt.Fprintf(w, "%s %s/%s\n", e.Action, e.Kind, e.Name)
	}
	for _, text := range p.Problems {
		fmt.Fprintf(w, "warning: %s\n", text)
	}
	alike, left := map[string]int{}, map[string][]string{}
	for _, c := range p.Changes {
		of := c.alike()
		if alike[of]++; alike[of] > maxAlike {
			left[of] = append(left[of], c.Sidecars...)
			continue
		}
		on := strings.Join(c.Sidecars, ", ")
		if c.More > 0 {
			on += fmt.Sprintf(" and %d more", c.More)
		}
		fmt.Fprintf(w, "\n%s %q %s on %s%s\n%s", plainType(c.Type), c.Name, c.Action, on, c.drains(), c.Diff)
	}
	for _, of := range slices.Sorted(maps.Keys(left)) {
		fmt.Fprintf(w, "\n%s, much as above, on %s: -o json shows each\n", of, sidecarsNamed(left[of]))
	}
	if p.Omitted > 0 {
		fmt.Fprintf(w, "\nand %d more changes that are not shown\n", p.Omitted)
	}
}
