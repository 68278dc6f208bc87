package e2e

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// reader follows a page of the documents: it saves the files, runs the commands in
// one shell and compares what they print.
type reader struct {
	ts    *testscript.TestScript
	shell io.Writer
	ports *strings.Replacer // the page's ports to this test's
	seen  map[string]string // what the page prints that differs by run, to what was printed
	step  int
}

// guide PAGE runs what a page says. Blocks of "sh" are commands; servers and
// sidecars among them go to the background, where they have to become ready. A block
// of "text" is what the commands before it print, among other lines; IDs,
// fingerprints, ports and times in it stand for those of this run, also in later
// commands. Blocks of "yaml" and "hcl" that begin with a name are files.
func guide(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: guide PAGE")
	}
	b, err := os.ReadFile(filepath.Join("..", args[0]))
	ts.Check(err)
	page := strings.ReplaceAll(string(b), "bin/crossfade ", "crossfade ")
	r := &reader{ts: ts, seen: map[string]string{}, ports: strings.NewReplacer(
		"crossfade server ", "crossfade server --http-port "+ts.Getenv("HTTP_PORT")+" --grpc-port "+ts.Getenv("GRPC_PORT")+" --dns-port "+ts.Getenv("PORT5")+" ",
		"7100", ts.Getenv("PORT3"), "8080", ts.Getenv("PORT2"), "8081", ts.Getenv("PORT1"), "8082", ts.Getenv("PORT4"),
		"4140", ts.Getenv("PORT6"), "4141", ts.Getenv("PORT7"), "8500", ts.Getenv("HTTP_PORT"))}
	r.start()
	blocks := strings.Split(page, "```")
	for i := 1; i < len(blocks); i += 2 {
		lang, text, _ := strings.Cut(blocks[i], "\n")
		switch lang {
		case "sh":
			want := ""
			if i+2 < len(blocks) {
				want, _ = strings.CutPrefix(blocks[i+2], "text\n")
				if !strings.HasPrefix(blocks[i+2], "text\n") {
					want = ""
				}
			}
			r.run(text, want)
		case "yaml", "hcl":
			if name, ok := strings.CutPrefix(text, "# "); ok {
				name, _, _ = strings.Cut(name, "\n")
				ts.Check(os.WriteFile(ts.MkAbs(name), []byte(r.ports.Replace(text)), 0o600))
			}
		}
	}
	if r.step == 0 {
		ts.Fatalf("guide %s: no commands", args[0])
	}
}

// start starts the shell. What runs in it in the end is stopped, the newest first.
func (r *reader) start() {
	cmd := exec.Command("bash")
	cmd.Dir = r.ts.MkAbs(".")
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "ENVOY", "CROSSFADE_HTTP_ADDR", "XDG_RUNTIME_DIR"} {
		cmd.Env = append(cmd.Env, name+"="+r.ts.Getenv(name))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	r.ts.Check(err)
	r.ts.Check(cmd.Start())
	r.shell = in
	r.ts.Defer(func() {
		io.WriteString(in, "for p in $(jobs -p | tac); do kill -INT $p; wait $p; done\n")
		in.Close()
		late := time.AfterFunc(30*time.Second, func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
		defer late.Stop()
		cmd.Wait()
	})
}

var stays = regexp.MustCompile(`^crossfade (server|sidecar|node-proxy) `)

// run runs one block.
func (r *reader) run(text, want string) {
	text = r.ports.Replace(text)
	for shown, was := range r.seen {
		text = strings.ReplaceAll(text, shown, was)
	}
	var now []string
	var output string
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		if !stays.MatchString(line) {
			now = append(now, line)
			continue
		}
		r.do(now)
		now = nil
		out := r.next()
		fmt.Fprintf(r.shell, "%s > %s 2>&1 &\n", line, out)
		output = r.wait(out, "trust domain", "msg=ready")
	}
	like := r.pattern(want)
	deadline := time.Now().Add(20 * time.Second)
	for {
		output += r.do(now)
		if m := like.FindStringSubmatch(output); m != nil {
			for i, shown := range varying.FindAllString(want, -1) {
				r.seen[shown] = m[i+1]
			}
			return
		}
		if len(now) == 0 || !strings.HasPrefix(now[0], "curl ") || time.Now().After(deadline) {
			r.ts.Fatalf("the page says of\n%s\nthat it prints\n%s\nit prints\n%s", text, want, output)
		}
	}
}

// do runs lines in the shell itself, so that variables stay, and is what they print.
// All of it has to succeed.
func (r *reader) do(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	out := r.next()
	fmt.Fprintf(r.shell, "{ set -e\n%s\nset +e; } > %s 2>&1; echo $? > %s.rc\n", strings.Join(lines, "\n"), out, out)
	r.wait(out+".rc", "0\n")
	b, err := os.ReadFile(out)
	r.ts.Check(err)
	r.ts.Logf("$ %s\n%s", strings.Join(lines, "\n"), b)
	return string(b)
}

func (r *reader) next() string {
	r.step++
	return r.ts.MkAbs(fmt.Sprintf("step%d.out", r.step))
}

// wait is what is in a file once it has one of the texts.
func (r *reader) wait(file string, texts ...string) string {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var b []byte
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); <-tick.C {
		b, _ = os.ReadFile(file)
		for _, text := range texts {
			if strings.Contains(string(b), text) {
				return string(b)
			}
		}
	}
	said, _ := os.ReadFile(strings.TrimSuffix(file, ".rc"))
	r.ts.Fatalf("not within 20 s: %q; printed: %s", texts, said)
	return ""
}

// varying is what differs by run.
var varying = regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:.]+Z|sha256:[0-9a-f]{64}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|127\.0\.0\.1:\d+`)

// pattern matches output that has what the page shows, with any space between columns.
func (r *reader) pattern(want string) *regexp.Regexp {
	re := regexp.QuoteMeta(strings.TrimSpace(want))
	re = varying.ReplaceAllString(strings.ReplaceAll(re, `127\.0\.0\.1`, "127.0.0.1"), `(\S+?)`)
	return regexp.MustCompile(regexp.MustCompile(` {2,}`).ReplaceAllString(re, ` +`))
}
