package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// CPUTime is what all threads of a process have run for, user and system, in
// nanoseconds of the scheduler. Time of threads that ended is lost; Envoy's do not end.
func CPUTime(pid int) (time.Duration, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	if len(tasks) == 0 {
		return 0, fmt.Errorf("process %d: gone, or the kernel keeps no schedstat", pid)
	}
	var sum time.Duration
	for _, path := range tasks {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue
		} else if err != nil {
			return 0, err
		}
		ran, _, _ := strings.Cut(string(b), " ")
		ns, err := strconv.ParseInt(ran, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

// ResidentSize is VmRSS in bytes; pages shared with others count in full.
func ResidentSize(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(l, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d: no VmRSS: it has ended", pid)
}

// Process is a child with its output in a file.
type Process struct {
	cmd  *exec.Cmd
	name string
	log  string
	done chan struct{} // closed when it has ended
	err  error         // how; valid after done
}

// Start starts a child that dies with this process. It is forked by the caller's thread, so
// that it is where [Place.Start] has put that.
func Start(name, logFile, path string, args ...string) (*Process, error) {
	return StartIn(os.Environ(), name, logFile, path, args...)
}

// StartIn is [Start] with an environment.
func StartIn(env []string, name, logFile, path string, args ...string) (*Process, error) {
	out, err := os.Create(logFile)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(path, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	p := &Process{cmd: cmd, name: name, log: logFile, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// PID is the child's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Stop asks with SIGTERM and, when that takes longer than patience, kills.
func (p *Process) Stop(patience time.Duration) {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(patience):
		p.cmd.Process.Kill()
		<-p.done
	}
}

// Kill ends the child at once.
func (p *Process) Kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// Await polls until ready says true, the process ends, or the limit passes.
func (p *Process) Await(ctx context.Context, what string, limit time.Duration, ready func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	for {
		ok, err := ready()
		if ok && err == nil {
			return nil
		}
		if err != nil {
			last = err
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s: ended before %s: %v: %s", p.name, what, p.err, p.lastWords())
		case <-ctx.Done():
			return fmt.Errorf("%s: not %s within %s (%v): %s", p.name, what, limit, last, p.lastWords())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// lastWords is the end of the child's output, for an error.
func (p *Process) lastWords() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	b = bytes.TrimSpace(b)
	return string(b[max(0, len(b)-1500):])
}

// Log is the file with the child's output.
func (p *Process) Log() string { return p.log }
