// Package meshtest is the test kit: scenarios from txtar files with goldens, a
// certificate authority, and real Envoys.
//
// In: a test and its files. Out: running Envoys, configuration, certificates, all
// gone when the test ends. Whatever is missing fails the test; nothing is skipped.
//
// Test only: nothing outside of tests imports it.
package meshtest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// RunDir is a new directory with mode 0700 and a path short enough for sockets.
func RunDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cf") //nolint:usetesting // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// given are the ports that FreePorts has given to any test of this process.
var given sync.Map

// FreePorts are n TCP ports of 127.0.0.1 on which nobody listens now. They are given
// once, and none is one that the kernel takes for outgoing connections or a sidecar
// for its public listener, so that nobody has it before the test does.
func FreePorts(t testing.TB, n int) []int {
	t.Helper()
	ports := make([]int, 0, n)
	for range 10_000 {
		if len(ports) == n {
			return ports
		}
		port := 22_000 + rand.IntN(10_000)
		if _, again := given.LoadOrStore(port, true); again {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		l.Close()
		ports = append(ports, port)
	}
	t.Fatalf("no %d free ports", n)
	return nil
}

// Eventually polls a real process until done says so, for at most 20 seconds. The
// error of the last try is what the test fails with.
func Eventually(t testing.TB, what string, done func() error) {
	t.Helper()
	Within(t, 20*time.Second, what, done)
}

// Within is [Eventually] with a limit of its own. It returns how long it took.
func Within(t testing.TB, limit time.Duration, what string, done func() error) time.Duration {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); ; <-tick.C {
		err := done()
		took := time.Since(began)
		switch {
		case err == nil:
			return took
		case took > limit:
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
	}
}
