package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

const (
	// guardFileName, in the data directory, is the catalog that was let through last.
	guardFileName = "catalog.lastgood"
	// guardFileEvery is the least time between two writes of it, and guardFileShare the least between
	// two in terms of what one takes: a large catalog is written less often.
	guardFileEvery = 2 * time.Second
	guardFileShare = 20
	// guardFileRest is how long after a start that had the file it is not written: a fleet comes back then, and what
	// the file has is good.
	guardFileRest = 20 * time.Second
	// maxGuardFile bounds what is read, in bytes.
	maxGuardFile = 1 << 30
)

// guardFile keeps what was let through last on disk. A nil one keeps nothing.
type guardFile struct {
	path  string
	log   *slog.Logger
	dirty chan struct{} // capacity 1

	writing sync.Mutex // one at a time

	mu     sync.Mutex // guards what follows
	snap   *catalog.Snapshot
	held   []catalog.Held
	loaded time.Time // zero: it was not there
}

func newGuardFile(dir string, log *slog.Logger) *guardFile {
	return &guardFile{path: filepath.Join(dir, guardFileName), log: log, dirty: make(chan struct{}, 1)}
}

// load reads the file; nil when there is none, or none that can be used, which is said. What is in
// the registry as in the file is taken from there; have is nil where that is not known.
func (f *guardFile) load(have *catalog.Snapshot) (*catalog.Snapshot, []catalog.Held) {
	if f == nil {
		return nil, nil
	}
	file, err := os.Open(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		defer file.Close()
		var snap *catalog.Snapshot
		var held []catalog.Held
		if snap, held, err = catalog.ReadSaved(io.LimitReader(file, maxGuardFile), have); err == nil {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.snap, f.held, f.loaded = snap, held, time.Now()
			return snap, held
		}
	}
	f.log.Error("the last good catalog cannot be read: the first answer of the registry is taken as it is", "file", f.path, "err", err)
	return nil, nil
}

// keep has it written soon.
func (f *guardFile) keep(snap *catalog.Snapshot, held []catalog.Held) {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	same := f.snap != nil && len(catalog.Changed(f.snap, snap)) == 0 && sameHeld(f.held, held)
	f.snap, f.held = snap, held
	if same {
		return
	}
	select {
	case f.dirty <- struct{}{}:
	default:
	}
}

func sameHeld(a, b []catalog.Held) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Service != b[i].Service || a[i].Since != b[i].Since || a[i].Kept != b[i].Kept {
			return false
		}
	}
	return true
}

// run writes what is to be kept, the last of it when ctx ends.
func (f *guardFile) run(ctx context.Context) {
	failing := false
	write := func() time.Duration {
		began := time.Now()
		err := f.write()
		switch {
		case err != nil && !failing:
			f.log.Error("the last good catalog cannot be kept on disk", "file", f.path, "err", err)
		case err == nil && failing:
			f.log.Info("the last good catalog is kept on disk again", "file", f.path)
		}
		failing = err != nil
		return max(guardFileEvery, guardFileShare*time.Since(began))
	}
	pause := func(d time.Duration) {
		wait := time.NewTimer(d)
		defer wait.Stop()
		select {
		case <-ctx.Done():
		case <-wait.C:
		}
	}
	for {
		select {
		case <-ctx.Done():
		case <-f.dirty:
			f.mu.Lock()
			rest := time.Until(f.loaded.Add(guardFileRest))
			f.mu.Unlock()
			pause(rest)
			pause(write())
		}
		if ctx.Err() != nil {
			select {
			case <-f.dirty:
				write()
			default:
			}
			return
		}
	}
}

// now writes what is to be kept without delay.
func (f *guardFile) now() {
	if f == nil {
		return
	}
	if err := f.write(); err != nil {
		f.log.Error("a decision is in force, and lost when the server ends: it cannot be kept on disk", "err", err)
	}
}

// write replaces the file, all of it or nothing.
func (f *guardFile) write() (err error) {
	f.writing.Lock()
	defer f.writing.Unlock()
	f.mu.Lock()
	snap, held := f.snap, f.held
	f.mu.Unlock()
	tmp := f.path + ".tmp"
	file, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = catalog.WriteSaved(file, snap, held)
	if err = errors.Join(err, file.Sync(), file.Close()); err == nil {
		err = os.Rename(tmp, f.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", f.path, err), os.Remove(tmp))
	}
	return nil
}
