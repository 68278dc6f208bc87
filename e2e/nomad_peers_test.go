//go:build nomad

package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

const (
	consulAt = "http://127.0.0.1:8500"
	nomadAt  = "http://" + meshtest.HostAddress + ":4646"
	webAt    = "http://" + meshtest.HostAddress + ":8080"
)

// nomadFleet is a real Consul, a real Nomad of one client, and a server of ours whose CA is Consul's, on a machine of their own.
type nomadFleet struct {
	t         *testing.T
	dir       string
	bin       string // a folder with all programs that jobs run, and ours
	nomadData string
	nomad     string
	env       []string
}

// binary is a program that the Makefile has built.
func binary(t *testing.T, variable, otherwise string) string {
	t.Helper()
	path, err := filepath.Abs(cmp.Or(os.Getenv(variable), otherwise))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("%v: make test-nomad builds it", err)
	}
	return path
}

func newNomadFleet(t *testing.T) *nomadFleet {
	t.Helper()
	if _, err := exec.LookPath("iptables"); err != nil {
		t.Fatalf("Nomad makes a bridge network with it: %v", err)
	}
	dir := meshtest.RunDir(t)
	f := &nomadFleet{t: t, dir: dir, bin: filepath.Join(dir, "bin"), nomad: binary(t, "CROSSFADE_NOMAD", "../bin/nomad"), nomadData: "/run/nomad"}
	cni := binary(t, "CROSSFADE_CNI", "../bin/cni")
	own, err := os.Executable()
	if err == nil {
		err = os.Mkdir(f.bin, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{
		"crossfade": build(t), "consul": binary(t, "CROSSFADE_CONSUL", "../bin/consul"), "envoy": envoyBinary(t), "echo-app": own,
	} {
		if err := os.Symlink(to, filepath.Join(f.bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, line := range map[string]string{"catalog": `echo-app 127.0.0.1:9090 "catalog $VERSION"`, "web": "echo-app :8080 web"} {
		if err := os.WriteFile(filepath.Join(f.bin, name), []byte("#!/bin/sh\nexec "+line+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	data, sockets := filepath.Join(dir, "data"), "/run/sockets"
	if err := os.Mkdir(sockets, 0o700); err != nil {
		t.Fatal(err)
	}
	f.env = []string{
		"PATH=" + f.bin + ":" + os.Getenv("PATH"), "NOMAD_ADDR=" + nomadAt, "CROSSFADE_HTTP_ADDR=https://" + meshtest.HostAddress + ":8510",
		"CROSSFADE_CACERT=" + filepath.Join(data, "ca.pem"), "CROSSFADE_HTTP_TOKEN_FILE=" + filepath.Join(data, "operator.token"),
	}
	spawn(t, f.env, filepath.Join(f.bin, "consul"), "agent", "-dev", "-node", "n1", "-bind", meshtest.HostAddress, "-client", "127.0.0.1 "+meshtest.HostAddress,
		"-log-level", "warn", "-grpc-tls-port", "-1", "-dns-port", "-1")
	answers(t, consulAt+"/v1/connect/ca/roots", "TrustDomain")
	meshtest.ConsulSettled(t, consulAt)
	f.do("consul", "config", "write", write(t, dir, "global.hcl", "Kind = \"proxy-defaults\"\nName = \"global\"\nConfig { protocol = \"http\" }\n"))
	spawn(t, f.env, filepath.Join(f.bin, "crossfade"), "server", "--data-dir", data, "--consul", consulAt, "--ca", "consul", "--bind", meshtest.HostAddress)
	meshtest.Eventually(t, "our server answers", func() error {
		_, _, err := ask("https://"+meshtest.HostAddress+":8510/v1/status/leader", "")
		return err
	})
	for _, service := range []string{"web", "catalog"} {
		write(t, dir, service+".token", f.do("crossfade", "token", "create", "--service", service))
	}
	write(t, dir, "ca.pem", readFile(t, filepath.Join(data, "ca.pem")))
	agent := spawn(t, f.env, f.nomad, "agent", "-config", write(t, dir, "nomad.hcl", fmt.Sprintf(`
data_dir             = %q
bind_addr            = %q
log_level            = "WARN"
disable_update_check = true
server {
  enabled          = true
  bootstrap_expect = 1
}
client {
  enabled           = true
  network_interface = "host0"
  cni_path          = %q
  options {
    "driver.allowlist"     = "raw_exec"
    "fingerprint.denylist" = "env_aws,env_azure,env_digitalocean,env_gce"
  }
}
plugin "raw_exec" {
  config { enabled = true }
}
`, f.nomadData, meshtest.HostAddress, cni)))
	meshtest.Within(f.t, time.Minute, "Nomad's client is ready", func() error {
		select {
		case <-agent.ended:
			t.Fatalf("Nomad has ended: %v", agent.err)
		default:
		}
		code, body, err := ask(nomadAt+"/v1/nodes", "")
		if err == nil && (code != http.StatusOK || !strings.Contains(body, `"Status":"ready"`)) {
			err = fmt.Errorf("%d %.200s", code, body)
		}
		return err
	})
	return f
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// do runs a program to its end and gives what it wrote to stdout.
func (f *nomadFleet) do(name string, args ...string) string {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 90*time.Second)
	defer cancel()
	path := filepath.Join(f.bin, name)
	if name == "nomad" {
		path = f.nomad
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), f.env...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		f.t.Fatalf("%s %v: %v\n%s%s", name, args, err, out, errs.String())
	}
	return string(out)
}

// job is a job of docs/connect-fleets.md.
type job struct {
	f    *nomadFleet
	name string
	text string // with our sidecar
}

func (f *nomadFleet) job(name string) *job {
	f.t.Helper()
	page := readFile(f.t, "../docs/connect-fleets.md")
	_, text, found := strings.Cut(page, "```hcl\n# "+name+".nomad.hcl\n")
	text, _, closed := strings.Cut(text, "```")
	if !found || !closed {
		f.t.Fatalf("docs/connect-fleets.md has no %s.nomad.hcl", name)
	}
	return &job{f: f, name: name, text: strings.ReplaceAll(text, "/etc/crossfade/", f.dir+"/")}
}

var ourSidecar = regexp.MustCompile(`(?s)command = "crossfade".*?\n            \]\n`)

// nomads is the job with the Envoy that Nomad would run: it writes the bootstrap for every sidecar task. The driver that it has
// otherwise needs containers. The bootstrap names Consul's socket from the allocation's folder.
func (j *job) nomads() *job {
	j.f.t.Helper()
	text := ourSidecar.ReplaceAllLiteralString(j.text, `command  = "envoy"
            args     = ["-c", "${NOMAD_SECRETS_DIR}/envoy_bootstrap.json", "--log-level", "warning", "--concurrency", "2", "--disable-hot-restart"]
            work_dir = "${NOMAD_ALLOC_DIR}/.."
`)
	if text == j.text {
		j.f.t.Fatalf("job %s has no sidecar task of ours", j.name)
	}
	return &job{f: j.f, name: j.name, text: text}
}

// run runs the job and waits until Nomad has rolled it out.
func (j *job) run(vars ...string) {
	f := j.f
	f.t.Helper()
	began := time.Now()
	args := []string{"job", "run", "-detach"}
	for _, v := range vars {
		args = append(args, "-var", v)
	}
	f.do("nomad", append(args, write(f.t, f.dir, j.name+".nomad.hcl", j.text))...)
	var made struct{ Version uint64 }
	f.get("/v1/job/"+j.name, &made)
	meshtest.Within(f.t, 90*time.Second, "Nomad rolls out "+j.name, func() error {
		var d struct {
			JobVersion                uint64
			Status, StatusDescription string
		}
		f.get("/v1/job/"+j.name+"/deployment", &d)
		switch {
		case d.JobVersion != made.Version || d.Status == "running" || d.Status == "":
			return fmt.Errorf("version %d of %d: %s %s", d.JobVersion, made.Version, d.Status, d.StatusDescription)
		case d.Status != "successful":
			f.logs()
			f.t.Fatalf("%s: %s: %s", j.name, d.Status, d.StatusDescription)
		}
		return nil
	})
	f.t.Logf("%s, version %d: rolled out after %s", j.name, made.Version, time.Since(began).Round(100*time.Millisecond))
}

func (f *nomadFleet) get(path string, into any) {
	f.t.Helper()
	code, body, err := ask(nomadAt+path, "")
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("%d %.200s", code, body)
	}
	if err == nil {
		err = json.Unmarshal([]byte(body), into)
	}
	if err != nil {
		f.t.Fatalf("Nomad: GET %s: %v", path, err)
	}
}

// logs shows what tasks wrote.
func (f *nomadFleet) logs() {
	files, _ := filepath.Glob(filepath.Join(f.nomadData, "alloc/*/alloc/logs/*.stderr.0"))
	for _, file := range files {
		b, _ := os.ReadFile(file)
		f.t.Logf("%s\n%s", file, b[max(0, len(b)-4000):])
	}
}

// registered is a sidecar as Nomad has registered it.
type registered struct {
	ID    string
	Port  int
	Meta  map[string]string
	Proxy struct {
		DestinationServiceName, DestinationServiceID string
		Config                                       struct {
			BindAddress string   `json:"bind_address"`
			BindPort    int      `json:"bind_port"`
			StatsTags   []string `json:"envoy_stats_tags"`
		}
	}
}

func (s registered) allocation() string {
	const uuid = 36
	return strings.TrimPrefix(s.ID, "_nomad-task-")[:uuid]
}

// sidecars are those of a service.
func (f *nomadFleet) sidecars(service string) (out []registered) {
	f.t.Helper()
	var all map[string]registered
	code, body, err := ask(consulAt+"/v1/agent/services?filter=Kind%3D%3D%60connect-proxy%60", "")
	if err == nil {
		err = json.Unmarshal([]byte(body), &all)
	}
	if err != nil {
		f.t.Fatalf("Consul's services: %d: %v", code, err)
	}
	for _, s := range all {
		if s.Proxy.DestinationServiceName == service {
			out = append(out, s)
		}
	}
	return out
}

// servedBy fails the test unless all n sidecars of a service are as Nomad registers them, and are ours, or none is.
func (f *nomadFleet) servedBy(ours bool, service, group string, port, n int) {
	f.t.Helper()
	var all []registered
	meshtest.Eventually(f.t, "the sidecars of "+service, func() error {
		if all = f.sidecars(service); len(all) != n {
			return fmt.Errorf("%d are registered, want %d", len(all), n)
		}
		return nil
	})
	for _, s := range all {
		id := fmt.Sprintf("_nomad-task-%s-group-%s-%s-%d", s.allocation(), group, service, port)
		c := s.Proxy.Config
		tags := []string{"nomad.alloc_id=" + s.allocation(), "nomad.group=" + group, "nomad.job=" + service, "nomad.namespace=default"}
		if s.ID != id+"-sidecar-proxy" || s.Proxy.DestinationServiceID != id || c.BindAddress != "0.0.0.0" || c.BindPort != s.Port || !slices.Equal(c.StatsTags, tags) {
			f.t.Errorf("Nomad registers %+v: internal/sidecar/nomad_test.go has another shape", s)
		}
		socket := f.adminSocket(s)
		if (socket != "") != ours {
			f.t.Errorf("the sidecar of %s in allocation %s is ours: %v, want %v", service, s.allocation(), socket != "", ours)
		}
		if socket == "" {
			continue
		}
		want := fmt.Sprintf(`nomad_alloc_id="%s",nomad_group="%s",nomad_job="%s",nomad_namespace="default"`, s.allocation(), group, service)
		if stats, err := envoyAnswers(f.t, socket, "/stats/prometheus?filter=^server.live$"); err != nil || !strings.Contains(stats, want) {
			f.t.Errorf("stats of %s are labelled\n%s\nwant %s; %v", service, stats, want, err)
		}
	}
}

// adminSocket is where our Envoy's admin interface is; "" when the sidecar is not ours.
func (f *nomadFleet) adminSocket(s registered) string {
	f.t.Helper()
	st, err := readStatus(filepath.Join(f.nomadData, "alloc", s.allocation(), "connect-proxy-"+s.Proxy.DestinationServiceName, "local/state"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		f.t.Fatal(err)
	}
	return st.Envoy.AdminSocket
}

// nothingLeft fails the test when something of the jobs stays that were stopped.
func (f *nomadFleet) nothingLeft() {
	f.t.Helper()
	meshtest.Within(f.t, time.Minute, "nothing is left of the jobs", func() error {
		_, body, err := ask(consulAt+"/v1/agent/services", "")
		if err == nil && strings.Contains(body, "_nomad-task-") {
			err = errors.New("services in Consul")
		}
		if err != nil {
			return err
		}
		processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, file := range processes {
			text, _ := os.ReadFile(file) // nothing, when it has ended
			for _, what := range []string{"envoy\x00", "crossfade\x00sidecar\x00", "echo-app\x00"} {
				if strings.Contains(string(text), what) {
					return fmt.Errorf("process %s", strings.ReplaceAll(string(text), "\x00", " "))
				}
			}
		}
		return err
	})
}

// TestNomadConnectJobs: the jobs of docs/connect-fleets.md. What a real Nomad registers is served by its Envoys and by ours, each new version
// of a job may have the other kind, and no request fails while Nomad rolls it out.
func TestNomadConnectJobs(t *testing.T) {
	if !meshtest.OwnMachine(t) {
		return
	}
	f := newNomadFleet(t)
	defer func() {
		if t.Failed() {
			f.logs()
		}
	}()
	catalog, web := f.job("catalog"), f.job("web")
	catalog.nomads().run()
	web.nomads().run()
	f.servedBy(false, "catalog", "api", 9090, 2)
	f.servedBy(false, "web", "web", 8080, 1)
	if said := f.do("crossfade", "import", "consul-connect", "--check", "--consul", consulAt); !strings.Contains(said, "nothing differs") {
		t.Errorf("the check before the first swap says\n%s", said)
	}
	const url = webAt + "/call/catalog"
	answers(t, url, "hello from catalog 1")

	load := call(t, 50, url, "hello from catalog")
	catalog.run("version=2")
	f.servedBy(true, "catalog", "api", 9090, 2)
	answers(t, url, "hello from catalog 2")
	load.more(t, 100)
	catalog.run("version=3")
	f.servedBy(true, "catalog", "api", 9090, 2)
	load.more(t, 100)
	load.stop() // since there is one web alone, which goes
	load.unharmed(t, "Nomad's sidecar calls Nomad's and ours, while the job is swapped and deployed")

	web.run()
	f.servedBy(true, "web", "web", 8080, 1)
	answers(t, url, "hello from catalog 3")
	answers(t, url, "/ns/default/dc/dc1/svc/catalog;")
	answers(t, url, "/ns/default/dc/dc1/svc/web")

	load = call(t, 50, url, "hello from catalog")
	load.more(t, 100)
	catalog.nomads().run("version=4")
	f.servedBy(false, "catalog", "api", 9090, 2)
	answers(t, url, "hello from catalog 4")
	load.more(t, 100)
	load.unharmed(t, "our sidecar calls ours and Nomad's, while the job is swapped back")

	// The control: what does end is noticed.
	before := load.Totals().Failed
	f.do("nomad", "job", "stop", "-purge", "-detach", "catalog")
	meshtest.Eventually(t, "a job that was stopped is noticed", func() error {
		if load.Totals().Failed == before {
			return errors.New("no request failed")
		}
		return nil
	})
	load.stop()
	f.do("nomad", "job", "stop", "-purge", "-detach", "web")
	f.nothingLeft()
}
