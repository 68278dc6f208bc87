// Package lab runs what the benchmarks measure: Envoys, the mesh and a real Consul,
// each as its own processes on loopback.
//
// In: paths of binaries, a directory, definitions and configuration entries. Out:
// running processes with the ids of their Envoys, what those cost ([CPUTime],
// [ResidentSize]) and what they say of themselves ([AdminGet], [Scrape]). Besides, what
// makes a benchmark a command: its settings ([Env]) and [Main].
//
// It leaves load, arithmetic and reports to the commands beside it.
package lab

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/ca"
	"github.com/crossfade-mesh/crossfade/internal/envoyadmin"
)

// Patience is for an Envoy on SIGTERM; it closes at once.
const Patience = 5 * time.Second

// adminTimeout is for an Envoy of many clusters that prints all of its stats.
const adminTimeout = 30 * time.Second

// startLimit bounds each step of starting something.
const startLimit = 90 * time.Second

// Binaries are what the lab runs.
type Binaries struct {
	Envoy     string
	Crossfade string
	Consul    string // empty: there is none
}

// FreePorts finds ports that nothing listens on at the moment, below those that the
// kernel takes for outgoing connections.
func FreePorts(n int) ([]int, error) {
	var ports []int
	for range 10_000 {
		if len(ports) == n {
			return ports, nil
		}
		port := 10_000 + rand.IntN(10_000)
		lis, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		defer lis.Close() // so that no port is found twice
		ports = append(ports, port)
	}
	return nil, fmt.Errorf("no %d free ports", n)
}

// Certificates are the files of one identity.
type Certificates struct{ CertFile, KeyFile, RootFile string }

// WriteCertificates makes a leaf of the authority in files that begin with stem.
func WriteCertificates(authority *ca.CA, stem string) (Certificates, error) {
	c := Certificates{CertFile: stem + ".crt", KeyFile: stem + ".key", RootFile: stem + ".ca"}
	key, csr, err := ca.NewKeyAndCSR(authority.Identity("bench"))
	if err != nil {
		return c, err
	}
	leaf, err := authority.Sign(context.Background(), csr, time.Now())
	if err != nil {
		return c, err
	}
	for file, content := range map[string][]byte{c.CertFile: leaf, c.KeyFile: key, c.RootFile: authority.Roots().PEM()} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			return c, err
		}
	}
	return c, nil
}

// StartEnvoy runs one Envoy with a bootstrap file and one worker.
func StartEnvoy(binary, name, file string) (*Process, error) {
	return Start("envoy "+name, strings.TrimSuffix(file, filepath.Ext(file))+".log", binary,
		"-c", file, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning")
}

// AdminGet asks an Envoy's admin, on a Unix socket (a path) or at ip:port; any
// answer but 200 is an error.
func AdminGet(ctx context.Context, admin, path string) (string, error) {
	c := envoyadmin.New(admin, adminTimeout)
	defer c.Close()
	body, err := c.Get(ctx, path)
	return string(body), err
}

// Enforced takes a callee's Envoy's word that what came was TLS and was let in by intentions.
func Enforced(ctx context.Context, admin string) error {
	for _, stat := range []string{`ssl\.handshake`, `rbac\..*allowed`} {
		text, err := AdminGet(ctx, admin, "/stats?usedonly&filter="+stat)
		if err != nil {
			return err
		}
		if strings.TrimSpace(text) == "" {
			return fmt.Errorf("the callee's Envoy counted nothing under %s", stat)
		}
	}
	return nil
}

// ListenerPort is where the first listener of an Envoy listens; 0 when there is none yet.
func ListenerPort(ctx context.Context, admin string) (int, error) {
	c := envoyadmin.New(admin, adminTimeout)
	defer c.Close()
	listeners, err := c.Listeners(ctx)
	if err != nil || len(listeners) == 0 {
		return 0, err
	}
	return listeners[0].Port, nil
}

// Load is the machine's load average over the last minute.
func Load() float64 {
	var one float64
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		_, _ = fmt.Sscan(string(b), &one)
	}
	return one
}
