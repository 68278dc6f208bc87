package lab

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// CPUs are the processors that this process may use.
func CPUs() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("which processors may be used: %w", err)
	}
	var out []int
	for cpu := range len(set) * 64 {
		if set.IsSet(cpu) {
			out = append(out, cpu)
		}
	}
	return out, nil
}

// Place is where processes run, and ahead of which.
type Place struct {
	CPU int
	// RealTime is ahead of all that is not: what the machine does beside the benchmark
	// does not show in it. Among each other such processes take turns.
	RealTime bool
}

// Start calls f so that processes which it starts in this goroutine, and theirs, are in the place.
func (p Place) Start(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, only unix.CPUSet
	only.Set(p.CPU)
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	if err := unix.SchedSetaffinity(0, &only); err != nil {
		return fmt.Errorf("processor %d: %w", p.CPU, err)
	}
	// What was in force before may be so again.
	defer func() { _ = unix.SchedSetaffinity(0, &before) }()
	if p.RealTime {
		normal, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			return err
		}
		if err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 1}, 0); err != nil {
			return fmt.Errorf("real-time scheduling: %w", err)
		}
		defer func() { _ = unix.SchedSetAttr(0, normal, 0) }()
	}
	return f()
}
