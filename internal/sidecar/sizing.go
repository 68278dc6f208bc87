package sidecar

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"syscall"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/envoy"
)

// SizingStatus is what one Envoy may use. Zero: no limit.
type SizingStatus struct {
	Concurrency int          `json:"concurrency"` // worker threads
	Connections int64        `json:"connections"` // of all listeners together
	CPU         float64      `json:"cpu"`         // cores
	Memory      config.Bytes `json:"memory"`
	Heap        config.Bytes `json:"heap"` // of Memory: above it Envoy sheds load

	// InboundConnections is MaxInboundConnections of the service's entry, as it is in
	// force in Envoy.
	InboundConnections int64 `json:"inbound_connections"`

	// Cgroup holds Envoy to CPU and Memory; CgroupProblem says why there is none
	// although one of them is given.
	Cgroup        string `json:"cgroup,omitempty"`
	CgroupProblem string `json:"cgroup_problem,omitempty"`

	Hot     []string `json:"hot"`                // change while Envoy runs
	Restart []string `json:"restart"`            // change when the sidecar starts
	Pending []string `json:"pending,omitempty"`  // changed in the definition, not in force yet
	Notes   []string `json:"problems,omitempty"` // what could not be had as asked for
}

// hostSize is what a sizing has to fit in.
type hostSize struct {
	files  uint64 // that Envoy may open; 0: unknown
	memory int64  // that the sidecar's own cgroup leaves to Envoy; 0: no limit
}

// leastFiles is POSIX's guess where the host does not say.
const leastFiles = 1024

// settleSizes completes what was asked for.
func settleSizes(want config.Sizing, concurrency int, host hostSize) SizingStatus {
	st := SizingStatus{Concurrency: concurrency, CPU: want.CPU, Memory: want.MemoryBytes}
	files := host.files
	if files == 0 {
		files = leastFiles
	}
	// Each connection needs a second descriptor for where it is passed on to. Below
	// half of them nothing else runs short.
	most := max(int64(min(files, 1<<21))/2-64, 16)
	st.Connections = most
	if n := int64(want.MaxConnections); n > most {
		st.Notes = append(st.Notes, fmt.Sprintf("connections: %d asked for, Envoy may open %d files, which is enough for %d: raise RLIMIT_NOFILE", n, files, most))
	} else if n > 0 {
		st.Connections = n
	}
	if host.memory > 0 && (st.Memory == 0 || int64(st.Memory) > host.memory) {
		if st.Memory > 0 {
			st.Notes = append(st.Notes, fmt.Sprintf("memory: %s asked for, the sidecar's cgroup allows %s", st.Memory, config.Bytes(host.memory)))
		}
		st.Memory = config.Bytes(host.memory)
	}
	if st.Memory > 0 {
		st.Heap = config.Bytes(envoy.HeapLimit(int64(st.Memory)))
		room := envoy.ConnectionLimit(int64(st.Heap))
		if int64(want.MaxConnections) > room {
			st.Notes = append(st.Notes, fmt.Sprintf("connections: %d asked for, a heap of %s has room for %d: give the sidecar more memory", want.MaxConnections, st.Heap, room))
		}
		st.Connections = min(st.Connections, room)
	}
	return st
}

// defaultConcurrency is the number of workers for a share of a host's cores: more
// would only take turns.
func defaultConcurrency(cpu float64, cores int) int {
	n := min(cores, 2)
	if cpu > 0 {
		n = min(n, int(math.Ceil(cpu)))
	}
	return max(n, 1)
}

// openSizes settles Envoy's sizes, with a cgroup where the host lets it have one.
func (s *sidecar) openSizes() {
	want := s.opts.Definition.Sizing()
	var host hostSize
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err == nil {
		host.files = files.Max // to which Envoy raises its own
	}
	own, err := ownCgroup(realKernel{})
	if err == nil && len(s.opts.App) == 0 {
		host.memory = memoryLimit(realKernel{}, own) // an app would share it
	}
	st := settleSizes(want, s.opts.Concurrency, host)
	if l := (limits{cpu: want.CPU, memory: int64(want.MemoryBytes)}); l != (limits{}) {
		if err == nil {
			s.group, err = openCgroup(realKernel{}, own, s.opts.Definition.Service.ID, l)
		}
		if err != nil {
			st.CgroupProblem = err.Error()
			s.log.Warn("cpu and memory of Envoy are not limited by the kernel, Envoy alone keeps to its heap limit", "reason", err)
		} else {
			st.Cgroup = s.group.path
		}
	}
	st.Hot, st.Restart = []string{"inbound_connections"}, []string{"concurrency", "connections"}
	if st.Cgroup != "" {
		st.Hot = append(st.Hot, "cpu")
	} else {
		st.Restart = append(st.Restart, "cpu")
	}
	if st.Heap > 0 {
		st.Hot = append(st.Hot, "memory")
	} else {
		st.Restart = append(st.Restart, "memory")
	}
	for _, note := range st.Notes {
		s.log.Warn("a size is not as asked for", "size", note)
	}
	s.sizes, s.asked = st, want
	s.board.set(func(b *Status) { b.Sizing = st })
}

