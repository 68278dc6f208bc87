// Package outages proves what goes on when parts of a mesh are dead, stopped or cut off:
// real processes, real Envoys, and a load that counts what its clients see.
//
// The registry stands where a Consul would. Control-plane servers read it, share its CA and its
// tokens, and sidecars know all of them.
package outages

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/demo/load"
	"github.com/crossfade-mesh/crossfade/internal/envoybin"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/sidecar"
)

// program is the binary, built once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "cf-outages")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "crossfade")
	if out, err := exec.Command("go", "build", "-o", bin, "../../cmd/crossfade").CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return bin, nil
})

func TestMain(m *testing.M) {
	flag.Parse()
	// They wait for most of the time.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	code := m.Run()
	if bin, err := program(); err == nil {
		os.RemoveAll(filepath.Dir(bin))
	}
	os.Exit(code)
}

func crossfade(t *testing.T) string {
	t.Helper()
	bin, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// logs are the files that were shown: processes that follow each other share one.
var logs sync.Map

// child is a running process. It dies with the test.
type child struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it is gone
}

func start(t *testing.T, dir, name string, env []string, args ...string) *child {
	t.Helper()
	cmd := exec.Command(crossfade(t), args...)
	cmd.Env = append(os.Environ(), env...)
	return launch(t, dir, name, cmd)
}

// shell runs a script, with a folder as $0, in a mount namespace of its own.
func shell(t *testing.T, dir, script string, args ...string) *child {
	t.Helper()
	cmd := exec.Command("sh", append([]string{"-c", script, dir}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Setpgid: true}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	c := launch(t, dir, "shell", cmd)
	t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }) // with what it has started
	return c
}

func launch(t *testing.T, dir, name string, cmd *exec.Cmd) *child {
	t.Helper()
	c := &child{cmd: cmd, t: t, name: name, log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	out, err := os.OpenFile(c.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = c.cmd.Wait()
		close(c.done)
	}()
	t.Cleanup(func() {
		c.signal(syscall.SIGCONT)
		c.signal(syscall.SIGKILL)
		<-c.done
		if _, shown := logs.LoadOrStore(c.log, true); shown || !t.Failed() {
			return
		}
		if b, err := os.ReadFile(c.log); err == nil {
			t.Logf("log of %s:\n%s", name, b[max(0, len(b)-3000):])
		}
	})
	return c
}

func (c *child) signal(s syscall.Signal) { _ = c.cmd.Process.Signal(s) }

// end signals, and waits until the process is gone.
func (c *child) end(s syscall.Signal) {
	c.t.Helper()
	c.signal(s)
	select {
	case <-c.done:
	case <-time.After(40 * time.Second):
		c.t.Fatalf("%s has not ended 40 s after %v", c.name, s)
	}
}

// world is a registry, servers and sidecars.
type world struct {
	t        *testing.T
	dir      string
	registry *child
	servers  []*child
	httpAddr string   // of the registry
	grpcAddr []string // of the servers
	envoy    string
	sidecars map[string]*instance
}

// newWorld starts a registry and so many servers that read it.
func newWorld(t *testing.T, servers int) *world {
	t.Helper()
	envoy, err := envoybin.Find()
	if err != nil {
		t.Fatal(err)
	}
	if envoy, err = filepath.Abs(envoy); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: meshtest.RunDir(t), envoy: envoy, sidecars: map[string]*instance{}}
	ports := meshtest.FreePorts(t, 2+2*servers)
	w.httpAddr = fmt.Sprintf("127.0.0.1:%d", ports[0])
	config := filepath.Join(w.dir, "config")
	if err := os.Mkdir(config, 0o700); err != nil {
		t.Fatal(err)
	}
	w.file("config/defaults.hcl", "Kind = \"proxy-defaults\"\nName = \"global\"\nConfig { protocol = \"http\" }\n")
	w.registry = w.startRegistry(ports[0], ports[1])
	for _, service := range []string{"web", "catalog", "other"} {
		w.file(service+".token", w.run("token", "create", "--service", service))
	}
	// The servers' CA and tokens are the registry's.
	w.registry.end(syscall.SIGTERM)
	seed := filepath.Join(w.dir, "seed")
	if out, err := exec.Command("cp", "-r", filepath.Join(w.dir, "registry"), seed).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w.registry = w.startRegistry(ports[0], ports[1])
	move := exec.Command(crossfade(t), "migrate", "store", "--from", seed, "--consul", "https://"+w.httpAddr)
	move.Env = append(os.Environ(), w.access()...)
	if out, err := move.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for i := range servers {
		w.grpcAddr = append(w.grpcAddr, fmt.Sprintf("127.0.0.1:%d", ports[3+2*i]))
		w.servers = append(w.servers, nil)
		w.startServer(i, ports[2+2*i])
	}
	return w
}

