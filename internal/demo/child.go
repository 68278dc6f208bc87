package demo

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/process"
)

// child is a process that was started.
type child struct {
	*process.Process
	name string
	log  string // where its output is
}

// start runs a command. Its output is appended to the file log.
func start(name, log string, env []string, path string, args ...string) (*child, error) {
	f, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p, err := process.Start(process.Command{Argv: append([]string{path}, args...), Env: env, Stdout: f, Stderr: f})
	if err != nil {
		return nil, fmt.Errorf("%s: cannot be started: %w", name, err)
	}
	return &child{p, name, log}, nil
}

// waitEnd waits for the process to end by itself and fails unless its exit code is 0.
func (c *child) waitEnd(ctx context.Context, limit time.Duration) error {
	select {
	case <-c.Done():
		if s := c.State(); !s.Success() {
			return fmt.Errorf("%s: %s", c.name, s)
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
