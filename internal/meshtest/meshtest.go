// Package meshtest is the test kit: scenarios from txtar files with goldens, a
// certificate authority, and real Envoys.
//
// In: a test and its files. Out: running Envoys, configuration, certificates, all
// gone when the test ends. Whatever is missing fails the test; nothing is skipped.
//
// Test only: nothing outside of tests imports it.
package meshtest

import (
	"net"
	"os"
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

// FreePorts are n TCP ports of 127.0.0.1 on which nobody listens now.
func FreePorts(t testing.TB, n int) []int {
	t.Helper()
	ports := make([]int, n)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports
}

// Eventually polls a real process until done says so, for at most 20 seconds. The
// error of the last try is what the test fails with.
func Eventually(t testing.TB, what string, done func() error) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := done()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: %v", what, err)
		}
	}
}
