//go:build peers

package client_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/client"
)

// TestHotChangeOverConsulsKV is TestHotChangeOverServersKV with a real Consul.
func TestHotChangeOverConsulsKV(t *testing.T) {
	binary, err := filepath.Abs(cmp.Or(os.Getenv("CROSSFADE_CONSUL"), "../bin/consul"))
	if err != nil {
		t.Fatal(err)
	}
	ip := fmt.Sprintf("127.%d.%d.%d", 64+rand.IntN(128), rand.IntN(256), 1+rand.IntN(254))
	cmd := exec.Command(binary, "agent", "-dev", "-node", "self", "-bind", ip, "-client", ip, "-dns-port", "-1", "-grpc-tls-port", "-1",
		"-http-port", "18500", "-grpc-port", "-1", "-server-port", "18300", "-serf-lan-port", "18301", "-serf-wan-port", "18302", "-log-level", "err")
	if err := cmd.Start(); err != nil {
		t.Fatalf("a real Consul is needed: build it as tools/consul says, or set CROSSFADE_CONSUL: %v", err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	again, deadline := time.NewTicker(50*time.Millisecond), time.After(20*time.Second)
	defer again.Stop()
	write := func(method, value string) error {
		r, err := http.NewRequestWithContext(t.Context(), method, "http://"+ip+":18500"+mine, strings.NewReader(value))
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s", resp.Status)
		}
		return nil
	}
	for err := write("DELETE", ""); err != nil; err = write("DELETE", "") {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("no write within 20s: %v", err)
		}
	}
	p, err := client.Open(client.Options{
		Source: "web", Destination: "catalog", OldAddr: "10.0.0.1:80",
		Getenv: getenv(map[string]string{"CONSUL_HTTP_ADDR": ip + ":18500", "NOMAD_UPSTREAM_ADDR_catalog": "127.0.0.1:7100", "CROSSFADE_PERCENT_catalog": "7"}),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	wantPercent(t, p, 7)
	for _, change := range []struct {
		method, value string
		want          float64
	}{{"PUT", "100", 100}, {"PUT", "0", 0}, {"DELETE", "", 7}, {"PUT", "33.3", 33.3}} {
		if err := write(change.method, change.value); err != nil {
			t.Fatal(err)
		}
		late := time.After(time.Second)
		for p.Percent() != change.want {
			select {
			case <-again.C:
			case <-late:
				t.Fatalf("%s %q: percent %v after 1s; problems %v", change.method, change.value, p.Percent(), p.Problems())
			}
		}
	}
	if got := p.Problems(); len(got) != 0 {
		t.Errorf("problems %v", got)
	}
}
