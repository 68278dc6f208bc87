package demo

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// starter starts child processes that the kernel kills when this process dies.
// That holds for the thread that started a child, so one thread starts all and
// lives until the starter is closed.
type starter struct {
	requests chan func()
}

func newStarter() *starter {
	s := &starter{requests: make(chan func())}
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		for f := range s.requests {
			f()
		}
	}()
	return s
}

// close lets the thread end, which kills every child still alive.
func (s *starter) close() { close(s.requests) }

// child is a process that was started.
type child struct {
	name string
	pid  int
	log  string        // where its output is
	done chan struct{} // closed when it has ended and was waited for
	err  error         // how it ended; read after done
}

// start runs a command in a process group of its own. Its output is appended to
// the file log.
func (s *starter) start(name, log string, env []string, path string, args ...string) (*child, error) {
	f, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.Command(path, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	s.requests <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("%s: cannot be started: %w", name, err)
	}
	c := &child{name: name, pid: cmd.Process.Pid, log: log, done: make(chan struct{})}
	go func() {
		c.err = cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

// alive reports whether the process still runs.
func (c *child) alive() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// signal does nothing to a process that has ended.
func (c *child) signal(sig syscall.Signal) {
	if c.alive() {
		_ = syscall.Kill(c.pid, sig)
	}
}

// waitEnd waits for the process to end by itself and fails unless its exit code is 0.
func (c *child) waitEnd(ctx context.Context, limit time.Duration) error {
	select {
	case <-c.done:
		if c.err != nil {
			return fmt.Errorf("%s: %w", c.name, c.err)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(limit):
		return fmt.Errorf("%s: still running %s after it was told to stop", c.name, limit)
	}
}

// tail is the end of the child's output.
func (c *child) tail(lines int) []string {
	b, err := os.ReadFile(c.log)
	if err != nil {
		return nil
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return all[max(0, len(all)-lines):]
}

// processGone reports whether the process holds no file or socket any more: it is
// no longer there, or a zombie with no thread left. Its first thread may be a
// zombie while others still hold what all of them share.
func processGone(pid int) bool {
	dir := "/proc/" + strconv.Itoa(pid)
	b, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return true
	}
	// The state follows the command name, which is in parentheses and may hold any character.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) > 0 && f[0][0] != 'Z' && f[0][0] != 'X' {
		return false
	}
	threads, err := os.ReadDir(dir + "/task")
	return err != nil || len(threads) <= 1
}

// processesWith lists the live processes whose environment has the given entry.
func processesWith(entry string) []int {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []int
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		env, err := os.ReadFile("/proc/" + d.Name() + "/environ")
		if err != nil || processGone(pid) {
			continue
		}
		for e := range bytes.SplitSeq(env, []byte{0}) {
			if string(e) == entry {
				out = append(out, pid)
				break
			}
		}
	}
	return out
}
