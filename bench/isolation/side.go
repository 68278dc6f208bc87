package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
	"github.com/crossfade-mesh/crossfade/bench/lab/load"
)

// sideEnv makes this program a side: it is the number of services.
const sideEnv = "ISOLATION_SIDE"

// side is a process of its own on its own processor: the apps of some services, and
// the load on them. So what the bursting service's app and callers cost is not taken
// from its neighbours.
type side struct {
	ports []int // of the apps

	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// order is one turn of a side, all its services at once.
type order struct {
	Calls            []call
	WarmUp, Measured time.Duration
}

// call is the load on one service.
type call struct {
	Addr        string
	Connections int
	Rate        float64 // 0: as many as come back
	Phase       float64 // as a crew has it
	Abandon     bool    // what is overdue at the end
}

// outcome of an order, by call.
type outcome struct {
	Answers []answers
	Problem string // why there is none; empty: there is
}

type answers struct {
	Latencies []time.Duration
	PerSecond float64
	Failures  []string
}

// startSide runs one in a place until its apps listen. Its end is that of ctx, or stop.
func startSide(ctx context.Context, at lab.Place, services int, stderr io.Writer) (*side, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := &side{cmd: exec.CommandContext(ctx, self)}
	// One thread waits in the kernel for what falls due next, the other serves connections.
	s.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", sideEnv, services), "GOMAXPROCS=2")
	s.cmd.Stderr = stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.out = json.NewDecoder(out)
	if err := at.Start(s.cmd.Start); err != nil {
		return nil, err
	}
	if err := s.out.Decode(&s.ports); err != nil {
		s.stop()
		return nil, fmt.Errorf("side on processor %d: %w", at.CPU, err)
	}
	return s, nil
}

// play has the side do one order.
func (s *side) play(o order) ([]answers, error) {
	if err := json.NewEncoder(s.in).Encode(o); err != nil {
		return nil, err
	}
	var got outcome
	err := s.out.Decode(&got)
	if err == nil && got.Problem != "" {
		err = errors.New(got.Problem)
	}
	return got.Answers, err
}

// stop ends the side: it has read all its orders.
func (s *side) stop() {
	s.in.Close()
	_ = s.cmd.Wait() // how it ended has shown in its outcomes
}

// serveSide is the side's own process: ports, then an outcome for each order, until there are no more.
func serveSide(in io.Reader, out io.Writer, services string) error {
	n, err := strconv.Atoi(services)
	if err != nil {
		return fmt.Errorf("%s %q: want a number", sideEnv, services)
	}
	// It makes little, and a collection would show in the latencies.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(512 << 20)
	var ports []int
	for range n {
		a, err := load.StartApp(load.HTTP, answerSize)
		if err != nil {
			return err
		}
		defer a.Stop()
		ports = append(ports, a.Port)
	}
	answer := json.NewEncoder(out)
	if err := answer.Encode(ports); err != nil {
		return err
	}
	crews := map[string]*load.Crew{}
	defer func() {
		for _, c := range crews {
			c.Close()
		}
	}()
	for orders := json.NewDecoder(in); ; {
		var o order
		if err := orders.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var got outcome
		if got.Answers, err = obey(o, crews); err != nil {
			got = outcome{Problem: err.Error()}
		}
		if err := answer.Encode(got); err != nil {
			return err
		}
	}
}

// obey plays an order with the crews of earlier ones, whose connections are still open.
func obey(o order, crews map[string]*load.Crew) ([]answers, error) {
	var (
		wg   sync.WaitGroup
		out  = make([]answers, len(o.Calls))
		errs = make([]error, len(o.Calls))
	)
	for i, call := range o.Calls {
		crew := crews[call.Addr]
		if crew == nil {
			crew = load.NewCrew(load.HTTP, call.Addr, call.Connections, answerSize)
			crews[call.Addr] = crew
		}
		crew.Rate, crew.Phase, crew.Abandon = call.Rate, call.Phase, call.Abandon
		wg.Go(func() { out[i], errs[i] = turn(crew, o.WarmUp, o.Measured) })
	}
	wg.Wait()
	return out, errors.Join(errs...)
}

func turn(crew *load.Crew, warmUp, measured time.Duration) (out answers, err error) {
	var (
		begun time.Time
		first uint64
	)
	var failures []error
	out.Latencies, failures, err = crew.Turn(context.Background(), warmUp, measured, load.Hooks{
		Begin: func(done uint64) error {
			begun, first = time.Now(), done
			return nil
		},
		End: func(done uint64) error {
			out.PerSecond = float64(done-first) / time.Since(begun).Seconds()
			return nil
		},
	})
	for _, f := range failures {
		out.Failures = append(out.Failures, f.Error())
	}
	return out, err
}
