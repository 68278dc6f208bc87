package sidecar

import (
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// fakeKernel keeps cgroups as the kernel does: folders have control files, children
// have the controllers that their parent passes on, and a cgroup with processes
// passes on none.
type fakeKernel struct {
	files map[string]string
	fixed map[string]error // what a write to a file answers
}

func newFakeKernel(own, controllers string, pids ...string) *fakeKernel {
	k := &fakeKernel{files: map[string]string{
		"/proc/self/mountinfo": "25 31 0:22 / /proc rw - proc proc rw\n31 25 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n",
		"/proc/self/cgroup":    "0::" + own + "\n",
	}, fixed: map[string]error{}}
	k.add(path.Join("/sys/fs/cgroup", own), controllers, pids...)
	return k
}

func (k *fakeKernel) add(dir, controllers string, pids ...string) {
	k.files[dir] = ""
	k.files[dir+"/cgroup.controllers"] = controllers
	k.files[dir+"/cgroup.subtree_control"] = ""
	k.files[dir+"/cgroup.procs"] = strings.Join(pids, "\n")
	for c := range strings.FieldsSeq(controllers) {
		k.files[dir+"/"+c+".max"] = "max"
	}
}

func (k *fakeKernel) read(file string) (string, error) {
	text, ok := k.files[file]
	if !ok {
		return "", &fs.PathError{Op: "open", Path: file, Err: fs.ErrNotExist}
	}
	return text, nil
}

func (k *fakeKernel) write(file, value string) error {
	if _, err := k.read(file); err != nil {
		return err
	}
	if err := k.fixed[file]; err != nil {
		return &fs.PathError{Op: "write", Path: file, Err: err}
	}
	dir := path.Dir(file)
	switch path.Base(file) {
	case "cgroup.subtree_control":
		if k.files[dir+"/cgroup.procs"] != "" {
			return &fs.PathError{Op: "write", Path: file, Err: syscall.EBUSY}
		}
		k.files[file] = strings.ReplaceAll(value, "+", "")
	case "cgroup.procs":
		for other, pids := range k.files {
			if strings.HasSuffix(other, "/cgroup.procs") {
				left := slices.DeleteFunc(strings.Fields(pids), func(p string) bool { return p == value })
				k.files[other] = strings.Join(left, "\n")
			}
		}
		k.files[file] = value
	default:
		k.files[file] = value
	}
	return nil
}

func (k *fakeKernel) mkdir(dir string) error {
	if _, there := k.files[dir]; !there {
		k.add(dir, k.files[path.Dir(dir)+"/cgroup.subtree_control"])
	}
	return nil
}

func (k *fakeKernel) remove(dir string) error {
	delete(k.files, dir)
	return nil
}

func TestCgroup(t *testing.T) {
	self := strconv.Itoa(os.Getpid())
	const unit, base = "/system.slice/web.service", "/sys/fs/cgroup/system.slice/web.service"
	both := limits{cpu: 0.5, memory: 128 << 20}
	for name, tt := range map[string]struct {
		kernel *fakeKernel
		limits limits
		cpu    string // as written; "" when there is an error
		memory string
		err    string
	}{
		"delegated unit":   {newFakeKernel(unit, "cpu memory pids", self), both, "50000 100000", "134217728", ""},
		"cpu alone":        {newFakeKernel(unit, "cpu memory", self), limits{cpu: 2.25}, "225000 100000", "", ""},
		"least of cpu":     {newFakeKernel(unit, "cpu memory", self), limits{cpu: 0.001}, "1000 100000", "", ""},
		"not delegated":    {newFakeKernel(unit, "memory pids", self), both, "", "", "no cpu controller"},
		"version 1 has it": {newFakeKernel(unit, "", self), both, "", "", "no cpu and no memory controller"},
		"shared":           {newFakeKernel(unit, "cpu memory", self, "77", "78"), both, "", "", "shared with 2 other processes"},
		"read-only": {func() *fakeKernel {
			k := newFakeKernel(unit, "cpu memory", self)
			k.fixed[base+"/cgroup.subtree_control"] = syscall.EROFS
			return k
		}(), both, "", "", "read-only file system"},
	} {
		t.Run(name, func(t *testing.T) {
			own, err := ownCgroup(tt.kernel)
			if err != nil || own != base {
				t.Fatalf("own cgroup %q, %v", own, err)
			}
			c, err := openCgroup(tt.kernel, own, "web/1", tt.limits)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || !strings.Contains(err.Error(), base) {
					t.Fatalf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := c.path; got != base+"/crossfade-web_1" {
				t.Errorf("made %q", got)
			}
			if cpu, memory := tt.kernel.files[c.path+"/cpu.max"], tt.kernel.files[c.path+"/memory.max"]; cpu != tt.cpu || memory != tt.memory {
				t.Errorf("cpu.max %q, memory.max %q; want %q, %q", cpu, memory, tt.cpu, tt.memory)
			}
			if got := tt.kernel.files[base+"/crossfade-sidecar/cgroup.procs"]; got != self {
				t.Errorf("moved aside: %q", got)
			}
			c.close()
			if _, there := tt.kernel.files[c.path]; there {
				t.Error("it is still there")
			}
		})
	}
}

// A root cgroup may have processes and limited children.
func TestCgroupAlreadyDelegated(t *testing.T) {
	k := newFakeKernel("/", "cpu memory", "1", "2")
	k.files["/sys/fs/cgroup/cgroup.subtree_control"] = "cpu memory io"
	base, err := ownCgroup(k)
	if err != nil {
		t.Fatal(err)
	}
	c, err := openCgroup(k, base, "web", limits{memory: 1 << 30})
	if err != nil || k.files[c.path+"/memory.max"] != "1073741824" {
		t.Fatalf("%v, %q", err, k.files["/sys/fs/cgroup/crossfade-web/memory.max"])
	}
	if err := c.set(limits{cpu: 1, memory: 2 << 30}); err != nil || k.files[c.path+"/memory.max"] != "2147483648" || k.files[c.path+"/cpu.max"] != "100000 100000" {
		t.Errorf("changed: %v, %v", err, k.files)
	}
}

func TestNoCgroups2(t *testing.T) {
	k := newFakeKernel("/", "")
	k.files["/proc/self/mountinfo"] = "31 25 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
	if _, err := ownCgroup(k); err == nil {
		t.Error("found one")
	}
}

func TestMemoryLimitOfAncestors(t *testing.T) {
	k := newFakeKernel("/a/b", "memory")
	k.add("/sys/fs/cgroup/a", "memory")
	k.files["/sys/fs/cgroup/a/b/memory.max"] = "300000000\n"
	if got := memoryLimit(k, "/sys/fs/cgroup/a/b"); got != 300000000 {
		t.Errorf("limit %d", got)
	}
	k.files["/sys/fs/cgroup/a/memory.max"] = "200000000\n"
	if got := memoryLimit(k, "/sys/fs/cgroup/a/b"); got != 200000000 {
		t.Errorf("limit %d", got)
	}
}

// On this host either the limits are set, or the reason says which cgroup lacks what.
func TestCgroupHere(t *testing.T) {
	base, err := ownCgroup(realKernel{})
	if err != nil {
		if !strings.Contains(err.Error(), "cgroups of version 2") {
			t.Error(err)
		}
		return
	}
	c, err := openCgroup(realKernel{}, base, "test", limits{cpu: 1, memory: 256 << 20})
	if err != nil {
		if !strings.HasPrefix(err.Error(), `cgroup "`) {
			t.Error(err)
		}
		return
	}
	defer c.close()
	if got, err := os.ReadFile(c.path + "/memory.max"); err != nil || strings.TrimSpace(string(got)) != "268435456" {
		t.Errorf("memory.max %q, %v", got, err)
	}
}