// resize puts a changed sizing in force as far as that goes while Envoy runs, and
// says what waits for a restart of the sidecar.
func (s *sidecar) resize(ctx context.Context) {
	if s.opts.Reread == nil || !s.started.Load() {
		return
	}
	d, err := s.opts.Reread()
	if err != nil {
		s.log.Error("the service definition cannot be read again, sizes stay", "error", err)
		return
	}
	now := s.sizes
	next, err := s.resizeTo(ctx, d.Sizing(), now)
	if err != nil {
		s.log.Error("sizes cannot be changed", "error", err)
	}
	if slices.Equal(next.Pending, now.Pending) && next.CPU == now.CPU && next.Memory == now.Memory {
		return
	}
	s.sizes = next
	s.board.set(func(b *Status) {
		next.InboundConnections = b.Sizing.InboundConnections
		b.Sizing = next
	})
	s.log.Info("sizes changed", "cpu", next.CPU, "memory", next.Memory, "waiting_for_a_restart", next.Pending)
}

// resizeTo changes what can be changed. What it could not is pending.
func (s *sidecar) resizeTo(ctx context.Context, want config.Sizing, now SizingStatus) (SizingStatus, error) {
	next := now
	next.Pending = nil
	pend := func(name string) { next.Pending = append(next.Pending, name) }
	if want.Concurrency != s.asked.Concurrency {
		pend("concurrency")
	}
	if want.MaxConnections != s.asked.MaxConnections {
		pend("connections")
	}
	var errs []error
	if want.CPU != s.asked.CPU {
		if s.group == nil || want.CPU == 0 {
			pend("cpu")
		} else if err := s.group.set(limits{cpu: want.CPU, memory: int64(now.Memory)}); err != nil {
			errs = append(errs, err)
			pend("cpu")
		} else {
			next.CPU, s.asked.CPU = want.CPU, want.CPU
		}
	}
	if want.MemoryBytes != s.asked.MemoryBytes {
		heap := envoy.HeapLimit(int64(want.MemoryBytes))
		if now.Heap == 0 || want.MemoryBytes == 0 {
			pend("memory")
		} else if err := s.setMemory(ctx, limits{cpu: next.CPU, memory: int64(want.MemoryBytes)}, heap); err != nil {
			errs = append(errs, err)
			pend("memory")
		} else {
			next.Memory, next.Heap, s.asked.MemoryBytes = want.MemoryBytes, config.Bytes(heap), want.MemoryBytes
		}
	}
	return next, errors.Join(errs...)
}

// setMemory changes the heap limit of the Envoy that runs, and of those to come.
func (s *sidecar) setMemory(ctx context.Context, l limits, heap int64) error {
	if s.group != nil {
		if err := s.group.set(l); err != nil {
			return err
		}
	}
	if err := s.admin.Post(ctx, fmt.Sprintf("/runtime_modify?%s=%d", envoy.HeapLimitKey, heap)); err != nil {
		return err
	}
	return s.writeBootstrap(heap)
}

// watchSizes looks at Envoy from time to time, raises alarms, and shows what is in
// force, until ctx ends.
func (s *sidecar) watchSizes(ctx context.Context) {
	const every = 10 * time.Second
	var g growth
	pid := 0
	for sleep(ctx, every) {
		now := s.envoyPID()
		if now == 0 {
			continue
		}
		if now != pid {
			g, pid = growth{}, now
		}
		look, err := s.watch.look(ctx, pid)
		if err != nil {
			continue // it ended meanwhile, which its supervisor reports
		}
		var raised []Alarm
		g, raised = g.step(time.Now().UTC(), look.sample)
		for _, a := range raised {
			s.log.Warn("alarm", "name", a.Name, "text", a.Text, "pid", pid)
		}
		alarms := slices.Clone(g.alarms)
		s.board.set(func(b *Status) {
			b.Alarms = alarms
			b.Sizing.InboundConnections = look.inbound
		})
	}
}

func (s *sidecar) envoyPID() (pid int) {
	s.board.set(func(b *Status) { pid = b.Envoy.PID })
	return pid
}
