package meshtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// insideHost names the environment variable that tells a copy of the test where it is.
const insideHost = "CROSSFADE_TEST_HOST"

// HostAddress is the address of the host that a test has for itself.
const HostAddress = "10.99.0.1"

// OwnHost runs the test once more, as root of a network namespace of its own, and reports
// whether this is that run: the other has nothing more to do. A user namespace gives
// everybody the right to that, where the kernel lets everybody make one; root needs no
// such leave.
func OwnHost(t *testing.T) bool {
	t.Helper()
	return again(t, &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	})
}

// OwnMachine is [OwnHost] with process and mount namespaces as well: whatever runs, is mounted or is written to /run
// there ends with the test, and no cgroup is to be seen. [HostAddress] is that of its interface. It takes root.
func OwnMachine(t *testing.T) bool {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("takes root, for network, mount and process namespaces")
	}
	if !again(t, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}) {
		return false
	}
	for _, m := range []struct {
		source, at, kind string
		flags            uintptr
	}{
		{"none", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{"proc", "/proc", "proc", 0},
		{"tmpfs", "/run", "tmpfs", 0},
	} {
		if err := unix.Mount(m.source, m.at, m.kind, m.flags, ""); err != nil {
			t.Fatalf("mounting %s: %v", m.at, err)
		}
	}
	if err := unix.Unmount("/sys/fs/cgroup", unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) { // where nothing is mounted
		t.Fatalf("unmounting cgroups: %v", err)
	}
	for _, line := range []string{
		"link add host0 type veth peer name host1", "addr add " + HostAddress + "/24 dev host0", "link set host0 up", "link set host1 up", "route add default dev host0",
	} {
		command(t, exec.Command("ip", strings.Fields(line)...))
	}
	return true
}

// again runs the test once more as attr says, and reports whether this is that run.
func again(t *testing.T, attr *syscall.SysProcAttr) bool {
	t.Helper()
	if os.Getenv(insideHost) == t.Name() {
		command(t, exec.Command("ip", "link", "set", "lo", "up"))
		return true
	}
	args := []string{"-test.run=^" + t.Name() + "$", "-test.v"}
	if deadline, ok := t.Deadline(); ok {
		args = append(args, "-test.timeout="+(time.Until(deadline)-time.Second).String())
	}
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), insideHost+"="+t.Name())
	attr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr = attr
	runtime.LockOSThread() // whose death the signal is for
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("in namespaces of its own (which takes root, or the kernel's leave for user namespaces): %v\n%s", err, out)
	}
	t.Logf("%s", out)
	return false
}

// Host is another network namespace.
type Host struct {
	t       testing.TB
	ns      *os.File
	Address string
	starts  chan start // of [NewBareHost] alone
}

// NewHost makes another host with a wire to that of the test, once in a test that [OwnHost] runs.
func NewHost(t testing.TB) *Host {
	t.Helper()
	h := &Host{t: t, Address: "10.99.0.2"}
	if err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		h.ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	}); err != nil {
		t.Fatalf("making a network namespace: %v", err)
	}
	t.Cleanup(func() { h.ns.Close() })
	for _, line := range []string{
		"link set lo up", fmt.Sprintf("link add there type veth peer name here netns %d", os.Getpid()),
		"addr add " + h.Address + "/24 dev there", "link set there up",
	} {
		if err := h.Do(func() error { command(t, exec.Command("ip", strings.Fields(line)...)); return nil }); err != nil {
			t.Fatalf("entering a network namespace: %v", err)
		}
	}
	for _, line := range []string{"addr add " + HostAddress + "/24 dev here", "link set here up"} {
		command(t, exec.Command("ip", strings.Fields(line)...))
	}
	return h
}

func command(t testing.TB, cmd *exec.Cmd) {
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %v\n%s", cmd.Args, err, out)
	}
}

// Do does something on that host: what it starts or opens stays there. It must not hand the
// work to another goroutine.
func (h *Host) Do(what func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return what()
	})
}

// onThread does something on a thread that ends with it. It is not the first one, which a
// process cannot end, and which stands for it: /proc/self and its number mean that one.
func onThread(what func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- onThread(what) // while this one is taken
			runtime.UnlockOSThread()
			return
		}
		done <- what() // the thread ends, since it stays locked
	}()
	return <-done
}

// Dial connects from that host. The address is one of numbers.
func (h *Host) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = h.Do(func() error { conn, err = (&net.Dialer{}).DialContext(ctx, network, address); return err })
	return conn, err
}