func (w *world) file(name, text string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func (w *world) startRegistry(http, grpc int) *child {
	w.t.Helper()
	c := start(w.t, w.dir, "registry", nil, "server", "--data-dir", filepath.Join(w.dir, "registry"), "--config-dir", filepath.Join(w.dir, "config"),
		"--http-port", strconv.Itoa(http), "--grpc-port", strconv.Itoa(grpc), "--dns-port", "-1", "--node", "registry")
	w.listens(c, w.httpAddr)
	return c
}

// access is the environment of those who use the registry as a Consul.
func (w *world) access() []string {
	dir := filepath.Join(w.dir, "registry")
	return []string{"CONSUL_HTTP_TOKEN_FILE=" + filepath.Join(dir, "operator.token"), "CONSUL_CACERT=" + filepath.Join(dir, "ca.pem")}
}

// startServer starts a server, or starts it again where it was.
func (w *world) startServer(i, http int) {
	w.t.Helper()
	_, port, err := net.SplitHostPort(w.grpcAddr[i])
	if err != nil {
		w.t.Fatal(err)
	}
	w.servers[i] = start(w.t, w.dir, fmt.Sprint("server", i),
		w.access(),
		"server", "--data-dir", filepath.Join(w.dir, fmt.Sprint("server", i)), "--config-dir", filepath.Join(w.dir, "config"), "--consul", "https://"+w.httpAddr,
		"--http-port", strconv.Itoa(http), "--grpc-port", port, "--node", fmt.Sprint("server", i))
	w.listens(w.servers[i], w.grpcAddr[i])
}

// listens waits until a process accepts connections.
func (w *world) listens(c *child, addrs ...string) {
	w.t.Helper()
	meshtest.Eventually(w.t, c.name+" listens", func() error {
		select {
		case <-c.done:
			w.t.Fatalf("%s has ended", c.name)
		default:
		}
		for _, addr := range addrs {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				return err
			}
			conn.Close()
		}
		return nil
	})
}

// command is the program as an operator of the registry calls it.
func (w *world) command(args ...string) *exec.Cmd {
	cmd := exec.Command(crossfade(w.t), args...)
	cmd.Env = append(os.Environ(), "CROSSFADE_CACERT="+filepath.Join(w.dir, "registry", "ca.pem"),
		"CROSSFADE_HTTP_TOKEN_FILE="+filepath.Join(w.dir, "registry", "operator.token"), "CROSSFADE_HTTP_ADDR="+w.httpAddr)
	return cmd
}

func (w *world) run(args ...string) string {
	w.t.Helper()
	out, err := w.command(args...).Output()
	if err != nil {
		w.t.Fatalf("crossfade %v: %v", args, err)
	}
	return string(out)
}

// instance is a sidecar, and an app of the test's own behind it.
type instance struct {
	*child
	w        *world
	id       string
	upstream map[string]int // ports where its app calls others, by service
	args     []string
}

// add starts an instance of a service, which calls others, and waits until it is ready.
func (w *world) add(service, id string, calls ...string) *instance {
	w.t.Helper()
	ports := meshtest.FreePorts(w.t, 2+len(calls))
	in := &instance{w: w, id: id, upstream: map[string]int{}}
	app := &http.Server{Addr: fmt.Sprintf("127.0.0.1:%d", ports[0]), Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		io.WriteString(rw, id)
	})}
	go app.ListenAndServe()
	w.t.Cleanup(func() { app.Close() })
	// The port of its own stays its own while it is away.
	text := fmt.Sprintf("service {\n name = %q\n id = %q\n port = %d\n connect { sidecar_service {\n port = %d\n proxy {\n", service, id, ports[0], ports[1])
	for i, to := range calls {
		in.upstream[to] = ports[2+i]
		text += fmt.Sprintf("upstreams {\n destination_name = %q\n local_bind_port = %d\n }\n", to, ports[2+i])
	}
	text += "} } }\n}\n"
	in.args = []string{
		"sidecar", "--service", w.file(id+".hcl", text), "--state-dir", in.state(), "--runtime-dir", in.runtime(), "--node", "host-" + id,
		"--http-addr", w.httpAddr, "--grpc-addr", strings.Join(w.grpcAddr, ","), "--ca-file", filepath.Join(w.dir, "registry", "ca.pem"),
		"--join-token-file", filepath.Join(w.dir, service+".token"), "--envoy", w.envoy, "--concurrency", "1", "--drain-time", "1s",
	}
	in.start()
	in.ready()
	w.sidecars[id] = in
	return in
}

