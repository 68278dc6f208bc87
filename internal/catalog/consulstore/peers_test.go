//go:build peers

package consulstore_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// real is a Consul in a process of its own.
type real struct {
	t     testing.TB
	ports []int // HTTP, server RPC, gossip, gossip of the WAN
	dir   string
	extra []string
	cmd   *exec.Cmd
}

// startReal runs a Consul with a data directory; config is its configuration, JSON.
func startReal(t testing.TB, config string) *real {
	t.Helper()
	r := &real{t: t, ports: meshtest.FreePorts(t, 4), dir: t.TempDir()}
	if config != "" {
		file := filepath.Join(r.dir, "extra.json")
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		r.extra = []string{"-config-file", file}
	}
	t.Cleanup(r.kill)
	r.start()
	return r
}

func (r *real) url() string { return "http://127.0.0.1:" + strconv.Itoa(r.ports[0]) }

func (r *real) start() {
	r.t.Helper()
	binary := os.Getenv("CROSSFADE_CONSUL")
	if binary == "" {
		binary = "../../../bin/consul"
	}
	port := func(i int) string { return strconv.Itoa(r.ports[i]) }
	r.cmd = exec.Command(binary, append([]string{"agent", "-server", "-bootstrap-expect", "1", "-data-dir", filepath.Join(r.dir, "data"), "-node", "n1", "-bind", "127.0.0.1",
		"-client", "127.0.0.1", "-log-level", "warn", "-http-port", port(0), "-server-port", port(1), "-serf-lan-port", port(2), "-serf-wan-port", port(3),
		"-dns-port", "-1", "-grpc-port", "-1", "-grpc-tls-port", "-1"}, r.extra...)...)
	log, err := os.OpenFile(filepath.Join(r.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	defer log.Close()
	r.cmd.Stdout, r.cmd.Stderr = log, log
	if err := r.cmd.Start(); err != nil {
		r.t.Fatalf("consul %q: %v; build it with make bin/consul, or set CROSSFADE_CONSUL", binary, err)
	}
	eventually(r.t, "Consul has a leader", func() error { return leads(r.url()) })
}

func (r *real) kill() {
	if r.cmd != nil {
		r.cmd.Process.Kill()
		r.cmd.Wait()
		r.cmd = nil
	}
}

func TestServersShareARealConsul(t *testing.T) { testServersShare(t, startReal(t, "").url()) }
