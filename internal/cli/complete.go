package cli

import (
	"context"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/api"

	"github.com/crossfade-mesh/crossfade/internal/access"
	"github.com/crossfade-mesh/crossfade/internal/access/tokens"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// Completion is cobra's: "crossfade completion SHELL" prints a script that asks this
// binary what may come next. What servers know (services, sidecars, entries, tokens)
// is asked of the server that the line so far names. Where nothing is said of a flag
// or argument nothing is offered, rather than the files of the folder.

// patience is how long a shell waits for a server.
const patience = time.Second

// addCompletion adds the verb that prints the scripts. No shell that only other
// systems have is among them.
func addCompletion(root *cobra.Command) {
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.InitDefaultCompletionCmd()
	load := map[string]string{
		"bash": "  source <(crossfade completion bash)\n  crossfade completion bash > /etc/bash_completion.d/crossfade",
		"zsh":  "  source <(crossfade completion zsh)\n  crossfade completion zsh > \"${fpath[1]}/_crossfade\"",
		"fish": "  crossfade completion fish | source\n  crossfade completion fish > ~/.config/fish/completions/crossfade.fish",
	}
	long := map[string]string{
		"bash": "Print a script that completes crossfade's commands, flags and values in bash. It needs\nthe package bash-completion.",
		"zsh":  "Print a script that completes crossfade's commands, flags and values in zsh, after\n\"autoload -U compinit; compinit\".",
		"fish": "Print a script that completes crossfade's commands, flags and values in fish.",
	}
	for _, c := range root.Commands() {
		if c.Name() != "completion" {
			continue
		}
		c.Short = "Print a script that completes command lines in a shell"
		c.Long = c.Short + "."
		for _, shell := range c.Commands() {
			if load[shell.Name()] == "" {
				c.RemoveCommand(shell)
				continue
			}
			shell.Short = "Print the script for " + shell.Name()
			shell.Long, shell.Example, shell.Args = long[shell.Name()], load[shell.Name()], exactly()
		}
		c.Args, c.RunE = nil, showHelp
		c.Example = examplesOf(c)
	}
}

// complete says what may stand after a flag.
func complete(cmd *cobra.Command, flag string, with cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, with); err != nil {
		panic(err) // no such flag, or twice: no command line gets this far
	}
}

func words(list ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(list, cobra.ShellCompDirectiveNoFileComp)
}

// files completes with files of the extensions given, or with any.
func files(extensions ...string) cobra.CompletionFunc {
	if len(extensions) == 0 {
		return cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault)
	}
	return cobra.FixedCompletions(extensions, cobra.ShellCompDirectiveFilterFileExt)
}

// written completes with files that hold definitions or entries.
func written() cobra.CompletionFunc { return files("hcl", "json", "yaml", "yml") }

func folders() cobra.CompletionFunc {
	return cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs)
}

// first completes the first argument alone.
func first(f cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return f(cmd, args, typed)
	}
}

func kinds() cobra.CompletionFunc {
	var list []string
	for _, k := range config.Kinds() {
		list = append(list, string(k))
	}
	return words(list...)
}

func resourceTypes() []string {
	var list []string
	for _, t := range xds.Types {
		if t != xds.SecretType { // made beside Envoy, never sent
			list = append(list, t.Short())
		}
	}
	return list
}

func roles() []string {
	return []string{string(access.Join), string(access.Reader), string(access.Owner), string(access.Operator), string(access.Auditor)}
}

// answers completes with names that a server gives in its answer to path; with
// none when it does not answer soon.
func answers[T any](t *target, path func() string, names func(T) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), patience)
		defer cancel()
		var answer T
		if err := t.call(ctx, http.MethodGet, path(), nil, &answer); err != nil {
			cobra.CompDebugln(err.Error(), false)
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		list := slices.DeleteFunc(names(answer), func(n string) bool { return n == "" || !strings.HasPrefix(n, typed) })
		slices.Sort(list)
		return slices.Compact(list), cobra.ShellCompDirectiveNoFileComp
	}
}

func at(path string) func() string { return func() string { return path } }

func (t *target) serviceNames() cobra.CompletionFunc {
	return answers(t, at("/v1/catalog/services"), func(a map[string][]string) []string { return slices.Collect(maps.Keys(a)) })
}

// heldServices completes with those of which the endpoint guard holds instances.
func (t *target) heldServices() cobra.CompletionFunc {
	return answers(t, at("/v1/crossfade/catalog/held"), func(a api.CatalogHeld) []string {
		list := make([]string, 0, len(a.Services))
		for _, h := range a.Services {
			list = append(list, h.Service)
		}
		return list
	})
}

func (t *target) serviceIDs() cobra.CompletionFunc {
	return answers(t, at("/v1/agent/services"), func(a map[string]struct{}) []string { return slices.Collect(maps.Keys(a)) })
}

// sidecars completes with one property of all registered sidecars.
func (t *target) sidecars(of func(registeredProxy) string) cobra.CompletionFunc {
	return answers(t, at("/v1/crossfade/proxies"), func(a []registeredProxy) []string {
		list := make([]string, 0, len(a))
		for _, p := range a {
			list = append(list, of(p))
		}
		return list
	})
}

func ofID(p registeredProxy) string      { return p.Service.ID }
func ofService(p registeredProxy) string { return p.Service.Proxy.DestinationServiceID }
func ofNode(p registeredProxy) string    { return p.Node.Name }

// entryNames completes with the names of entries of the kind on the line.
func (t *target) entryNames(kind *string) cobra.CompletionFunc {
	return answers(t, func() string { return "/v1/config/" + url.PathEscape(*kind) }, func(a []struct{ Name string }) []string {
		list := make([]string, 0, len(a))
		for _, e := range a {
			list = append(list, e.Name)
		}
		return list
	})
}

// accessors completes with tokens that are not revoked, and says whose they are.
func (t *target) accessors() cobra.CompletionFunc {
	return answers(t, at("/v1/crossfade/tokens"), func(a []tokens.Token) []string {
		var list []string
		for _, tok := range a {
			if tok.Revoked.IsZero() {
				list = append(list, cobra.CompletionWithDesc(tok.Accessor, string(tok.Role)+of(tok.Services)))
			}
		}
		return list
	})
}
