package cli

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "rewrite docs/cli.md and docs/man")

func testRoot() *cobra.Command {
	return newRoot(streams{strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{}, func(string) string { return "" }})
}

// everyCommand calls f for all that users may call, in the order of the help.
func everyCommand(c *cobra.Command, f func(*cobra.Command)) {
	if c.Hidden {
		return
	}
	f(c)
	for _, sub := range c.Commands() {
		everyCommand(sub, f)
	}
}

// The files made from the commands are those that the commands would make now.
func TestReference(t *testing.T) {
	const docs = "../../docs"
	want := map[string]string{"cli.md": reference(testRoot())}
	man := t.TempDir()
	root := testRoot()
	root.DisableAutoGenTag = true
	day := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC) // the same bytes on every day
	if err := doc.GenManTree(root, &doc.GenManHeader{Section: "1", Date: &day, Source: "crossfade " + Version, Manual: "crossfade"}, man); err != nil {
		t.Fatal(err)
	}
	maps.Copy(want, contents(t, man, "man/"))

	if *update {
		if err := os.RemoveAll(filepath.Join(docs, "man")); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(docs, "man"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range want {
			if err := os.WriteFile(filepath.Join(docs, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := contents(t, filepath.Join(docs, "man"), "man/")
	page, err := os.ReadFile(filepath.Join(docs, "cli.md"))
	if err != nil {
		t.Fatal(err)
	}
	got["cli.md"] = string(page)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("docs/cli.md and docs/man are not what the commands say (-want +got): run make generate\n%s", d)
	}
}

// contents are the files of a folder, by prefixed name.
func contents(t *testing.T, dir, prefix string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[prefix+e.Name()] = string(b)
	}
	return out
}

// clientFlags are the same on every verb that asks a server.
var clientFlags = []string{"http-addr", "ca-file", "ca-fingerprint", "token-file"}

// reference is docs/cli.md.
func reference(root *cobra.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Command line

Written by `+"`make generate`"+` from the commands themselves, as are the man pages in [man](man).

A long flag takes one dash or two (`+"`-kind`, `--kind`"+`). The exit code is 0, 1 for a failure, 2 for a command line that was not
understood; that of `+"`crossfade sidecar`"+` with an app is the app's. `+"`-o json`"+` is for programs.

| command | does |
| --- | --- |
`)
	everyCommand(root, func(c *cobra.Command) {
		if c.HasParent() && !c.HasSubCommands() {
			fmt.Fprintf(&b, "| [%s](#%s) | %s |\n", verb(c), strings.ReplaceAll(c.CommandPath(), " ", "-"), cell(c.Short))
		}
	})
	fmt.Fprintf(&b, "\n## Which server, and as whom\n\nEvery verb that asks a server has these flags, too.\n\n")
	read, _, err := root.Find([]string{"config", "read"})
	if err != nil {
		panic(err)
	}
	table(&b, read, func(f *pflag.Flag) bool { return slices.Contains(clientFlags, f.Name) })
	everyCommand(root, func(c *cobra.Command) {
		if !c.HasParent() || c.HasSubCommands() {
			return
		}
		fmt.Fprintf(&b, "\n## %s\n\n", c.CommandPath())
		about := c.Long
		if about == "" {
			about = c.Short + "."
		}
		fmt.Fprintf(&b, "`%s`\n\n%s\n\n```sh\n%s\n```\n", c.UseLine(), about, unindent(c.Example))
		isClient := c.Flags().Lookup("http-addr") != nil && c.Flags().Lookup("token-file") != nil
		own := func(f *pflag.Flag) bool {
			return f.Name != "help" && !(isClient && slices.Contains(clientFlags, f.Name))
		}
		b.WriteString("\n")
		table(&b, c, own)
		if isClient {
			b.WriteString("\nand the flags that say [which server, and as whom](#which-server-and-as-whom).\n")
		}
	})
	return b.String()
}

var defaultInWords = regexp.MustCompile(`^(.*) \(default:? ([^()]*)\)$`)

// table lists the flags of c for which show is true.
func table(b *strings.Builder, c *cobra.Command, show func(*pflag.Flag) bool) {
	head := "| flag | default | meaning |\n| --- | --- | --- |\n"
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if !show(f) || f.Hidden {
			return
		}
		b.WriteString(head)
		head = ""
		name := "`--" + f.Name
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		if kind, _ := pflag.UnquoteUsage(f); kind != "" {
			name += " " + kind
		}
		usage, value := f.Usage, f.DefValue
		switch value {
		case "0", "0s", "false", "[]":
			value = ""
		}
		if m := defaultInWords.FindStringSubmatch(usage); m != nil {
			usage, value = m[1], m[2]
		}
		fmt.Fprintf(b, "| %s` | %s | %s |\n", name, cell(value), cell(usage))
	})
}

