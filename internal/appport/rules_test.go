package appport

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

// inside names the environment variable that tells a copy of the test where it is.
const inside = "CROSSFADE_TEST_NETNS"

// The kernel takes the rules, shows them, and holds to them: seen from another network
// namespace a protected port refuses, and over loopback it answers.
func TestProtect(t *testing.T) {
	if os.Getenv(inside) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestProtect$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		// A user namespace of its own gives the right to do so to everybody.
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: TestProtect") {
			t.Fatalf("in a network namespace: %v\n%s", err, out)
		}
		return
	}
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v\n%s", args, err, out)
		}
	}
	ip("link", "set", "lo", "up")
	ip("link", "add", "here", "type", "veth", "peer", "name", "there")
	ip("addr", "add", "10.99.0.1/24", "dev", "here")
	ip("link", "set", "here", "up")
	other := exec.Command("sleep", "60")
	other.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { other.Process.Kill(); other.Wait() }()
	pid := fmt.Sprint(other.Process.Pid)
	ip("link", "set", "there", "netns", pid)
	from := func(args ...string) ([]byte, error) {
		return exec.Command("nsenter", append([]string{"-t", pid, "-n"}, args...)...).CombinedOutput()
	}
	for _, args := range [][]string{{"ip", "addr", "add", "10.99.0.2/24", "dev", "there"}, {"ip", "link", "set", "there", "up"}} {
		if out, err := from(args...); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	port := l.Addr().(*net.TCPAddr).Port
	reach := func() bool {
		_, err := from("bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/10.99.0.1/%d", port))
		return err == nil
	}
	deadline := time.Now().Add(10 * time.Second)
	for !reach() { // the link comes up
		if time.Now().After(deadline) {
			t.Fatal("not reached before there are rules")
		}
	}
	if err := Protect(port, 81); err != nil {
		t.Fatal(err)
	}
	if got, err := Protected(); err != nil || !reflect.DeepEqual(got, sorted([]int{port, 81})) {
		t.Errorf("%v, %v", got, err)
	}
	if reach() {
		t.Error("reached from another host though it is protected")
	}
	if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err != nil {
		t.Errorf("over loopback: %v", err)
	} else {
		c.Close()
	}
	if err := Unprotect(port); err != nil {
		t.Fatal(err)
	}
	if got, err := Protected(); err != nil || !reflect.DeepEqual(got, []int{81}) || !reach() {
		t.Errorf("after that: %v, %v, reached %v", got, err, reach())
	}
	if err := Unprotect(81); err != nil {
		t.Fatal(err)
	}
	if got, err := Protected(); err != nil || got != nil {
		t.Errorf("in the end: %v, %v", got, err)
	}
}
