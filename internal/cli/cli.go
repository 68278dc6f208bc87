// Package cli is the command line: a file per verb.
//
// In: arguments, standard streams, environment. Out: an exit code, text for people
// or, with -o json, for machines. Where Consul has the verb, words and flags are
// Consul's; a long flag may be written with one dash, as Consul's are.
//
// It leaves the work to the packages it calls; a verb here only reads flags and
// prints.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// streams are what a command reads and writes.
type streams struct {
	in       io.Reader
	out, err io.Writer
	env      func(string) string
}

// exitCode is an error that has been printed already, or needs no words.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// Main runs the command line and returns the process's exit code: 0, 1 for a
// failure, 2 for a command that was not understood.
func Main(args []string, in io.Reader, out, errs io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s := streams{in: in, out: out, err: errs, env: os.Getenv}
	root := newRoot(s)
	root.SetArgs(doubleDashes(root, args))
	err := root.ExecuteContext(ctx)
	var code exitCode
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &usage):
		fmt.Fprintf(errs, "crossfade: %v\nrun %q for help\n", err, usage.help)
		return 2
	default:
		fmt.Fprintf(errs, "crossfade: %v\n", err)
		return 1
	}
}

// usageError is a command line that was not understood.
type usageError struct {
	error
	help string
}

func newRoot(s streams) *cobra.Command {
	root := &cobra.Command{
		Use:   "crossfade",
		Short: "A service mesh for VMs and Nomad clients, on Envoy",
		Long: `crossfade is a service mesh for fleets of VMs and Nomad clients.

A server holds the registry and the certificate authority and tells sidecars what
to do; a sidecar runs Envoy beside one service instance. "crossfade demo" shows all of
it on this machine.`,
		Example: `  crossfade demo
  crossfade server --dev
  crossfade sidecar --service web.yaml -- ./web`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q", args[0]), cmd.CommandPath() + " --help"}
			}
			return nil
		},
		RunE: showHelp,
	}
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{err, cmd.CommandPath() + " --help"}
	})
	root.AddCommand(
		newServer(s), newMigrate(s), newSidecar(s), newNodeProxy(s), newDemo(s), newDemoApp(s),
		newServices(s), newCatalog(s), newConfig(s), newChain(s), newConnect(s), newPairs(s), newShift(s), newRevert(s), newProtect(s),
		newToken(s), newAudit(s), newCheck(s), newRender(s), newXDS(s), newImport(s), newVersion(s),
	)
	addCompletion(root)
	return root
}

// group is a command that only holds others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, RunE: showHelp,
	}
	c.AddCommand(subs...)
	c.Example = examplesOf(c)
	return c
}

// showHelp is what a command does that only holds others.
func showHelp(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unknown command %q", verb(cmd)+" "+strings.Join(args, " ")), cmd.CommandPath() + " --help"}
	}
	return cmd.Help()
}

// examplesOf are those of the commands that c holds.
func examplesOf(c *cobra.Command) string {
	var all []string
	for _, sub := range c.Commands() {
		all = append(all, sub.Example)
	}
	return strings.Join(all, "\n")
}

// exactly is a check of the number of arguments that says what they are.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != len(names) {
			want := "no arguments"
			if len(names) > 0 {
				want = strings.Join(names, " ")
			}
			return usageError{fmt.Errorf("%s: got %d arguments, want %s", verb(cmd), len(args), want), cmd.CommandPath() + " --help"}
		}
		return nil
	}
}

// verb is what was called, as errors name it.
func verb(cmd *cobra.Command) string {
	return strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
}

// atLeastOne is the check for FILE… and the like.
func atLeastOne(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usageError{fmt.Errorf("%s: give at least one %s", verb(cmd), name), cmd.CommandPath() + " --help"}
		}
		return nil
	}
}

// doubleDashes writes Consul's "-sidecar-for web" as "--sidecar-for web": one dash
// before the name of a long flag becomes two. What follows "--" stays as it is.
func doubleDashes(root *cobra.Command, args []string) []string {
	long := map[string]bool{"help": true}
	var collect func(*cobra.Command)
	collect = func(c *cobra.Command) {
		c.Flags().VisitAll(func(f *pflag.Flag) { long[f.Name] = true })
		for _, sub := range c.Commands() {
			collect(sub)
		}
	}
	collect(root)
	out := make([]string, 0, len(args))
	for i, a := range args {
		if a == "--" {
			return append(out, args[i:]...)
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(a, "-"), "=")
		if strings.HasPrefix(a, "-") && len(name) > 1 && long[name] {
			a = "-" + a
		}
		out = append(out, a)
	}
	return out
}
