package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/internal/sidecar"
)

// localWait is how long a sidecar may take to put old ways in force.
const localWait = 10 * time.Second

// revertLocal makes the sidecars with these state directories hold old ways, or lets them go.
func revertLocal(cmd *cobra.Command, s streams, dirs []string, release bool) error {
	found, err := stateDirs(s, dirs)
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range found {
		if err := revertOne(cmd, s, dir, release); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// stateDirs are those given, or those below where sidecars keep their state by default.
func stateDirs(s streams, given []string) ([]string, error) {
	where := given
	if len(given) == 0 {
		one, err := stateDir(s, "x")
		if err != nil {
			return nil, err
		}
		where = []string{filepath.Dir(one)}
	}
	var out []string
	for _, dir := range where {
		if _, err := os.Stat(filepath.Join(dir, sidecar.StatusFile)); err == nil {
			out = append(out, dir)
			continue
		}
		below, err := filepath.Glob(filepath.Join(dir, "*", sidecar.StatusFile))
		if err != nil || len(below) == 0 {
			return nil, fmt.Errorf("state directory %q: no sidecar has kept its state there, or below: set --state-dir", dir)
		}
		for _, file := range below {
			out = append(out, filepath.Dir(file))
		}
	}
	return out, nil
}

// revertOne is about one sidecar.
func revertOne(cmd *cobra.Command, s streams, dir string, release bool) error {
	began := time.Now()
	file := filepath.Join(dir, sidecar.LocalFile)
	var err error
	if release {
		if err = os.Remove(file); errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	} else if _, missing := os.Stat(file); missing != nil {
		err = os.WriteFile(file, []byte("by crossfade revert --local\n"), 0o600)
	}
	if err != nil {
		return fmt.Errorf("sidecar in %q: %w", dir, err)
	}
	l, err := sidecar.LookAt(dir)
	if err != nil {
		return err
	}
	st := l.Status
	if st.State == sidecar.Stopped || syscall.Kill(st.PID, syscall.SIGUSR1) != nil {
		fmt.Fprintf(s.out, "%s: does not run; it counts when it starts\n", st.ID)
		return nil
	}
	for time.Since(began) < localWait {
		if l, err = sidecar.LookAt(dir); err != nil {
			return err
		}
		held := l.Status.XDS.Local
		switch {
		case release && held == nil:
			fmt.Fprintf(s.out, "%s: released, servers decide again\n", st.ID)
			return nil
		case !release && held != nil && held.Waiting == 0 && len(held.Destinations) == 0:
			fmt.Fprintf(s.out, "%s: none of its pairs was shifted; those that are will stay on their old way\n", st.ID)
			return nil
		case !release && held != nil && held.Waiting == 0:
			fmt.Fprintf(s.out, "%s: %d pairs on their old way: %s; acknowledged by Envoy in %v\n", st.ID, len(held.Destinations), strings.Join(held.Destinations, ", "), time.Since(began).Round(time.Millisecond))
			return nil
		}
		select {
		case <-cmd.Context().Done():
			return cmd.Context().Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return fmt.Errorf("sidecar %q: its Envoy has not acknowledged it in %v: look at %s", st.ID, localWait, filepath.Join(dir, sidecar.StatusFile))
}