func cell(s string) string { return strings.NewReplacer("|", `\|`, "<", `\<`).Replace(s) }

func unindent(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = strings.TrimPrefix(l, "  ")
	}
	return strings.Join(lines, "\n")
}

// Whatever can be run has an example, which uses it as it is.
func TestExamples(t *testing.T) {
	root := testRoot()
	root.InitDefaultHelpCmd()
	everyCommand(root, func(c *cobra.Command) {
		if c.Name() == "help" {
			return // cobra's own
		}
		uses := false
		for _, line := range commandLines(c.Example) {
			called, err := parse(line)
			if err != nil {
				t.Errorf("example of %s: %s: %v", c.CommandPath(), line, err)
			}
			uses = uses || called == c.CommandPath()
		}
		if !uses && !c.HasSubCommands() {
			t.Errorf("%s: no example runs it", c.CommandPath())
		}
		if c.Example == "" {
			t.Errorf("%s: no example", c.CommandPath())
		}
	})
	// The check itself finds what is wrong.
	for _, line := range []string{"crossfade nonsense", "crossfade server --nonsense", "crossfade config write", "crossfade config write a b", "crossfade demo --json=x"} {
		if called, err := parse(line); err == nil {
			t.Errorf("%s is taken for a call of %s", line, called)
		}
	}
}

// Nor do the documents name what is not there.
func TestCommandsInDocuments(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, page := range append(pages, "../../README.md") {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range strings.Split(string(b), "```")[1:] {
			lang, block, _ := strings.Cut(block, "\n")
			if lang != "sh" && lang != "shell" { // the second are not run by end-to-end tests
				continue
			}
			for _, line := range commandLines(block) {
				seen++
				if _, err := parse(line); err != nil {
					t.Errorf("%s: %s: %v", page, line, err)
				}
			}
		}
	}
	if seen < 30 {
		t.Errorf("%d commands found", seen)
	}
}

var (
	word = regexp.MustCompile(`(?:'[^']*'|"[^"]*"|\S)+`)
	call = regexp.MustCompile(`(?m)(?:^|[ (])(?:\$ )?(?:bin/)?(crossfade(?: [^()|;&<>#\n]*)?)`)
)

// commandLines are the calls of crossfade in a piece of shell.
func commandLines(shell string) []string {
	shell = strings.ReplaceAll(shell, "\\\n", " ")
	var out []string
	for line := range strings.Lines(shell) {
		if first := strings.TrimLeft(line, " ($"); !strings.HasPrefix(first, "crossfade") && !strings.HasPrefix(first, "bin/crossfade") &&
			!strings.Contains(line, "(crossfade") && !strings.Contains(line, "| crossfade") {
			continue // words, or what is printed
		}
		for _, m := range call.FindAllStringSubmatch(line, -1) {
			out = append(out, strings.TrimSpace(m[1]))
		}
	}
	return out
}

// parse is which command a line calls, and an error if it has not those flags or
// takes not those arguments.
func parse(line string) (string, error) {
	root := testRoot()
	args := doubleDashes(root, word.FindAllString(line, -1)[1:])
	c, rest, err := root.Find(args)
	if err != nil {
		return "", err
	}
	c.InitDefaultHelpFlag()
	if err := c.ParseFlags(rest); err != nil {
		return "", err
	}
	if c.HasSubCommands() && c.Flags().NArg() > 0 {
		return "", fmt.Errorf("no such command")
	}
	return c.CommandPath(), c.ValidateArgs(c.Flags().Args())
}
