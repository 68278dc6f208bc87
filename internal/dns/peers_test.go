//go:build peers

package dns_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// TestAnswersConsul asks a real Consul the same questions.
func TestAnswersConsul(t *testing.T) {
	binary, err := filepath.Abs(cmp.Or(os.Getenv("CROSSFADE_CONSUL"), "../../bin/consul"))
	if err != nil {
		t.Fatal(err)
	}
	ip := fmt.Sprintf("127.%d.%d.%d", 64+rand.IntN(128), rand.IntN(256), 1+rand.IntN(254))
	cmd := exec.Command(binary, "agent", "-dev", "-node", "self", "-bind", ip, "-client", ip, "-dns-port", "18600", "-grpc-tls-port", "-1",
		"-http-port", "18500", "-grpc-port", "18502", "-server-port", "18300", "-serf-lan-port", "18301", "-serf-wan-port", "18302", "-log-level", "err")
	if err := cmd.Start(); err != nil {
		t.Fatalf("a real Consul is needed: build it as tools/consul says, or set CROSSFADE_CONSUL: %v", err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	c := client(t, "http://"+ip+":18500")
	again, deadline := time.NewTicker(50*time.Millisecond), time.After(20*time.Second)
	defer again.Stop()
	for {
		if list, _, err := c.Health().Service("consul", "", true, nil); err == nil && len(list) == 1 {
			break
		}
		select {
		case <-again.C:
		case <-deadline:
			t.Fatal("Consul has not registered itself within 20s")
		}
	}
	meshtest.ConsulSettled(t, "http://"+ip+":18500")
	testAnswers(t, ip+":18600", c)
}
