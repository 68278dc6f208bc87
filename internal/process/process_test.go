package process

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// parentEnv makes the test binary start a child instead of running tests.
const parentEnv = "TEST_PROCESS_PARENT"

func TestMain(m *testing.M) {
	if os.Getenv(parentEnv) != "" {
		playParent()
	}
	os.Exit(m.Run())
}

// playParent starts a child, tells its pid, and waits to be killed.
func playParent() {
	p, err := Start(Command{Argv: []string{"sleep", "600"}, Stdout: os.Stderr, Stderr: os.Stderr})
	if err != nil {
		panic(err)
	}
	fmt.Println(p.PID)
	<-p.Done()
}

func TestProcessStop(t *testing.T) {
	for _, tt := range []struct {
		script string
		killed bool
		how    string
	}{
		{"trap 'exit 3' TERM; echo; while :; do sleep 0.01; done", false, "exit status 3"},
		{"trap '' TERM; echo; while :; do sleep 0.01; done", true, "signal: killed"},
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p, err := Start(Command{Argv: []string{"/bin/sh", "-c", tt.script}, Stdout: w, Stderr: os.Stderr})
		if err != nil {
			t.Fatal(err)
		}
		w.Close()
		if _, err := bufio.NewReader(r).ReadString('\n'); err != nil { // the trap is set
			t.Fatal(err)
		}
		if killed := p.Stop(t.Context(), 300*time.Millisecond); killed != tt.killed || p.State().String() != tt.how {
			t.Errorf("%s: killed %v, %s; want %v, %s", tt.script, killed, p.State(), tt.killed, tt.how)
		}
		r.Close()
	}
}

// In a hurry a child gets a second, however long it may take otherwise.
func TestProcessStopInAHurry(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := Start(Command{Argv: []string{"/bin/sh", "-c", "trap '' TERM; echo; while :; do sleep 0.01; done"}, Stdout: w, Stderr: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	hurry, rush := context.WithCancel(t.Context())
	rush()
	if !p.Stop(hurry, time.Hour) {
		t.Errorf("ended by itself: %s", p.State())
	}
}

// A child does not outlive a parent that is killed.
func TestChildDiesWithItsParent(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	parent := exec.Command(exe)
	parent.Env = append(os.Environ(), parentEnv+"=1")
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	var child int
	_, scanErr := fmt.Fscan(out, &child)
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	if scanErr != nil {
		t.Fatal(scanErr)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 2000 {
		if gone(child) {
			return
		}
		<-tick.C
	}
	t.Errorf("child %d outlives its parent", child)
}

// gone reports whether a process has ended, reaped or not.
func gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(rest, "Z")
}