func (in *instance) state() string   { return filepath.Join(in.w.dir, in.id) }
func (in *instance) runtime() string { return filepath.Join(in.w.dir, "r-"+in.id) }

func (in *instance) start() { in.child = start(in.w.t, in.w.dir, "sidecar-"+in.id, nil, in.args...) }

func (in *instance) status() (sidecar.Status, error) {
	l, err := sidecar.LookAt(in.state())
	return l.Status, err
}

// ready waits until the sidecar says that it is.
func (in *instance) ready() {
	in.w.t.Helper()
	in.until("ready", func(st sidecar.Status) bool { return st.State == sidecar.Ready && st.PID == in.cmd.Process.Pid })
}

func (in *instance) until(what string, ok func(sidecar.Status) bool) {
	in.w.t.Helper()
	in.within(20*time.Second, what, ok)
}

func (in *instance) within(limit time.Duration, what string, ok func(sidecar.Status) bool) {
	in.w.t.Helper()
	meshtest.Within(in.w.t, limit, in.id+" is "+what, func() error {
		select {
		case <-in.done:
			in.w.t.Fatalf("sidecar %s has ended before it is %s", in.id, what)
		default:
		}
		st, err := in.status()
		if err == nil && !ok(st) {
			err = fmt.Errorf("status: %+v", st)
		}
		return err
	})
}

// traffic is an open-loop load of a caller's on a service.
type traffic struct {
	t    *testing.T
	rec  *load.Recorder
	stop func()
}

func (in *instance) load(service string, rate int) *traffic {
	t := in.w.t
	tr := &traffic{t: t, rec: load.NewRecorder()}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	url := fmt.Sprintf("http://127.0.0.1:%d/", in.upstream[service])
	g := &load.Generator{Rate: rate, Timeout: 5 * time.Second, Outstanding: 10 * rate, Record: tr.rec, Call: func(_ uint64, deadline time.Time) (load.Answer, error) {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return load.Answer{}, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return load.Answer{}, err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil && (resp.StatusCode != http.StatusOK || !strings.HasPrefix(string(b), service+"-")) {
			err = fmt.Errorf("%s: %.100s", resp.Status, b)
		}
		return load.Answer{From: string(b)}, err
	}}
	meshtest.Eventually(t, "the first answer", func() error {
		_, err := g.Call(0, time.Now().Add(time.Second))
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); g.Run(ctx) }()
	tr.stop = sync.OnceFunc(func() { cancel(); <-done; client.CloseIdleConnections() })
	t.Cleanup(tr.stop)
	return tr
}

// nothingFailed ends the load. There must have been some, and nothing of it lost.
func (tr *traffic) nothingFailed() {
	tr.t.Helper()
	meshtest.Eventually(tr.t, "enough requests to prove something", func() error {
		if n := tr.rec.Totals().Requests; n < 100 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	tr.stop()
	totals := tr.rec.Totals()
	tr.t.Logf("%d requests, %d failed", totals.Requests, totals.Failed)
	for i, f := range tr.rec.Failures() {
		if i == 5 {
			break
		}
		tr.t.Errorf("sent at %s, ended at %s: %s", f.Sent.Format(time.StampMilli), f.Ended.Format(time.StampMilli), f.Reason)
	}
	if totals.Failed > 0 {
		tr.t.Errorf("%d of %d requests failed", totals.Failed, totals.Requests)
	}
}

// answersFrom waits until an instance answers some of the load.
func (tr *traffic) answersFrom(id string) {
	tr.t.Helper()
	tr.answersWithin(20*time.Second, id)
}

// answersWithin is answersFrom for one that its callers may have left out for longer: one that has refused
// them before is left out for longer each time.
func (tr *traffic) answersWithin(limit time.Duration, id string) {
	tr.t.Helper()
	before := tr.rec.Totals()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); tr.rec.Totals().Since(before).From[id] == 0; <-tick.C {
		if time.Since(began) > limit {
			tr.t.Fatalf("%s has answered nothing for %s", id, limit)
		}
	}
}
