// Package process runs children that never outlive who started them.
//
// In: a [Command]. Out: a [Process] that runs in a process group of its own, so that a
// terminal's Ctrl-C reaches the parent alone; how it ended ([State]); and its output as it is
// written, by whole lines if wanted ([Lines]). The kernel kills a child when its parent dies,
// however that dies.
//
// When to start, how long to wait and what to do about an end are left to the caller.
package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// HurriedStop is how long a child may take to end when there is no time.
const HurriedStop = time.Second

// Command is what to run.
type Command struct {
	Argv []string
	Env  []string // nil: that of this process
	// Stdout and Stderr may be one writer; nil: /dev/null.
	Stdout, Stderr io.Writer
	// Cgroup is the folder of the cgroup (version 2) to run in; empty: that of this process.
	Cgroup string
}

// Process is a child that was started.
type Process struct {
	PID int

	done  chan struct{}
	state State // read after done is closed
}

// State is how a child ended.
type State struct {
	Code   int            // as a shell has it: 128+n for signal n
	Signal syscall.Signal // 0 unless killed by one
	Err    error          // the wait itself failed, or nothing could be started
	Peak   int64          // most memory it had, in bytes; 0: unknown
}

// String is "exit status 1" or "signal: killed".
func (s State) String() string {
	switch {
	case s.Signal != 0:
		return "signal: " + s.Signal.String()
	case s.Err != nil:
		return s.Err.Error()
	default:
		return fmt.Sprintf("exit status %d", s.Code)
	}
}

// Success reports an end with exit status 0.
func (s State) Success() bool { return s.Code == 0 && s.Err == nil }

// Start starts a child.
func Start(c Command) (*Process, error) {
	cmd := exec.Command(c.Argv[0], c.Argv[1:]...)
	cmd.Env = c.Env
	cmd.Stdout, cmd.Stderr = c.Stdout, c.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 2 * time.Second // grandchildren may hold the output open
	if c.Cgroup != "" {
		folder, err := os.Open(c.Cgroup)
		if err != nil {
			if pe, ok := errors.AsType[*fs.PathError](err); ok {
				err = pe.Err
			}
			return nil, fmt.Errorf("cgroup %q: %w", c.Cgroup, err)
		}
		defer folder.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(folder.Fd())
	}

	p := &Process{done: make(chan struct{})}
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
		p.PID = cmd.Process.Pid
		started <- nil
		p.state = stateOf(cmd, cmd.Wait())
		_ = syscall.Kill(-p.PID, syscall.SIGKILL) // whoever is left in the group
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func stateOf(cmd *exec.Cmd, err error) State {
	if cmd.ProcessState == nil {
		return State{Code: 1, Err: err}
	}
	var peak int64
	if used, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		peak = used.Maxrss << 10
	}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return State{Code: 128 + int(ws.Signal()), Signal: ws.Signal(), Peak: peak}
	}
	return State{Code: cmd.ProcessState.ExitCode(), Peak: peak}
}

// Done is closed when the child has ended and was waited for.
func (p *Process) Done() <-chan struct{} { return p.done }

// State is how the child ended. It waits until it has.
func (p *Process) State() State {
	<-p.done
	return p.state
}

// Alive reports whether the child has not ended yet.
func (p *Process) Alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Stop sends SIGTERM to the group and, when the child is still there after grace,
// or [HurriedStop] after ctx ended, SIGKILL. It returns when the child is gone, and
// reports whether it had to be killed.
func (p *Process) Stop(ctx context.Context, grace time.Duration) (killed bool) {
	p.Signal(syscall.SIGTERM)
	t := time.NewTimer(grace)
	defer t.Stop()
	hurry := ctx.Done()
	for late := false; !late; {
		select {
		case <-p.done:
			return false
		case <-hurry:
			hurry = nil
			t.Reset(min(grace, HurriedStop))
		case <-t.C:
			late = true
		}
	}
	p.Signal(syscall.SIGKILL)
	<-p.done
	return true
}

// Signal sends a signal to the child's group, unless the child has ended.
func (p *Process) Signal(sig syscall.Signal) {
	if p.Alive() {
		_ = syscall.Kill(-p.PID, sig)
	}
}
