package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// process is a child in a process group of its own, so that a terminal's Ctrl-C
// reaches the sidecar alone. It is killed when the sidecar dies, however that dies.
type process struct {
	pid  int
	done chan struct{} // closed when the child is gone

	// Read after done is closed.
	state exitState
}

// exitState is how a child ended.
type exitState struct {
	code   int            // as a shell has it: 128+n for signal n
	signal syscall.Signal // 0 unless killed by one
	err    error          // the wait itself failed
	peak   int64          // most memory it had, in bytes; 0: unknown
}

// String is "exit status 1" or "signal: killed".
func (e exitState) String() string {
	switch {
	case e.signal != 0:
		return "signal: " + e.signal.String()
	case e.err != nil:
		return e.err.Error()
	default:
		return fmt.Sprintf("exit status %d", e.code)
	}
}

// startProcess starts argv. stdout and stderr may be one writer.
func startProcess(argv, env []string, stdout, stderr io.Writer) (*process, error) {
	return startProcessIn(nil, argv, env, stdout, stderr)
}

// startProcessIn is startProcess in a cgroup, unless that is nil.
func startProcessIn(group *cgroup, argv, env []string, stdout, stderr io.Writer) (*process, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = env
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 2 * time.Second // grandchildren may hold the output open
	if group != nil {
		folder, err := os.Open(group.path)
		if err != nil {
			return nil, fmt.Errorf("cgroup %q: %w", group.path, cause(err))
		}
		defer folder.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(folder.Fd())
	}

	p := &process{done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The kernel sends Pdeathsig when the thread that forked ends, so that
		// thread must live as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.pid = cmd.Process.Pid
		started <- nil
		p.state = stateOf(cmd, cmd.Wait())
		_ = syscall.Kill(-p.pid, syscall.SIGKILL) // whoever is left in the group
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func stateOf(cmd *exec.Cmd, err error) exitState {
	if cmd.ProcessState == nil {
		return exitState{code: 1, err: err}
	}
	var peak int64
	if used, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		peak = used.Maxrss << 10
	}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return exitState{code: 128 + int(ws.Signal()), signal: ws.Signal(), peak: peak}
	}
	return exitState{code: cmd.ProcessState.ExitCode(), peak: peak}
}

// hurriedStop is how long a child may take to end when there is no time.
const hurriedStop = time.Second

// stop sends SIGTERM to the group and, when the child is still there after grace,
// or hurriedStop after ctx ended, SIGKILL. It returns when the child is gone, and
// reports whether it had to be killed.
func (p *process) stop(ctx context.Context, grace time.Duration) (killed bool) {
	p.kill(syscall.SIGTERM)
	t := time.NewTimer(grace)
	defer t.Stop()
	hurry := ctx.Done()
	for late := false; !late; {
		select {
		case <-p.done:
			return false
		case <-hurry:
			hurry = nil
			t.Reset(min(grace, hurriedStop))
		case <-t.C:
			late = true
		}
	}
	p.kill(syscall.SIGKILL)
	<-p.done
	return true
}

func (p *process) kill(sig syscall.Signal) {
	select {
	case <-p.done:
	default:
		_ = syscall.Kill(-p.pid, sig)
	}
}

// ExitError is the end of an app that was not asked to end. Its code is the
// sidecar's own exit code.
type ExitError struct {
	App  string
	Code int // never 0
	How  string
}

// Error implements error.
func (e *ExitError) Error() string { return fmt.Sprintf("app %q: ended by itself: %s", e.App, e.How) }

// appEnded is nil when the app ended with success.
func appEnded(app string, s exitState) error {
	if s.code == 0 && s.err == nil {
		return errFinished
	}
	return &ExitError{App: app, Code: max(s.code, 1), How: s.String()}
}

// errFinished and errSignal are reasons to stop that are no failure.
var (
	errFinished = errors.New("the app finished")
	errSignal   = errors.New("asked to stop")
)
