package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
)

// TestMain is also the program of the children that tests kill or starve.
func TestMain(m *testing.M) {
	switch dir := os.Getenv("STORE_DIR"); os.Getenv("STORE_CHILD") {
	case "writer":
		exit(writeForever(dir))
	case "full":
		exit(fillDisk(dir))
	}
	os.Exit(m.Run())
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func child(t *testing.T, role, dir string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "STORE_CHILD="+role, "STORE_DIR="+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

// writeForever prints the name of each pair and service once its write is acknowledged.
func writeForever(dir string) error {
	s, err := store.Open(store.Options{Dir: dir, NodeName: "self", NodeAddress: "127.0.0.1"})
	if err != nil {
		return err
	}
	var out sync.Mutex
	var writers sync.WaitGroup
	failed := make(chan error, 4)
	for range cap(failed) {
		writers.Go(func() {
			for {
				name := strconv.FormatUint(rand.Uint64(), 36)
				err := s.Update(func(w *store.Writer) error {
					if err := w.PutService("self", catalog.Service{Name: name}); err != nil {
						return err
					}
					return w.PutKV(name, []byte(name), 0)
				})
				if err != nil {
					failed <- err
					return
				}
				out.Lock()
				fmt.Println(name)
				out.Unlock()
			}
		})
	}
	return <-failed
}

func TestAcknowledgedWritesSurviveKill(t *testing.T) {
	dir := t.TempDir()
	acked := map[string]bool{}
	var index uint64
	for round := range 6 {
		cmd := child(t, "writer", dir)
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(stdout)
		for left := rand.IntN(150); left >= 0 && lines.Scan(); left-- {
			acked[lines.Text()] = true
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() { // acknowledged while the signal was on its way
			if len(lines.Text()) > 0 {
				acked[lines.Text()] = true
			}
		}
		cmd.Wait()

		s := open(t, dir)
		s.Read(t.Context(), 0, func(r *store.Reader) {
			for name := range acked {
				if r.KV(name) == nil || len(r.Instances(name)) != 1 {
					t.Errorf("round %d: acknowledged write %q is gone", round, name)
				}
			}
			if r.Index() < index {
				t.Errorf("round %d: index fell from %d to %d", round, index, r.Index())
			}
			index = r.Index()
		})
		s.Close()
	}
	if len(acked) < 6 {
		t.Errorf("only %d writes were acknowledged", len(acked))
	}
}

// fillDisk lets the file grow a little, then no further, as a full disk would.
func fillDisk(dir string) error {
	s, err := store.Open(store.Options{Dir: dir, NodeName: "self", NodeAddress: "127.0.0.1"})
	if err != nil {
		return err
	}
	signal.Ignore(syscall.SIGXFSZ)
	file, err := os.Stat(filepath.Join(dir, "registry.db"))
	if err != nil {
		return err
	}
	limit := func(n uint64) error {
		var now syscall.Rlimit
		if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &now); err != nil {
			return err
		}
		return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: n, Max: now.Max})
	}
	if err := limit(uint64(file.Size()) + 100_000); err != nil {
		return err
	}
	put := func(i int) error {
		return s.Update(func(w *store.Writer) error { return w.PutKV(fmt.Sprint("k", i), make([]byte, 10_000), 0) })
	}
	written := 0
	for ; err == nil && written < 1000; written++ {
		err = put(written)
	}
	written--
	if err == nil || !strings.Contains(err.Error(), "nothing was written") {
		return fmt.Errorf("writes to a full disk: got error %v, want one that says that nothing was written", err)
	}
	if n := count(s); n != written {
		return fmt.Errorf("after the failed write: %d pairs in memory, want the %d that were acknowledged", n, written)
	}
	if err := put(written); err == nil {
		return errors.New("disk still full: write succeeded")
	}
	if err := limit(math.MaxUint64); err != nil {
		return err
	}
	if err := put(written); err != nil {
		return fmt.Errorf("disk has room again: %w", err)
	}
	if err := s.Close(); err != nil {
		return err
	}
	if s, err = store.Open(store.Options{Dir: dir}); err != nil {
		return err
	}
	if n := count(s); n != written+1 {
		return fmt.Errorf("after a restart: %d pairs, want %d", n, written+1)
	}
	return s.Close()
}

func count(s *store.Store) (n int) {
	s.Read(context.Background(), 0, func(r *store.Reader) { n = len(r.KVs("k")) })
	return n
}

func TestFullDiskRefusesWritesOnly(t *testing.T) {
	if out, err := child(t, "full", t.TempDir()).Output(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestSecondServerIsRefused(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	_, err := store.Open(store.Options{Dir: dir})
	want := fmt.Sprintf("data directory %q: in use by another crossfade server (pid %d)", dir, os.Getpid())
	if err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got error %v, want %q", err, want)
	}
}

func TestFilesAreForTheOwnerOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	open(t, dir)
	for name, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, "registry.db"): 0o600} {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := st.Mode().Perm(); got != want {
			t.Errorf("%s has mode %v, want %v", name, got, want)
		}
	}
}

func TestDamagedFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "registry.db"), []byte("this is no database, and long enough to be read as one"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(store.Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "registry.db: ") {
		t.Errorf("got error %v, want one that names registry.db", err)
	}
}
