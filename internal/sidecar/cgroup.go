package sidecar

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// cpuPeriod is the kernel's own, in microseconds: a limit bites, and is given back,
// ten times a second.
const cpuPeriod = 100_000

// limits are what a cgroup holds its processes to. Zero: no limit.
type limits struct {
	cpu    float64 // cores
	memory int64   // bytes
}

// kernel is the part of the file system that cgroups are made with.
type kernel interface {
	read(path string) (string, error)
	write(path, value string) error // to a file that exists
	mkdir(path string) error        // no error when it is there
	remove(path string) error
}

// realKernel is the host's.
type realKernel struct{}

func (realKernel) read(path string) (string, error) {
	b, err := os.ReadFile(path)
	return string(b), err
}

func (realKernel) write(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

func (realKernel) mkdir(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func (realKernel) remove(path string) error { return syscall.Rmdir(path) }

// cgroup is a cgroup (version 2) for one Envoy, below the sidecar's own.
type cgroup struct {
	kernel kernel
	path   string
}

// folder is where it is, "" of none.
func (c *cgroup) folder() string {
	if c == nil {
		return ""
	}
	return c.path
}

// ownCgroup is the folder of this process's cgroup. It is an error when there is
// no version 2 of them.
func ownCgroup(k kernel) (string, error) {
	mounts, err := k.read("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	own, err := k.read("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	mount, root := "", ""
	for line := range strings.Lines(mounts) {
		before, after, _ := strings.Cut(line, " - ")
		if f := strings.Fields(before); strings.HasPrefix(after, "cgroup2 ") && len(f) > 4 {
			root, mount = f[3], f[4]
		}
	}
	for line := range strings.Lines(own) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok && mount != "" {
			if root != "/" {
				path = strings.TrimPrefix(path, root)
			}
			return filepath.Join(mount, path), nil
		}
	}
	return "", errors.New("this host has no cgroups of version 2")
}

// openCgroup makes a cgroup below base, that of this process, and sets its limits.
// It tries rather than asks, since who may do it depends on much: an error says why
// it can't be done here.
func openCgroup(k kernel, base, name string, l limits) (*cgroup, error) {
	var need []string
	if l.cpu > 0 {
		need = append(need, "cpu")
	}
	if l.memory > 0 {
		need = append(need, "memory")
	}
	if err := delegate(k, base, need); err != nil {
		return nil, fmt.Errorf("cgroup %q: %w", base, err)
	}
	c := &cgroup{kernel: k, path: filepath.Join(base, "crossfade-"+folderName(name))}
	if err := k.mkdir(c.path); err != nil {
		return nil, fmt.Errorf("cgroup %q: can't be made: %w", c.path, cause(err))
	}
	if err := c.set(l); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// delegate lets cgroups below base have controllers. Where only this process is in
// base, it moves aside first, since a cgroup has either processes or limited children.
func delegate(k kernel, base string, need []string) error {
	enabled, err := k.read(filepath.Join(base, "cgroup.subtree_control"))
	if err != nil {
		return cause(err)
	}
	if missing(strings.Fields(enabled), need) == nil {
		return nil
	}
	offered, err := k.read(filepath.Join(base, "cgroup.controllers"))
	if err != nil {
		return cause(err)
	}
	if m := missing(strings.Fields(offered), need); m != nil {
		return fmt.Errorf("no %s controller: it is not delegated to this cgroup (systemd: Delegate=yes), or held by cgroups of version 1", strings.Join(m, " and no "))
	}
	want := "+" + strings.Join(need, " +")
	control := filepath.Join(base, "cgroup.subtree_control")
	err = k.write(control, want)
	if !errors.Is(err, syscall.EBUSY) {
		return cause(err)
	}
	self := strconv.Itoa(os.Getpid())
	members, err := k.read(filepath.Join(base, "cgroup.procs"))
	if err != nil {
		return cause(err)
	}
	if others := slices.DeleteFunc(strings.Fields(members), func(pid string) bool { return pid == self }); len(others) > 0 {
		return fmt.Errorf("shared with %d other processes: run the sidecar in a cgroup of its own (systemd: a unit with Delegate=yes)", len(others))
	}
	aside := filepath.Join(base, "crossfade-sidecar")
	if err := k.mkdir(aside); err != nil {
		return cause(err)
	}
	if err := k.write(filepath.Join(aside, "cgroup.procs"), self); err != nil {
		return fmt.Errorf("the sidecar can't move to %q: %w", aside, cause(err))
	}
	return cause(k.write(control, want))
}

// missing is what of need is not in have.
func missing(have, need []string) []string {
	var out []string
	for _, n := range need {
		if !slices.Contains(have, n) {
			out = append(out, n)
		}
	}
	return out
}

// folderName is an ID with nothing in it that a path or the kernel would read as more than a name.
func folderName(id string) string {
	return strings.Map(func(r rune) rune {
		if r == '/' || r == '.' || r < ' ' {
			return '_'
		}
		return r
	}, id)
}

// set changes the limits, for processes that are in the cgroup too.
func (c *cgroup) set(l limits) error {
	cpu, memory := "max", "max"
	if l.cpu > 0 {
		cpu = strconv.Itoa(max(1000, int(math.Round(l.cpu*cpuPeriod)))) // the kernel's least
	}
	if l.memory > 0 {
		memory = strconv.FormatInt(l.memory, 10)
	}
	for _, s := range []struct {
		file, value string
		limited     bool
	}{{"cpu.max", cpu + " " + strconv.Itoa(cpuPeriod), l.cpu > 0}, {"memory.max", memory, l.memory > 0}} {
		err := c.kernel.write(filepath.Join(c.path, s.file), s.value)
		if err != nil && (s.limited || !errors.Is(err, fs.ErrNotExist)) { // a controller that nobody needs is not there
			return fmt.Errorf("cgroup %q: %s can't be set to %s: %w", c.path, s.file, s.value, cause(err))
		}
	}
	return nil
}

// close removes the cgroup. Nothing must be left in it.
func (c *cgroup) close() { _ = c.kernel.remove(c.path) }

// memoryLimit is the least that the cgroups from path upwards allow; 0: no limit.
func memoryLimit(k kernel, path string) (least int64) {
	for ; path != "/" && path != "."; path = filepath.Dir(path) {
		text, err := k.read(filepath.Join(path, "memory.max"))
		if err != nil {
			continue // no such controller here, or no cgroup any more
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64); err == nil && n > 0 && (least == 0 || n < least) {
			least = n
		}
	}
	return least
}
